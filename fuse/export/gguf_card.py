"""The model card of a folder of GGUF files: that of the folder that was converted, but for how it is used."""

import re
from collections.abc import Mapping
from typing import Any

from fuse.card_forms import in_form, read_card, with_weights, without_scores
from fuse.card_record import record_sections
from fuse.card_text import cell, fenced
from fuse.card_use import BEGIN, END, HERE
from fuse.export.cards import own_card
from fuse.export.folders import Opened
from fuse.export.gguf_converter import Half

WHAT: Mapping[Half, str] = {"TEXT": "the language model", "MMPROJ": "encoder and projector"}
OPTION: Mapping[Half, str] = {"TEXT": "-m", "MMPROJ": "--mmproj"}
FRONT = re.compile(r"---\r?\n.*?^---\r?$", re.DOTALL | re.MULTILINE)
LIBRARY = re.compile(r"^library_name: .*\r?\n", re.MULTILINE)  # the hub sees by the files what loads them


def gguf_card(source: Opened, names: Mapping[Half, str], told: Mapping[str, Any]) -> str:
    """README.md. names: of the files. told: what fuse.json will hold.

    What was measured of the folder was not measured of these files, so its table of scores stays there.
    """
    use = _use(source, names, told["exported"])
    if text := read_card(source.folder):
        text = FRONT.sub(lambda front: LIBRARY.sub("", front[0]), text, count=1) if FRONT.match(text) else text
        return with_weights(in_form(without_scores(text), use), told["files"])
    return own_card(source, use, record_sections({**told, "sha256": told["files"]}, source.folder))


def _use(source: Opened, names: Mapping[Half, str], exported: Mapping[str, Any]) -> str:
    """The part between the two comments."""
    made = " and ".join(
        f"`{name}` {WHAT[half]} ({cell(exported['architectures'][half])})" for half, name in names.items()
    )
    form = f"GGUF, by `fuse export --to gguf` and llama.cpp's converter (`--outtype {exported['outtype']}`): {made}."
    load = fenced(" ".join(["llama-server", *(f"{OPTION[half]} {HERE}/{name}" for half, name in names.items())]))
    limits = ["Nothing was trained, and nothing was run in llama.cpp: what it can do there was not measured."]
    if isinstance(source.config.get("vision_config"), dict) and "MMPROJ" not in names:
        limits.append("It sees nothing: encoder and projector were not converted (`--mmproj`).")
    told = "".join(f"- {line}\n" for line in limits)
    return f"{BEGIN}\n## Form\n\n{form}\n\n## Load\n\n{load}\n## Known limits\n\n{told}{END}\n"
