"""The small files of a fused folder: config.json, the host's tokenizer, every branch's own processor files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fuse
from fuse import families, strict_json
from fuse.anatomy import Member
from fuse.dtypes import WORDS
from fuse.families.registry import TEXTS
from fuse.fused import Fits, FoldedGraft, Fused, FusedBranch
from fuse.fused_grafts import graft_json
from fuse.fused_plan import branch_json, options_json
from fuse.fused_turned import bridge_json
from fuse.plan import Plan
from fuse.small_files import COPIED, FOLDERS, change_keys, copy_small, set_dtype, without_code, write_json

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
TEMPLATE, PROCESSOR, PREPROCESSOR = "chat_template.jinja", "processor_config.json", "preprocessor_config.json"
# what a config says beside its language model: of flat Qwen2-VL files, and of the original LLaVA code
NOT_TEXT = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
            "vision_token_id", "architectures", "transformers_version", "_name_or_path", "use_cache",
            "tokenizer_model_max_length", "tokenizer_padding_side", "seperator", "use_local_only", "use_global_only",
            "use_mm_proj", "freeze_mm_mlp_adapter", "unfreeze_mm_vision_tower")  # fmt: skip
NOT_TEXT_BEGINNINGS = ("mm_", "image_", "tune_mm", "optimize_", "vision_", "video_")


def write_fused_files(plan: Plan, fused: Fused, folder: Path) -> None:
    """Write everything but weights, provenance, card and index."""
    for name in (*TOKENIZER, "generation_config.json"):
        if plan.host.file(name).is_file():
            copy_small(plan.host.file(name), folder / name)
    if (folder / "tokenizer_config.json").is_file():
        config = strict_json.read_object(folder / "tokenizer_config.json")
        kept = {k: v for k, v in config.items() if k not in {"processor_class", "chat_template"}}
        write_json(folder / "tokenizer_config.json", kept)
    if plan.template_text:
        (folder / TEMPLATE).write_text(plan.template_text, encoding="utf-8")
    write_json(folder / PROCESSOR, {"processor_class": "FusedProcessor"})
    write_json(folder / "generation_config.json", generation_config(plan, fused))
    for branch in fused.branches:
        _write_branch(branch, folder / "branches" / branch.name)
    write_json(folder / "config.json", fused_config(plan, fused))


def fused_config(plan: Plan, fused: Fused) -> dict[str, Any]:
    """config.json of a fused folder."""
    dtype, eyes = plan.dtypes.get("language") or _dtype(plan), plan.dtypes.get("encoder")
    text = text_config(plan, dtype)
    return {
        "model_type": "fuse", "architectures": ["FusedForConditionalGeneration"], "dtype": dtype,
        "fuse_version": fuse.__version__, "host_type": fused.host_type, "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"], "image_token": fused.image_token,
        "image_token_id": fused.image_token_id,
        "branches": [
            branch_json(b, fused.ids[b.token], _branch_config(b, eyes), fused.separators.get(b.name, ()))
            for b in fused.branches
        ],
        **({"vision_dtype": "float32"} if _keeps_wide_eyes(plan, dtype) else {}),
        **({"grafts": [graft_json(graft, fused.ids) for graft in fused.grafts]} if fused.grafts else {}),
    }  # fmt: skip


def _keeps_wide_eyes(plan: Plan, dtype: str) -> bool:
    """Whether the recipe asks for branches in float32 beside a language model that is narrower."""
    return dtype != "float32" and all(plan.dtypes.get(part) == "float32" for part in ("encoder", "projector"))


def text_config(plan: Plan, dtype: str, folded: Sequence[FoldedGraft] | None = None) -> dict[str, Any]:
    """The host's language model as a config of its own class, with the output's rows.

    folded: the grafts that are in it, where these are not all that the plan folds.
    """
    host = plan.host
    where = str(host.folder)
    inner = families.text_config(host.checkpoint.config, host.family, where)
    text = without_code(dict(inner))
    if inner is host.checkpoint.config:
        text = {k: v for k, v in text.items() if k not in NOT_TEXT and not k.startswith(NOT_TEXT_BEGINNINGS)}
    for key in ("_name_or_path", "torch_dtype", "architectures", "transformers_version"):
        text.pop(key, None)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if key not in text and host.checkpoint.config.get(key) is not None:
            text[key] = host.checkpoint.config[key]
    text |= _answering(host)
    embedding = next(r for r in plan.rows if r.part == "language" and r.canonical == host.text.embedding)
    change_keys(text, plan.changes)
    for one in plan.folded if folded is None else folded:
        text |= one.changes
    for graft in plan.fused.grafts if plan.fused else ():
        settings = getattr(graft.donor.files, "host_settings", None)
        if settings and graft.scale != 0:
            text |= settings(graft.config, host.basis)
    return text | {
        "model_type": _text_type(host), "dtype": dtype, "vocab_size": embedding.shape[0],
        "tie_word_embeddings": host.is_tied,
    }  # fmt: skip


def _answering(host: Member) -> dict[str, Any]:
    """What an encoder-decoder's config leaves to its class: the token that begins an answer (T5's is the one that fills
    up), and whether the last hidden state is scaled, which T5 tells by whether its matrices are tied.
    """
    if host.text.name != "t5":
        return {}
    inner = families.text_config(host.checkpoint.config, host.family, str(host.folder))
    start = inner.get("decoder_start_token_id")
    scaled = inner.get("scale_decoder_outputs", inner.get("tie_word_embeddings") is not False)
    return {
        "decoder_start_token_id": inner.get("pad_token_id", 0) if start is None else start,
        "scale_decoder_outputs": bool(scaled),
    }


def _text_type(host: Member) -> str:
    """The model_type of the text class: flat Qwen2-VL files state the whole's."""
    found = families.text_type_of(host.checkpoint.config, host.family, str(host.folder))
    return f"{found}_text" if f"{found}_text" in TEXTS else found


