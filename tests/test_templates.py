"""The prompts of members whose own code writes them: word for word as that code does."""

from dataclasses import replace
from pathlib import Path

import pytest

from fuse.anatomy import Member, open_member
from fuse.templates import template_of
from tests import fused_members, layouts

OWN = "{{ messages[0].content }}"
IMAGE = {"type": "image"}
TALK = [
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Sure?"},
]
HUMAN, MACHINE = "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"
SYSTEM, END = "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"
LLAMA_3 = ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. "
)
MGM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# kind and special tokens -> the prompt of TALK, and that of a conversation with its own system message
PROMPTS = {
    ("llava", ()): (
        f"<s>{VICUNA}USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:",
        "<s>Be brief. USER: Hm? ASSISTANT:",
    ),
    ("llava", tuple(LLAMA_3)): (
        f"<s>{SYSTEM}{MGM}{END}{HUMAN}<image>\nWhat is it?{END}{MACHINE}A cat.{END}{HUMAN}Sure?{END}{MACHINE}",
        f"<s>{SYSTEM}Be brief.{END}{HUMAN}Hm?{END}{MACHINE}",
    ),
    ("mgm", tuple(LLAMA_3)): (
        f"<|begin_of_text|>{SYSTEM}{MGM}{END}{HUMAN}<image>\nWhat is it?{END}{SYSTEM}A cat.{END}{HUMAN}Sure?{END}{SYSTEM}",
        f"<|begin_of_text|>{SYSTEM}Be brief.{END}{HUMAN}Hm?{END}{SYSTEM}",
    ),
    ("slime", tuple(LLAMA_3)): (
        f"<s>{HUMAN}<image>\nWhat is it?{END}{MACHINE}A cat.{END}<|eot_conversation|>{HUMAN}Sure?{END}{MACHINE}",
        f"<s>{SYSTEM}Be brief.{END}{HUMAN}Hm?{END}{MACHINE}",
    ),
}


def original(kind: str, special: list[str], folder: Path) -> Member:
    layouts.build_original(kind, folder)
    fused_members.tokenizer(special, OWN).save_pretrained(folder)
    return open_member("m", str(folder), revision=None, relative_to=folder)


@pytest.mark.parametrize("case", PROMPTS)
def test_originals(case: tuple[str, tuple[str, ...]], tmp_path: Path) -> None:
    kind, special = case
    text = template_of(original(kind, list(special), tmp_path))
    tokenizer = fused_members.tokenizer(list(special), text)
    spoken, brief = PROMPTS[case]
    assert tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == spoken
    short = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hm?"}]}]
    assert tokenizer.apply_chat_template(short, tokenize=False, add_generation_prompt=True) == brief


OTHERS = {
    ("qwen2", "<|im_start|>"): (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    ),
    ("mistral", "[INST]"): "<s>[INST] <image>\nWhat is it? [/INST] A cat. </s>[INST] Sure? [/INST]",
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_language_models(case: tuple[str, str], tmp_path: Path) -> None:
    name, token = case
    member = original("llava", [token], tmp_path)
    text = template_of(replace(member, text=replace(member.text, name=name)))
    tokenizer = fused_members.tokenizer([token], text)
    assert tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == OTHERS[case]


def test_vicuna_twins_of_the_headline_pair_speak_vicuna(tmp_path: Path) -> None:
    texts = {template_of(original(kind, [], tmp_path / kind)) for kind in ("llava", "mgm", "slime")}
    assert len(texts) == 1 and "USER: " in texts.pop()


def test_a_member_without_a_known_prompt_has_only_its_own(tmp_path: Path) -> None:
    member = original("llava", [], tmp_path)
    assert template_of(replace(member, text=replace(member.text, name="gemma"))) == OWN
