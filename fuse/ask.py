"""Asking a model folder a question, greedily, with the words printed as they come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fuse import strict_json, torchvision_shim
from fuse.ask_folder import blind, check_folder, check_tokenizer, check_weights, has_processor
from fuse.chat import runs, written
from fuse.devices import HINT, check_device
from fuse.errors import CheckpointError, FuseError, MachineError, RecipeError, in_a_line
from fuse.grafts.asking import Options, phrased, slots_behind
from fuse.images import open_image
from fuse.quiet import quiet_loading

LEARNED = frozenset({"gpt2", "opt"})  # types of language models whose positions are rows of a table
INNER_SPEAKER = frozenset({"blip-2", "instructblip"})  # their `generate` is that of the language model inside
WRITE_IMAGES = frozenset({"Blip2Processor", "InstructBlipProcessor"})  # put the image tokens before the text themselves


@dataclass(frozen=True)
class Answerer:
    """A loaded folder: model, its tokenizer, and its processor where it sees."""

    folder: Path
    model: Any
    tokenizer: Any
    processor: Any | None

    def streamer(self, say: Callable[[str], None] | None, *, prompt: bool = True) -> Any:
        """What `generate` hands its tokens to, so that `say` gets whole words as they come; None without `say`.

        prompt: whether the prompt comes first, which is not said.
        """
        if say is None:
            return None
        from transformers import TextStreamer

        streamer = TextStreamer(self.tokenizer, skip_prompt=prompt, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: say(text)
        return streamer


def load(folder: Path, *, device: str = "cpu", images: Sequence[Path] = ()) -> Answerer:
    """Load a folder with transformers' Auto classes, never running code from it.

    images: that will be asked about. Raises RecipeError when there is no such folder or device, and before anything is
    loaded when it cannot see images; CheckpointError when it does not load whole: a file of weights cut short, a tensor
    missing, unexpected or of another shape.
    """
    check_device(device)
    config, sees = check_folder(folder, images=images)
    check_weights(folder, config)
    torchvision_shim.install()
    import transformers

    language = (
        transformers.AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else transformers.AutoModelForCausalLM
    )
    auto = transformers.AutoModelForImageTextToText if sees else language
    try:
        with quiet_loading():
            loaded: Any = auto.from_pretrained(
                folder, dtype="auto", trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
                use_safetensors=True, device_map="auto" if device == "auto" else None,
            )  # fmt: skip
        model, report = loaded
        processor = None
        if sees and has_processor(folder):
            processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        tokenizer = processor.tokenizer if processor else transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False)  # fmt: skip
    except (FuseError, MemoryError):
        raise
    except Exception as error:  # of any kind, where a file is not as the library expects it
        check_tokenizer(folder)
        raise CheckpointError(f"transformers cannot load it: {in_a_line(error)}", where=folder) from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(what) or ()):
            raise CheckpointError(f"{what.replace('_', ' ')}: {len(found)}, the first is {found[0]}", where=folder)
    try:
        model = model.eval() if device == "auto" else model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"device {device!r}: {str(error).splitlines()[0]}", hint=HINT) from None
    return Answerer(folder, model, tokenizer, processor)


def ask(
    answerer: Answerer, question: str, *, images: tuple[Path, ...] = (), max_tokens: int = 128,
    say: Callable[[str], None] | None = None, grafts: Options | None = None,
) -> str:  # fmt: skip
    """The greedy answer to one question; `say` gets the words as they come. grafts: what is asked of grafts, by graft.

    Raises RecipeError when images are given to a model that does not see, or do not open.
    """
    import torch

    asked: dict[str, Any] = {}
    if grafts:
        config = strict_json.read_object(answerer.folder / "config.json")
        question, left = phrased(question, grafts, config)
        asked = {"grafts": left} if left else {}
    inputs = inputs_of(answerer, question, images).to(answerer.model.device)
    start = inputs["input_ids"].shape[1]
    if start == 0:
        raise RecipeError(f"the question {question!r} has no tokens", where=answerer.folder)
    most = room(answerer, start, max_tokens)
    with torch.no_grad(), runs(answerer.folder):
        out = answerer.model.generate(
            **inputs, **asked, max_new_tokens=most, do_sample=False, num_beams=1, streamer=answerer.streamer(say),
            pad_token_id=pad_of(answerer.tokenizer),
        )  # fmt: skip
    start = 0 if speaker_of(answerer.model).config.is_encoder_decoder else start
    return answerer.tokenizer.decode(out[0, start:], skip_special_tokens=True).strip()


def room(answerer: Answerer, prompt: int, wanted: int) -> int:
    """How many of the wanted tokens can follow a prompt of so many: hosts whose positions are rows of a table end.

    Raises RecipeError where not one can.
    """
    config = answerer.model.config.get_text_config()
    if config.model_type not in LEARNED:
        return wanted
    most = config.max_position_embeddings
    if prompt >= most:
        told = f"the prompt has {prompt} tokens, and {config.model_type} has positions for {most}"
        raise RecipeError(told, where=answerer.folder, hint="fewer words or images")
    return min(wanted, most - prompt)


def ask_many(answerer: Answerer, questions: list[str], *, max_tokens: int = 128, batch: int = 20) -> list[str]:
    """The greedy answers to questions without images, in batches padded on the left."""
    import torch

    tokenizer = answerer.tokenizer
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    answers: list[str] = []
    for start in range(0, len(questions), batch):
        prompts = [_prompt(answerer, question) for question in questions[start : start + batch]]
        special = not getattr(tokenizer, "chat_template", None)
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=special)
        inputs = {key: inputs[key].to(answerer.model.device) for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            out = answerer.model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        ends = out if answerer.model.config.is_encoder_decoder else out[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(ends, skip_special_tokens=True)]
    return answers


def _prompt(answerer: Answerer, question: str) -> str:
    if not getattr(answerer.tokenizer, "chat_template", None):
        return question
    return _written(answerer.tokenizer, [{"role": "user", "content": question}], answerer.folder, asked=True)


def speaker_of(model: Any) -> Any:
    """The module whose `generate` says the words: the model, or the language model inside it."""
    inner = model.config.model_type == "fuse" and model.config.is_encoder_decoder
    return model.language_model if inner or model.config.model_type in INNER_SPEAKER else model


def pad_of(tokenizer: Any) -> int | None:
    """The token that fills up shorter rows, or None."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def inputs_of(answerer: Answerer, question: str, images: tuple[Path, ...]) -> Any:
    """What the model takes for a question about images: the folder's own template, then its own processor.

    Raises RecipeError where the processor refuses it.
    """
    if images and answerer.processor is None:
        raise blind(answerer.folder)
    opened = [open_image(path) for path in images]
    return processed(answerer, prompt_of(answerer, question, len(opened)), opened)


