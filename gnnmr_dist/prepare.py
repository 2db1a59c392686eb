"""``python -m gnnmr_dist.prepare``: raw files, RecBole, MMRec or planted data become a data set."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from typing import Any

from gnnmr_dist import __version__
from gnnmr_dist.cli import Parser, guarded
from gnnmr_dist.data.assemble import assemble
from gnnmr_dist.data.format import MANIFEST, SPLITS, Manifest, parse_manifest
from gnnmr_dist.data.importers.mmrec import import_mmrec
from gnnmr_dist.data.importers.recbole import import_recbole
from gnnmr_dist.data.recipe import Recipe, load_recipe
from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.data.tables import Source, open_source
from gnnmr_dist.data.writer import write_dataset
from gnnmr_dist.errors import InputError, RunError, bad_input
from gnnmr_dist.storage import Address, is_uri, join, list_files, read_bytes, require_directory

_SYNTHETIC = {
    "users": ("num_users", int, "number of users (600)"),
    "items": ("num_items", int, "number of items (400)"),
    "modalities": ("num_modalities", int, "number of modalities (3)"),
    "interactions-per-user": ("interactions_per_user", int, "mean number of interactions per user (20)"),
    "missing": ("missing", float, "share of missing rows of each modality (0.1)"),
    "noise": ("noise", float, "noise of the users' choices (0.5)"),
    "cold-users": ("cold_users", int, "users without train interactions (5)"),
    "cold-items": ("cold_items", int, "items without train interactions (5)"),
}
_FILTERS = ("k_core", "min_weight", "duplicates")
_SPLITS = ("split", "ratios", "share", "leave", "seed")
_OPTIONS: Mapping[str, Sequence[str]] = {
    "recipe": ("source",),
    "recbole": ("features", *_FILTERS, *_SPLITS),
    "mmrec": _FILTERS,
    "synthetic": ("seed", *(keyword for keyword, _, _ in _SYNTHETIC.values())),
}


def prepare(recipe: Recipe, source: Source, output: Address) -> str:
    """Write the data set that a recipe makes of a source; return its digest.

    Raises:
        InputError: the data does not fit the recipe, or ``output`` holds files or lies inside the source;
            nothing is written then.
        RunError: a disk or a remote file system fails.
    """
    check_output(output, source.name)
    try:
        data = assemble(recipe, source)
    except OSError as error:
        raise RunError(f"{source.name}: the data could not be read or put aside: {error}") from error
    return write_dataset(
        output,
        name=recipe.name,
        users=data.users,
        items=data.items,
        splits=data.splits,
        modalities=data.modalities,
        provenance={
            "recipe": recipe.model_dump(mode="json", exclude_none=True),
            "source": source.name,
            "rows": data.rows,
            "gnnmr_dist": __version__,
        },
    )


def check_output(output: Address, source: str | None) -> None:
    """Check that the output is new (or an empty directory) and not inside the source.

    Raises:
        InputError: it is not.
    """
    require_directory(output)
    if list_files(output):
        raise bad_input(output, "a new directory for the data set", "one that exists")
    if source is not None and not is_uri(source) and not is_uri(output):
        inside = os.path.realpath(source)
        if os.path.commonpath([inside, os.path.realpath(output)]) == inside:
            raise bad_input(output, "an output outside the source directory", f"one inside {source}")


def summary(manifest: Manifest, output: Address) -> str:
    """What was made, in a few lines: counts, density, splits, modalities, digest and the next command."""
    total = sum(manifest.splits.values())
    density = total / (manifest.num_users * manifest.num_items)
    lines = [
        f"{manifest.name}: {manifest.num_users:,} users x {manifest.num_items:,} items, "
        f"{total:,} interactions, density {density:.3%}",
        "splits: " + ", ".join(f"{split} {manifest.splits[split]:,}" for split in SPLITS),
    ]
    width = max(len(modality.name) for modality in manifest.modalities)
    for modality in manifest.modalities:
        coverage = 1 - modality.missing / manifest.num_items
        lines.append(
            f"  {modality.name:<{width}}  {modality.kind:<8}  dim {modality.dim:>5}  "
            f"{coverage:>6.1%} of items  {modality.dtype}"
        )
    place = shlex.quote(os.fspath(output))
    following = f"python -m gnnmr_dist.train --dataset {place} --output RUN --num-workers 2"
    lines += [f"digest: {manifest.digest}", f"next: {following}"]
    return "\n".join(lines)


def command(argv: Sequence[str] | None = None) -> None:
    """Run the command line; print the summary.

    Raises:
        InputError: an option, the recipe or the data is wrong.
    """
    options = _parser().parse_args(argv)
    mode = _mode(options)
    if mode == "synthetic":
        check_output(options.output, None)
        names = ["seed", *(keyword for keyword, _, _ in _SYNTHETIC.values())]
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        synthetic_dataset(options.output, **given)
    else:
        recipe, source = _recipe_and_source(mode, options)
        prepare(recipe, source, options.output)
    file = join(options.output, MANIFEST)
    print(summary(parse_manifest(read_bytes(file), file), options.output))


def _recipe_and_source(mode: str, options: Any) -> tuple[Recipe, Source]:
    if mode == "recipe":
        recipe = load_recipe(options.recipe)
        if options.source is None:
            raise InputError("--recipe needs --source, the directory of the raw files")
        return recipe, open_source(options.source)
    interactions = {"min_weight": options.min_weight, "duplicates": options.duplicates}
    settings: dict[str, Any] = {
        "filter": {} if options.k_core is None else {"k_core": options.k_core},
        "interactions": {key: value for key, value in interactions.items() if value is not None},
    }
    if mode == "mmrec":
        return import_mmrec(open_source(options.mmrec), settings)
    split = {"method": options.split or "random"}
    chosen = {key: getattr(options, key) for key in ("ratios", "share", "leave", "seed")}
    settings["split"] = split | {key: value for key, value in chosen.items() if value is not None}
    return import_recbole(open_source(options.recbole), settings, _features(options.features or []))


def _features(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [text.split("=", 1) for text in texts]
    for text, pair in zip(texts, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise InputError(f"--features: expected NAME=FILE.npy, got {text!r}")
    return [(name, file) for name, file in pairs]


def _mode(options: Any) -> str:
    """The one of recipe, recbole, mmrec and synthetic that was asked for; its options and no others."""
    mode = next(name for name in _OPTIONS if getattr(options, name))
    for name in sorted({option for names in _OPTIONS.values() for option in names} - set(_OPTIONS[mode])):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is not an option of --{mode}")
    return mode


def _parser() -> Parser:
    parser = Parser(
        prog="python -m gnnmr_dist.prepare",
        description="Turn raw files into a data set directory (docs/prepare.md). One of:\n\n"
        "  --recipe FILE --source DIR   any tables and features, as a TOML recipe says\n"
        "  --recbole DIR                RecBole atomic files\n"
        "  --mmrec DIR                  an MMRec data directory\n"
        "  --synthetic                  planted data",
        formatter_class=RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--recipe", metavar="FILE", help="recipe (TOML)")
    mode.add_argument("--recbole", metavar="DIR", help="directory with NAME.inter[, NAME.item, NAME.user]")
    mode.add_argument("--mmrec", metavar="DIR", help="directory with NAME.inter and *_feat.npy")
    mode.add_argument("--synthetic", action="store_true", help="planted data with a known right answer")
    parser.add_argument("--output", required=True, metavar="DIR", help="data set to write: a path or a URI")
    parser.add_argument("--source", metavar="DIR", help="with --recipe: raw files, a path or a URI")
    _add_import_options(parser)
    for option, (keyword, kind, text) in _SYNTHETIC.items():
        parser.add_argument(f"--{option}", dest=keyword, type=kind, metavar="N", help=f"synthetic: {text}")
    return parser


def _add_import_options(parser: Parser) -> None:
    parser.add_argument(
        "--features", nargs="+", metavar="NAME=FILE", help="recbole: .npy matrices, rows as in NAME.item"
    )
    parser.add_argument("--k-core", type=int, metavar="K", help="recbole, mmrec: keep the k-core")
    parser.add_argument("--min-weight", type=float, metavar="W", help="recbole, mmrec: least rating kept")
    parser.add_argument("--duplicates", choices=["error", "first", "last"], help="recbole, mmrec: of a pair")
    parser.add_argument(
        "--split", choices=["random", "user-time", "global-time", "cold-items"], help="recbole"
    )
    parser.add_argument("--ratios", type=float, nargs=3, metavar="R", help="recbole: train valid test shares")
    parser.add_argument("--share", type=float, metavar="S", help="recbole: share of cold items")
    parser.add_argument("--leave", type=int, metavar="K", help="recbole: last interactions per user held out")
    parser.add_argument("--seed", type=int, metavar="N", help="recbole, synthetic: seed (0)")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return guarded(command, argv)


if __name__ == "__main__":
    sys.exit(main())
