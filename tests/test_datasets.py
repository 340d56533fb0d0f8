"""A dataset name means images that are there and may be read; if not, the message says what would work."""

from pathlib import Path

import pytest

from care_sweep.datasets import DATASET_FORMS, DatasetSource, locate, refuse_escapes, require_one_size
from care_sweep.errors import DatasetError


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    (tmp_path / "data" / "cats").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    return [tmp_path / "data"]


def find(name: str, tmp_path: Path, roots: list[Path] | None, *, download: bool = False) -> DatasetSource:
    return locate(name, download_directory=tmp_path / "datasets", roots=roots, download=download)


@pytest.mark.parametrize("uri", ["s3://images/few", "s3://images/few/train", "s3://other/a.b/c_d-e"])
def test_a_uri_below_a_prefix_among_the_roots_is_taken_at_its_word(tmp_path: Path, uri: str) -> None:
    uris = ["s3://images/few", "s3://other"]
    source = locate(f"parquet:{uri}", download_directory=tmp_path, roots=[], uris=uris)
    assert source == DatasetSource(f"parquet:{uri}", "parquet", None, uri)
    assert find(f"folder:{uri}", tmp_path, None).uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "s3://images/fewer",
        "s3://images",
        "s3://images/few/../secret",
        "s3://images/few/",
        "s3://image/few",
        "s3://images/few?x=y",
        "s3://key:secret@images/few",
        "s3:///few",
        "https://images/few",
        "file:///etc",
    ],
)
def test_any_other_uri_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(DatasetError, match=r"outside the data roots|write s3://BUCKET/PREFIX"):
        locate(f"folder:{uri}", download_directory=tmp_path, roots=[tmp_path], uris=["s3://images/few"])


def test_the_bundled_set_is_always_there(tmp_path: Path) -> None:
    assert find("cifar10-mini", tmp_path, []) == DatasetSource("cifar10-mini", "bundled", None)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("stl10", "stl10_binary"),
        ("flowers102", "flowers-102"),
    ],
)
def test_a_torchvision_set_is_there_once_downloaded(tmp_path: Path, name: str, folder: str) -> None:
    with pytest.raises(DatasetError, match=r"`care-sweep train --download` fetches it, or use cifar10-mini"):
        find(name, tmp_path, [])
    wanted = DatasetSource(name, "torchvision", tmp_path / "datasets")
    assert find(name, tmp_path, [], download=True) == wanted
    (tmp_path / "datasets" / folder).mkdir(parents=True)
    assert find(name, tmp_path, []) == wanted


@pytest.mark.parametrize("kind", ["folder", "parquet", "imagenet100"])
def test_a_path_below_a_root_is_found(tmp_path: Path, roots: list[Path], kind: str) -> None:
    path = tmp_path / "data" / "cats"
    for text in (str(path), "cats", "./cats", f"{tmp_path}/secret/../data/cats"):
        source = find(f"{kind}:{text}", tmp_path, roots)
        assert (source.kind, source.path) == (kind, path.resolve())


@pytest.mark.parametrize("kind", ["folder", "imagenet100"])
@pytest.mark.parametrize(
    "text", ["/etc", "/", "../secret", "{tmp}/secret", "{tmp}/data/../secret", "{tmp}/data2"]
)
def test_a_path_outside_the_roots_is_refused(tmp_path: Path, roots: list[Path], text: str, kind: str) -> None:
    with pytest.raises(DatasetError, match=r"outside the data roots .* CARE_SWEEP_DATA_ROOTS"):
        find(f"{kind}:" + text.format(tmp=tmp_path), tmp_path, roots)


def test_a_link_out_of_a_root_is_followed_and_refused(tmp_path: Path, roots: list[Path]) -> None:
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match="outside the data roots"):
        find("folder:link", tmp_path, roots)


def test_a_root_may_be_a_link(tmp_path: Path, roots: list[Path]) -> None:
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    assert (
        find(f"folder:{tmp_path}/alias/cats", tmp_path, [tmp_path / "alias"]).path == tmp_path / "data/cats"
    )


def test_without_roots_every_path_will_do(tmp_path: Path) -> None:
    assert find(f"folder:{tmp_path}", tmp_path, None).path == tmp_path


def test_with_no_root_no_path_will_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"outside the data roots \(none\)"):
        find(f"folder:{tmp_path}", tmp_path, [])


def test_what_is_not_there_is_said(tmp_path: Path, roots: list[Path]) -> None:
    with pytest.raises(DatasetError, match=r"there is no .*/data/dogs"):
        find(f"folder:{tmp_path}/data/dogs", tmp_path, roots)


@pytest.mark.parametrize(
    "name", ["cifar", "", "folder:", "folder", "zip:x", "https://x.org/y", "FOLDER:x", "imagenet100"]
)
def test_a_name_without_a_meaning_lists_the_forms(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError) as caught:
        find(name, tmp_path, None)
    for form in DATASET_FORMS:
        assert form in str(caught.value)


@pytest.mark.parametrize("name", ["folder:\0", "folder:" + "x" * 1000, "folder:~nobody-of-that-name/x"])
def test_a_path_that_no_system_knows_is_refused_too(tmp_path: Path, roots: list[Path], name: str) -> None:
    with pytest.raises(DatasetError):
        find(name, tmp_path, roots)


def test_a_link_below_a_root_may_not_lead_out_of_it(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    for folder in (root / "set" / "dog", root / "elsewhere", secret):
        folder.mkdir(parents=True)
    (root / "set" / "cat").symlink_to(root / "elsewhere")
    source = locate(f"folder:{root / 'set'}", download_directory=tmp_path, roots=[root])
    refuse_escapes(source, [root])
    (root / "elsewhere" / "deeper").symlink_to(secret)
    with pytest.raises(DatasetError, match="deeper is a link out of the data roots"):
        refuse_escapes(source, [root])


@pytest.mark.parametrize("name", ["flowers102", "imagenet100:imagenet"])
def test_a_set_of_mixed_sizes_is_brought_to_one(name: str) -> None:
    with pytest.raises(DatasetError, match="has images of mixed sizes: give `resize`"):
        require_one_size(name, is_resized=False)
    require_one_size(name, is_resized=True)


@pytest.mark.parametrize("name", ["cifar10-mini", "stl10", "folder:cats", "parquet:imagenet100"])
def test_other_sets_may_have_one_size_already(name: str) -> None:
    require_one_size(name, is_resized=False)