def _dtype(plan: Plan) -> str:
    """The dtype of the embedding, which is that of the language model."""
    row = next(row for row in plan.rows if row.canonical == plan.host.text.embedding)
    return WORDS[row.dtype]


def _branch_config(branch: FusedBranch, dtype: str | None) -> dict[str, Any]:
    config = without_code(dict(branch.config))
    config.pop("_name_or_path", None)
    if dtype is not None and branch.member is not None:
        set_dtype(config, dtype)
    return config


def generation_config(plan: Plan, fused: Fused) -> dict[str, Any]:
    """The host's, with the tokens that are never said; where the host has none, with the ends that it knows."""
    file = plan.host.folder / "generation_config.json"
    config: dict[str, Any] = without_code(strict_json.read_object(file)) if file.is_file() else {}
    if not config:
        config = _ends(plan.host)
    config.pop("_from_model_config", None)  # a config of that origin is made anew by generate()
    if start := {k: v for k, v in _answering(plan.host).items() if k.endswith("_id")}:
        config = {**start, **config}
    silent = {*(config.get("suppress_tokens") or ()), *fused.silent}
    return config | {"suppress_tokens": sorted(silent)}


def _ends(host: Member) -> dict[str, Any]:
    """The ids that begin, end and pad a text: of the config, else of the words that the tokenizer's config names."""
    text = families.text_config(host.checkpoint.config, host.family, str(host.folder))
    file = host.file("tokenizer_config.json")
    named = strict_json.read_object(file) if file.is_file() else {}
    found: dict[str, Any] = {}
    for word in ("bos_token", "eos_token", "pad_token"):
        value = text.get(f"{word}_id", host.checkpoint.config.get(f"{word}_id"))
        token = named.get(word)
        token = token.get("content") if isinstance(token, dict) else token
        if value is None and host.vocabulary is not None and isinstance(token, str):
            value = host.vocabulary.ids.get(token)
        found |= {f"{word}_id": value} if value is not None else {}
    return found


def _write_branch(branch: FusedBranch, folder: Path) -> None:
    """The branch's own processor files: all of its member's, and the preprocessing of its tower or encoder."""
    folder.mkdir(parents=True)
    if branch.member is not None:
        for inner in ("", *FOLDERS):
            source = branch.member.folder / inner
            names = [name for name in COPIED if (source / name).is_file()]
            if names:
                (folder / inner).mkdir(exist_ok=True)
            for name in names:
                copy_small(source / name, folder / inner / name)
        if branch.kind == "native":  # which processor it is may hang on the model_type
            write_json(folder / "config.json", _branch_config(branch, None))
    for source in branch.folders:
        if (source / PREPROCESSOR).is_file() and not (folder / PREPROCESSOR).exists():
            copy_small(source / PREPROCESSOR, folder / PREPROCESSOR)


def branches_json(fused: Fused, sources: Mapping[str, Mapping[str, str]], fits: Fits) -> list[dict[str, Any]]:
    """The branches as fuse.json states them."""
    return [
        {
            "name": branch.name, "kind": branch.kind, "member": branch.member.name if branch.member else None,
            "max_tokens": branch.max_tokens, "prune": branch.prune if branch.max_tokens is not None else None,
            **options_json(branch, fused.separators.get(branch.name, ())),
            **({"bridge": bridge_json(branch, branch.bridge, sources, fits)} if branch.bridge else {}),
            "files": [
                {"name": lender.name, "origin": lender.origin,
                 "revision": lender.checkpoint.revision if lender.checkpoint else "",
                 "sha256": dict(sources[lender.name])}
                for lender in branch.lenders
            ],
        }
        for branch in fused.branches
    ]  # fmt: skip
