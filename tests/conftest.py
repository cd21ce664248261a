"""Session-wide set-up: torchvision beside a CPU torch, one thread, no network."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from fuse import torchvision_shim

torchvision_shim.install()
torch.set_num_threads(1)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An open_clip package whose registry has the tiny towers of tests/tiny_encoders.py."""
    from fuse.branches import open_clip_files
    from tests.tiny_encoders import install

    package = install(tmp_path)
    monkeypatch.setattr(open_clip_files, "_package", lambda: package)
    return package
