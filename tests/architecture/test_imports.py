"""House rules read from the source, nothing is run: imports, no pickle, sizes, docstrings, the top level.

Each rule is a function from one source file to its violations, and each is shown to fail on a small offender.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "gnnmr_dist"
CODE = (PACKAGE, "cluster", "tune", "benchmarks")
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 350, 50

# The picture of docs/architecture.md: a module may import its own layer and those before it.
# data.graph is the CSR topology as arrays, a value like a tensor: it imports nothing and everyone may use it.
LAYERS: dict[str, set[str]] = {
    "foundation": {"__init__", "errors", "config", "sections", "presets", "cli", "randomness"}
    | {"storage", "failing_storage", "notice", "data.graph"},
    "mathematics": {"models", "losses", "step_losses", "loss_kernels", "row_adam", "row_adam_kernels"}
    | {"ensemble", "ranking", "top_k", "approximate", "metrics", "ease", "baselines", "fusion"},
    "data": {"data"},
    "distributed": {"distributed"},
    "loop": {"training", "fitting", "memory", "runs", "inference", "evaluation", "checkpoint", "reporting"}
    | {"loaded", "new_items", "members", "mapped", "networks", "pretraining", "linear_peer", "closed_form"}
    | {"pace", "tracking", "trackers"},
    "launch": {"launch", "connection", "messages", "rendezvous", "gauges"},
    "entry": {"api", "train", "status", "evaluate", "recommend", "prepare", "__main__"},
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
ORDER = list(LAYERS)
# Mathematics takes tensors and gives tensors: of the foundation it sees only these.
FOUNDATION_OF_MATHEMATICS = {"__init__", "errors", "randomness", "data.graph"}

# Where a library may be imported: a file, or a folder that ends with a slash.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "ray": (
        *(f"{PACKAGE}/{name}.py" for name in ("launch", "connection", "messages", "rendezvous", "gauges")),
        *("tune/", "cluster/", "tests/", "benchmarks/"),
    ),
    "torch.distributed": (f"{PACKAGE}/distributed/", "tests/"),
    "faiss": (f"{PACKAGE}/approximate.py", "tests/", "benchmarks/"),
    "optuna": ("tune/plan.py", "tests/"),
    "matplotlib": ("tune/plots.py", "tests/", "benchmarks/"),
    **dict.fromkeys(("tensorboardX", "mlflow", "wandb"), (f"{PACKAGE}/trackers.py", "tests/")),
}
EXTRAS = {
    "faiss": "faiss-cpu",
    "optuna": "optuna",
    "matplotlib": "matplotlib",
    "tensorboardX": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}  # modules of optional dependencies of users, and whose they are
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLE_CALLS = {"torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle"}

TOP_LEVEL = {
    *(
        ".ci",
        ".gitignore",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
    ),
    *("Makefile", "README.md", "SECURITY.md", "constraints.txt", "pyproject.toml"),
    *(PACKAGE, "benchmarks", "cluster", "docs", "tests", "tune"),
}

Rule = Callable[[str, str], list[str]]


def imported(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, at any depth; ``from a import b`` gives ``a.b``."""
    here = PurePosixPath(path).with_suffix("").parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from ((node.lineno, name) for name in names)


def within(name: str, module: str) -> bool:
    """Whether dotted ``name`` is ``module`` or lies in it."""
    return name == module or name.startswith(module + ".")


