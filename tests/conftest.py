"""What tests share: a sane environment, run-time type checks of the mathematics, real data where present."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before torch and Ray are imported, by this process or by one that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if not os.access(Path.home(), os.W_OK):
    os.environ["HOME"] = tempfile.mkdtemp(prefix="gnnmr-home-")  # Ray keeps its token there

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Annotations of these modules are checked at every call. Not the whole package: numba compiles functions of
# other modules and cannot look through a wrapper.
MODELS = [
    f"gnnmr_dist.models.{name}"
    for name in (
        *("a2cmhne", "attention", "blocks", "encoder", "id_tables", "inputs"),
        *("layers", "mmgcn", "pmgt", "rows", "scores", "vbpr"),
    )
]  # kernels are numba's
MATHEMATICS = [
    "gnnmr_dist.losses",
    "gnnmr_dist.step_losses",
    *MODELS,
    "gnnmr_dist.ensemble",
    "gnnmr_dist.metrics",
]
install_import_hook(MATHEMATICS, "beartype.beartype")

# A first example may wait for numba to compile; in CI the examples are the same every time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also the tests marked slow (several minutes of Ray)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, visibly, unless asked for."""
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow (make test-slow)"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets that GNNMR_DATA names; skips where it is not set."""
    folder = os.environ.get("GNNMR_DATA")
    if not folder:
        pytest.skip("GNNMR_DATA is not set: it names a folder with steam200k, se_funds_2022q4 and ml100k")
    root = Path(folder)
    if not root.is_dir():
        pytest.fail(f"GNNMR_DATA: expected a folder, got {folder}")
    return root
