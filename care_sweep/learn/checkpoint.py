"""What is given to a user of a trained encoder, and how is it read back?

A checkpoint is one tar whose bytes depend on its content alone: weights as safetensors, the rest as JSON, a
model card. Nothing in it is ever unpickled or extracted; members are read by name. Each member's SHA-256 is
in the manifest, the manifest's own too, and a file that is not byte for byte what writing its members again
would give is refused: no damage goes unseen.
"""

import dataclasses
import hashlib
import io
import json
import math
import platform
import tarfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize

from care_sweep.documents import parse
from care_sweep.errors import CheckpointError
from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.model_card import model_card
from care_sweep.learn.precision import ieee_convolutions
from care_sweep.learn.views import normalise, unit
from care_sweep.spec import CheckpointReference, TrialConfig
from care_sweep.storage.durable import write_durably

__all__ = ["CHECKPOINT_NAME", "LoadedEncoder", "load", "loads", "save"]

CHECKPOINT_NAME = "checkpoint.tar"
_FORMAT = "care-sweep checkpoint"
_FORMAT_VERSION = 1
_LEAST_SIDE_PIXELS = 8
_ROUNDING = 1e-3  # what resizing and half precision add to [0, 1]
_PARTS = ("encoder", "projector", "probe")
_WEIGHTS = tuple(f"{part}.safetensors" for part in _PARTS)
_MEMBERS = (*_WEIGHTS, "config.json", "metrics.json", "README.md", "manifest.json")


class LoadedEncoder(nn.Module):
    """An encoder ready for use, in evaluation mode, with what is known about it.

    It takes RGB images (N, 3, h, w) of 8 pixels a side or more, uint8 or float in [0, 1], on the device it
    was moved to, and normalises them itself. Other tensors are refused with `ValueError`.

    Attributes:
        config: the `TrialConfig` it was trained with.
        metrics: the last epoch's metrics.
        manifest: versions, dataset, files and the command that trains it again.
        class_names: what the numbers of `classify` mean.
        image_size: height and width in pixels of the images it was trained on; None where an older
            checkpoint does not tell.
    """

    def __init__(
        self,
        model: CareModel,
        probe: nn.Linear,
        config: TrialConfig,
        metrics: dict[str, float],
        manifest: Any,
    ) -> None:
        super().__init__()
        self.model, self.probe = model, probe
        self.config, self.metrics, self.manifest = config, metrics, manifest
        self.class_names: tuple[str, ...] = tuple(manifest["dataset"]["class_names"])
        size = manifest["dataset"].get("image_size")
        self.image_size: tuple[int, int] | None = None if size is None else (size[0], size[1])

    def knows(self, data: Dataset) -> bool:
        """Whether these are the images that it was trained with, and so are cut into splits as they were."""
        return bool(self.manifest["dataset"]["fingerprint"] == data.fingerprint)

    def as_its_own(self, data: Dataset) -> Dataset:
        """The images, normalised as those that it was trained with."""
        own = self.manifest["dataset"]
        return dataclasses.replace(data, mean=tuple(own["mean"]), std=tuple(own["std"]))

    @ieee_convolutions()
    def forward(self, images: Tensor) -> Tensor:
        """Features (N, F), before the projector: what kNN and probes read."""
        _check_images(images)
        return self.features_of(images)

    def features_of(self, images: Tensor) -> Tensor:
        """As calling it, of images that are known to be sound: a traced program cannot look at values.

        Nor can it set how a GPU computes: that is the caller's.
        """
        dataset = self.manifest["dataset"]
        pixels = unit(images).to(self.probe.weight.dtype)
        features: Tensor = self.model.encoder(normalise(pixels, dataset["mean"], dataset["std"]))
        return features

    def project(self, images: Tensor) -> Tensor:
        """Projected embeddings (N, 128) of length 1: what the training objective saw."""
        return normalize(self.model.projector(self(images)))

    def classify(self, images: Tensor) -> Tensor:
        """The class numbers (N) that the linear probe gives."""
        scores: Tensor = self.probe(self(images))
        return scores.argmax(1)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ValueError(
            f"needs a tensor of images, not {type(images).__name__}: torch.as_tensor makes one of an array"
        )
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < _LEAST_SIDE_PIXELS:
        raise ValueError(
            f"needs RGB images of shape (N, 3, h, w), h and w {_LEAST_SIDE_PIXELS} or more; they are "
            f"{tuple(images.shape)}: one image is images[None], channels that come last are moved by "
            "images.permute(0, 3, 1, 2)"
        )
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"needs images of torch.uint8 or floating point, they are {images.dtype}: convert them with "
            "images.to(torch.uint8)"
        )
    if images.is_floating_point() and images.numel():
        low, high = (value.item() for value in images.aminmax())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # a NaN is not either
            raise ValueError(
                f"needs float images in [0, 1], they are from {low:g} to {high:g}: divide by 255 what "
                "goes to 255, and do not normalise, the encoder does it"
            )


