"""The recipe, line by line: what was answered, what each line means, and options that one may want to change.

An option is a line that begins with # and its key, without a space between; to take the # away is to choose it.
"""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.errors import one_line
from fuse.methods.method import REQUIRED
from fuse.methods.table import METHODS
from fuse.recipe_new import look
from fuse.recipe_new.answers import Answers, Eyes, Grafted
from fuse.recipe_new.wants import WANTS

PLAIN = re.compile(r"[A-Za-z_./~][\w./@+~-]*|[a-z0-9]+://[\w./@+~-]+", re.ASCII)
NOT_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"}
TOKENS = 576  # visual tokens that LLaVA-1.5 gives an image
MIX = (
    "How their language models become one. A number may also be a list over depth, such as",
    '[0.2, 0.6], or a table of names, such as {"*.mlp.*": 0.3, "*": 0.5}.',
)
LANGUAGE = (
    ("  embeddings: union", "tokens that only guests have come in, too; or base, or a member's name"),
    ("  accept: [rope_theta]", "go on although members differ in it; also norm_eps, rope_scaling, activation"),
)


@dataclass(frozen=True)
class Line:
    """A line of the file, and what stands behind it as a comment. option: whether it is left for the user to choose."""

    text: str
    about: str = ""
    option: bool = False


def written(lines: Sequence[Line], chosen: Collection[int] = ()) -> str:
    """The file. chosen: numbers of options that are taken."""
    told = []
    for number, line in enumerate(lines):
        indent = len(line.text) - len(line.text.lstrip())
        mark = "#" if line.option and number not in chosen else ""
        text = line.text[:indent] + mark + line.text[indent:]
        told.append(f"{text:34}  # {line.about}" if line.about else text)
    return "\n".join(told) + "\n"


def recipe_lines(answers: Answers, file: Path, schema: str) -> list[Line]:
    """Every line of the recipe that is going to stand in `file`. schema: what its first line names."""
    place = file.name
    return [
        Line(f"# yaml-language-server: $schema={schema}"),
        Line(f"# {WANTS[answers.want].title}"),
        Line(f"# `fuse plan {place}` tells what it does to every tensor, `fuse merge {place} OUT` does it."),
        Line("# A line such as #key: value is an option: without its # it counts."),
        *_members(answers, file.parent), *_language(answers), *_vision(answers, file.parent),
        *_grafts(answers, file.parent), *_output(answers),
    ]  # fmt: skip


def _members(answers: Answers, folder: Path) -> list[Line]:
    lines = [Line("")]
    if answers.base:
        lines.append(Line("# The pretrained LLM that the members share; task vectors are what each changed of it."))
        lines.append(Line(f"base: {_path(answers.base.path, folder)}"))
        lines.append(Line(""))
    lines.append(Line("# The checkpoints: folders (relative to this file), hub ids, or s3://bucket/folder."))
    lines.append(Line("members:"))
    for one in answers.members:
        about = look.kind_told(one.member) if one.member else ""
        lines.append(Line(f"  {one.name}: {_path(one.path, folder)}", about))
    return lines


def _language(answers: Answers) -> list[Line]:
    row, names = METHODS[answers.method], [one.name for one in answers.members]
    mixed = [Line(f"# {text}") for text in MIX] if len(names) > 1 else []
    lines = [Line(""), *mixed, Line("language:"), Line(f"  method: {answers.method}", row.doc)]
    for name, value in answers.numbers.items():
        lines.append(Line(f"  {name}: {_value(value)}", row.params[name].doc))
    for name, param in row.params.items():
        if name not in answers.numbers and param.default is not REQUIRED:
            lines.append(Line(f"  {name}: {_value(param.default)}", param.doc, option=True))
    if len(names) > 1:
        for text, about in LANGUAGE:
            lines.append(Line(text, about, option=True))
    return lines


def _vision(answers: Answers, folder: Path) -> list[Line]:
    if answers.vision is None and answers.eyes is None:
        return []
    lines = [
        Line(""),
        Line("# Whose encoders the output has. Their visual tokens stand behind each other in this order."),
    ]
    if not answers.vision and answers.eyes is None:
        return [*lines, Line("vision: []")]
    lines.append(Line("vision:"))
    for number, name in enumerate(answers.vision or ()):
        lines += [Line(f"  - from: {name}", "its encoder, projector and preprocessing"), *_mixed(answers, number)]
        lines += _branch(number)
    if answers.eyes:
        lines += [*_eyes(answers.eyes, folder), *_branch(len(answers.vision or ()))]
    return lines


