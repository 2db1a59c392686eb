"""Named starting points of the settings: the paper's strict reading, and every method of the comparison.

A method is the settings that make it: which members there are, what each reads, how it propagates, what it learns from.
What is not named here is the default of ``config.py``, the same for all. Sources: the paper of each method where its
docstring or docs/methods.md says so, else **assumed**.
"""

from __future__ import annotations

from typing import Any

from gnnmr_dist.errors import InputError

Nested = dict[str, dict[str, Any]]

KEYWORDS = ("auto", "each", "dense", "fields", "all", "id")
"""Words of the setting ``members``."""

READS_FEATURES = ("vbpr", "mmgcn", "pmgt")
"""Methods whose network is one on features."""

RESERVED = (
    *(
        "concatenation",
        "average",
        "aligned-average",
        "linear-peer",
        "fused",
        "popularity",
        "item-knn",
        "ease",
    ),
    *KEYWORDS,
)
"""Names that no modality may have: rows of the results and words of settings."""

PRESETS: dict[str, Nested] = {
    "default": {},
    # The strict reading of the paper (docs/paper-map.md): bipartite messages only, last layer, dot products, BPR.
    "paper": {
        "model": {
            "members": ("each",),
            "embedding_dim": 128,
            "layer_combination": "last",
            "self_loops": False,
            "degree_scaling": False,
            "identity_init": False,
            "activation": "leaky_relu",
            "score": "dot",
            "temperature": 1.0,
            "item_id": "none",
            "linear_peer": False,
        },
        "loss": {"supervised": "bpr", "num_candidates": 256, "distill_weight": 0.5, "mask_missing": False},
        "sampling": {"num_neighbors": (10, 10), "exclude_supervision": False},
        "training": {"global_batch_size": 256, "learning_rate": 1e-3},
    },
}

_IDS: dict[str, Any] = {"members": ("id",), "item_id": "all", "linear_peer": False}
_ALL: dict[str, Any] = {"members": ("all",), "linear_peer": False}
_BPR: dict[str, Any] = {"supervised": "bpr", "distill_weight": 0.0}
_DOT: dict[str, Any] = {"score": "dot", "temperature": 1.0}
# Chosen on the validation of ml100k and steam200k together, one setting for all sets (docs/methods.md has the figures).
_FAST: dict[str, Any] = {"learning_rate": 5e-3}
_DECAYED: dict[str, Any] = {**_FAST, "weight_decay": 1e-5}
_CLOSED: Nested = {"model": {"members": ("id",), "linear_peer": False}, "loss": {"distill_weight": 0.0}}

METHODS: dict[str, Nested] = {
    "gnnmr": {},
    # Table 3's "GAT": our encoder and losses on user and item IDs, no features, no peers.
    "gat": {"model": _IDS, "loss": {"distill_weight": 0.0}},
    # He et al. 2020: three layers, mean of layers 0..3, dot products, BPR.
    "lightgcn": {
        "model": {**_IDS, **_DOT, "encoder": "lightgcn"},
        "loss": _BPR,
        "sampling": {"num_neighbors": (20, 20, 20), "exclude_supervision": False},
        "training": _FAST,
    },
    # Rendle et al. 2009: matrix factorisation; no layer at all.
    "bpr-mf": {
        "model": {**_IDS, **_DOT},
        "loss": _BPR,
        "sampling": {"num_neighbors": ()},
        "training": _DECAYED,
    },
    # He and McAuley 2016 (models/vbpr.py).
    "vbpr": {
        "model": {**_ALL, **_DOT},
        "loss": _BPR,
        "sampling": {"num_neighbors": ()},
        "training": _DECAYED,
    },
    # Wei et al. 2019 (models/mmgcn.py); two layers: assumed.
    "mmgcn": {
        "model": {**_ALL, **_DOT},
        "loss": _BPR,
        "sampling": {"num_neighbors": (20, 20), "exclude_supervision": False},
        "training": _DECAYED,
    },
    # Hu et al. 2019, adapted to ranking (models/a2cmhne.py).
    "a2cmhne": {
        "model": {**_ALL, **_DOT, "encoder": "lightgcn"},
        "loss": _BPR,
        "training": {"learning_rate": 1e-2},
    },
    # Liu et al. 2021: pre-trained item vectors, then matrix factorisation (models/pmgt.py).
    "pmgt": {
        "model": {**_ALL, **_DOT},
        "loss": _BPR,
        "sampling": {"num_neighbors": ()},
        "training": _DECAYED,
    },
    # In closed form (baselines.py, closed_form.py): fitted once for every value that is tried on validation.
    "popularity": _CLOSED,
    "item-knn": _CLOSED,
    "ease": _CLOSED,
}


def preset(name: str) -> Nested:
    """The nested values of a preset; raises InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def method_values(layers: list[Nested]) -> Nested:
    """The nested values of the method that the last of ``layers`` to name one names; of an unknown one: none."""
    named = [table["model"]["method"] for table in layers if "method" in _table(table, "model")]
    return METHODS.get(named[-1], {}) if named and isinstance(named[-1], str) else {}


def _table(values: Nested, section: str) -> dict[str, Any]:
    found = values.get(section, {})
    return found if isinstance(found, dict) else {}