# --- writing ------------------------------------------------------------------------------------------------


def save(
    path: Path,
    *,
    model: CareModel,
    probe: nn.Linear,
    config: TrialConfig,
    metrics: Mapping[str, float],
    data: Dataset,
) -> CheckpointReference:
    """Write the checkpoint durably to `path`; the same content gives the same bytes."""
    members = {
        name: safetensors.torch.save(_tensors(module))
        for name, module in zip(_WEIGHTS, (model.encoder, model.projector, probe), strict=True)
    }
    members["config.json"] = _json(config.model_dump(mode="json"))
    members["metrics.json"] = _json(dict(metrics))
    members["README.md"] = model_card(config, metrics, data.class_names).encode()
    members["manifest.json"] = _json(_manifest(members, data))
    content = _pack(members)
    write_durably(path, content)
    return CheckpointReference(
        name=path.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _manifest(members: Mapping[str, bytes], data: Dataset) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in members.items()
        },
        "versions": {
            "care-sweep": _version("care-sweep"),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": _version("torchvision"),
        },
        "dataset": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "class_names": list(data.class_names),
            "mean": list(data.mean),
            "std": list(data.std),
            "image_size": list(data.image_size),
        },
        "command": "care-sweep train --config config.json",
    }
    return {**manifest, "manifest_sha256": _own_sha256(manifest)}


