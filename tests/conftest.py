"""Session-wide set-up: torchvision beside a CPU torch, one thread, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from fuse import torchvision_shim

torchvision_shim.install()
torch.set_num_threads(1)
