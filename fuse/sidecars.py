"""The small files of an output folder: config, tokenizer, processor, template, provenance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fuse
from fuse import strict_json
from fuse.adapters.adapter import Adapter
from fuse.checkpoint import INDEX, Checkpoint
from fuse.digests import Digest, sha256_of, small_files
from fuse.fused import Fits
from fuse.licences import licences_json, roll_up
from fuse.new_tokens import extended_decoder, extended_tokenizer
from fuse.plan import Plan
from fuse.small_files import COPIED, FOLDERS, change_keys, copy_small, json_bytes, set_dtype, without_code, write_json
from fuse.stores.needed import etags_of

PROVENANCE = "fuse.json"


def write_sidecars(
    plan: Plan, folder: Path, digests: Mapping[str, Digest], sources: Mapping[str, Mapping[str, str]],
    fits: Fits,
) -> None:  # fmt: skip
    """Write everything but the weights, the index last.

    digests: of each weight file. sources: sha256 of each member's weight files, by member, and of
    what else lends tensors. fits: how well the maps of bridges fit, by graft.
    """
    from fuse.card import model_card

    if plan.fused:
        from fuse.fused_folder import write_fused_files

        write_fused_files(plan, plan.fused, folder)
        _write_tokens(plan, folder)
    else:
        _write_native_files(plan, folder)
    index = _index(plan)
    found = provenance(plan, digests, sources, fits) | {"files": small_files(folder)}
    if index:
        found["files"][INDEX] = sha256_of(index)
    write_json(folder / PROVENANCE, found)
    card = model_card(plan, folder, sources, {name: digest.sha256 for name, digest in digests.items()}, fits)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if index:
        (folder / INDEX).write_bytes(index)


def _index(plan: Plan) -> bytes:
    """The bytes of the index; none where there is one file."""
    if len(plan.shards) == 1:
        return b""
    weight_map = {plan.rows[i].name: name for name, numbers in plan.shards for i in numbers}
    return json_bytes({"metadata": {"total_size": plan.bytes_written}, "weight_map": dict(sorted(weight_map.items()))})


def _write_native_files(plan: Plan, folder: Path) -> None:
    """The host's own small files, with another's template and further tokens where the plan says so."""
    for name in COPIED:
        if plan.host.file(name).is_file():
            copy_small(plan.host.file(name), folder / name)
    if plan.new_tokens:
        _write_tokens(plan, folder)
    for inner in FOLDERS:
        if (plan.host.folder / inner).is_dir():
            (folder / inner).mkdir()
            for name in COPIED:
                if (plan.host.folder / inner / name).is_file():
                    copy_small(plan.host.folder / inner / name, folder / inner / name)
    _write_template(plan, folder)
    write_json(folder / "config.json", output_config(plan))


def _write_tokens(plan: Plan, folder: Path) -> None:
    """The tokenizer's files with the tokens that the host lacked."""
    folders = {m.name: m.file("tokenizer.json").parent for m in plan.members}
    tokenizer = extended_tokenizer(strict_json.read_object(folder / "tokenizer.json"), plan.new_tokens, folders)
    write_json(folder / "tokenizer.json", tokenizer)
    if (folder / "tokenizer_config.json").is_file():
        config = strict_json.read_object(folder / "tokenizer_config.json")
        write_json(folder / "tokenizer_config.json", extended_decoder(config, tokenizer))
    if (folder / "added_tokens.json").is_file():
        ids = strict_json.read_object(folder / "added_tokens.json")
        write_json(folder / "added_tokens.json", {**ids, **{t.token: t.row for t in plan.new_tokens}})


def output_config(plan: Plan) -> dict[str, Any]:
    """The host's config, with the output's dtype and without code and without the path it was once loaded from."""
    config = without_code(dict(plan.host.checkpoint.config))
    config.pop("_name_or_path", None)
    _set_dtypes(config, plan)
    if plan.new_tokens:
        _set_rows(config, plan)
    _set_changes(config, plan)
    if plan.host.basis.tied and not plan.host.is_tied:
        _untie(config, config.get(plan.host.family.text))
    return config


