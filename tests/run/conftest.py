"""One real instance (service, runner, local Ray) for all tests that need Ray: it costs ten seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from care_sweep.client import Client
from care_sweep.settings import Settings
from care_sweep.supervise import Instance, running


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings.from_environment({"CARE_SWEEP_HOME": str(home)})


@pytest.fixture(scope="session")
def instance(settings: Settings) -> Iterator[Instance]:
    (settings.home / "data").mkdir()
    with running(settings, num_cpus=2) as instance:
        yield instance


@pytest.fixture(scope="session")
def client(instance: Instance) -> Iterator[Client]:
    with Client(instance.url) as client:
        yield client


@pytest.fixture(scope="session")
def few_images(settings: Settings, instance: Instance) -> str:
    """A dataset of 270 train images: an epoch of a second."""
    return write_few_images(settings.data_roots[0] / "few")


def write_few_images(folder: Path) -> str:
    """Cut five classes of the bundled set into Parquet files of 60 and 10 images each; the dataset's name."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from care_sweep.learn.data import load_dataset

    data = load_dataset("cifar10-mini", download_directory=folder)
    folder.mkdir(parents=True)
    for split, count in ((data.train, 60), (data.test, 10)):
        rows = []
        for label in range(5):
            for index in (split.labels == label).nonzero().flatten()[:count].tolist():
                buffer = io.BytesIO()
                Image.fromarray(split.images[index].permute(1, 2, 0).numpy()).save(buffer, "PNG")
                rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": label})
        name = "train" if split is data.train else "test"
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}-00000-of-00001.parquet")
    return f"parquet:{folder}"
