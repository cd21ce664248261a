"""Model cards of exported folders: the front matter of the folder that was exported, and what was done to it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.anatomy import UNSTATED
from fuse.digests import CARD
from fuse.errors import one_line
from fuse.export.folders import Opened
from fuse.export.native_grafts import Folds

SEQ2SEQ = ("t5",)
REST = {"whole": "are stored whole", "left_out": "differ and are left out"}


def native_card(source: Opened, name: str, folds: Folds) -> str:
    """README.md of a native folder. name: its class."""
    branches, kind = source.config.get("branches") or (), source.config["text_config"].get("model_type")
    auto = "ImageTextToText" if branches else "Seq2SeqLM" if kind in SEQ2SEQ else "CausalLM"
    done = "".join(
        f"- graft `{one.graft.name}` ({one.graft.kind}, scale {one.graft.scale:g}) is folded into the weights\n"
        for one, _ in folds.folded
    )
    done += "".join(f"- graft `{name}` had scale 0 and is left out\n" for name in folds.silent)
    load = (
        f'```python\nfrom transformers import AutoModelFor{auto}\n\nmodel = AutoModelFor{auto}.from_pretrained("path/to'
        '/this/folder", dtype="auto", device_map="auto")\n```\n'
    )
    told = f"# A merged model\n\nWritten as `{name}` by `fuse export --to native`, from a fused folder.\n\n{done}"
    return f"{front_matter(source.folder)}{told}\n{members_table(source)}## Load\n\n{load}"


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
    front = "---\nlibrary_name: peft\ntags:\n- merge\n- fuse\n- lora\n---\n\n"
    return f"{front}{text}{members_table(source)}## Load\n\n{load}"


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
