"""One contract for every storage: a folder, and an S3 bucket."""

import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import shake_128
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from care_sweep.errors import Conflict, NotFound, StorageError
from care_sweep.storage import Storage, contract, open_storage


def noise(seed: int, size: int) -> bytes:
    return shake_128(bytes([seed])).digest(size)


KEY = "sweeps/0123456789ab/trials/00001/attempt-1/checkpoint.tar"


@pytest.fixture
def storage(storage_uri: str) -> Storage:
    return open_storage(storage_uri)


def keys(storage: Storage, prefix: str) -> list[str]:
    return sorted(found.key for found in storage.list(prefix))


def whole(storage: Storage, key: str) -> bytes:
    return b"".join(storage.read(key))


@pytest.mark.parametrize("content", [b"", b"one", noise(0, 9 * 2**20)], ids=len)
def test_what_was_put_is_there(storage: Storage, content: bytes) -> None:
    stored = storage.put(KEY, content)
    assert storage.head(KEY) == stored
    assert (stored.key, stored.size_bytes) == (KEY, len(content))
    chunks = list(storage.read(KEY, version=stored.version))
    assert b"".join(chunks) == content
    assert all(0 < len(chunk) <= contract.CHUNK_BYTES for chunk in chunks)
    assert whole(open_storage(storage.uri), KEY) == content, "another process finds it"


def test_a_part_can_be_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("folder", "bucket"):
        monkeypatch.setattr(f"care_sweep.storage.{module}.CHUNK_BYTES", 1000)
    content = noise(1, 5000)
    storage.put(KEY, content)
    for start, stop in [(0, 1), (999, 1001), (0, 5000), (2500, 5000), (4999, 5000), (7, 7), (0, 0)]:
        assert b"".join(storage.read(KEY, start, stop)) == content[start:stop], (start, stop)
    assert b"".join(storage.read(KEY, 4990)) == content[4990:]
    with pytest.raises(StorageError, match=r"checkpoint.tar"):
        list(storage.read(KEY, 4990, 5001))


def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    storage.put(KEY, b"x")
    for absent in ("none", KEY + ".tmp", KEY.rpartition("/")[0], KEY + "/below"):
        with pytest.raises(NotFound, match=absent):
            storage.head(absent)
        for part in [(), (0, 0), (0, 1)]:
            with pytest.raises(NotFound):
                list(storage.read(absent, *part))
        storage.delete([absent, absent]) if absent == "none" else None
    assert list(storage.list("none")) == []


def test_a_storage_can_be_reached_before_anything_is_in_it(storage: Storage) -> None:
    storage.check()
    storage.put(KEY, b"x")
    storage.check()


def test_nothing_is_replaced_unless_told(storage: Storage) -> None:
    first = storage.put(KEY, b"first")
    with pytest.raises(Conflict, match=r"checkpoint.tar is there already"):
        storage.put(KEY, b"other")
    assert storage.put(KEY, b"first") == first, "the answer to a first try may have been lost"
    assert whole(storage, KEY) == b"first"
    second = storage.put(KEY, b"second", overwrite=True)
    assert second.version != first.version
    assert whole(storage, KEY) == b"second"


def test_a_reader_is_told_of_a_replacement(storage: Storage) -> None:
    first = storage.put(KEY, b"first")
    storage.put(KEY, b"other", overwrite=True)
    with pytest.raises(StorageError, match="replaced"):
        list(storage.read(KEY, 0, 5, version=first.version))