def _set_dtypes(config: dict[str, Any], plan: Plan) -> None:
    """The dtype that loaders go by, which is the language model's, and the encoder's where the config states one."""
    if word := plan.dtypes.get("language"):
        set_dtype(config, word)
    vision = config.get(plan.host.family.vision) if plan.host.family.vision else None
    if isinstance(vision, dict) and (word := plan.dtypes.get("encoder")) and {"dtype", "torch_dtype"} & vision.keys():
        set_dtype(vision, word)


def _untie(config: dict[str, Any], inner: Any) -> None:
    """A host that ties its head and stores one all the same: the stored head is merged, and is what counts."""
    config["tie_word_embeddings"] = False
    if isinstance(inner, dict):
        inner["tie_word_embeddings"] = False


def _set_changes(config: dict[str, Any], plan: Plan) -> None:
    """What stacked layers and folded grafts changed in the language model: how deep and wide it is, its biases."""
    inner = config.get(plan.host.family.text) if plan.host.family.text else None
    place = inner if isinstance(inner, dict) else config
    change_keys(place, plan.changes)
    if place is not config:  # configs of old releases say the same twice
        change_keys(config, {key: value for key, value in plan.changes.items() if key in config})
    for one in plan.folded:
        place |= one.changes


def _set_rows(config: dict[str, Any], plan: Plan) -> None:
    """The vocabulary size, wherever the host's config states it."""
    embedding = next(row for row in plan.rows if row.canonical == plan.host.text.embedding)
    inner = config.get(plan.host.family.text) if plan.host.family.text else None
    for place in (config, inner):
        if isinstance(place, dict) and (place is inner or inner is None or "vocab_size" in place):
            place["vocab_size"] = embedding.shape[0] - (plan.host.language[embedding.canonical].shape[0]
                                                        - plan.host.basis.vocab_size)  # fmt: skip


def _write_template(plan: Plan, folder: Path) -> None:
    """Another member's chat template, in the one place that loaders look at first."""
    if plan.template is plan.host or plan.template.vocabulary is None:
        return
    for name in ("tokenizer_config.json", "processor_config.json"):
        if (folder / name).is_file():
            value = strict_json.read_object(folder / name)
            if value.pop("chat_template", None) is not None:
                write_json(folder / name, value)
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(plan.template.vocabulary.template, encoding="utf-8")


def _adapter_json(adapter: Adapter, sources: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    checkpoint = adapter.checkpoint
    return {
        "origin": checkpoint.origin, "revision": checkpoint.revision, "peft_type": adapter.kind,
        "sha256": dict(sources[adapter.name]), **_etags(checkpoint),
    }  # fmt: skip


def _etags(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of a member in a store, what that said of its files: of those that were read in part sha256 is not known."""
    etags = etags_of(checkpoint)
    return {"etag": etags} if etags else {}


def provenance(
    plan: Plan, digests: Mapping[str, Digest], sources: Mapping[str, Mapping[str, str]], fits: Fits
) -> dict[str, Any]:
    """What the folder was made of: nothing that changes from run to run or machine to machine."""
    found: dict[str, Any] = {
        "fuse": fuse.__version__,
        "plan": plan.digest(),
        "recipe": plan.recipe_text,
        "host": plan.host.name,
        "members": {
            m.name: {
                "origin": m.checkpoint.origin,
                "revision": m.checkpoint.revision,
                "licence": m.licence,
                "sha256": dict(sources[m.name]),
                **_etags(m.checkpoint),
                **({"adapter": _adapter_json(m.adapter, sources)} if m.adapter else {}),
            }
            for m in plan.members
        },
        "licences": licences_json(roll_up(plan)),
        "sha256": {name: digest.sha256 for name, digest in digests.items()},
        "marks": {name: digest.marks for name, digest in digests.items() if digest.marks},
        "dropped": [
            {"member": d.source.member, "tensor": d.source.tensor.name, "reason": d.reason} for d in plan.drops
        ],
    }
    if plan.fused:
        from fuse.fused_folder import branches_json
        from fuse.fused_grafts import grafts_json

        found["branches"] = branches_json(plan.fused, sources, fits)
        if plan.fused.grafts:
            found["grafts"] = grafts_json(plan.fused.grafts, sources, fits)
    if plan.folded:
        from fuse.fused_grafts import grafts_json

        told = grafts_json([one.graft for one in plan.folded], sources, {})
        found["folded"] = [graft | {"changes": dict(one.changes)} for graft, one in zip(told, plan.folded, strict=True)]
    return found
