"""Fused folders of random weights whose heads are wide enough for vLLM, and questions about them.

python -m tests.vllm_folders build/tiny
/path/to/venv/bin/python tools/clients/vllm_check.py build/tiny/qwen2 --data build/tiny/questions.jsonl
"""

import json
import sys
from pathlib import Path
from typing import Any

from fuse import torchvision_shim

torchvision_shim.install()
from tests import tiny_fused, tiny_vlm  # noqa: E402
from tests.test_fused_model import picture  # noqa: E402

WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96, "head_dim": 32}
SIZES = [(60, 40), (40, 60), (30, 30), (64, 64)]
# folder -> member -> (class, seed), and options of branches
FOLDERS: dict[str, tuple[dict[str, tuple[str, int]], dict[str, dict[str, Any]]]] = {
    "qwen2": (
        {"a": ("llava_onevision", 1), "b": ("internvl", 2)},
        {
            "a": {"max_tokens": 5, "prune": "norm"},
            "b": {"max_tokens": 1, "prune": "similarity", "norm": "match"},
        },
    ),
    "mistral": (
        {"a": ("mistral3", 1), "b": ("llava", 2)},
        {"b": {"separator": {"text": "w9", "ids": [9]}, "norm": "embeddings"}},
    ),
}


def make(name: str, folder: Path) -> Any:
    """One of FOLDERS, written into `folder`; the model."""
    members, options = FOLDERS[name]
    models = {}
    for member, (kind, seed) in members.items():
        text = {**tiny_vlm.CONFIGS[kind]["text_config"], **WIDE}
        models[member] = tiny_vlm.build_from(kind, {"text_config": text}, seed)
    return tiny_fused.fused(models, "a", folder, options)[0]


def ask(folder: Path) -> None:
    """Twelve questions of one to five words about two, one and no pictures: questions.jsonl."""
    lines = []
    for i in range(12):
        files = [f"{i}_{number}.png" for number in range((1, 1, 2, 0)[i % 4])]
        for number, name in enumerate(files):
            picture(SIZES[(i + number) % 4], 10 * i + number).save(folder / name)
        words = " ".join(f"w{5 + (7 * i + 3 * j) % 50}" for j in range(1 + i % 5))
        images = {"image": files} if files else {}
        lines.append(json.dumps({"id": str(i), "question": words, "answer": "w5", **images}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    root.mkdir(parents=True)
    for each in FOLDERS:
        make(each, root / each)
    ask(root)
