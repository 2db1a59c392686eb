"""Data sets on disk, the graph, sampling and batches."""
