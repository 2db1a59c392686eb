"""Unit tests run on one thread: tiny sizes, and sums in one order."""

import torch

torch.set_num_threads(1)