def _mixed(answers: Answers, number: int) -> list[Line]:
    names = [one.name for one in answers.members]
    if answers.want != "merge" or number or len(names) < 2:
        return []
    each = _value({name: round(1 / len(names), 3) for name in names})
    text = f"    merge: {{method: linear, weights: {each}}}"
    alike = len({one.member.family.model_type if one.member else "" for one in answers.members}) == 1
    seen = all(one.sees is not False for one in answers.members)
    if answers.mixed:
        return [Line(text, "encoders and projectors are mixed, too")]
    return [Line(text, "mixes encoders and projectors, too", option=True)] if alike and seen else []


def _branch(number: int) -> list[Line]:
    """What may be said of one branch; what says how it stands to the first belongs to later ones."""
    lines = [
        Line(f"    max_tokens: {TOKENS}", "at most so many visual tokens of an image; `prune` says how", option=True)
    ]
    if number:
        lines.append(Line('    separator: "\\n"', "text before its tokens", option=True))
        lines.append(Line("    positions: shared", "its tokens stand at the first branch's positions", option=True))
        lines.append(Line("    norm: match", "its tokens are made as long as the first branch's", option=True))
    return lines


def _eyes(eyes: Eyes, folder: Path) -> list[Line]:
    return [
        Line(f"  - name: {eyes.name}"),
        Line(f"    encoder: {_path(eyes.encoder, folder)}", "what AutoModel loads"),
        Line(f"    projector: {_path(eyes.projector, folder)}", "trained for this encoder and this language model"),
        Line(f"    layer: {eyes.layer}", "which layer it reads; -1 is the encoder's end"),
    ]


def _grafts(answers: Answers, folder: Path) -> list[Line]:
    if not answers.grafts:
        return []
    branch = (answers.vision or (answers.eyes.name if answers.eyes else "",))[0]
    lines = [Line(""), Line("# Modules that are put into the language model."), Line("grafts:")]
    for graft in answers.grafts:
        lines += [Line(f"  - from: {_path(graft.path, folder)}", graft.donor.kind),
                  Line("    scale: 1.0", "how much of it is heard; 0 leaves the model as it is")]  # fmt: skip
        if graft.has_tower and branch:
            lines.append(Line(f"    tower: {branch}", "the branch whose encoder carries its part for one"))
        lines.append(Line("    fold: true", "bake it into the weights, where the algebra is exact", option=True))
        lines += _kind_options(graft)
    return lines


def _kind_options(graft: Grafted) -> list[Line]:
    """The options of its kind that are words: one that is not the donor's own, and behind it the others."""
    lines = []
    for key, words in graft.donor.files.OPTIONS.items():
        others = [word for word in words if isinstance(word, str) and word != graft.donor.config.get(key)]
        if others:
            about = f"also {', '.join(others[1:])}" if others[1:] else ""
            lines.append(Line(f"    {key}: {_text(others[0])}", about, option=True))
    return lines


def _output(answers: Answers) -> list[Line]:
    lines = [Line("")]
    if len(answers.members) > 1:
        other = answers.members[1].name
        lines.append(
            Line(f"prompt: {{template: {other}}}", "whose chat template is used, instead of the host's", option=True)
        )
    lines.append(Line("output:"))
    dtype = Line(f"  dtype: {answers.dtype}", "of every tensor") if answers.dtype else (
        Line("  dtype: bfloat16", "of every tensor; the host's own where left out", option=True))  # fmt: skip
    lines += [dtype, Line("  shard_size: 5GB", "the largest file")]
    if len(answers.members) > 1 and (answers.vision is None or len(answers.vision) > 1):
        about = "whose config, tokenizer and layout the output takes, instead of the first's"
        lines.append(Line(f"  host: {answers.members[1].name}", about, option=True))
    if len(answers.vision or ()) == 1 and answers.eyes is None and not answers.grafts:
        lines.append(Line("  model: fuse", "the class that fuse brings, though one of transformers fits", option=True))
    return lines


def _path(path: str, folder: Path) -> str:
    """A path as the recipe has to write it: relative to its folder where it was typed as a relative one."""
    if Path(path).is_absolute() or not Path(path).exists():
        return _text(path)
    return _text(os.path.relpath(Path.cwd() / path, folder.resolve()))


def _text(text: str) -> str:
    """A word of YAML, in quotes where it could be read as anything else."""
    return (
        text
        if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT
        else json.dumps(one_line(text) if "\n" in text else text)
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
