"""Addresses, atomic writes and copies, on plain paths and through URIs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gnnmr_dist import storage
from gnnmr_dist.errors import InputError, RunError, holds_password
from gnnmr_dist.failing_storage import told_in_one_line, within

AWKWARD = "a b%20c#d?e&ü"


@pytest.fixture(params=["path", "uri"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """A function from a name to an address of it: the same place as a plain path or as a URI."""
    return lambda name: str(tmp_path / name) if request.param == "path" else (tmp_path / name).as_uri()


def test_a_file_is_read_back_from_awkward_names(address: Callable[[str], str], tmp_path: Path) -> None:
    where = storage.join(address(AWKWARD), "inner", "file.bin")
    assert not storage.exists(where)
    storage.write_bytes_atomic(where, b"one")
    storage.write_bytes_atomic(where, b"two")
    assert storage.exists(where)
    assert storage.read_bytes(where) == b"two"
    assert (tmp_path / AWKWARD / "inner" / "file.bin").read_bytes() == b"two"
    assert os.listdir(tmp_path / AWKWARD / "inner") == ["file.bin"]  # no temporary is left


def test_compressed_looking_names_are_not_decompressed(address: Callable[[str], str]) -> None:
    storage.write_bytes_atomic(address("weights.gz"), b"plain bytes")
    assert storage.read_bytes(address("weights.gz")) == b"plain bytes"


def test_relative_paths_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes_atomic("run/x", b"1")
    assert (tmp_path / "run" / "x").read_bytes() == b"1"
    assert storage.resolve("run/x")[1:] == (str(tmp_path / "run" / "x"), True)
    assert storage.resolve(Path("run"))[1:] == (str(tmp_path / "run"), True)


def test_only_a_scheme_makes_a_uri() -> None:
    assert storage.is_uri("s3://bucket/key")
    assert storage.is_uri("file:///tmp/x")
    assert not storage.is_uri("C:/data")
    assert not storage.is_uri("a:b/c")
    assert not storage.is_uri(Path("s3://bucket"))


def test_join_keeps_roots() -> None:
    assert storage.join("/", "a") == "/a"
    assert storage.join("a/", "b", "c") == "a/b/c"
    assert storage.join("s3://bucket/", "b") == "s3://bucket/b"


@pytest.mark.parametrize("uri", ["nonsense://x/y", "file://relative/path"])
def test_an_unusable_uri_is_one_line(uri: str) -> None:
    with pytest.raises(InputError) as error:
        storage.resolve(uri)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)


def test_an_address_with_a_password_is_refused_without_telling_it() -> None:
    with pytest.raises(InputError) as error:
        storage.resolve("s3://AKIA:hunter2@bucket/run")
    assert str(error.value).startswith("s3://***@bucket/run: expected an address without a password")
    assert not holds_password("s3://bucket/a:b@c?endpoint_override=http://host:9000/x@y")
    assert storage.resolve("file:///tmp/a:b@c").path == "/tmp/a:b@c"


def test_reading_from_the_end(address: Callable[[str], str]) -> None:
    place = address("file")
    storage.write_bytes_atomic(place, b"0123456789")
    assert list(storage.blocks_backwards(place, 4)) == [b"6789", b"2345", b"01"]
    assert abs((storage.modified(place) or 0) - time.time()) < 60
    storage.write_bytes_atomic(place, b"")
    assert list(storage.blocks_backwards(place)) == []
    assert storage.modified(address("absent")) is None


def test_reading_what_is_not_there(address: Callable[[str], str]) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(address("absent"))
    assert storage.list_files(address("absent")) == []


def test_a_tree_goes_up_and_comes_down(address: Callable[[str], str], tmp_path: Path) -> None:
    files = {"manifest.json": b"m", "a/one": b"1", "z/y/two words": b"2"}
    for name, data in files.items():
        storage.write_bytes_atomic(tmp_path / "from" / name, data)
    storage.copy_tree(tmp_path / "from", address("up " + AWKWARD), last="manifest.json")
    assert storage.list_files(address("up " + AWKWARD)) == sorted(files)
    storage.copy_tree(address("up " + AWKWARD), tmp_path / "down")
    assert {name: (tmp_path / "down" / name).read_bytes() for name in files} == files
    storage.remove_tree(address("up " + AWKWARD))
    storage.remove_tree(address("up " + AWKWARD))  # nothing there: nothing happens
    assert not (tmp_path / ("up " + AWKWARD)).exists()


def test_the_last_file_is_copied_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "manifest.json", "z"):
        storage.write_bytes_atomic(tmp_path / "from" / name, b"x")
    order = []
    copy_files = storage.fs.copy_files

    def spy(source: str, *arguments: object, **options: object) -> None:
        order.append(os.path.basename(source))
        copy_files(source, *arguments, **options)

    monkeypatch.setattr(storage.fs, "copy_files", spy)
    storage.copy_tree(tmp_path / "from", (tmp_path / "to").as_uri(), last="manifest.json")
    assert order == ["a", "z", "manifest.json"]


def test_copying_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no files to copy"):
        storage.copy_tree(tmp_path / "absent", tmp_path / "to")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes_atomic(tmp_path / "x", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes_atomic(tmp_path / "x", b"new")
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with storage.atomic_directory(target) as directory:
        (directory / "inner").mkdir()
        (directory / "inner" / "file").write_text("x")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "x"
    with pytest.raises(RuntimeError, match="halfway"):
        _fill_and_fail(tmp_path / "not")
    with pytest.raises(OSError, match="not empty"), storage.atomic_directory(target):
        pass
    assert os.listdir(tmp_path) == ["made"]
    assert (target / "inner" / "file").read_text() == "x"


def _fill_and_fail(target: Path) -> None:
    with storage.atomic_directory(target) as directory:
        (directory / "file").write_text("x")
        raise RuntimeError("halfway")


def test_a_staged_file_appears_whole_or_not_at_all(
    address: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage.staged_file(address("lists/x.csv")) as staged:
        staged.write_text("old")
    moved = []
    monkeypatch.setattr(os, "replace", lambda *paths: moved.append(paths))
    with storage.staged_file(address("lists/x.csv")) as staged:
        staged.write_text("new")
    assert [str(target) for _, target in moved] == [str(tmp_path / "lists" / "x.csv")]
    assert (tmp_path / "lists" / "x.csv").read_text() == "old"  # only the rename would have changed it


def test_what_cannot_be_written_is_told_before(address: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("", "file/x"):
        with pytest.raises(InputError, match=r"expected a (file|place) to write"):
            storage.require_writable(address(name))


def test_directories_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with storage.atomic_directory(tmp_path / "made"):
        pass
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_killed_writer_never_shows_a_part(tmp_path: Path) -> None:
    """A process that rewrites a file of equal bytes for ever is killed: what stays is one whole version."""
    program = (
        "import sys; from gnnmr_dist.storage import write_bytes_atomic\n"
        "n = 0\n"
        "while True:\n"
        "    write_bytes_atomic(sys.argv[1], bytes([n % 251]) * 2_000_000); n += 1\n"
    )
    file = tmp_path / "state"
    process = subprocess.Popen([sys.executable, "-c", program, str(file)])
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(20):
            content = file.read_bytes()
            assert len(content) == 2_000_000
            assert len(set(content)) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    content = file.read_bytes()
    assert (len(content), len(set(content))) == (2_000_000, 1)


def test_work_in_a_thread_gives_its_value_or_its_error() -> None:
    assert within(5.0, lambda: 3, "x", "y") == 3

    def fail(error: Exception) -> None:
        raise error

    for error in (OSError(28, "No space left on device"), TimeoutError("the store's own")):
        with pytest.raises(type(error), match=r"No space|own"):
            within(5.0, partial(fail, error), "x", "y")


def test_what_takes_too_long_is_given_up() -> None:
    answer = threading.Event()
    try:
        with pytest.raises(RunError, match=r"s3://b/k: checkpoint could not be written within 0\.05 s"):
            within(0.05, answer.wait, "s3://b/k", "checkpoint")
    finally:
        answer.set()


def test_a_failing_disk_is_told_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="metrics could not be written: No space left on device"),
        told_in_one_line(tmp_path, "metrics"),
    ):
        raise OSError(28, "No space left on device")


class Witness:
    """A file system that tells what is deleted, in order."""

    def __init__(self, filesystem: Any) -> None:
        self.filesystem, self.deleted = filesystem, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.filesystem, name)

    def delete_file(self, path: str) -> None:
        self.deleted.append(Path(path).name)
        self.filesystem.delete_file(path)

    def delete_dir(self, path: str) -> None:
        self.deleted.append(Path(path).name)
        self.filesystem.delete_dir(path)


def test_the_file_that_says_the_rest_is_complete_goes_first(
    address: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a", "manifest.json"):
        (tmp_path / "d" / name).touch()
    plain = storage.resolve
    seen = Witness(plain(address("d")).filesystem)
    monkeypatch.setattr(storage, "resolve", lambda where: plain(where)._replace(filesystem=seen))
    storage.remove_tree(address("d"), first="manifest.json")
    storage.remove_tree(address("d"), first="manifest.json")  # not there any more: nothing happens
    assert seen.deleted == ["manifest.json", "d"]
    assert not (tmp_path / "d").exists()
