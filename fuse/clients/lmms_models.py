"""What lmms-eval is told of `fuse`: entry point `fuse` of the group `lmms_eval.models`."""

from typing import Any


def manifest() -> Any:
    """The models that lmms-eval may ask for by `--model fuse`, as a ModelManifest; they are named, not imported."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(
        model_id="fuse", simple_class_path="fuse.clients.lmms.Fuse", chat_class_path="fuse.clients.lmms.FuseChat"
    )
