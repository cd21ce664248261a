"""Conversations: which pictures they hold, and what templates written for plain strings need."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.errors import RecipeError

WEB = ("http://", "https://")
_PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "fuse-probe"}]}]


def images_in(conversation: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The pictures of a conversation in order: whatever stands under `image`, `path` or `url` of an image part.

    A picture, or the path of a local file, under any of the three. Raises RecipeError for video and for an address on
    the web: nothing is fetched while a question is asked (our choice).
    """
    found = []
    for message in conversation:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part.get("type") == "video":
                raise RecipeError("video is not supported", hint="give still images")
            if part.get("type") == "image":
                picture = next((part[key] for key in ("image", "path", "url") if key in part), None)
                if isinstance(picture, str) and picture.lower().startswith(WEB):
                    raise RecipeError("fuse fetches no images: download it first", where=picture)
                if picture is not None:
                    found.append(picture)
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
        parts = message["content"]
        if isinstance(parts, list):
            images = sum(part.get("type") == "image" for part in parts)
            words = "\n".join(part["text"] for part in parts if part.get("type") == "text")
            parts = f"{image_token}\n" * images + words
        plain.append({**message, "content": parts})
    return plain
