"""What a recipe may be wanted for (a word, what it gives, and how many members it takes), and in which dtype."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Want:
    """line: what comes out, for the list of choices. title: the recipe's first comment. least, most: how many members.
    first: what the first member is asked for as. more: the others. base: whether a base is asked for.
    """

    line: str
    title: str
    least: int
    most: int
    first: str
    more: str = ""
    base: bool = True


WANTS: Mapping[str, Want] = {
    "fuse": Want(
        "several encoders in one model: VLMs of one base, each with its own eyes (VisionFuse)",
        "Several encoders on one merged language model (VisionFuse).", 2, 64, "a VLM", "another VLM of the same base",
    ),
    "merge": Want(
        "one model out of fine-tunes of one LLM or VLM",
        "Fine-tunes of one base, merged.", 2, 64, "a fine-tune", "another fine-tune of the same base",
    ),
    "expert": Want(
        "a text expert inside a VLM of the same base",
        "A text expert goes into a VLM of the same base; the VLM's eyes stay as they are.", 2, 64, "the VLM",
        "a text model of the same base",
    ),
    "encoder": Want(
        "eyes for an LLM: an encoder and a projector from files",
        "An LLM with an encoder and a projector from files.", 1, 1, "the LLM", base=False,
    ),
    "graft": Want(
        "a graft in a model: LoRA, visual memory, adapters (a folder with graft.json, or PEFT's)",
        "A model with a graft.", 1, 1, "the model that carries it", base=False,
    ),
}  # fmt: skip

DTYPES: Mapping[str, str] = {"same": "as the host has it", "bfloat16": "", "float16": "", "float32": ""}
