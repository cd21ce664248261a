"""Which fused folders vLLM can run with our model, told by their config before anything is loaded.

vLLM runs the language model with its own code, packs many prompts into one row, and reads an image before it knows the
question. So nothing may reach into the layers of the host, an image is encoded alone, and attention is causal.
"""

from collections.abc import Iterator

from fuse.branches.native_table import MROPE_HOSTS
from fuse.branches.options import is_shared
from fuse.errors import RecipeError
from fuse.model.config import FusedConfig
from fuse.model.grafting import heard
from fuse.model.masks import BLOCK_HOSTS, PREFIX_HOSTS
from fuse.model.visual import VARIABLE

# Text models whose class in vLLM computes what the fused model does, by model_type.
TEXTS = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip
ELSEWHERE = "transformers runs it"


def check_served(config: FusedConfig, folder: object) -> None:
    """RecipeError where vLLM cannot run the folder, with the reason."""
    if why := refusal(config):
        raise RecipeError(f"vLLM cannot run this folder: {why}", where=folder, hint=ELSEWHERE)


def refusal(config: FusedConfig) -> str:
    """Why vLLM cannot run a folder with this config; "" where it can."""
    return next(_reasons(config), "")


def _reasons(config: FusedConfig) -> Iterator[str]:
    text = config.text_config.model_type
    if config.is_encoder_decoder:
        yield f"its host {text} has an encoder"
    if config.host_type in MROPE_HOSTS:
        yield f"its host {config.host_type} has positions in three dimensions"
    if config.host_type in PREFIX_HOSTS | BLOCK_HOSTS:
        yield f"its host {config.host_type} attends in both directions over an image"
    if text not in TEXTS:
        yield f"its text model is {text}, and these are served: {', '.join(TEXTS)}"
    for graft in heard(config.grafts):
        yield f"graft {graft['name']!r} reaches into the layers of the host"
    if not config.branches:
        yield "it has no branch"
    for branch in config.branches:
        if branch["kind"] in VARIABLE:
            yield f"branch {branch['name']!r} reads the question, and vLLM encodes an image without it"
        if is_shared(branch):
            yield f"branch {branch['name']!r} has positions: shared"