def processed(answerer: Answerer, prompt: str, images: Sequence[Image.Image]) -> Any:
    """What the model takes for a written prompt and its images. Raises RecipeError where its processor refuses it."""
    extra = {"add_special_tokens": False} if has_template(answerer) else {}
    try:
        if answerer.processor:
            return answerer.processor(images=list(images) or None, text=[prompt], return_tensors="pt", **extra)
        return answerer.tokenizer([prompt], return_tensors="pt", **extra)
    except (FuseError, MemoryError):
        raise
    except Exception as error:  # of any kind: of a class of transformers, about what it was given or its own files
        raise RecipeError(f"its processor refuses it: {in_a_line(error)}", where=answerer.folder) from None


def has_template(answerer: Answerer) -> bool:
    """Whether the folder says how a conversation is written."""
    return bool(getattr(answerer.processor or answerer.tokenizer, "chat_template", None))


def prompt_of(answerer: Answerer, question: str, images: int, answer: str | None = None) -> str:
    """The text of a question about so many images, with an image token for each; with `answer`, its turn is behind."""
    if not has_template(answerer):
        token = getattr(answerer.processor, "image_token", "<image>")
        written = "" if type(answerer.processor).__name__ in WRITE_IMAGES else f"{token} " * images
        written = written if question else written.rstrip(" ")  # a space at the end would be a token of its own
        slots = slots_behind(getattr(answerer.model.config, "grafts", ()), images)
        return written + question + slots + (answer or "")
    said: dict[str, Any] = {"user": question} | ({} if answer is None else {"assistant": answer})
    if answerer.processor:
        said = {role: [{"type": "text", "text": text}] for role, text in said.items()}
        said["user"][:0] = [{"type": "image"} for _ in range(images)]
    turns = [{"role": role, "content": content} for role, content in said.items()]
    return _written(answerer.processor or answerer.tokenizer, turns, answerer.folder, asked=answer is None)


def _written(speaker: Any, turns: list[dict[str, Any]], folder: Path, *, asked: bool) -> str:
    """A conversation as the folder's template writes it; asked: an answer comes next."""
    room = 4 * len(str(turns))
    return written(
        lambda: speaker.apply_chat_template(turns, add_generation_prompt=asked, tokenize=False), where=folder, room=room
    )
