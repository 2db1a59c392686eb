"""From a laptop to a cluster: a local rehearsal, and files for Kubernetes, virtual machines and Slurm (README.md)."""
