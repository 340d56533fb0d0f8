"""How accurate is an encoder on the test split? The one reader of that split; its caller counts each time.

kNN and the linear probes learn from train and validation together, the whole published train split, as the
published accuracies have it. The encoder itself was trained without the validation images.
"""

import torch
from torch import Tensor

from care_sweep.learn.checkpoint import LoadedEncoder
from care_sweep.learn.data import Dataset, Split
from care_sweep.learn.evaluate import Features, encode, fit_probes, knn_metrics, probe_metrics

__all__ = ["accuracies_on_test"]


def accuracies_on_test(encoder: LoadedEncoder, data: Dataset) -> dict[str, float]:
    """Accuracies in [0, 1] on the test images of a dataset, which need not be the encoder's own.

    Returns `test_knn_accuracy` (of `knn_neighbors`); `test_probe_accuracy` of the probe of the trial's seed,
    with `_mean` and `_spread` (sample standard deviation) over that and the next 2 seeds;
    `num_test_images`.
    """
    data = encoder.as_its_own(data)
    device = next(encoder.parameters()).device

    def encoded(*splits: Split) -> tuple[Tensor, Tensor]:
        features = [encode(encoder.model, split.images, data, device) for split in splits]
        return torch.cat(features), torch.cat([split.labels for split in splits]).to(device)

    features = Features(*encoded(data.train, data.validation), *encoded(data.test))
    probes = fit_probes(features, data, encoder.config)
    metrics = {**knn_metrics(features, encoder.config), **probe_metrics(features, probes)}
    return {name.replace("validation", "test"): value for name, value in metrics.items()}
