"""A fused folder loads: asked of transformers itself, without reading a weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuse import torchvision_shim
from fuse.errors import CheckpointError, FuseError, RecipeError, in_a_line
from fuse.quiet import quiet_loading


def check_loads(folder: Path) -> None:
    """Open the folder on the meta device, as `from_pretrained` opens it: only headers are read.

    Raises CheckpointError when a tensor of the model is missing from the weights, is stored and not wanted, or has
    another shape; and what building a branch raises.
    """
    torchvision_shim.install()
    from fuse.model.fused import FusedForConditionalGeneration

    with quiet_loading(), _in_a_sentence(folder):
        model, report = FusedForConditionalGeneration.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )  # fmt: skip
    told = {
        "missing_keys": "the model wants tensor {} and it is not among the weights",
        "unexpected_keys": "tensor {} is among the weights and the model does not want it",
        "mismatched_keys": "tensor {} has another shape than the model wants",
    }
    for what, sentence in told.items():
        if found := sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(what) or ()):
            more = f" ({len(found)} such tensors)" if len(found) > 1 else ""
            raise CheckpointError(sentence.format(repr(found[0])) + more, where=folder)
    model.attach()
    _check_eyes(folder)


def _check_eyes(folder: Path) -> None:
    """Every branch prepares a picture, and its markers have tokens."""
    from PIL import Image

    from fuse.model.processor import FusedProcessor

    with _in_a_sentence(folder):
        processor = FusedProcessor.from_pretrained(folder)
    if not processor.fused.branches:
        return
    try:
        with _in_a_sentence(folder):
            processor(images=[Image.new("RGB", (320, 240))], text=[processor.image_token])
    except RecipeError as error:  # a short context or a small budget: other images may fit
        if "context" not in error.problem and "max_tokens" not in error.problem:
            raise CheckpointError(error.problem, where=folder, hint=error.hint) from None


@contextmanager
def _in_a_sentence(folder: Path) -> Iterator[None]:
    """What transformers makes of the members' configs and small files, which it takes as they stand."""
    try:
        yield
    except CheckpointError as error:
        raise error if error.where else CheckpointError(error.problem, where=folder, hint=error.hint) from None
    except FuseError:
        raise
    except Exception as error:  # of any kind: its classes take the numbers as they stand
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise
        raise CheckpointError(f"transformers does not load it: {in_a_line(error)}", where=folder) from None
