"""Readers of the layouts people already have."""
