"""What is the loss of one step, from the step's views to its parts?

Shape suffixes: B images of a batch, V view groups that the model embeds, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from care_sweep.errors import TrialDiverged
from care_sweep.learn.bases import Base
from care_sweep.learn.encoder import CareModel
from care_sweep.learn.objective import at_least_single, orthogonal_equivariance
from care_sweep.learn.ranks import Ranks

__all__ = ["StepLosses", "divergence", "step_losses"]


@dataclass(frozen=True)
class StepLosses:
    """The parts of one step's loss, on the device."""

    loss: Tensor
    contrast: Tensor
    equivariance: Tensor

    def stacked(self) -> Tensor:
        """(3,), without gradient."""
        return torch.stack([self.loss, self.contrast, self.equivariance]).detach()


def step_losses(
    model: CareModel,
    base: Base,
    views: Tensor,
    *,
    num_groups: int,
    equivariance_weight: float | Tensor | None,
    num_splits: int,
    precision: torch.dtype,
    ranks: Ranks | None = None,
) -> StepLosses:
    """The losses of a step.

    The model must be in the view groups that its batch normalisation is to see.

    Args:
        views: normalised images, group after group: the base's own, the two of L_equi where there is a
            weight, then those that the base holds.
        num_groups: V, all but the held ones.
        equivariance_weight: None leaves L_equi out.
        precision: what the encoders compute in; losses are float32 or more.
        ranks: those that have other images of the batch; the losses are of all.
    """
    num_images = len(views) // (num_groups + base.num_held)
    embedded, held = views.tensor_split([num_groups * num_images])
    with torch.autocast(
        views.device.type, precision, enabled=precision != torch.float32, cache_enabled=False
    ):
        outputs = at_least_single(model.outputs(embedded))
        outputs = outputs if ranks is None else ranks.gathered(outputs, num_groups)
        outputs_VBD = outputs.chunk(num_groups)
        contrast = base(outputs_VBD[: base.num_embedded], held)
    if equivariance_weight is None:
        return StepLosses(contrast, contrast, torch.zeros_like(contrast))
    z1_BD, z2_BD = map(normalize, outputs_VBD[base.num_embedded :])
    equivariance = orthogonal_equivariance(z1_BD, z2_BD, num_splits)
    return StepLosses(contrast + equivariance_weight * equivariance, contrast, equivariance)


def divergence(where: str, contrast: str | None, found: Sequence[float]) -> TrialDiverged:
    """What to raise where a step's loss, contrast, equivariance or gradient norm (`found`) is not finite."""
    loss, contrast_value, equivariance, norm = found
    return TrialDiverged(
        f"not finite in {where}: loss {loss:g}, {contrast or 'no contrast'} {contrast_value:g}, equivariance "
        f"{equivariance:g}, gradient norm {norm:g}; a lower learning_rate or a higher temperature may help"
    )
