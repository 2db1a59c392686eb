"""The study behind benchmarks/paper.py: a plan as data, a runner that can be cut off, a report from result files."""
