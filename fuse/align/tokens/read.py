"""Everything that `fuse inspect tokens` tells of one folder by itself."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fuse.align.tokens.chat import read_template
from fuse.align.tokens.cutting import read_cutting
from fuse.align.tokens.folder import Speaker
from fuse.align.tokens.images import image_place
from fuse.align.tokens.special import ends, special_tokens
from fuse.templates import template_of


class Read:
    """Everything that the document tells of one folder."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.image = image_place(speaker, template_of(speaker.member))
        self.template = read_template(speaker, self.image.token)
        self.cutting = read_cutting(speaker)
        self.special = special_tokens(speaker)
        self.ends = ends(speaker)

    def document(self) -> dict[str, Any]:
        speaker, vocabulary, template = self.speaker, self.speaker.vocabulary, self.template
        owned = {row for row in vocabulary.ids.values() if row < speaker.rows}
        return {
            "name": speaker.name,
            "folder": str(speaker.folder),
            "revision": speaker.member.checkpoint.revision,
            "model_type": str(speaker.config.get("model_type")),
            "tokenizer": vocabulary.source,
            "tokens": len(vocabulary.ids),
            "added_tokens": len(vocabulary.added),
            "largest_id": vocabulary.size - 1,
            "embedding": {
                "rows": speaker.rows, "width": speaker.width, "padding": speaker.rows - len(owned),
                "missing": len(vocabulary.ids) - len(owned), "head_rows": speaker.head_rows,
            },
            "special": {role: asdict(one) | {"disagrees": one.disagrees} for role, one in self.special.items()},
            "ends": list(self.ends),
            "before": _listed(self.cutting.before),
            "behind": _listed(self.cutting.behind),
            "stated_around": dict(self.cutting.stated),
            "image": asdict(self.image) | {"size": list(self.image.size)},
            "parts": {name: asdict(part) for name, part in self.cutting.parts.items()},
            "template": {
                "origin": "none" if not template.text else "fuse" if template.ours else "folder",
                "sha256": template.digest, "letters": len(template.text), "takes_system": template.takes_system,
                "default_system": template.default_system, "written": dict(template.written),
                "refused": dict(template.refused),
            },
        }  # fmt: skip


def _listed(tokens: Sequence[str] | None) -> list[str] | None:
    return None if tokens is None else list(tokens)
