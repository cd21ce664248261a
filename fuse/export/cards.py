"""Model cards of exported folders: that of the folder that was exported, or one of their own, and what was done."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.card_forms import in_form, read_card, with_weights, without_fused
from fuse.card_record import record_licence, record_sections
from fuse.card_text import fenced
from fuse.card_use import HERE, auto_class, use_text
from fuse.errors import one_line
from fuse.export.adapter_base import Base
from fuse.export.folders import Opened
from fuse.licence_files import UNSTATED

BASE = "path/to/the/base"
REST = {"whole": "are stored whole", "left_out": "differ and are left out"}


def native_card(source: Opened, made: Path, told: Mapping[str, Any]) -> str:
    """README.md of a native folder, whose other files are there: that of the fused one, in which it is told anew how it
    is used and which weights it has. told: what its fuse.json will hold.
    """
    exported = told["exported"]
    done = "".join(
        f"- graft `{one['name']}` ({one['kind']}, scale {one['scale']:g}) is folded into the weights\n"
        for one in exported["folded"]
    )
    done += "".join(f"- graft `{name}` had scale 0 and is left out\n" for name in exported["not_heard"])
    form = f"Written as `{exported['class']}` by `fuse export --to native`, from a fused folder.\n\n{done}"
    use = use_text(made, form)
    if text := read_card(source.folder):
        return with_weights(without_fused(in_form(text, use)), told["sha256"])
    return own_card(source, use, record_sections(told, made))


def own_card(source: Opened, use: str, sections: str) -> str:
    """README.md of the same model in another form, where the folder that was exported has none."""
    return f"# A merged model\n\n{members_table(source)}{use}\n{sections}"


def adapter_card(source: Opened, told: Mapping[str, Any], base: Base) -> str:
    """README.md of an adapter. told: the report, as `fuse.export.adapter_report.report_json` gives it."""
    rest = "".join(f"- {len(told[key]):,} tensors {said}\n" for key, said in REST.items() if told[key])
    text = (
        "# An adapter of what a merge did\n\n"
        f"The language model of a merged folder less its base, {cell(told['base'])}, as LoRA of rank {told['rank']},\n"
        "by `fuse export --to adapter`.\n\n"
        f"- {len(told['tensors']):,} matrices, which miss {told['error']:.3%} of their differences' norm\n{rest}"
        f"- of everything that differs {told['error_in_all']:.3%} is missing\n\n"
    )
    from huggingface_hub import ModelCardData

    record = {key: value for key, value in source.record.told.items() if key != "sha256"}  # of the merged folder
    of = {"base_model": base.hub_id, "base_model_relation": "adapter"} if base.hub_id else {}
    licence = record_licence(record, source.folder)
    front = ModelCardData(library_name="peft", tags=["merge", "fuse", "lora"], **of, **licence).to_yaml()
    sections = record_sections(record, source.folder)
    return f"---\n{front}\n---\n\n{text}{members_table(source)}{_load(base)}\n{sections}"


def _load(base: Base) -> str:
    """How PEFT puts the adapter on its base, which it does not choose the class of itself."""
    member = base.member
    if not member.family.native:
        return "## Load\n\nIts base has the layout of the original code of its family, which is what loads it.\n"
    auto = auto_class(member.text, sees=member.sees)
    where = json.dumps(base.hub_id or BASE)
    where += f", revision={json.dumps(member.checkpoint.revision)}" if base.hub_id else ""
    lines = [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f'base = {auto}.from_pretrained({where}, dtype="auto", device_map="auto")',
        f'model = PeftModel.from_pretrained(base, "{HERE}")',
    ]
    return "## Load\n\n" + fenced("\n".join(lines), "python")


def members_table(source: Opened) -> str:
    """The members that fuse.json tells, with origin, revision and licence."""
    members: Any = source.record.told.get("members")
    if not isinstance(members, dict) or not members:
        return ""
    rows = "\n".join(
        f"| {cell(name)} | {cell(one.get('origin'))} | {cell(one.get('revision') or '-')} | "
        f"{cell(one.get('licence') or UNSTATED)} |"
        for name, one in members.items() if isinstance(one, dict)
    )  # fmt: skip
    return f"| member | origin | revision | licence |\n|---|---|---|---|\n{rows}\n\n"


def cell(value: object) -> str:
    """A stranger's text inside a table."""
    return re.sub(r"([|<>`\[\]\\])", r"\\\1", one_line(str(value)))
