"""Session-wide set-up: torchvision beside a CPU torch, one thread, no network."""

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.store_server import Store

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from fuse import torchvision_shim

torchvision_shim.install()
torch.set_num_threads(1)

# The same examples every time, however slow the machine is; `make soak` tries others.
settings.register_profile("fuse", deadline=None, derandomize=True)
settings.load_profile("fuse")


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """What is there before a module stays: collections need not look through it, which costs half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An open_clip package whose registry has the tiny towers of tests/tiny_encoders.py."""
    from fuse.branches import open_clip_files
    from tests.tiny_encoders import install

    package = install(tmp_path)
    monkeypatch.setattr(open_clip_files, "_package", lambda: package)
    return package


@pytest.fixture(scope="module")
def server() -> Iterator["Store"]:
    """An S3 server on this machine."""
    from tests.store_server import s3_server

    with s3_server() as store:
        yield store


@pytest.fixture
def store(server: "Store", tmp_path, monkeypatch) -> "Store":
    """The server, with what reaches it in the environment, and a cache of its own."""
    for key, value in server.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return server
