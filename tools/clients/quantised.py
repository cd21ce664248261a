"""What int8 of torchao changes: bytes of the weights, logits, and the answer to one question.

    python tools/clients/quantised.py out scene.png "what color is square ?"

A folder of transformers' or of fuse's, on the CPU, in its own dtype and in float32. Prints one JSON document.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import fuse  # noqa: F401 - makes the Auto classes know the folder; before transformers


def main() -> None:
    """One row for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    given = parser.parse_args()
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(given.folder)
    parts = [{"type": "image", "path": str(given.picture)}, {"type": "text", "text": given.question}]
    turn = [{"role": "user", "content": parts}]
    batch = processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    found = [compared(given.folder, dtype, processor, batch) for dtype in ("auto", torch.float32)]
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def compared(folder: Path, dtype: Any, processor: Any, batch: Any) -> dict[str, Any]:
    """The folder as it is and in int8. bytes: of all weights; difference, largest: of logits at all positions."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForImageTextToText, TorchAoConfig

    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    int8 = TorchAoConfig(Int8WeightOnlyConfig())
    few = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, quantization_config=int8).eval()
    with torch.no_grad():
        want, got = (model(**batch).logits.float() for model in (plain, few))
    return {
        "dtype": str(plain.dtype),
        "bytes": size(plain),
        "bytes_int8": size(few),
        "difference": (got - want).abs().max().item(),
        "largest": want.abs().max().item(),
        "answer": said(plain, processor, batch),
        "answer_int8": said(few, processor, batch),
    }


def size(model: torch.nn.Module) -> int:
    """Bytes of the weights, those of torchao's tensors by what they are made of."""
    return sum(part.nbytes for weight in model.parameters() for part in parts_of(weight))


def parts_of(weight: Any) -> list[torch.Tensor]:
    """The plain tensors of a weight."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]


def said(model: Any, processor: Any, batch: Any) -> str:
    out = model.generate(**batch, max_new_tokens=16, do_sample=False)
    return processor.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    main()
