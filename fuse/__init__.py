"""Training-free composition of multimodal LLMs: merge checkpoints, fuse vision encoders, export folders that run."""

from fuse import auto_classes

__version__ = "0.1.0"

auto_classes.install()