def _own_sha256(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(_json(rest)).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _pack(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in _MEMBERS:
            entry = tarfile.TarInfo(name)  # modification time, owner and mode keep their fixed defaults
            entry.size = len(members[name])
            archive.addfile(entry, io.BytesIO(members[name]))
    return buffer.getvalue()


# --- reading ------------------------------------------------------------------------------------------------


def load(path: str | Path) -> LoadedEncoder:
    """The encoder of a checkpoint, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, no checkpoint, or of another format version.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (TypeError, ValueError) as error:  # no path, or one with a NUL in it
        raise CheckpointError(f"{path!r}: is no path of a file ({error})") from error
    return loads(content, str(path))


def loads(content: bytes, name: str) -> LoadedEncoder:
    """The encoder of a checkpoint's bytes, on the CPU; `name` is what error messages call it.

    The sums in it are whoever's who wrote it: that they fit does not make its parts an encoder, so all that
    later use reads is checked here.

    Raises:
        CheckpointError: as `load`.
    """
    members = _unpack(name, content)
    manifest = _checked_manifest(name, members)
    if _pack(members) != content:
        raise CheckpointError(f"{name}: the archive around its files is damaged; download it again")
    try:
        config = parse(TrialConfig, json.loads(members["config.json"]))
        metrics = json.loads(members["metrics.json"])
        states = {part: safetensors.torch.load(members[f"{part}.safetensors"]) for part in _PARTS}
        return _assemble(config, metrics, manifest, states)
    except CheckpointError:
        raise
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}: its parts do not make an encoder ({error})") from error


def _unpack(source: str, content: bytes) -> dict[str, bytes]:
    members = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for name in _MEMBERS:
                file = archive.extractfile(name) if archive.getmember(name).isreg() else None
                if file is None:
                    raise CheckpointError(
                        f"{source}: {name} is not a plain file: no checkpoint of care-sweep"
                    )
                members[name] = file.read()
    except KeyError as error:
        raise CheckpointError(
            f"{source}: truncated, or no checkpoint of care-sweep ({error.args[0]}); download it again"
        ) from error
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no tar, or a truncated or damaged one ({error}); download it again"
        ) from error
    return members


def _checked_manifest(source: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(members["manifest.json"])
        known = manifest["format"] == _FORMAT and manifest["format_version"] == _FORMAT_VERSION
        intact = manifest["manifest_sha256"] == _own_sha256(manifest)
        expected = {name: manifest["files"][name]["sha256"] for name in _MEMBERS[:-1]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{source}: manifest.json is damaged; download it again") from error
    if not intact or _json(manifest) != members["manifest.json"]:
        raise CheckpointError(f"{source}: manifest.json is damaged; download it again")
    if not known:
        raise CheckpointError(
            f"{source}: {manifest['format']}, format version {manifest['format_version']}; this care-sweep "
            f"reads version {_FORMAT_VERSION}: use the care-sweep that wrote it, or a later one"
        )
    for name, sha256 in expected.items():
        if hashlib.sha256(members[name]).hexdigest() != sha256:
            raise CheckpointError(
                f"{source}: {name} does not have its SHA-256; download the checkpoint again"
            )
    return manifest


def _assemble(
    config: TrialConfig,
    metrics: dict[str, float],
    manifest: dict[str, Any],
    states: Mapping[str, dict[str, Tensor]],
) -> LoadedEncoder:
    model = build_model(config.encoder, config.seed, config.stem)
    model.encoder.load_state_dict(states["encoder"])
    model.projector.load_state_dict(states["projector"])
    num_classes, num_features = states["probe"]["weight"].shape
    _check_facts(manifest, metrics, num_classes)
    if num_features != model.num_features:
        raise ValueError(f"its probe takes {num_features} features, its encoder gives {model.num_features}")
    with torch.random.fork_rng(devices=[]):
        probe = nn.Linear(num_features, num_classes)
    probe.load_state_dict(states["probe"])
    loaded = LoadedEncoder(model, probe, config, metrics, manifest)
    return loaded.requires_grad_(False).eval()


def _check_facts(manifest: Mapping[str, Any], metrics: Mapping[str, float], num_classes: int) -> None:
    """Refuse a manifest or metrics of which later use would break."""
    dataset = manifest["dataset"]
    names, size = dataset["class_names"], dataset.get("image_size")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of names, they are {names!r:.100}")
    if len(names) != num_classes:
        raise ValueError(f"it has {len(names)} class names and a probe of {num_classes} classes")
    for key in ("mean", "std"):
        if not (
            isinstance(dataset[key], list) and len(dataset[key]) == 3 and all(map(_finite, dataset[key]))
        ):
            raise ValueError(f"{key} must be three finite numbers, it is {dataset[key]!r:.100}")
    if min(dataset["std"]) <= 0:
        raise ValueError(f"std must be above 0, it is {dataset['std']}")
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    ):
        raise ValueError(f"image_size must be height and width in pixels, it is {size!r:.100}")
    for what, text in (
        ("fingerprint", dataset["fingerprint"]),
        ("name", dataset["name"]),
        ("torch", manifest["versions"]["torch"]),
    ):
        if not isinstance(text, str):
            raise ValueError(f"{what} must be text, it is {text!r:.100}")
    if not isinstance(metrics, dict) or not all(map(_finite, metrics.values())):
        raise ValueError("its metrics are not numbers by name")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
