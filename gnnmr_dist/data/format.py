"""Format 1 of a data set directory: its file names and its manifest (docs/data-format.md)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from gnnmr_dist.errors import bad_input
from gnnmr_dist.storage import Address

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "valid", "test")
Kind = Literal["dense", "category", "bag"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DTYPES: Mapping[str, tuple[str, ...]] = {
    "dense": ("float16", "float32"),
    "category": ("int32",),
    "bag": ("int32",),
}
MAX_NODES = 2**31 - 1  # node numbers are int32
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModalityInfo:
    """One modality as the manifest describes it.

    ``dim`` is the length of a dense row, or the number of codes; ``missing`` counts items without a value.
    """

    name: str
    kind: Kind
    dim: int
    dtype: str
    missing: int


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``; ``files`` maps relative paths, ``splits`` names, to what is there."""

    name: str
    num_users: int
    num_items: int
    splits: Mapping[str, int]
    modalities: tuple[ModalityInfo, ...]
    provenance: Mapping[str, Any]
    files: Mapping[str, FileInfo]

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted (path, sha256) pairs: the data's name in every result."""
        return files_digest(self.files)


def files_digest(files: Mapping[str, FileInfo]) -> str:
    """SHA-256 (hexadecimal) of the lines ``path<TAB>sha256<LF>``, sorted by path, in UTF-8."""
    lines = (f"{path}\t{info.sha256}\n" for path, info in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_file(split: str) -> str:
    """Relative path of a split's interactions."""
    return f"{split}.parquet"


def modality_file(name: str) -> str:
    """Relative path of a modality's feature table."""
    return f"modalities/{name}.arrow"


def vocabulary_file(name: str) -> str:
    """Relative path of the values behind the codes of a category or bag modality."""
    return f"modalities/{name}.vocabulary.parquet"


def data_files(modalities: tuple[ModalityInfo, ...]) -> list[str]:
    """Relative paths of all files of a data set, the manifest apart."""
    tables = [modality_file(m.name) for m in modalities]
    vocabularies = [vocabulary_file(m.name) for m in modalities if m.kind != "dense"]
    fixed = ["users.parquet", "items.parquet", "graph/indptr.npy", "graph/indices.npy"]
    return sorted([*map(split_file, SPLITS), *fixed, *tables, *vocabularies])


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON text."""
    content = {"format": FORMAT, **asdict(manifest), "digest": manifest.digest}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse_manifest(text: bytes, file: Address) -> Manifest:
    """The manifest in ``text``; ``file`` names it in errors.

    Raises:
        InputError: not JSON, another format version, a key missing or of a wrong type, a value out of range,
            an unsafe or repeated modality name, a file list that does not fit, or a digest that differs.
    """
    try:
        content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise bad_input(file, "JSON", f"text that is not ({error})") from error
    if not isinstance(content, dict):
        raise bad_input(file, "a JSON object", _type_name(content))
    if content.get("format") != FORMAT:
        raise bad_input(file, f'"format": {FORMAT}', json.dumps(content.get("format")))
    manifest = Manifest(
        name=_get(content, "name", str, file),
        num_users=_count(content, "num_users", file, least=1),
        num_items=_count(content, "num_items", file, least=1),
        splits=_splits(_get(content, "splits", dict, file), file),
        modalities=_modalities(_get(content, "modalities", list, file), file),
        provenance=_get(content, "provenance", dict, file),
        files=_files(_get(content, "files", dict, file), file),
    )
    _check_whole(manifest, _get(content, "digest", str, file), file)
    return manifest


def check_modality(info: ModalityInfo, file: Address) -> None:
    """Raise InputError unless name, kind, dtype and dim of a modality are allowed."""
    if not _NAME.fullmatch(info.name):
        expected = "a modality name of letters, digits, '_', '-', '.', starting with a letter, digit or '_'"
        raise bad_input(file, expected, repr(info.name))
    if info.kind not in KINDS:
        raise bad_input(file, f"modality {info.name!r} of kind {_choice(KINDS)}", repr(info.kind))
    if info.dtype not in DTYPES[info.kind]:
        expected = f"{info.kind} modality {info.name!r} of dtype {_choice(DTYPES[info.kind])}"
        raise bad_input(file, expected, repr(info.dtype))
    if info.dim < 1:
        raise bad_input(file, f"modality {info.name!r} of dim at least 1", info.dim)


def check_modalities(modalities: tuple[ModalityInfo, ...], num_items: int, file: Address) -> None:
    """Raise InputError unless there is a modality and each is allowed, named once and somewhere present."""
    if not modalities:
        raise bad_input(file, "at least one modality", "none")
    seen: set[str] = set()
    for info in modalities:
        check_modality(info, file)
        if info.name.casefold() in seen:
            raise bad_input(file, "each modality name once (in any case)", f"{info.name!r} again")
        seen.add(info.name.casefold())
        if not 0 <= info.missing < num_items:
            expected = f"modality {info.name!r} with a value for at least one of {num_items} items"
            raise bad_input(file, expected, f"{info.missing} missing")


def _check_whole(manifest: Manifest, digest: str, file: Address) -> None:
    if manifest.num_users + manifest.num_items > MAX_NODES:
        raise bad_input(file, f"at most {MAX_NODES} users and items", manifest.num_users + manifest.num_items)
    check_modalities(manifest.modalities, manifest.num_items, file)
    wanted = set(data_files(manifest.modalities))
    for path in sorted(wanted ^ set(manifest.files)):
        if path in wanted:
            raise bad_input(file, f'"files" to list {path}', "no such entry")
        raise bad_input(file, '"files" to list only files of this data set', repr(path))
    if digest != manifest.digest:
        raise bad_input(file, f"digest {manifest.digest[:12]}... (of the files listed)", f"{digest[:12]}...")


def _splits(content: dict[str, Any], file: Address) -> dict[str, int]:
    if set(content) != set(SPLITS):
        raise bad_input(file, f'"splits" with the keys {", ".join(SPLITS)}', ", ".join(content) or "none")
    return {split: _count(content, split, file, least=1, where='"splits"') for split in SPLITS}


def _modalities(content: list[Any], file: Address) -> tuple[ModalityInfo, ...]:
    infos = []
    for position, entry in enumerate(content):
        where = f'"modalities" entry {position}'
        if not isinstance(entry, dict):
            raise bad_input(file, f"{where} to be an object", _type_name(entry))
        infos.append(
            ModalityInfo(
                name=_get(entry, "name", str, file, where),
                kind=_get(entry, "kind", str, file, where),
                dim=_count(entry, "dim", file, where=where),
                dtype=_get(entry, "dtype", str, file, where),
                missing=_count(entry, "missing", file, where=where),
            )
        )
    return tuple(infos)


def _files(content: dict[str, Any], file: Address) -> dict[str, FileInfo]:
    files = {}
    for path, entry in content.items():
        where = f'"files" entry {path!r}'
        if not isinstance(entry, dict):
            raise bad_input(file, f"{where} to be an object", _type_name(entry))
        sha256 = _get(entry, "sha256", str, file, where)
        if not _SHA256.fullmatch(sha256):
            raise bad_input(file, f"{where} with a sha256 of 64 hexadecimal digits", repr(sha256))
        files[path] = FileInfo(_count(entry, "bytes", file, where=where), sha256)
    return files


def _get(content: dict[str, Any], key: str, kind: type, file: Address, where: str = "the manifest") -> Any:
    if key not in content:
        raise bad_input(file, f'{where} to have the key "{key}"', "no such key")
    value = content[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise bad_input(file, f'"{key}" of {where} to be {_TYPE_NAMES[kind]}', _type_name(value))
    return value


def _count(
    content: dict[str, Any], key: str, file: Address, *, least: int = 0, where: str = "the manifest"
) -> int:
    value = int(_get(content, key, int, file, where))
    if value < least:
        raise bad_input(file, f'"{key}" of {where} to be at least {least}', value)
    return value


_TYPE_NAMES = {str: "a string", int: "an integer", dict: "an object", list: "a list", float: "a number"}


def _type_name(value: object) -> str:
    name = "null" if value is None else _TYPE_NAMES.get(type(value), type(value).__name__)
    return f"{name} ({json.dumps(value)})" if isinstance(value, str | int | float | bool) else name


def _choice(values: tuple[str, ...]) -> str:
    return " or ".join(values)
