"""What is one trial told, and which of its fields must fit each other?"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from care_sweep.documents import Document

__all__ = [
    "FIELDS_OF_DEVICES",
    "FIELD_RULES",
    "NEVER_SEARCHED",
    "FieldRule",
    "TrialConfig",
    "misfit_of_devices",
]


NEVER_SEARCHED = ("dataset", "resize", "epochs", "knn_neighbors", "probe_epochs", "seed")
"""They define what a measurement means, so all trials of a sweep share them."""


class TrialConfig(Document):
    """Everything one trial is told; two equal configurations on one machine train the same weights.

    `equivariance_weight` is on our scale: the loss is a mean over ordered pairs, so
    lambda_ours = lambda_published * 2 * (batch_size / num_splits - 1).
    """

    dataset: str = Field(
        "cifar10-mini",
        min_length=1,
        max_length=1024,
        description="images: a set by name, such as cifar10, or folder:, parquet: or imagenet100: before a "
        "path or s3://BUCKET/PREFIX",
    )
    resize: int | None = Field(None, ge=8, le=512, description="side in pixels, for images of mixed size")
    encoder: Literal["resnet_tiny", "resnet18", "resnet50"] = Field(
        "resnet18", description="the network that is trained and kept; resnet_tiny is small enough for a CPU"
    )
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar",
        description="first layers of a ResNet: a 3x3 convolution, or torchvision's own (7x7 with stride 2, "
        "max-pool) for images of 64 pixels and more",
    )
    epochs: int = Field(100, ge=1, le=10_000, description="passes over the train images")
    batch_size: int = Field(256, ge=2, le=16_384, description="images a step; each gives two views")
    num_splits: int = Field(16, ge=1, le=8192, description="groups of images that share an augmentation")
    equivariance_weight: float = Field(
        0.3, ge=0, le=1e6, description="of L_equi in the loss; 0 is the base alone"
    )
    temperature: float = Field(
        0.5, ge=1e-3, le=100, description="of InfoNCE's softmax; barlow_twins has none"
    )
    augmentation_strength: float = Field(
        1.0, ge=0, le=2, description="of all augmentations at once: 1 as published, 0 only flips"
    )
    least_crop_scale: float = Field(
        0.08,
        gt=0,
        le=1,
        description="least share of the image's area in a crop, at augmentation_strength 1 and above",
    )
    base: Literal["simclr", "moco", "barlow_twins"] = Field(
        "simclr", description="the contrastive method, with or without L_equi"
    )
    objective: Literal["infonce", "alignment", "uniformity", "none"] = Field(
        "infonce", description="infonce is the whole loss of the base; others leave terms out (Section 5.2)"
    )
    augmentation_scope: Literal["split", "batch"] = Field(
        "split", description="who shares an augmentation in L_equi; batch is the published code"
    )
    batch_norm: Literal["per_view", "joint"] = Field(
        "per_view", description="statistics of each view group, as published, or of all views of a step"
    )
    queue_size: int = Field(4096, ge=2, le=2**20, description="keys that MoCo compares with")
    key_encoder_momentum: float = Field(
        0.99, ge=0, lt=1, description="share of its weights that MoCo's key encoder keeps each step"
    )
    redundancy_weight: float = Field(
        0.0051, ge=0, le=1e3, description="Barlow Twins' weight of what is off the diagonal"
    )
    optimizer: Literal["adam", "sgd"] = Field("adam", description="sgd has a momentum of 0.9")
    learning_rate: float = Field(1e-3, gt=0, le=100, description="after the warm-up")
    weight_decay: float = Field(1e-6, ge=0, le=10, description="an L2 penalty, in the gradient")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up; cosine falls to 0 at the end"
    )
    warmup_epochs: int = Field(
        0, ge=0, le=10_000, description="in which the learning rate rises in a line from 0"
    )
    knn_neighbors: int = Field(
        200, ge=1, le=1_000_000, description="k of the weighted kNN (capped at the size of train)"
    )
    probe_epochs: int = Field(100, ge=1, le=10_000, description="epochs of the linear probe")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="what convolutions and matrix products of training compute in; weights, statistics and "
        "losses are float32, IEEE's and not TF32. auto: bfloat16 on a GPU that has it, float32 on a CPU",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="whether steps are compiled, and on a GPU captured as one graph. auto: on a GPU, unless "
        "several train the trial",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of initialisation, order and augmentations")

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        for _, problem in FIELD_RULES:
            found = problem({name: getattr(self, name) for name in type(self).model_fields})
            if found is not None:
                raise found
        return self


def _splits_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    batch_size, num_splits = values["batch_size"], values["num_splits"]
    if batch_size % num_splits:
        return PydanticCustomError(
            "indivisible",
            "num_splits {splits} does not divide batch_size {batch}; {suggestion} would",
            {
                "splits": num_splits,
                "batch": batch_size,
                "suggestion": _nearest_divisor(batch_size, num_splits),
                "key": "num_splits",
            },
        )
    if batch_size // num_splits < 2:
        return PydanticCustomError(
            "lonely_split",
            "a split needs 2 images to have a pair: with batch_size {batch}, use at most {most} splits",
            {"batch": batch_size, "most": batch_size // 2, "key": "num_splits"},
        )
    return None


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((d for d in range(1, number // 2 + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def _stem_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["stem"] == "cifar" or values["encoder"] != "resnet_tiny":
        return None
    return PydanticCustomError(
        "stem_of_another_encoder",
        "{encoder} has a stem of its own, for small images: use stem cifar with it, "
        "or stem {stem} with encoder resnet18 or resnet50",
        {"encoder": values["encoder"], "stem": values["stem"], "key": "stem"},
    )


def _warmup_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["warmup_epochs"] <= values["epochs"]:
        return None
    return PydanticCustomError(
        "long_warmup",
        "a warm-up of {warmup} epochs does not fit into {epochs}",
        {"warmup": values["warmup_epochs"], "epochs": values["epochs"], "key": "warmup_epochs"},
    )


def _queue_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["base"] != "moco" or values["queue_size"] >= values["batch_size"]:
        return None
    return PydanticCustomError(
        "short_queue",
        "MoCo's queue takes in batch_size {batch} keys a step, so queue_size {queue} is too small: "
        "use {batch} or more",
        {"batch": values["batch_size"], "queue": values["queue_size"], "key": "queue_size"},
    )


def _objective_misfit(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["objective"] == "infonce" or values["base"] == "simclr":
        return None
    return PydanticCustomError(
        "terms_of_another_base",
        "objective {objective} leaves out terms of SimCLR's InfoNCE: use it with base simclr, "
        "or objective infonce, which is the whole loss of {base}",
        {"objective": values["objective"], "base": values["base"], "key": "objective"},
    )


def _nothing_to_train(values: Mapping[str, Any]) -> PydanticCustomError | None:
    if values["objective"] != "none" or values["equivariance_weight"] > 0:
        return None
    return PydanticCustomError(
        "nothing_to_train",
        "objective none with equivariance_weight 0 leaves nothing to train: "
        "use a weight above 0, or another objective",
        {"key": "objective"},
    )


FieldRule = Callable[[Mapping[str, Any]], PydanticCustomError | None]
FIELD_RULES: tuple[tuple[tuple[str, ...], FieldRule], ...] = (
    (("num_splits", "batch_size"), _splits_misfit),
    (("stem", "encoder"), _stem_misfit),
    (("warmup_epochs", "epochs"), _warmup_misfit),
    (("queue_size", "batch_size", "base"), _queue_misfit),
    (("objective", "base"), _objective_misfit),
    (("objective", "equivariance_weight"), _nothing_to_train),
)
"""What must hold among fields: those a rule reads, the one to blame first, and what is wrong with them."""

FIELDS_OF_DEVICES = ("batch_size", "compile")
"""Not every value of these goes with every number of GPUs that train a trial."""


def misfit_of_devices(name: str, value: Any, num_devices: int) -> str | None:
    """Why so many GPUs cannot train a trial with this value of one of the `FIELDS_OF_DEVICES`, if so."""
    if name == "batch_size" and value % num_devices:
        fewer = max(number for number in range(1, num_devices) if value % number == 0)
        return (
            f"batch_size {value} cannot be shared equally by {num_devices} GPUs: use {fewer}, or multiples "
            f"of {num_devices} for batch_size"
        )
    if name == "compile" and value == "always" and num_devices > 1:
        return "steps over several GPUs are not compiled: use 1, or auto or never for compile"
    return None
