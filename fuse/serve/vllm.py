"""The plugin that tells vLLM of fused folders: entry point `fuse` of the group `vllm.general_plugins`.

vLLM calls it in every process that it starts, more than once in some. The model is named, not imported, so that a
process that forks later has not touched a GPU.
"""

MODEL = "FusedForConditionalGeneration"
CLASS = "fuse.serve.vllm_model:FusedForVLLM"


def register() -> None:
    """Make transformers know `model_type: fuse`, and vLLM the model. Repeated calls change nothing."""
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    from fuse import auto_classes

    auto_classes.install()
    if MODEL not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(MODEL, CLASS)
