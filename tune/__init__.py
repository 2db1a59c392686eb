"""Sweeps over settings on Ray Tune: the search space as data, the driver, the report (docs/sweeps.md)."""
