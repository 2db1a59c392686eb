"""Distributed mutual learning of graph networks for multi-modal recommendation (GNNMR)."""

__version__ = "0.1.0"
