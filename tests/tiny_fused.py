"""Fused models made in memory from tiny native members, without a recipe: for tests of the model itself."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fuse.model.config import FusedConfig
from fuse.model.fused import FusedForConditionalGeneration
from fuse.model.processor import FusedProcessor
from tests import tiny_processors

LANGUAGE = ("language_model", "text_model")


def fused(
    members: dict[str, PreTrainedModel], host: str, folder: Path, budgets: dict[str, dict[str, Any]] | None = None
) -> tuple[FusedForConditionalGeneration, FusedProcessor]:
    """One branch for every member, and the host's language model; saved into `folder` and loaded from there."""
    model, config = members[host], members[host].config
    text = config.get_text_config().to_dict()
    rows = text["vocab_size"]
    known = set(tiny_processors.tokenizer(config.model_type).get_vocab())
    new: dict[str, torch.Tensor] = {}  # tokens that only guests have, with their rows of the guest's embedding
    for member in members.values():
        for token, row in tiny_processors.PROCESSORS[member.config.model_type][4].items():
            if token not in known:
                new.setdefault(token, member.get_input_embeddings().weight[row].detach())
    text["vocab_size"] = rows + len(members) + len(new)
    branches = []
    for i, (name, member) in enumerate(members.items()):
        files = folder / "branches" / name
        files.mkdir(parents=True)
        processor = tiny_processors.processor(member.config.model_type)
        processor.save_pretrained(files)
        member.config.save_pretrained(files)
        branches.append(
            {
                "name": name, "kind": "native", "token": f"<|fuse:{name}|>", "token_id": rows + i,
                "config": member.config.to_dict(), **(budgets or {}).get(name, {}),
            }
        )  # fmt: skip
    own = tiny_processors.processor(config.model_type)
    made = FusedConfig(
        text_config=text, host_type=config.model_type, branches=branches, image_token=getattr(own, "boi_token", own.image_token),
        dtype="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    out = FusedForConditionalGeneration(made).float().eval()
    state = out.state_dict()
    wanted = dict(state)
    for name, value in _language(model).items():
        wanted["language_model." + name] = _longer(value, state["language_model." + name], list(new.values()))
    for name, member in members.items():
        for key, value in member.model.state_dict().items():
            if not key.startswith(LANGUAGE):
                wanted[f"branches.{name}.{key}"] = value
    out.load_state_dict(wanted)
    out.save_pretrained(folder)
    tokenizer = tiny_processors.tokenizer(config.model_type)
    tokenizer.add_special_tokens({"extra_special_tokens": [*(b["token"] for b in branches), *new]})
    assert tokenizer.convert_tokens_to_ids([b["token"] for b in branches]) == made.placeholder_ids
    FusedProcessor(tokenizer, made, (), None, own.chat_template).save_pretrained(folder)
    return load(folder), FusedProcessor.from_pretrained(folder)


def load(folder: Path, **how: Any) -> FusedForConditionalGeneration:
    model, report = FusedForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **how)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def _language(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The language model's tensors by their names in a text-only checkpoint."""
    found = {}
    for key, value in model.state_dict().items():
        for part in LANGUAGE:
            if key.startswith(f"model.{part}."):
                found["model." + key.removeprefix(f"model.{part}.")] = value
        if key.startswith("lm_head."):
            found[key] = value
    return found


def _longer(value: torch.Tensor, like: torch.Tensor, last: list[torch.Tensor]) -> torch.Tensor:
    """The table with zero rows behind it, and the rows of new tokens at its end."""
    if value.shape == like.shape:
        return value
    value = torch.cat([value, value.new_zeros(like.shape[0] - value.shape[0], *value.shape[1:])])
    for i, row in enumerate(last):
        value[len(value) - len(last) + i] = row
    return value
