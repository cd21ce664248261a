"""The folder as transformers opens it, and what it says to a short question: one pass through the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from fuse import families, torchvision_shim
from fuse.ask import WRITE_IMAGES, Answerer, load, pad_of, speaker_of
from fuse.ask_folder import check_folder
from fuse.errors import CheckpointError, FuseError, MachineError, in_a_line
from fuse.quiet import quiet_loading
from fuse.small_files import TOKENIZER
from fuse.verify.outcome import Outcome, skipped

NO_MEMORY = ("can't allocate memory", "out of memory")  # as torch says it
QUESTION = "What is in the picture?"
SIDES = (64, 48)  # of the picture, in pixels
NO_ROOM = ("context", "max_tokens")  # in what is said of a picture with more tokens than the folder takes

T = TypeVar("T")


def check_loads(folder: Path, config: dict[str, Any]) -> tuple[Outcome, Answerer | None]:
    """Load the folder in its own dtype, never running code from it: nothing missing, unexpected or of another shape.

    Raises CheckpointError where transformers cannot or does not, MachineError where there is no memory for it.
    """
    if config.get("model_type") != "fuse" and not (family := families.family_of(config, str(folder))).native:
        return skipped(f"the original layout of {family.model_type}, which only the code it came from loads"), None
    answerer = _guarded(folder, "transformers cannot load it", lambda: _open(folder))
    count = sum(weight.numel() for weight in answerer.model.parameters())
    name = type(answerer.model).__name__
    told = f"{name}, {count:,} parameters, none missing and none left over"
    return Outcome(told, counts={"parameters": count}), answerer


def _open(folder: Path) -> Answerer:
    if any((folder / name).is_file() for name in TOKENIZER):
        return load(folder)
    torchvision_shim.install()
    import transformers

    config, sees = check_folder(folder)
    auto = "ImageTextToText" if sees else "Seq2SeqLM" if config.get("is_encoder_decoder") else "CausalLM"
    with quiet_loading():
        model, report = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(
            folder,
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(str(key) for key in report.get(what) or ()):
            raise CheckpointError(f"{what.replace('_', ' ')}: {len(found)}, the first is {found[0]}", where=folder)
    return Answerer(folder, model.eval(), None, None)


def check_answers(folder: Path, answerer: Answerer) -> Outcome:
    """One pass over a short question, about a small picture where the folder has a processor, gives finite logits.

    The folder's chat template is not used. Raises CheckpointError where the pass fails or a logit is not finite.
    """
    return _guarded(folder, "the model does not run", lambda: _answer(folder, answerer))


def _answer(folder: Path, answerer: Answerer) -> Outcome:
    inputs, asked = _inputs(answerer)
    logits = _logits(answerer, inputs)
    if not torch.isfinite(logits).all():
        raise CheckpointError(f"the logits of {asked} are not finite", where=folder)
    tokens = inputs["input_ids"].shape[1]
    return Outcome(f"finite logits for {asked}, {tokens:,} tokens", counts={"tokens": tokens})


def _inputs(answerer: Answerer) -> tuple[dict[str, Any], str]:
    """What the model takes, and what that is in words."""
    if answerer.tokenizer is None:
        rows = answerer.model.get_input_embeddings().num_embeddings
        return {"input_ids": torch.arange(min(8, rows))[None]}, "a few tokens (the folder has no tokenizer)"
    if _sees(answerer.processor):
        try:
            return _about_a_picture(answerer), "a question about a picture"
        except FuseError as error:
            if not any(word in error.problem for word in NO_ROOM):
                raise
    return dict(answerer.tokenizer([QUESTION], return_tensors="pt")), "a question"


def _sees(processor: Any | None) -> bool:
    fused = getattr(processor, "fused", None)
    return bool(fused.branches) if fused is not None else hasattr(processor, "image_processor")


def _about_a_picture(answerer: Answerer) -> dict[str, Any]:
    from PIL import Image

    processor = answerer.processor
    assert processor is not None
    token = "" if type(processor).__name__ in WRITE_IMAGES else getattr(processor, "image_token", "<image>")
    picture = Image.linear_gradient("L").resize(SIDES).convert("RGB")
    return dict(processor(images=[picture], text=[f"{token} {QUESTION}".strip()], return_tensors="pt"))


def _logits(answerer: Answerer, inputs: dict[str, Any]) -> torch.Tensor:
    """The logits at the last token of the question, as generation sees them before it chooses."""
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, out: Any) -> None:
        kept.append(out.logits[:, -1])

    hook = speaker_of(answerer.model).register_forward_hook(keep)
    pad = pad_of(answerer.tokenizer) if answerer.tokenizer is not None else None
    known = {key: value for key, value in inputs.items() if key != "token_type_ids" or answerer.processor is not None}
    try:
        with torch.no_grad():
            answerer.model.generate(**known, max_new_tokens=1, do_sample=False, num_beams=1, pad_token_id=pad)
    finally:
        hook.remove()
    return kept[0]


def _guarded(folder: Path, problem: str, act: Callable[[], T]) -> T:
    """What `act` gives; any failure of a library on the folder is one sentence."""
    try:
        return act()
    except MachineError:
        raise
    except FuseError as error:
        if any(text in error.problem for text in NO_MEMORY):
            raise _no_memory(folder) from None
        raise CheckpointError(error.problem, where=error.where or folder, hint=error.hint) from None
    except MemoryError:
        raise _no_memory(folder) from None
    except Exception as error:  # of any kind, where a file is not as the library expects it
        if any(text in str(error) for text in NO_MEMORY):
            raise _no_memory(folder) from None
        raise CheckpointError(f"{problem}: {in_a_line(error)}", where=folder) from None


def _no_memory(folder: Path) -> MachineError:
    return MachineError("there is not enough memory to load it", where=folder, hint="--no-load looks at the files only")
