"""Tiny checkpoint folders for end-to-end tests: model, tokenizer, template, processor."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
)


def words(count: int) -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, count))]


def save_tokenizer(folder: Path, tokens: list[str], added: dict[str, int] | None = None, template: str = "") -> None:
    """A word-level tokenizer with the tokens at ids 0, 1, ... and further added tokens at the ids given."""
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for token in sorted(added or {}, key=lambda t: (added or {})[t]):
        inner.add_special_tokens([token])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    for token, row in (added or {}).items():
        assert tokenizer.convert_tokens_to_ids(token) == row, f"{token} is not at {row}"


def save_member(
    model: PreTrainedModel, folder: Path, tokens: list[str] | None = None, added: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float32, template: str = "", **how: object,
) -> Path:  # fmt: skip
    """Save the model with a tokenizer that has a token for every row unless other tokens are given."""
    model.to(dtype).save_pretrained(folder, **how)
    rows = model.get_input_embeddings().weight.shape[0]
    save_tokenizer(folder, tokens if tokens is not None else words(rows), added, template)
    return folder


def perturbed(model: PreTrainedModel, seed: int, scale: float = 0.05) -> PreTrainedModel:
    """A copy with noise on every weight: a fine-tune of the same base."""
    import copy

    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) * scale)
    return other


def save_family(root: Path, *names: str, **shape: int) -> Path:
    """Tiny Llamas of one base in folders of these names: the first as it was drawn, the others changed. shape: of the
    config, where it is another one."""
    torch.manual_seed(0)
    usual = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**usual, **shape}))
    for seed, name in enumerate(names):
        save_member(perturbed(model, seed) if seed else model, root / name)
    return root
