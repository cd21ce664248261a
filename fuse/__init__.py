"""Training-free composition of multimodal LLMs: merge checkpoints, fuse vision encoders, export folders that run."""

__version__ = "0.1.0"
