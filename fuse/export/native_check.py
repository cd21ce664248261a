"""The class of a native folder, asked of transformers itself: its name, whether it loads, how it writes an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuse import torchvision_shim
from fuse.branches.native_table import NATIVE
from fuse.errors import CheckpointError, FuseError, RecipeError, in_a_line
from fuse.export.folders import Opened
from fuse.quiet import quiet_loading

SIZES = ((320, 240), (64, 64))  # of pictures that both processors prepare


def class_of(source: Opened) -> str:
    """The name of the class that holds the folder's branch, or without one its language model.

    Raises CheckpointError where transformers has none.
    """
    torchvision_shim.install()
    from transformers.models.auto import modeling_auto as auto

    branches = source.config.get("branches") or ()
    kind = (branches[0]["config"] if branches else source.config["text_config"])["model_type"]
    tables = [auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES] if branches else [
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ]  # fmt: skip
    found = next((table[kind] for table in tables if kind in table), None)
    if found is None:
        raise CheckpointError(f"transformers has no class for {kind!r}", where=source.folder)
    return found if isinstance(found, str) else found[0]


def image_word(source: Opened) -> str:
    """What a prompt of the branch's own processor writes for an image; "" where there is no branch."""
    branches = source.config.get("branches") or ()
    if not branches:
        return ""
    from fuse.branches.kinds import open_eyes

    torchvision_shim.install()
    eyes = open_eyes(branches[0], source.folder / "branches" / branches[0]["name"])
    return str(getattr(eyes.processor, NATIVE[branches[0]["config"]["model_type"]].written))


def check_native(source: Opened, made: Path) -> None:
    """The written folder loads whole, and its processor gives the model what the fused one gave.

    Only headers are read. Raises CheckpointError for a tensor that is missing, not wanted or of another shape, for a
    processor that does not load, and for an image that it writes with other tokens.
    """
    torchvision_shim.install()
    import transformers

    told = transformers.AutoConfig.from_pretrained(made, trust_remote_code=False)
    seeing = bool(source.config.get("branches"))
    kind = "ImageTextToText" if seeing else "Seq2SeqLM" if told.is_encoder_decoder else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    with quiet_loading(), _in_a_sentence(source.folder):
        _, report = auto.from_pretrained(
            made, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )  # fmt: skip
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(what) or ()):
            words = f"{what.replace('_', ' ')}: {len(found)}, the first is {found[0]}"
            raise CheckpointError(f"its class does not load: {words}", where=source.folder)
    if seeing:
        _check_images(source, made, told)


def _check_images(source: Opened, made: Path, told: Any) -> None:
    """Pictures become the same tokens, a placeholder of the fused folder for each that its class looks for."""
    from PIL import Image
    from transformers import AutoProcessor

    import fuse  # noqa: F401 - makes the Auto classes know the fused folder

    branch = source.config["branches"][0]
    with _in_a_sentence(source.folder):
        ours: Any = AutoProcessor.from_pretrained(source.folder, trust_remote_code=False)
        theirs: Any = AutoProcessor.from_pretrained(made, trust_remote_code=False)
    row, word = getattr(told, "image_token_id", None), image_word(source)
    for size in SIZES:
        picture = Image.new("RGB", size)
        try:
            fused = ours(images=[picture], text=[f"{ours.image_token} a"])["input_ids"][0].tolist()
        except RecipeError:  # a short context: other pictures may fit
            continue
        with _in_a_sentence(source.folder):
            native = theirs(images=[picture], text=[f"{word} a"], return_tensors="pt")["input_ids"][0].tolist()
        wanted = [row if token == branch["token_id"] else token for token in fused]
        if NATIVE[branch["config"]["model_type"]].bare:  # its processor writes the words around the image itself
            wanted, native = ([token for token in ids if token == row] for ids in (wanted, native))
        if wanted != native:
            told = f"its class writes a picture of {size[0]}x{size[1]} pixels as {len(native)} tokens of a prompt, and "
            told += f"the folder as {len(wanted)}" if len(wanted) != len(native) else "the folder with other tokens"
            raise CheckpointError(told, where=source.folder, hint="--to portable runs anywhere")


@contextmanager
def _in_a_sentence(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FuseError, MemoryError):
        raise
    except Exception as error:  # of any kind, where a file is not as the library expects it
        raise CheckpointError(f"its class does not take the folder: {in_a_line(error)}", where=folder) from None
