"""What does a person read who finds a checkpoint? Its README, a model card."""

from collections.abc import Mapping, Sequence

from care_sweep.spec import TrialConfig

__all__ = ["method_name", "model_card"]

_CARD = """\
# {encoder}, pretrained with {method} on {dataset}

An image encoder trained without labels by care-sweep (CARE: Gupta et al., ICLR 2024, arXiv 2306.13924). The
linear probe beside it was trained on the frozen features of clean images, with labels, from weights of 0;
the published probe sees augmented images and starts at random.

    import care_sweep
    encoder = care_sweep.load("checkpoint.tar")
    features = encoder(images)        # (N, 3, h, w), uint8 or float in [0, 1]
    embeddings = encoder.project(images)
    classes = encoder.classify(images)

## Measured

On {images} (10 % of train, stratified, seed 0), never on the test split.

| metric | value |
|---|---|
{measured}

## Training losses

Means over the steps of the last epoch, on augmented train images.

| loss | value |
|---|---|
{losses}

## Trained with

| setting | value |
|---|---|
{settings}

Lambda on the published scale: {published:g}.

Classes of the probe: {classes}.

`manifest.json` has the dataset's fingerprint, the versions and the command that trains it again.
"""


def model_card(config: TrialConfig, metrics: Mapping[str, float], class_names: Sequence[str]) -> str:
    """The model card in Markdown."""
    size = config.batch_size // config.num_splits
    num_images = metrics.get("num_validation_images")
    losses = {name: value for name, value in metrics.items() if name.startswith("train_")}
    measured = {name: metrics[name] for name in metrics if name not in (*losses, "num_validation_images")}
    return _CARD.format(
        encoder=config.encoder,
        method=method_name(config),
        dataset=config.dataset,
        images="validation images" if num_images is None else f"{num_images:.0f} validation images",
        measured=_numbers(measured),
        losses=_numbers(losses),
        settings=_rows(config.model_dump(mode="json", exclude_none=True)),
        published=config.equivariance_weight / (2 * (size - 1)),
        classes=", ".join(class_names),
    )


def _numbers(values: Mapping[str, float]) -> str:
    return _rows({name: f"{value:.6g}" for name, value in sorted(values.items())})


def method_name(config: TrialConfig) -> str:
    """The method and what was left out of it or added, in words."""
    base = {"simclr": "SimCLR", "moco": "MoCo-v2", "barlow_twins": "Barlow Twins"}[config.base]
    if config.objective == "none":
        return "L_equi alone (CARE without a contrastive part)"
    if config.objective != "infonce":
        return f"{config.objective} alone" + (" and L_equi" if config.equivariance_weight else "")
    if config.equivariance_weight == 0:
        return f"{base} (CARE with equivariance weight 0)"
    return "CARE" if config.base == "simclr" else f"CARE on {base}"


def _rows(values: Mapping[str, object]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in values.items())
