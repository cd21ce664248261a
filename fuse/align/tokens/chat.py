"""Chat templates, compared by what they write for the same conversations."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.align.tokens import chat_room
from fuse.align.tokens.folder import Speaker
from fuse.align.tokens.special import template_names
from fuse.model.messages import with_plain_text
from fuse.templates import template_of

SECONDS = 20  # of the clock, for one template
_ASK, _BRIEF = "What is the capital of France?", "fuse-system"
_USER = {"role": "user", "content": _ASK}
_IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
# the conversations that every template is given: our choice
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [_USER],
    "system": [{"role": "system", "content": _BRIEF}, _USER],
    "turns": [_USER, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "Sure?"}],
    "image": [_IMAGE],
}


@dataclass(frozen=True)
class Template:
    """A folder's chat template.

    text: "" where there is none. ours: it is fuse's own, for a member whose prompts only its code writes. written:
    what it writes, by conversation. refused: what it says, by conversation that it does not write.
    """

    text: str
    ours: bool
    written: Mapping[str, str]
    refused: Mapping[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest() if self.text else ""

    @property
    def default_system(self) -> str:
        """What stands in place of a system message where the conversation has none, or ""."""
        asked, briefed = self.written.get("question", ""), self.written.get("system", "")
        before, found, behind = briefed.partition(_BRIEF)
        inside = len(asked) >= len(before) + len(behind) and asked.startswith(before) and asked.endswith(behind)
        return asked[len(before) : len(asked) - len(behind)].strip() if found and inside else ""

    @property
    def takes_system(self) -> bool:
        """A system message is written."""
        return _BRIEF in self.written.get("system", "")


def read_template(speaker: Speaker, image_token: str | None) -> Template:
    """A folder's chat template with what it writes for CONVERSATIONS.

    image_token: what it writes for an image; with None, of a folder that sees none, that conversation is left out.
    """
    text = template_of(speaker.member)
    if not text:
        return Template("", False, {}, {})
    names = template_names(speaker)
    key = (text, tuple(sorted(names.items())), image_token)
    if key not in _seen:  # members of a family mostly share it
        _seen[key] = _rendered(text, names, image_token)
    found = _seen[key]
    written = {name: one["text"] for name, one in found.items() if "text" in one}
    refused = {name: one["error"] for name, one in found.items() if "error" in one}
    return Template(text, text != speaker.vocabulary.template, written, refused)


_seen: dict[tuple[Any, ...], dict[str, dict[str, str]]] = {}


def _rendered(text: str, names: Mapping[str, str], image_token: str | None) -> dict[str, dict[str, str]]:
    """Each conversation in the first of three forms that the template reads, else in the last.

    The forms are: contents as lists of parts, the same but for answers, plain strings. A form is read where all words
    of user and assistant come out, the image's token too, and no Python.
    """
    talks = {name: talk for name, talk in CONVERSATIONS.items() if name != "image" or image_token is not None}
    forms = {}
    for name, talk in talks.items():
        forms[f"{name} 0"] = [_parts(one) for one in talk]
        forms[f"{name} 1"] = [one if one["role"] == "assistant" else _parts(one) for one in talk]
        forms[f"{name} 2"] = with_plain_text(talk, image_token or "")
    found = _in_a_room(text, names, forms)
    chosen = {}
    for name, talk in talks.items():
        words = _words(talk, image_token or "")
        tried = [found[f"{name} {form}"] for form in range(3)]
        chosen[name] = next((one for one in tried if _reads(one.get("text", ""), words)), tried[2])
    return chosen


def _words(talk: Sequence[Mapping[str, Any]], image_token: str) -> list[str]:
    parts = [part for one in talk if one["role"] != "system" for part in _parts(one)["content"]]
    return [part.get("text", image_token) for part in parts]


def _reads(text: str, words: Sequence[str]) -> bool:
    return all(word in text for word in words) and "'type'" not in text


def _parts(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}


def _in_a_room(text: str, names: Mapping[str, str], talks: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What `chat_room` gives; every conversation is refused where the process does not come to an end in time."""
    given = json.dumps({"template": text, "names": dict(names), "conversations": dict(talks)})
    room = [sys.executable, "-I", str(Path(chat_room.__file__))]
    try:
        done = subprocess.run(room, input=given.encode(), capture_output=True, timeout=SECONDS, check=True)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(talks, {"error": f"it takes more than {SECONDS} seconds"})
    except subprocess.CalledProcessError:
        return dict.fromkeys(talks, {"error": f"it takes more than {chat_room.SECONDS} seconds, or too much memory"})
    return json.loads(done.stdout)
