"""Asks a fused folder the questions of a file through vLLM, and compares prompts and answers with transformers.

    /path/to/venv/bin/python tools/clients/vllm_check.py out --data questions.jsonl --dtype float32

Runs in a Python that has vLLM and `fuse`. Both run in the same dtype; in bfloat16 the two round in different places, so
an answer whose two likeliest words are close may differ. Exit code 1 where a prompt or an answer differs.
"""

import json
import os
from pathlib import Path

import click

OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=8, show_default=True)
@click.option("--max-model-len", type=click.IntRange(8), default=512, show_default=True)
def main(folder: Path, data: Path, dtype: str, max_tokens: int, max_model_len: int) -> None:
    """Compare what vLLM says about FOLDER with what transformers says."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    import torch
    from vllm import LLM, SamplingParams

    from fuse.ask import inputs_of, load
    from fuse.evaluate.answering import reply
    from fuse.evaluate.batches import prepare
    from fuse.evaluate.questions import read_questions
    from fuse.images import open_image

    questions = read_questions(data)
    llm = LLM(
        str(folder), dtype=dtype, enforce_eager=True, max_model_len=max_model_len, max_num_seqs=8,
        limit_mm_per_prompt={"image": max(1, *(len(question.images) for question in questions))},
    )  # fmt: skip
    chats = []
    for question in questions:
        parts = [{"type": "image_pil", "image_pil": open_image(path)} for path in question.images]
        chats.append([{"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}])
    heard = llm.chat(chats, SamplingParams(temperature=0, max_tokens=max_tokens))  # pyright: ignore
    answerer = load(folder)
    answerer.model.to(getattr(torch, dtype))
    said = {
        r.key: r.text for some in prepare(answerer, questions) for r in reply(answerer, some, max_tokens=max_tokens)
    }
    prompts = answers = 0
    for question, out in zip(questions, heard, strict=True):
        ids = inputs_of(answerer, question.text, question.images)["input_ids"][0].tolist()
        text = out.outputs[0].text.strip()
        prompts += ids == list(out.prompt_token_ids or ())
        answers += text == said[question.key]
        if text != said[question.key]:
            click.echo(json.dumps({"key": question.key, "transformers": said[question.key], "vllm": text}))
    click.echo(f"{prompts} of {len(questions)} prompts and {answers} of {len(questions)} answers are the same")
    raise SystemExit(prompts < len(questions) or answers < len(questions))


if __name__ == "__main__":
    main()
