"""A checkpoint: the same bytes for the same content, read back whole, and no damage unseen."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import normalize

import care_sweep
from care_sweep.errors import CheckpointError
from care_sweep.learn import checkpoint
from care_sweep.learn.checkpoint import load, save
from care_sweep.learn.data import Dataset
from care_sweep.learn.encoder import CareModel, build_model
from care_sweep.learn.views import normalise
from care_sweep.spec import CheckpointReference, TrialConfig

MEMBERS = {
    "encoder.safetensors",
    "projector.safetensors",
    "probe.safetensors",
    "config.json",
    "metrics.json",
    "manifest.json",
    "README.md",
}
METRICS = {"validation_knn_accuracy": 0.5, "train_loss": 1.25}


@pytest.fixture(scope="module")
def model() -> CareModel:
    model = build_model("resnet_tiny", 3)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.train()(images)  # moves BatchNorm's running statistics
    return model.eval()


@pytest.fixture(scope="module")
def probe(model: CareModel) -> nn.Linear:
    probe = nn.Linear(model.num_features, 10)
    nn.init.normal_(probe.weight, generator=torch.Generator().manual_seed(1))
    return probe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.tar"


@pytest.fixture
def reference(
    path: Path, model: CareModel, probe: nn.Linear, config: TrialConfig, tiny: Dataset
) -> CheckpointReference:
    return save(path, model=model, probe=probe, config=config, metrics=METRICS, data=tiny)


def test_members_and_reference(path: Path, reference: CheckpointReference, tiny: Dataset) -> None:
    content = path.read_bytes()
    assert reference == CheckpointReference(
        name="checkpoint.tar", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
    )
    with tarfile.open(path) as archive:
        assert set(archive.getnames()) == MEMBERS
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}
        manifest = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        card = (archive.extractfile("README.md") or io.BytesIO()).read().decode()
    assert set(manifest["files"]) == MEMBERS - {"manifest.json"}
    assert manifest["dataset"]["fingerprint"] == tiny.fingerprint
    assert manifest["versions"]["torch"] == torch.__version__
    assert "care-sweep train" in manifest["command"]
    assert "| validation_knn_accuracy | 0.5 |" in card
    assert list(path.parent.iterdir()) == [path]


def test_same_content_gives_same_bytes(
    path: Path,
    reference: CheckpointReference,
    model: CareModel,
    probe: nn.Linear,
    config: TrialConfig,
    tiny: Dataset,
) -> None:
    backwards = dict(reversed(METRICS.items()))
    again = save(
        path.with_name("again.tar"), model=model, probe=probe, config=config, metrics=backwards, data=tiny
    )
    assert again.sha256 == reference.sha256


@pytest.mark.usefixtures("reference")
def test_round_trip(
    path: Path, model: CareModel, probe: nn.Linear, config: TrialConfig, tiny: Dataset
) -> None:
    encoder = care_sweep.load(path)
    images = tiny.validation.images
    pixels = normalise(images, tiny.mean, tiny.std)
    features = model.encoder(pixels)
    assert torch.equal(encoder(images), features)
    assert torch.allclose(encoder(images / 255), features)
    assert torch.equal(encoder.project(images), normalize(model.projector(features)))
    assert torch.equal(encoder.classify(images), probe(features).argmax(1))
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert encoder.config == config
    assert encoder.metrics == METRICS
    assert encoder.class_names == tiny.class_names
    assert encoder.manifest["format_version"] == 1


@pytest.mark.usefixtures("reference")
def test_loading_does_not_move_the_global_generator(path: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load(path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.usefixtures("reference")
def test_every_flipped_byte_is_seen(path: Path) -> None:
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = [place for member in archive for place in (member.offset, member.offset_data)]
    source = torch.Generator().manual_seed(0)
    places = torch.randint(len(content), (120,), generator=source).tolist()
    headers = [start + step for start in starts for step in (0, 3, 100, 150, 300, 511)]
    damaged = path.with_name("damaged.tar")
    for place in [*places, *headers, len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 0x20
        damaged.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load(damaged)


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncation_is_seen(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        load(path)


@pytest.mark.usefixtures("reference")
def test_appended_bytes_are_seen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="around its files"):
        load(path)


def test_a_missing_file(path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x80\x04K*.", b"PK\x03\x04" + bytes(600)])
def test_foreign_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no tar|no checkpoint"):
        load(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_plain_files(path: Path, kind: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name in MEMBERS:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/hostname"
            archive.addfile(entry)
    with pytest.raises(CheckpointError, match="not a plain file"):
        load(path)


@pytest.mark.usefixtures("reference")
def test_a_stranger_in_the_archive_is_refused_and_never_written(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(CheckpointError, match="around its files"):
        load(path)
    assert not (path.parent.parent / "escaped").exists()


@pytest.mark.usefixtures("reference")
def test_a_later_format_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="format version 1; this care-sweep reads version 0"):
        load(path)


def test_a_checkpoint_older_than_a_field_has_its_default(
    path: Path, reference: CheckpointReference, tiny: Dataset, config: TrialConfig
) -> None:
    members = checkpoint._unpack(str(path), path.read_bytes())
    fields = json.loads(members["config.json"])
    assert (fields.pop("stem"), fields.pop("least_crop_scale")) == ("cifar", 0.08)
    members["config.json"] = checkpoint._json(fields)
    del members["manifest.json"]
    members["manifest.json"] = checkpoint._json(checkpoint._manifest(members, tiny))
    path.write_bytes(checkpoint._pack(members))
    assert load(path).config == config


def test_the_stem_comes_back(path: Path, config: TrialConfig, tiny: Dataset) -> None:
    changes = {"encoder": "resnet18", "stem": "imagenet"}
    model = build_model("resnet18", 0, "imagenet").eval()
    probe = nn.Linear(model.num_features, 10)
    config = config.model_copy(update=changes)
    save(path, model=model, probe=probe, config=config, metrics=METRICS, data=tiny)
    encoder = load(path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encoder(normalise(images, tiny.mean, tiny.std))
        assert torch.equal(encoder(images), expected)
    assert "| stem | imagenet |" in checkpoint._unpack(str(path), path.read_bytes())["README.md"].decode()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from care_sweep.storage import durable

    def fail(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(durable.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        durable.write_durably(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


# --- crafted files: every sum is right, what they say is not ------------------------------------------------

Members = dict[str, bytes]


def _probe(num_features: int, num_classes: int) -> bytes:
    linear = nn.Linear(num_features, num_classes)
    return safetensors.torch.save({name: value.detach() for name, value in linear.state_dict().items()})


def _dataset(**changes: Any) -> Callable[[Members, Any], None]:
    return lambda _, manifest: manifest["dataset"].update(changes)


def _member(name: str, content: bytes) -> Callable[[Members, Any], None]:
    return lambda members, _: members.update({name: content})


CRAFTED: dict[str, Callable[[Members, Any], None]] = {
    "configuration: no JSON": _member("config.json", b"{"),
    "configuration: no text": _member("config.json", b"\xff"),
    "configuration: a list": _member("config.json", b"[]"),
    "metrics: no JSON": _member("metrics.json", b"{"),
    "metrics: a list": _member("metrics.json", b"[1]"),
    "metrics: words": _member("metrics.json", b'{"a": "b"}'),
    "metrics: nested": _member("metrics.json", b"[" * 100_000),
    "encoder: no tensors": _member("encoder.safetensors", b"none"),
    "projector: no tensors": _member("projector.safetensors", safetensors.torch.save({})),
    "probe: no tensors": _member("probe.safetensors", safetensors.torch.save({})),
    "probe: one dimension": _member("probe.safetensors", safetensors.torch.save({"weight": torch.ones(3)})),
    "probe: another width": _member("probe.safetensors", _probe(7, 10)),
    "probe: more classes than names": lambda members, _: members.update(
        {"probe.safetensors": _probe(build_model("resnet_tiny", 0).num_features, 11)}
    ),
    "fewer names": _dataset(class_names=["cat"]),
    "names that are none": _dataset(class_names=list(range(10))),
    "one name": _dataset(class_names="abcdefghij"),
    "mean of length 1": _dataset(mean=[0.5]),
    "mean of words": _dataset(mean=["a", "b", "c"]),
    "std of 0": _dataset(std=[0.1, 0.0, 0.1]),
    "no std": lambda _, manifest: manifest["dataset"].pop("std"),
    "no dataset": lambda _, manifest: manifest.pop("dataset"),
    "dataset of words": lambda _, manifest: manifest.update(dataset="cifar10"),
    "no versions": lambda _, manifest: manifest.pop("versions"),
    "size of length 1": _dataset(image_size=[32]),
    "size of words": _dataset(image_size="32"),
    "fingerprint of numbers": _dataset(fingerprint=7),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_files_are_refused(
    checkpoint_file: Path, tiny: Dataset, path: Path, change: Callable[[Members, Any], None]
) -> None:
    members = checkpoint._unpack(str(path), checkpoint_file.read_bytes())
    manifest = json.loads(members.pop("manifest.json"))
    change(members, manifest)
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in members.items()
    }
    manifest["manifest_sha256"] = checkpoint._own_sha256(manifest)
    path.write_bytes(checkpoint._pack({**members, "manifest.json": checkpoint._json(manifest)}))
    with pytest.raises(CheckpointError, match="its parts do not make an encoder"):
        load(path)


# --- what an encoder is given -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(3, 32, 32), r"one image is images\[None\]"),
        (torch.zeros(2, 1, 32, 32), "RGB images of shape"),
        (torch.zeros(2, 32, 32, 3), "permute"),
        (torch.zeros(2, 3, 4, 32), "8 or more"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.int64),
            r"torch.int64: convert them with images.to\(torch.uint8",
        ),
        (torch.zeros(2, 3, 32, 32, dtype=torch.bool), "torch.bool"),
        (torch.full((2, 3, 32, 32), 200.0), "from 200 to 200: divide by 255"),
        (torch.full((2, 3, 32, 32), -1.0), "do not normalise"),
        (torch.full((2, 3, 32, 32), float("nan")), "from nan"),
        (torch.full((2, 3, 32, 32), float("inf")), "to inf"),
        ([[1.0]], "not list: torch.as_tensor"),
    ],
)
def test_odd_images_are_refused_with_a_remedy(checkpoint_file: Path, images: Any, said: str) -> None:
    encoder = load(checkpoint_file)
    for use in (encoder, encoder.project, encoder.classify):
        with pytest.raises(ValueError, match=said):
            use(images)


def test_images_of_every_float_type_and_of_number_0_are_taken(checkpoint_file: Path, tiny: Dataset) -> None:
    encoder = load(checkpoint_file)
    pixels = tiny.validation.images / 255
    expected = encoder(tiny.validation.images)
    assert torch.allclose(encoder(pixels.double()), expected, atol=1e-5)
    assert torch.allclose(encoder(pixels.half()), expected, atol=0.05)
    assert torch.allclose(encoder(pixels + 1e-6), expected, atol=1e-3), "rounding is no oddity"
    assert encoder(pixels[:0]).shape == (0, encoder.model.num_features)
