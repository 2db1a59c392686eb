"""``gnnmr VERB ...`` and ``python -m gnnmr_dist VERB ...``: prepare, train, status, evaluate, recommend."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from gnnmr_dist import __version__

VERBS = {
    "prepare": "make a data set from tables, RecBole or MMRec files, or planted data",
    "train": "train one network per modality",
    "status": "how far a run is, in one line",
    "evaluate": "rank all items for all users of a split, beside baselines",
    "recommend": "the best items of given users, or of all",
}


def usage() -> str:
    """What can be called."""
    verbs = "\n".join(f"  {verb:<10} {words}" for verb, words in VERBS.items())
    return f"usage: gnnmr VERB ...\n\n{verbs}\n\ngnnmr VERB --help tells a verb's options. gnnmr-dist {__version__}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Only the verb's own module is imported."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0] in VERBS:
        return int(import_module(f"gnnmr_dist.{given[0]}").main(given[1:]))
    if given and given[0] in ("-h", "--help"):
        print(usage())
        return 0
    if given and given[0] == "--version":
        print(f"gnnmr-dist {__version__}")
        return 0
    got = repr(given[0]) if given else "nothing"
    print(f"error: gnnmr: expected one of {', '.join(VERBS)}, got {got} (see gnnmr --help)", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
