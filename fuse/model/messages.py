"""Conversations: which pictures they hold, and what templates written for plain strings need."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fuse.errors import RecipeError

WEB = ("http://", "https://")
_PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "fuse-probe"}]}]


def images_in(conversation: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The pictures of a conversation in order: whatever stands under `image`, `path` or `url` of an image part.

    A picture, the path of a local file, or a `data:` address, under any of the three; {"type": "image_url",
    "image_url": {"url": ...}} is read too. Raises RecipeError for video, for parts of another kind, and for an address
    on the web: nothing is fetched while a question is asked (our choice).
    """
    found = []
    for message in conversation:
        for part in _parts(message):
            picture = _picture(part)
            if isinstance(picture, str) and picture[:8].lower().startswith(WEB):
                raise RecipeError("fuse fetches no images: download it first", where=picture[:80])
            if picture is not None:
                found.append(picture)
    return found


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content", "")
    if not isinstance(content, list):
        return []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else part
        if kind == "video":
            raise RecipeError("video is not supported", hint="give still images")
        if kind not in ("image", "image_url", "text"):
            raise RecipeError(f"a message has a part of type {kind!r}", hint="there are image and text")
    return content


def _picture(part: Mapping[str, Any]) -> Any:
    if part["type"] == "image_url":
        address = part.get("image_url")
        return address.get("url") if isinstance(address, Mapping) else address
    return (
        next((part[key] for key in ("image", "path", "url") if key in part), None) if part["type"] == "image" else None
    )


def with_images(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with every picture as templates know it: {"type": "image"}."""
    return [
        {**message, "content": [{**p, "type": "image"} if p["type"] == "image_url" else p for p in _parts(message)]}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in conversation
    ]


def with_slots(
    conversation: Sequence[Mapping[str, Any]], slots: Callable[[int], str], image_token: str
) -> list[dict[str, Any]]:
    """The conversation with what grafts write behind every question that has images. slots: images -> text."""
    found = []
    for message in conversation:
        parts: Any = message.get("content", "")
        if message.get("role") == "user":
            if isinstance(parts, list):
                behind = slots(sum(part["type"] == "image" for part in parts))
                at = max((i for i, part in enumerate(parts) if part["type"] == "text"), default=None)
                if behind and at is None:
                    parts = [*parts, {"type": "text", "text": behind.strip()}]
                elif behind and at is not None:
                    parts = [*parts[:at], {**parts[at], "text": parts[at]["text"] + behind}, *parts[at + 1 :]]
            elif isinstance(parts, str):
                parts += slots(parts.count(image_token))
        found.append({**message, "content": parts} if "content" in message else dict(message))
    return found


def takes_lists(tokenizer: Any, template: str, image_token: str) -> bool:
    """Whether a template reads lists of parts: it writes the image token for an image and no Python for a list."""
    from jinja2 import TemplateError

    try:
        told = tokenizer.apply_chat_template(_PROBE, chat_template=template, tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return False
    return image_token in told and "fuse-probe" in told and "'type'" not in told


def with_plain_text(conversation: Sequence[Mapping[str, Any]], image_token: str) -> list[dict[str, Any]]:
    """The conversation with strings for contents: the image tokens, each on a line of its own, and then the words."""
    plain = []
    for message in conversation:
        parts = message.get("content", "")
        if isinstance(parts, list):
            images = sum(part.get("type") == "image" for part in parts)
            words = "\n".join(part["text"] for part in parts if part.get("type") == "text")
            parts = f"{image_token}\n" * images + words
        plain.append({**message, "content": parts})
    return plain
