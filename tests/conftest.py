"""One thread a test process: the tests are small, their processes many, and sums then have the same last bits."""

import torch

torch.set_num_threads(1)