def test_of_many_writers_one_wins(storage: Storage) -> None:
    outcomes: list[tuple[bytes, bool]] = []
    together = threading.Barrier(8)

    def write(content: bytes) -> None:
        together.wait()
        try:
            storage.put(KEY, content)
        except Conflict:
            outcomes.append((content, False))
        else:
            outcomes.append((content, True))

    writers = [threading.Thread(target=write, args=(noise(n, 50_000),)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(outcomes) == 8
    (winner,) = [content for content, won in outcomes if won]
    assert whole(storage, KEY) == winner
    assert keys(storage, "sweeps") == [KEY]


def test_a_prefix_is_whole_names(storage: Storage) -> None:
    assert list(storage.list("a")) == []
    for key in ("a/b/c", "a/bc", "a/b/d/e", "ab"):
        storage.put(key, b"x")
    assert keys(storage, "a") == ["a/b/c", "a/b/d/e", "a/bc"]
    assert keys(storage, "a/b") == ["a/b/c", "a/b/d/e"]
    assert [found.size_bytes for found in storage.list("a/b/d")] == [1]


def test_a_strict_list_raises_at_a_name_that_is_no_key(storage: Storage) -> None:
    storage.put("a/b", b"x")
    place = storage.local_path("a/b")
    if place is not None:
        (place.parent / "b c").write_bytes(b"x")
    else:
        from obstore.store import S3Store

        name, _, prefix = storage.uri.removeprefix("s3://").partition("/")
        S3Store(name, prefix=prefix).put("a/b c", b"x")
    assert keys(storage, "a") == ["a/b"]
    with pytest.raises(ValueError, match="'a/b c' is no key"):
        list(storage.list("a", strict=True))


def test_more_than_a_page_is_listed_and_deleted(storage: Storage) -> None:
    wanted = [f"many/{number:04d}" for number in range(60)]
    for key in wanted:
        storage.put(key, b"")
    assert keys(storage, "many") == wanted
    storage.delete([*wanted[:-1], "many/absent"])
    assert keys(storage, "many") == wanted[-1:]
    storage.delete([])


def test_two_prefixes_do_not_meet(storage: Storage) -> None:
    beside = open_storage(f"{storage.uri}-beside")
    storage.put("a/b", b"x")
    assert list(beside.list("a")) == []
    with pytest.raises(NotFound):
        beside.head("a/b")


STRANGE = [
    *("", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../b", "./a", "a/./b", "a\\b", "..\\a"),
    *("a/\0", "a\n", "a b", "a/ü", "%2e%2e/a", "a/%2e%2e", "~", "~root/a", "a?b", "a#b", "a:b", "s3://a/b"),
    *(".a", "a/.hidden", ".a.1.part", "a" * 201, "/".join(["a" * 100] * 9), "C:/a", "//host/a", "a/*"),
]


def refuses(storage: Storage, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: storage.put(key, b"x"),
        lambda: storage.put(key, b"x", overwrite=True),
        lambda: storage.head(key),
        lambda: list(storage.read(key)),
        lambda: list(storage.read(key, 0, 1)),
        lambda: list(storage.list(key)),
        lambda: storage.delete(["a", key]),
        lambda: storage.local_path(key),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="is no key"):
            use()


@pytest.mark.parametrize("key", STRANGE)
def test_nothing_leaves_its_root(storage: Storage, key: str) -> None:
    refuses(storage, key)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.one_of(st.sampled_from(["..", ".", "", "a", "~", ".x", "a\0"]), st.text(max_size=5))),
    data=st.data(),
)
def test_a_key_is_refused_or_stays_below(storage: Storage, parts: list[str], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(["", "/"])) + "/".join(parts)
    try:
        contract.check_key(key)
    except ValueError:
        refuses(storage, key)
    else:
        assert all(part.strip(".") == part and part.isascii() for part in key.split("/"))


def test_an_errand_that_is_refused_says_where(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = open_storage("s3://no-such-bucket/here")
    with pytest.raises(StorageError, match="s3://no-such-bucket/here/a: there is no such bucket"):
        absent.put("a", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = open_storage(bucket)
    for use in (lambda: away.put("a", b"x"), lambda: away.head("a"), lambda: list(away.list("a"))):
        with pytest.raises(StorageError, match=r"s3://sweeps/a: the object store does not answer") as told:
            use()
        assert "a-secret" not in str(told.value)
        assert told.value.__suppress_context__, "a traceback would show the server's answer"


def test_without_its_library_a_bucket_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['obstore'] = None; from care_sweep.storage import open_storage\n"
        "open_storage('folder')\n"
        "try: open_storage('s3://bucket/prefix')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("StorageError")
    assert "pip install 'care-sweep[s3]'" in said


def test_a_folder_is_served_without_the_library() -> None:
    program = "import sys; from care_sweep.storage import open_storage; open_storage('f')\n"
    program += "print('obstore' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


def test_a_storage_that_cannot_be_reached_says_so(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for root in ("file", "file/below"):
        with pytest.raises(StorageError, match=str(tmp_path / "file")):
            open_storage(str(tmp_path / root)).check()
    with pytest.raises(StorageError, match="NoSuchBucket"):
        open_storage("s3://of-nobody/instance").check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match="does not answer"):
        open_storage(bucket).check()
