"""Sweeps over settings on Ray Tune: the search space as data, the driver, the choice and its report (docs/sweeps.md)."""
