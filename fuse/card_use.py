"""How a folder is loaded, asked and served, and what it cannot do: the part of a card that depends on its form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuse import families, strict_json
from fuse.card_text import fenced
from fuse.digests import RECORD
from fuse.families.family import TextFamily
from fuse.licences import RollUp, read_licences
from fuse.verify.record import read_record
from fuse.vocabulary import read_template

BEGIN, END = "<!-- fuse use: begin -->", "<!-- fuse use: end -->"
HERE = "path/to/this/folder"
Form = Literal["native", "original", "fused", "portable"]


@dataclass(frozen=True)
class Used:
    """What decides the commands.

    form: of a class that transformers has, of a layout that only its authors' code loads, of our class, or of our class
    with its code. sees: it takes images. chats: it has a chat template. auto: the Auto class that loads it. licences:
    of its parents, where fuse.json tells them.
    """

    form: Form
    sees: bool
    chats: bool
    auto: str
    config: Mapping[str, Any]
    licences: RollUp | None = None

    @property
    def encodes(self) -> bool:
        """An encoder-decoder, whose answer does not begin with the question."""
        inner = self.config.get("text_config")
        return self.auto == "AutoModelForSeq2SeqLM" or (isinstance(inner, dict) and inner.get("model_type") == "t5")


def used(folder: Path) -> Used:
    """How the folder is used, by its config.json, its chat template and its record where there is one already."""
    config = strict_json.read_object(folder / "config.json")
    chats = bool(read_template(folder))
    record = read_record(folder)
    licences = read_licences(record.told.get("licences"), folder / RECORD) if record else None
    if config.get("model_type") == "fuse":
        form: Form = "portable" if "auto_map" in config else "fused"
        return Used(form, bool(config["branches"]), chats, "AutoModelForImageTextToText", config, licences)
    family = families.family_of(config, str(folder))
    text = families.text_family_of(config, family, str(folder))
    sees = bool(family.vision) or not family.native
    auto = auto_class(text, sees=sees)
    return Used("native" if family.native else "original", sees, chats, auto, config, licences)


def auto_class(text: TextFamily, *, sees: bool) -> str:
    """The Auto class that loads a model of transformers. text: of its language model. sees: it takes images."""
    if sees:
        return "AutoModelForImageTextToText"
    return "AutoModelForSeq2SeqLM" if text.name == "t5" else "AutoModelForCausalLM"


def use_text(folder: Path, told: str = "") -> str:
    """The part of the card between two comments, by which an export finds and replaces it.

    told: how the folder came to its form, where it has another than the merge gave it: Markdown.
    """
    how = used(folder)
    parts = [f"## Form\n\n{told.strip()}\n" if told else "", _load(how), _ask(how), _serve(how), _limits(how)]
    return "\n".join([BEGIN, *(part for part in parts if part)]) + f"{END}\n"


def _load(how: Used) -> str:
    if how.form == "original":
        told = "This folder has the layout of the original code of its family, which is what loads it."
        return f"## Load\n\n{told}\n"
    reader = "AutoProcessor" if how.sees or how.form in {"fused", "portable"} else "AutoTokenizer"
    trust = ", trust_remote_code=True" if how.form == "portable" else ""
    told = "With `fuse-mllm` installed:\n\n" if how.form == "fused" else ""
    if how.form == "portable":
        told = "This runs the Python files of the folder, whose sha256 are in `fuse.json`.\n\n"
    lines = [
        *(["import fuse  # registers the class"] if how.form == "fused" else []),
        f"from transformers import {how.auto}, {reader}",
        "",
        f'folder = "{HERE}"',
        f'model = {how.auto}.from_pretrained(folder, dtype="auto", device_map="auto"{trust})',
        f"{reader[4:].lower()} = {reader}.from_pretrained(folder{trust})",
        *(_question(how, reader[4:].lower()) if how.chats and not how.encodes else []),
    ]
    return f"## Load\n\n{told}" + fenced("\n".join(lines), "python")


def _question(how: Used, reader: str) -> list[str]:
    """Asking in Python, through the chat template."""
    told = '"What can you do?"'
    if how.sees:
        told = '[{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is on it?"}]'
    return [
        "",
        f'messages = [{{"role": "user", "content": {told}}}]',
        f"inputs = {reader}.apply_chat_template(",
        '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
        ").to(model.device)",
        "answer = model.generate(**inputs, max_new_tokens=64)",
        f'print({reader}.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _ask(how: Used) -> str:
    if how.form == "original":
        return ""
    words = '--image photo.jpg "What is on it?"' if how.sees else '"What can you do?"'
    return "## Ask\n\n" + fenced(f"fuse ask {HERE} {words}")


def _serve(how: Used) -> str:
    """`transformers serve`, which imports no fuse and wants a decoder that chats."""
    if how.form == "original" or how.encodes or not how.chats:
        return ""
    lines = {
        "native": [f"transformers serve {HERE}"],
        "portable": [f"transformers serve {HERE} --trust-remote-code"],
        "fused": [f"fuse export {HERE} --to portable portable", "transformers serve portable --trust-remote-code"],
    }[how.form]
    told = "An endpoint that speaks OpenAI's API, with `transformers[serving]` installed:"
    return f"## Serve\n\n{told}\n\n" + fenced("\n".join(lines))


NO_OTHERS = "llama.cpp and other runtimes that know no code of transformers have no such class."
# what the form of a folder means for whoever wants to load it
LIMITS: Mapping[Form, str] = {
    "native": "",
    "original": "transformers has no class for this layout, so `fuse ask`, `fuse eval` and servers do not run it; a "
    "recipe with `output: {model: fuse}` makes a folder that they do.",
    "fused": "The class is that of `fuse`: without it installed nothing loads the folder, but for the one that "
    f"`fuse export --to portable` writes. {NO_OTHERS}",
    "portable": f"It loads with `trust_remote_code=True` alone. {NO_OTHERS}",
}


def _limits(how: Used) -> str:
    lines = [
        "Nothing was trained: what it can do is known as far as it was measured (`fuse eval` adds a table of scores)."
    ]
    lines += [LIMITS[how.form]] if LIMITS[how.form] else []
    lines += ["Images alone, no video."] if how.sees else []
    if how.form in {"fused", "portable"}:
        lines += [_budget(branch) for branch in how.config["branches"] if branch.get("max_tokens") is not None]
        unheard = [graft for graft in how.config.get("grafts", ()) if graft.get("scale") == 0]
        lines += [f"The graft `{graft['name']}` is not heard (scale 0)." for graft in unheard]
    if how.licences and not how.licences.agreed:
        lines.append("Its parents do not all state one licence: what may be done with it is told under Licences below.")
    return "## Known limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _budget(branch: Mapping[str, Any]) -> str:
    most = f"`{branch['name']}` gives at most {branch['max_tokens']:,} visual tokens an image ({branch['prune']})"
    return f"{most}: what is small in a large image may be lost."
