"""Local paths and any pyarrow file system (s3://, gs://, file://...) behind a few functions, atomic writes.

An *address* is a plain local path or a URI. Plain paths never go through URI parsing, so blanks, ``%`` and
relative paths mean what they say. ``file://`` is treated like any other URI, that is as remote: data behind
it are copied to the node's cache first, which is what one wants of a slow shared mount; give the plain path
to use files where they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from gnnmr_dist.errors import InputError, bad_input, holds_password

Address = str | os.PathLike[str]
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_AT_ONCE = 1 << 20  # bytes
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # as _sibling names them


class Location(NamedTuple):
    """Where an address leads: a pyarrow file system, the path on it, and whether it is a plain local path."""

    filesystem: Any
    path: str
    is_local: bool


def is_uri(address: Address) -> bool:
    """Whether the address is a URI (``scheme://...``) rather than a plain path."""
    return isinstance(address, str) and _URI.match(address) is not None


def resolve(address: Address) -> Location:
    """The file system and path of an address; plain paths become absolute.

    Raises:
        InputError: the URI's scheme is unknown, the URI is malformed, or it carries a password: addresses are
            written into settings, records and logs, so credentials come from the environment instead.
    """
    if not is_uri(address):
        return Location(fs.LocalFileSystem(), os.path.abspath(address), True)
    if holds_password(os.fspath(address)):
        raise bad_input(address, "an address without a password (the environment carries it)", "one with it")
    try:
        filesystem, path = fs.FileSystem.from_uri(address)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{address}: expected a path or a URI that pyarrow can open, got {error}") from error
    return Location(filesystem, path, False)


def join(address: Address, *parts: str) -> str:
    """The address of something below ``address``; ``parts`` are plain names or relative paths."""
    base = os.fspath(address)
    return "/".join([base.rstrip("/"), *parts]) if is_uri(base) else os.path.join(base, *parts)


def exists(address: Address) -> bool:
    """Whether a file or directory stands at the address."""
    location = resolve(address)
    return bool(location.filesystem.get_file_info(location.path).type != fs.FileType.NotFound)


def list_files(address: Address) -> list[str]:
    """Paths of all files below the address, relative to it, sorted; empty if nothing is there."""
    location = resolve(address)
    selector = fs.FileSelector(location.path, recursive=True, allow_not_found=True)
    root = location.path.rstrip("/") + "/"
    infos = location.filesystem.get_file_info(selector)
    return sorted(info.path.removeprefix(root) for info in infos if info.type == fs.FileType.File)


def read_bytes(address: Address) -> bytes:
    """The whole content of a file.

    Raises:
        FileNotFoundError: no such file.
    """
    location = resolve(address)
    with location.filesystem.open_input_stream(location.path, compression=None) as stream:
        return bytes(stream.readall())


def blocks_backwards(address: Address, size: int = _AT_ONCE) -> Iterator[bytes]:
    """The content of a file from its end to its start, ``size`` bytes at a time, each read when asked for.

    Raises:
        FileNotFoundError: no such file.
    """
    location = resolve(address)
    with location.filesystem.open_input_file(location.path) as file:
        end = file.size()
        while end > 0:
            start = max(0, end - size)
            yield bytes(file.read_at(end - start, start))
            end = start


def modified(address: Address) -> float | None:
    """When a file was last written, seconds since 1970; None where there is none or its file system does not say."""
    location = resolve(address)
    when = location.filesystem.get_file_info(location.path).mtime
    return None if when is None else float(when.timestamp())


def fingerprint(address: Address) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hexadecimal) of a file, read bit by bit.

    Raises:
        FileNotFoundError: no such file.
    """
    location = resolve(address)
    size, digest = 0, hashlib.sha256()
    with location.filesystem.open_input_stream(location.path, compression=None) as stream:
        while part := stream.read(_AT_ONCE):
            size += len(part)
            digest.update(part)
    return size, digest.hexdigest()


@contextmanager
def local_file(address: Address) -> Iterator[Path]:
    """A file as a local path: its own, or of a copy that is removed on leaving (maps of it stay valid)."""
    location = resolve(address)
    if location.filesystem.type_name == "local":
        yield Path(location.path)
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "file")
        _copy(location, resolve(path))
        yield path


def copy_file(source: Address, destination: Address) -> None:
    """Copy a file, bit by bit; readers of ``destination`` never see a part of it.

    Raises:
        FileNotFoundError: no file at ``source``.
    """
    with staged_file(destination) as path:
        _copy(resolve(source), resolve(path))


def _copy(source: Location, target: Location) -> None:
    fs.copy_files(
        source.path,
        target.path,
        source_filesystem=source.filesystem,
        destination_filesystem=target.filesystem,
    )


def write_bytes_atomic(address: Address, data: bytes) -> None:
    """Write a file so that readers see the old content or all of the new, never a part.

    On local disks: temporary file beside it, fsync, rename. Object stores show an object only once complete.
    Missing parent directories are made.
    """
    location = resolve(address)
    if location.filesystem.type_name != "local":
        location.filesystem.create_dir(os.path.dirname(location.path), recursive=True)
        with location.filesystem.open_output_stream(location.path, compression=None) as stream:
            stream.write(data)
        return
    target = Path(location.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(target)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(target.parent)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A new directory beside ``target`` to fill; on leaving it is synced to disk and renamed to ``target``.

    If the body fails, the directory is removed and ``target`` is left as it was. ``target`` must not exist by
    then, or be an empty directory.

    Raises:
        OSError: ``target`` is a file or a directory that is not empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(target)
    temporary.mkdir()
    try:
        yield temporary
        for directory, _, names in os.walk(temporary):
            for name in names:
                _fsync(Path(directory, name))
            _fsync(Path(directory))
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(target.parent)


@contextmanager
def staged_file(address: Address) -> Iterator[Path]:
    """A local path to write one file to, bit by bit; on leaving it becomes ``address``, which never shows a part.

    If the body fails, the file is removed and ``address`` is left as it was. Missing parent directories are made.
    """
    location = resolve(address)
    if location.filesystem.type_name == "local":
        target = Path(location.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _sibling(target)
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(target.parent)
        return
    with tempfile.TemporaryDirectory() as directory:
        temporary = Path(directory, "file")
        yield temporary
        location.filesystem.create_dir(os.path.dirname(location.path), recursive=True)
        _copy(resolve(temporary), location)


def require_writable(address: Address) -> None:
    """Check, before long work, that a local file could be written at ``address``; remote places are not asked.

    Raises:
        InputError: it is a directory, lies below a file, or permissions forbid it.
    """
    location = resolve(address)
    if location.filesystem.type_name != "local":
        return
    target = Path(location.path)
    if target.is_dir():
        raise bad_input(target, "a file to write", "a directory")
    _require_room(target, list(target.parents), "a place to write a file")


def require_directory(address: Address) -> None:
    """Check, before long work, that a local directory is or could be made at ``address``; remote ones are not asked.

    Raises:
        InputError: it is a file, lies below one, or permissions forbid it.
    """
    location = resolve(address)
    if location.filesystem.type_name == "local":
        target = Path(address if location.is_local else location.path)
        _require_room(target, [target, *target.parents], "a directory to write to")


def _require_room(target: Path, places: Sequence[Path], expected: str) -> None:
    above = next(place for place in places if place.exists())
    if not above.is_dir():
        raise bad_input(target, expected, "a file" if above == target else f"one below the file {above}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise bad_input(target, expected, f"no permission to write in {above}")


def copy_tree(source: Address, destination: Address, *, last: str | None = None) -> None:
    """Copy all files below ``source`` to below ``destination``, either of them local or remote.

    ``last`` names the file (relative path) to copy after all others: the one that says the rest is complete.

    Raises:
        FileNotFoundError: there is no file below ``source``.
    """
    names = list_files(source)
    if not names:
        raise FileNotFoundError(f"{os.fspath(source)}: no files to copy")
    origin, target = resolve(source), resolve(destination)
    for name in sorted(names, key=lambda name: (name == last, name)):
        path = f"{target.path.rstrip('/')}/{name}"
        target.filesystem.create_dir(os.path.dirname(path), recursive=True)
        _copy(origin._replace(path=f"{origin.path.rstrip('/')}/{name}"), target._replace(path=path))


def remove_tree(address: Address, *, first: str | None = None) -> None:
    """Remove a directory and everything below it; nothing happens if it is not there.

    ``first`` names the file (relative path) to remove before all others: the one that says the rest is complete.
    """
    location = resolve(address)
    if not exists(address):
        return
    if first is not None and exists(join(address, first)):
        location.filesystem.delete_file(f"{location.path.rstrip('/')}/{first}")
    location.filesystem.delete_dir(location.path)


def remove_drafts(address: Address) -> None:
    """Remove the temporary files that a process killed while writing left in a directory (not below it)."""
    location = resolve(address)
    for info in location.filesystem.get_file_info(fs.FileSelector(location.path, allow_not_found=True)):
        if info.type == fs.FileType.File and _DRAFT.fullmatch(info.base_name):
            location.filesystem.delete_file(info.path)


def _sibling(target: Path) -> Path:
    return target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