def libraries_in_place(path: str, source: str) -> list[str]:
    """Ray and process groups stay where ONLY_IN says, whether imported or reached as an attribute."""
    tree = ast.parse(source)
    uses = list(imported(tree, path))
    uses += [(node.lineno, ast.unparse(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [
        f"{path}:{line}: {library} belongs in {', '.join(places)}"
        for library, places in ONLY_IN.items()
        if not any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)
        for line in sorted({line for line, name in uses if within(name, library)})
    ]


def no_pickle(path: str, source: str) -> list[str]:
    """No pickle module, no torch.load or torch.save, no allow_pickle that is not the constant False."""
    tree = ast.parse(source)
    found = [(line, name) for line, name in imported(tree, path) if name.split(".")[0] in PICKLERS]
    found += [(line, name) for line, name in imported(tree, path) if name in PICKLE_CALLS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in PICKLE_CALLS:
            found.append((node.lineno, ast.unparse(node)))
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        ):
            found.append((node.value.lineno, "allow_pickle"))
    return [f"{path}:{line}: {name} reads or writes pickle" for line, name in found]


def place(parts: tuple[str, ...]) -> str:
    """The name in LAYERS of a path in the package: ``data, graph, Graph`` -> ``data.graph``."""
    if not parts:
        return "__init__"
    pair = ".".join(parts[:2])
    known = pair in LAYER_OF or parts[0] in LAYER_OF or (ROOT / PACKAGE / f"{parts[0]}.py").exists()
    return (pair if pair in LAYER_OF else parts[0]) if known else "__init__"


def one_direction(path: str, source: str) -> list[str]:
    """Modules of the package import their own layer and earlier ones, and nothing around the package."""
    if not path.startswith(f"{PACKAGE}/"):
        return []
    inside = PurePosixPath(path).relative_to(PACKAGE).with_suffix("").parts
    me = ".".join(inside[:2]) if ".".join(inside[:2]) in LAYER_OF else inside[0]
    if me not in LAYER_OF:
        return [f"{path}: {me} has no layer: give it one in docs/architecture.md and in LAYERS of this test"]
    found, tree = [], ast.parse(source)
    for line, name in imported(tree, path):
        if name.split(".")[0] in {"cluster", "tune", "benchmarks", "tests"}:
            found.append(f"{path}:{line}: the package does not import {name}")
        if not within(name, PACKAGE):
            continue
        other = place(tuple(name.split(".")[1:]))
        layer = LAYER_OF.get(other, ORDER[-1])
        if ORDER.index(layer) > ORDER.index(LAYER_OF[me]):
            found.append(f"{path}:{line}: {LAYER_OF[me]} ({me}) imports {layer} ({other})")
        if LAYER_OF[me] == "mathematics" and layer == "foundation" and other not in FOUNDATION_OF_MATHEMATICS:
            found.append(f"{path}:{line}: mathematics ({me}) knows nothing of {other}")
    return found


def declared(path: str, source: str) -> list[str]:
    """The package and tune/ import the standard library, dependencies, and modules of EXTRAS in an extra for users."""
    if not path.startswith((f"{PACKAGE}/", "tune/")):
        return []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        "".join(c if c.isalnum() or c in "-_" else " " for c in line).split()[0]
        for line in project["dependencies"]
    }
    known = {name.replace("-", "_") for name in names} | set(sys.stdlib_module_names) | {PACKAGE, "tune"}
    extras = " ".join(
        line for key, lines in project["optional-dependencies"].items() if key != "dev" for line in lines
    )
    known |= {module for module, library in EXTRAS.items() if library in extras}
    return [
        f"{path}:{line}: {name} is no run-time dependency in pyproject.toml"
        for line, name in imported(ast.parse(source), path)
        if name.split(".")[0] not in known
    ]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def small(path: str, source: str) -> list[str]:
    """Modules under MAX_MODULE_LINES, functions under MAX_FUNCTION_LINES, their docstring not counted."""
    lines = len(source.splitlines())
    found = [f"{path}: {lines} lines, the limit is {MAX_MODULE_LINES}"] if lines >= MAX_MODULE_LINES else []
    for node in functions(ast.parse(source)):
        end = node.end_lineno or node.lineno
        length = end - node.lineno + 1
        if ast.get_docstring(node) is not None:
            length -= (node.body[0].end_lineno or node.body[0].lineno) - node.body[0].lineno + 1
        if length >= MAX_FUNCTION_LINES:
            found.append(
                f"{path}:{node.lineno}: {node.name} has {length} lines, the limit is {MAX_FUNCTION_LINES}"
            )
    return found


def documented(path: str, source: str) -> list[str]:
    """Every public module, class, function and method of the package has a docstring."""
    if not path.startswith((f"{PACKAGE}/", "tune/")):
        return []
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else [f"{path}: the module has no docstring"]
    holders: list[ast.Module | ast.ClassDef] = [tree]
    while holders:
        for node in holders.pop().body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            inherited = any(
                ast.unparse(d).split(".")[-1] in {"override", "overload", "setter"}
                for d in node.decorator_list
            )
            if node.name.startswith("_") or inherited:
                continue
            if ast.get_docstring(node) is None:
                missing.append(f"{path}:{node.lineno}: {node.name} has no docstring")
            if isinstance(node, ast.ClassDef):
                holders.append(node)
    return missing


RULES: dict[Rule, tuple[str, ...]] = {
    libraries_in_place: (*CODE, "tests"),
    no_pickle: (*CODE, "tests"),
    one_direction: (PACKAGE,),
    declared: (PACKAGE, "tune"),
    small: CODE,
    documented: (PACKAGE, "tune"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: Rule) -> None:
    files = [file for folder in RULES[rule] for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    found = [
        f for file in files for f in rule(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


LONG = "def long():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
OFFENDERS = [
    (libraries_in_place, "gnnmr_dist/training.py", "def f():\n    from ray import train\n"),
    (libraries_in_place, "gnnmr_dist/data/graph.py", "import ray.train as rt\n"),
    (libraries_in_place, "gnnmr_dist/api.py", "import importlib\nimportlib.import_module('ray')\n"),
    (libraries_in_place, "gnnmr_dist/launch.py", "import torch.distributed as dist\n"),
    (libraries_in_place, "gnnmr_dist/training.py", "from torch import distributed\n"),
    (libraries_in_place, "gnnmr_dist/training.py", "import torch\ntorch.distributed.barrier()\n"),
    (no_pickle, "gnnmr_dist/checkpoint.py", "import pickle\n"),
    (no_pickle, "tests/unit/test_x.py", "from cloudpickle import dumps\n"),
    (no_pickle, "gnnmr_dist/checkpoint.py", "import torch\ntorch.load('x')\n"),
    (no_pickle, "gnnmr_dist/checkpoint.py", "from torch import save\n"),
    (no_pickle, "gnnmr_dist/data/format.py", "import numpy as np\nnp.load('x', allow_pickle=True)\n"),
    (no_pickle, "gnnmr_dist/data/format.py", "import numpy as np\nnp.load('x', allow_pickle=flag)\n"),
    (one_direction, "gnnmr_dist/losses.py", "from gnnmr_dist.training import fit\n"),
    (one_direction, "gnnmr_dist/losses.py", "from gnnmr_dist import data\n"),
    (one_direction, "gnnmr_dist/losses.py", "from gnnmr_dist.config import Settings\n"),
    (one_direction, "gnnmr_dist/data/graph.py", "from ..distributed.mesh import Mesh\n"),
    (one_direction, "gnnmr_dist/data/graph.py", "from .. import launch\n"),
    (one_direction, "gnnmr_dist/launch.py", "import gnnmr_dist.train\n"),
    (one_direction, "gnnmr_dist/launch.py", "from tune import space\n"),
    (one_direction, "gnnmr_dist/helpers.py", "x = 1\n"),
    (declared, "gnnmr_dist/reporting.py", "import pandas\n"),
    (declared, "tune/plots.py", "import seaborn\n"),
    (documented, "tune/plots.py", "x = 1\n"),
    (libraries_in_place, "tune/sweep.py", "import optuna\n"),
    (libraries_in_place, "gnnmr_dist/ranking.py", "def f():\n    import faiss\n"),
    (small, "gnnmr_dist/training.py", "x = 1\n" * MAX_MODULE_LINES),
    (small, "benchmarks/speed.py", LONG),
    (documented, "gnnmr_dist/training.py", "x = 1\n"),
    (documented, "gnnmr_dist/training.py", '"""Doc."""\ndef public():\n    pass\n'),
    (
        documented,
        "gnnmr_dist/training.py",
        '"""Doc."""\nclass A:\n    """Doc."""\n    def public(self):\n        pass\n',
    ),
]
INNOCENT = [
    (libraries_in_place, "gnnmr_dist/launch.py", "import ray\nimport rayon\n"),
    (libraries_in_place, "gnnmr_dist/data/graph.py", "import rayon\narray.ray.x\n"),
    (libraries_in_place, "gnnmr_dist/distributed/mesh.py", "import torch.distributed as dist\n"),
    (no_pickle, "gnnmr_dist/data/format.py", "import numpy as np\nnp.load('x', allow_pickle=False)\n"),
    (
        one_direction,
        "gnnmr_dist/training.py",
        "from gnnmr_dist import __version__\nfrom .losses import bpr_loss\n",
    ),
    (declared, "gnnmr_dist/models/layers.py", "import json, torch_geometric.nn\n"),
    (declared, "gnnmr_dist/approximate.py", "import faiss\n"),
    (small, "gnnmr_dist/training.py", 'def f():\n    """Doc.\n' + "    more\n" * 60 + '    """\n'),
    (documented, "gnnmr_dist/training.py", '"""Doc."""\ndef _private():\n    pass\n'),
]


@pytest.mark.parametrize(("rule", "path", "source"), OFFENDERS)
def test_each_rule_can_fail(rule: Rule, path: str, source: str) -> None:
    assert len(rule(path, source)) == 1


@pytest.mark.parametrize(("rule", "path", "source"), INNOCENT)
def test_each_rule_lets_the_innocent_pass(rule: Rule, path: str, source: str) -> None:
    assert rule(path, source) == []


def unexpected_at_top(names: set[str]) -> set[str]:
    """Names at the top of the repository that nobody agreed on."""
    return names - TOP_LEVEL


def test_the_top_level_has_only_agreed_names() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: what belongs to the project cannot be told from what was made in it")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    assert unexpected_at_top({name.split("/")[0] for name in listed.split("\0") if name}) == set()


def test_a_stray_name_at_the_top_level_is_seen() -> None:
    assert unexpected_at_top({"gnnmr_dist", "utils.py"}) == {"utils.py"}
