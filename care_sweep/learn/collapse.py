"""Has an encoder collapsed: do all images lie at one point, or on one line?

Two of the measures guard and are no objectives: they compare trials of one method, and a higher value is not
a better encoder. They see the projected embeddings, in which collapse happens; an encoder whose projector has
collapsed may still have useful features.
"""

from collections.abc import Mapping

__all__ = ["sign_of_collapse"]

_LEAST_SPREAD = 0.2
"""Seen with resnet_tiny on cifar10-mini (seed 0, batches of 128) after epochs 1 to 4: L_equi alone 0.12 to
0.10, alignment alone 0.04 to 0.02; with InfoNCE or uniformity 0.78 to 0.99 up to weight 3, and no lower than
0.37 at weight 30; MoCo 0.49 and more. The start has 0.47."""

_LEAST_RANK = 1.5
"""A line has 1, two directions that carry alike have 2. The rank does not see L_equi alone (17 to 20)."""


def sign_of_collapse(metrics: Mapping[str, float]) -> str | None:
    """What in the `embedding_metrics` of an epoch says collapse; None where nothing does."""
    for name, least in (("embedding_spread", _LEAST_SPREAD), ("effective_rank", _LEAST_RANK)):
        if metrics[name] < least:
            return (
                f"all images are embedded at about one point or on one line: {name} {metrics[name]:.3g} is "
                f"below {least}; an objective with uniformity, such as infonce, or a lower "
                "equivariance_weight keeps them apart"
            )
    return None
