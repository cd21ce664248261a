"""Small documents of every kind of `fuse inspect`, for tests of reports. Members may be named by strangers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image


def every(name: str = "a") -> list[dict[str, Any]]:
    return [encoders(name), deltas(name), tokens(name), attention(name), pairs(name)]


def encoders(name: str = "a") -> dict[str, Any]:
    """`name` and b: the same space behind the projectors, none in their towers."""
    random = np.random.default_rng(0)
    layers = {"a": [0, 1], "b": [0, 1, 2], "samples": 8, "how": "exact, over 8 samples",
              **{form: random.uniform(-0.1, 1, (2, 3)).tolist() for form in ("biased", "unbiased")}}  # fmt: skip
    values = {"cka": 0.7, "cka_biased": 0.8, "rbf_cka": 0.6, "knn": 0.5}
    member = {
        "folder": name, "given": name, "architecture": "clip", "blocks": 3, "layers": [0, 1], "width": 4,
        "grid": [2, 2], "norm": 3.5, "samples": 8, "effective_rank": 2.5, "participation": 2.0, "llm": None,
        "projector": {"width": 6, "grid": None, "norm": 1.0, "effective_rank": None, "norm_ratio": 2.0},
    }  # fmt: skip
    return {
        "inspect": "encoders", "version": 1, "images": 8, "limit": 8, "common_grid": {},
        "skipped": [{"file": f"{name}.png", "why": "is not an image"}], "members": {name: member, "b": dict(member)},
        "pairs": [{
            "a": name, "b": "b", "layers": layers, "llm": None, "sentences": [f"{name} and b see alike.", "More."],
            "encoder": {"values": values, "details": {}, "unmeasured": {"mmd": "needs a common space"}},
            "projector": {"values": {**values, "mmd": 0.1}, "details": {}, "unmeasured": {}},
        }],
        "sentences": ["8 images."],
    }  # fmt: skip


def samples(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)

    def drawn(width: int) -> SimpleNamespace:
        return SimpleNamespace(rows=torch.randn(8, width, generator=generator))

    widths = zip(document["members"], (4, 5), strict=True)
    return {name: {"encoder": drawn(width), "projector": drawn(6)} for name, width in widths}


def deltas(name: str = "a") -> dict[str, Any]:
    """`name` and b, two layers of two modules; one of them has no norm."""
    both = {
        "relative": [0.1, 0.2],
        "cosine": [[1.0, 0.25], [0.25, 1.0]],
        "weighted_agreement": [[1.0, 0.6], [0.6, 1.0]],
    }
    one = {
        "part": "language", "stack": "layers", "layers": [0, 1], "modules": ["q", "norm"], "pairs": [[0, 1]],
        "relative": [[[0.1, None], [0.3, 0.0]], [[0.2, None], [0.1, 0.0]]], "cosine": [[[0.2, None], [-0.5, None]]],
    }  # fmt: skip
    return {
        "inspect": "deltas", "version": 1, "recipe": "r.yaml", "members": [name, "b"], "top": 8,
        "overall": {"matrices": 2, "elements": 10, **both}, "maps": [one],
        "modules": [{"part": "language", "module": "q", **both}],
        "weights": {"equal": {"weights": {name: 0.5, "b": 0.5}, "length": None}},
        "verdicts": [
            {"topic": "size", "agrees": True, "text": f"{name} is as long as b"},
            {"topic": "distance", "agrees": False, "text": f"{name} is too far"},
        ],
    }  # fmt: skip


def tokens(name: str = "a") -> dict[str, Any]:
    folder = {
        "name": name, "model_type": "llava", "tokenizer": "tokenizer.json", "tokens": 70, "added_tokens": 7,
        "embedding": {"rows": 96, "width": 128, "padding": 26, "head_rows": None},
        "special": {"bos": {"token": "<s>", "id": 1}}, "ends": [2], "before": ["<s>"], "behind": [],
        "image": {"token": None, "id": None, "tokens": None, "why": "", "size": [64, 48]}, "parts": {},
        "template": {"origin": "none", "default_system": "", "refused": [], "sha256": None},
    }  # fmt: skip
    choice = {"choice": "merge", "rows": 96, "merged": 96, "kept": 0, "added": 0, "refused": ""}
    return {
        "inspect": "tokens", "version": 1, "host": name, "base": None, "folders": [folder, {**folder, "name": "b"}],
        "pairs": [], "embeddings": {"members": [name, "b"], "base": None, "choices": [choice]},
        "verdicts": [{"topic": "vocabulary", "agrees": True, "text": f"b has the same as {name}"}],
    }  # fmt: skip


def attention(name: str = "a") -> dict[str, Any]:
    """`name` looks at the upper right, b at the lower left."""
    answered = {"answer": f"{name} says", "share": 0.25}
    return {
        "inspect": "attention", "version": 1, "question": f"what is {name}?", "sentences": [f"{name} looks elsewhere."],
        "members": {
            name: {**answered, "map": [[0.0, 1.0], [0.0, 0.0]]}, "b": {**answered, "map": [[0.0, 0.0], [1.0, 0.0]]},
        },
        "pairs": [{
            "a": name, "b": "b", "jensen_shannon": 1.0, "cosine": 0.0, "top_overlap": 0.0, "centre_distance": 0.7,
        }],
        "top": 0.1, "averaged": "over all layers",
    }  # fmt: skip


def pairs(name: str = "a") -> dict[str, Any]:
    """`name` and b, whose encoders were not seen."""
    parts = {
        part: {"value": 0.5, "why": f"{name} has {part}"} for part in ("tokens", "distance", "size", "signs", "space")
    }
    return {
        "inspect": "pairs", "version": 1, "base": "base", "images": None, "skipped": [],
        "members": {name: {"folder": name, "sees": True, "refused": None}, "b": {}}, "thresholds": {},
        "pairs": [{
            "a": name, "b": "b", "score": 0.5, "fit": 0.5, "weakest": "size", "missing": ["new"], "cosine": 0.1,
            "parts": {**parts, "new": {"value": None, "why": "no --images were given"}},
            "weights": {"balanced": {"weights": {name: 0.25, "b": 0.75}}}, "verdict": f"{name} and b fit",
        }],
    }  # fmt: skip


def image() -> Image.Image:
    return Image.new("RGB", (80, 40), (60, 60, 60))
