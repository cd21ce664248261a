"""Model cards of exported folders: the front matter of the folder that was exported, and what was done to it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.card_record import record_licence, record_sections
from fuse.card_use import use_text
from fuse.digests import CARD
from fuse.errors import one_line
from fuse.export.folders import Opened
from fuse.licence_files import UNSTATED

REST = {"whole": "are stored whole", "left_out": "differ and are left out"}


def native_card(source: Opened, made: Path, told: Mapping[str, Any]) -> str:
    """README.md of a native folder, whose other files are there. told: what its fuse.json will hold."""
    exported = told["exported"]
    done = "".join(
        f"- graft `{one['name']}` ({one['kind']}, scale {one['scale']:g}) is folded into the weights\n"
        for one in exported["folded"]
    )
    done += "".join(f"- graft `{name}` had scale 0 and is left out\n" for name in exported["not_heard"])
    form = f"Written as `{exported['class']}` by `fuse export --to native`, from a fused folder.\n\n{done}"
    parts = [use_text(made, form), record_sections(told, made)]
    return f"{front_matter(source.folder)}# A merged model\n\n{members_table(source)}" + "\n".join(parts)


def adapter_card(source: Opened, told: Mapping[str, Any]) -> str:
    """README.md of an adapter. told: the report, as `fuse.export.adapter_report.report_json` gives it."""
    rest = "".join(f"- {len(told[key]):,} tensors {said}\n" for key, said in REST.items() if told[key])
    text = (
        "# An adapter of what a merge did\n\n"
        f"The language model of a merged folder less its base, {cell(told['base'])}, as LoRA of rank {told['rank']},\n"
        "by `fuse export --to adapter`.\n\n"
        f"- {len(told['tensors']):,} matrices, which miss {told['error']:.3%} of their differences' norm\n{rest}"
        f"- of everything that differs {told['error_in_all']:.3%} is missing\n\n"
    )
    load = (
        "```python\nfrom peft import AutoPeftModel\n\n"
        'model = AutoPeftModel.from_pretrained("path/to/this/folder")  # fetches the base\n```\n'
    )
    from huggingface_hub import ModelCardData

    record = {key: value for key, value in source.record.told.items() if key != "sha256"}  # of the merged folder
    licence = record_licence(record, source.folder)
    front = ModelCardData(library_name="peft", tags=["merge", "fuse", "lora"], **licence).to_yaml()
    sections = record_sections(record, source.folder)
    return f"---\n{front}\n---\n\n{text}{members_table(source)}## Load\n\n{load}\n{sections}"


def front_matter(folder: Path) -> str:
    """The front matter of a folder's card with the line behind it, or ""."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\n.*?\n---\n\n?", text, re.DOTALL)
    return found[0] if found else ""


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
