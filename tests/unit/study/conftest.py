"""benchmarks/ is no package of the project's: its scripts find each other beside themselves, and here by this path."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
