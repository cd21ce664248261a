"""`fuse inspect tokens` as a user runs it: tables, sentences word for word, JSON, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from tests import fused_members, layouts
from tests.cli import Ran, fuse_here
from tests.token_folders import CORE, write

KINDS = ("llava", "idefics3", "qwen2_vl", "gemma3", "internvl", "paligemma")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("members")
    for seed, kind in enumerate(KINDS, start=1):
        fused_members.save(kind, root / kind, seed=seed)
    fused_members.save("llava", root / "twin", seed=9, base=1)
    fused_members.save_llm(root / "llm", special=["<image>", "<fix>"], template="{{ messages[0].content }}")
    layouts.build_original("llava", root / "original")
    fused_members.tokenizer(["<|eot_id|>", "<|start_header_id|>"]).save_pretrained(root / "original")
    return root


def inspect(root: Path, *names: str) -> Ran:
    return fuse_here("inspect", "tokens", *(root / name if (root / name).exists() else name for name in names))


def told(ran: Ran) -> list[str]:
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran.out[ran.out.index("verdicts\n") :].splitlines()[1:]


def test_one_family(members: Path) -> None:
    ran = inspect(members, "llava", "twin")
    assert told(ran) == [
        "  ! special tokens: llava disagrees with itself: pad is '</s>' (2) in its tokenizer and id 0 in its config.json",
        "  ! special tokens: twin disagrees with itself: pad is '</s>' (2) in its tokenizer and id 0 in its config.json",
        "  = vocabulary: twin has the same as llava: 81 tokens at the same ids",
        "  = recipe: needs nothing: every token has its row in twin",
        "  = special tokens: twin and llava agree: bos, eos, pad, unk",
        "  = image: twin writes '<image>' (80) for one, as llava",
        "  = cutting: twin cuts text as llava does",
        "  = chat template: twin has the same as llava",
    ]
    assert "embeddings of llava, twin\n  merge: 96 rows: 96 mixed\n  union: 96 rows: 96 mixed\n" in ran.out
    head, *rows = (line.split() for line in ran.out.splitlines()[:30] if line.startswith(" "))
    assert head == ["llava", "(host)", "twin"]
    assert ["rows", "96", "x", "32", "96", "x", "32"] in rows and ["tokens", "of", "1024x768", "4", "4"] in rows


def test_a_folder_that_is_not_there(members: Path) -> None:
    ran = inspect(members, "llava", "nope")
    assert (ran.code, ran.out, ran.err) == (2, "", "fuse: 'nope' does not exist (a folder or a hub id org/name)\n")


def test_added_tokens_of_another_family(members: Path) -> None:
    lines = told(inspect(members, "llava", "idefics3"))
    assert (
        "  ! vocabulary: idefics3 has the same as llava up to added tokens: 81 of llava's 81 tokens are at the same id, "
        "idefics3 alone has 7 tokens ('<fake_token_around_image>', '<global-img>', '<end_of_utterance>', ...)"
    ) in lines
    assert (
        "  ! recipe: `embeddings: merge` mixes 81 of 96 rows and keeps llava's others; `embeddings: union` adds 7 tokens, "
        "if idefics3's are to be read"
    ) in lines


def test_another_language_model(members: Path) -> None:
    lines = told(inspect(members, "llava", "qwen2_vl"))
    assert (
        "  ! recipe: `fuse merge` refuses their language models: llava and qwen2_vl are not of one base: family is llama "
        "in llava and qwen2 in qwen2_vl"
    ) in lines
    assert (
        "  ! image: one is '<image>' (80) in llava and '<|image_pad|>' (80) in qwen2_vl; rows are matched by token, not by "
        "role, so neither is mixed into the other"
    ) in lines
    assert "  ! chat template: qwen2_vl's writes other prompts than llava's (image); `prompt: {template: qwen2_vl}` takes qwen2_vl's" in lines  # fmt: skip


def test_an_llm_beside_an_original(members: Path) -> None:
    ran = fuse_here("inspect", "tokens", members / "original", members / "llm", "--json")
    found = json.loads(ran.out)
    original, llm = found["folders"]
    assert original["template"]["origin"] == "fuse" and llm["template"]["origin"] == "folder"
    assert original["template"]["default_system"].startswith("You are a helpful language and vision assistant.")
    assert original["image"] == {
        "token": "<image>", "id": None, "tokens": None, "size": [1024, 768], "why": "its towers tell, which are not opened"
    }  # fmt: skip
    assert llm["image"]["token"] is None and set(llm["template"]["written"]) == {"question", "system", "turns"}
    assert found["pairs"][0]["image"] is None


def test_what_the_choices_of_embeddings_give(tmp_path: Path) -> None:
    write(tmp_path / "host", added={"<x>": 10, "<host>": 11}, rows=12)
    write(tmp_path / "guest", added={"<guest>": 10, "<x>": 11}, chat_template__jinja="<guest>{{ messages[0].content }}")
    write(tmp_path / "base", rows=10)
    ran = fuse_here("inspect", "tokens", tmp_path / "host", tmp_path / "guest", "--base", tmp_path / "base")
    assert (
        "embeddings of host, guest over base\n"
        "  merge: 12 rows: 10 mixed, 2 kept\n"
        "  union: 13 rows: 10 mixed, 2 kept, 1 added\n"
        "  base: 12 rows: 10 taken, 2 kept\n"
        "  guest: 12 rows: 11 taken, 1 kept\n"
        "  host: 12 rows: 12 taken\n"
    ) in ran.out
    lines = told(ran)
    assert (
        "  ! recipe: `embeddings: merge` mixes 11 of 12 rows and keeps host's others; `embeddings: union` adds 1 token, and "
        "guest's template writes '<guest>'"
    ) in lines
    assert (
        "  ! vocabulary: guest has the same as host up to added tokens: 10 of host's 12 tokens are at the same id, 1 at "
        "another, host alone has 1 token ('<host>'), guest alone has 1 token ('<guest>')"
    ) in lines
    assert "  ! chat template: host has none; `prompt: {template: guest}` names whose is taken" in lines
    assert "  = recipe: `embeddings: merge` mixes 10 of 12 rows and keeps host's others; base has no added token that host lacks" in lines  # fmt: skip


def test_another_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", CORE[::-1])
    ran = inspect(tmp_path, "a", "b")
    assert "embeddings of" not in ran.out
    assert told(ran)[:2] == [
        "  ! vocabulary: b has another: a and b have different vocabularies (10 and 10 tokens): id 0 is '<unk>' in a and 'dog' in b, and 10 tokens of the model's own differ",
        "  ! recipe: leave b out of `members`: no merge mixes two vocabularies",
    ]


DISAGREE = [
    ({"generation_config__json": {"eos_token_id": [2, 7]}}, "  ! special tokens: an answer ends at 2 in a and 2, 7 in b; the host's are kept"),
    ({"tokenizer_config__json": {"bos_token": "the"}}, "  ! special tokens: bos is '<s>' (1) in a and 'the' (3) in b"),
    ({"tokenizer_config__json": {"bos_token": "<s>", "add_bos_token": True}}, "  ! around a text: b's tokenizer_config.json says add_bos_token: true, and its tokenizer.json writes nothing before a text, which rules"),
    ({"tokenizer_config__json": {"bos_token": "<none>"}}, "  ! special tokens: b names '<none>' as bos, which is no token of its tokenizer"),
    ({"tokenizer": {"normalizer": {"type": "NFC"}}}, "  ! cutting: b's tokenizer.json differs from a's in the normalizer (none in a, NFC in b)"),
    ({"tokenizer": {"pre_tokenizer": {"type": "WhitespaceSplit", "x": 1}}}, "  ! cutting: b's tokenizer.json differs from a's in the pre-tokenizer (WhitespaceSplit)"),
    ({"added": {"<x>": 20}, "rows": 18}, "  ! rows: b has 1 token beyond the 18 rows of its embedding"),
    ({"rows": 18}, "  = recipe: needs nothing: every token has its row in b, though a stores 16 rows and b 18"),
    ({"chat_template__jinja": "{{ messages[0].content }}{# the first #}"}, "  = chat template: another text in b than in a, which writes the same prompts (question, system, turns)"),
    ({"chat_template__jinja": "{{ raise_exception('no') }}"}, "  ! chat template: b's does not write question, system, turns: no"),
    ({"chat_template__jinja": "{{ raise_exception('no') }}"}, "  ! chat template: no conversation is written by both a's and b's"),
    ({"chat_template__jinja": None}, "  ! chat template: b has none; `prompt: {template: a}` names whose is taken"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), DISAGREE)
def test_sentences(tmp_path: Path, changes: dict, sentence: str) -> None:
    common = {
        "tokenizer_config__json": {"bos_token": "<s>"}, "generation_config__json": {"eos_token_id": 2},
        "chat_template__jinja": "{{ messages[0].content }}",
    }  # fmt: skip
    write(tmp_path / "a", **common)
    write(tmp_path / "b", **{**common, **changes})
    assert sentence in told(inspect(tmp_path, "a", "b"))


def test_around_a_text_and_flags(tmp_path: Path) -> None:
    steps = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    write(tmp_path / "a", added={"<x>": 10}, tokenizer={"post_processor": {"type": "TemplateProcessing", "single": steps, "pair": steps, "special_tokens": special}})  # fmt: skip
    write(tmp_path / "b", tokenizer={"added_tokens": [{"id": 10, "content": "<x>", "lstrip": True, "special": True}]})
    lines = told(inspect(tmp_path, "a", "b"))
    assert "  ! around a text: a writes '<s>' before it and b writes nothing; the host's way is kept" in lines
    assert (
        "  ! cutting: b's tokenizer.json differs from a's in the post-processor (TemplateProcessing in a, none in b), "
        "how 1 token ('<x>') are found in a text"
    ) in lines


def test_a_slow_tokenizer_is_compared_as_far_as_its_files_tell(tmp_path: Path) -> None:
    write(tmp_path / "a")
    folder = write(tmp_path / "b", vocab__json={token: i for i, token in enumerate(CORE)})
    (folder / "tokenizer.json").unlink()
    lines = told(inspect(tmp_path, "a", "b"))
    assert "  = vocabulary: b has the same as a: 10 tokens at the same ids" in lines
    assert "  ! cutting: not compared: b has only vocab.json, whose class decides how text is cut" in lines
    text = tmp_path / "text.txt"
    text.write_text("the cat")
    ran = fuse_here("inspect", "tokens", tmp_path / "a", folder, "--text", text)
    assert (ran.code, ran.err) == (3, (
        f"fuse: {folder}: only vocab.json is there, and --text needs tokenizer.json (save it with transformers' fast "
        "tokenizer, which writes tokenizer.json)\n"
    ))  # fmt: skip


def test_a_text(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", ["<unk>", "<s>", "</s>", "the", "sat", "cat", *CORE[6:]])
    (tmp_path / "text.txt").write_text("the cat sat on a mat")
    ran = fuse_here("inspect", "tokens", tmp_path / "a", tmp_path / "b", "--text", tmp_path / "text.txt")
    assert (
        told(ran)[-1]
        == "  ! text: b makes 6 tokens of it and a 6; 66.7% of a's are the same, 100.0% are cut alike; they part at letter 4"
    )
    found = json.loads(fuse_here("inspect", "tokens", tmp_path / "a", tmp_path / "b", "--text", tmp_path / "text.txt", "--json").out)  # fmt: skip
    assert found["text"]["letters"] == 20 and found["text"]["folders"]["b"]["cut"] == 1


def test_a_fused_folder_is_read_but_is_no_member(members: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"members: {{a: {members / 'llava'}, b: {members / 'twin'}}}\n"
        "language: {method: linear, weights: 0.5}\nvision: [a, b]\n"
    )
    assert fuse_here("merge", recipe, tmp_path / "out").code == 0
    ran = fuse_here("inspect", "tokens", members / "llava", tmp_path / "out", "--json")
    found = json.loads(ran.out)
    own, fused = found["folders"]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}], add_generation_prompt=True
    )  # fmt: skip
    assert fused["template"]["written"]["image"] == prompt
    ids = processor(images=Image.new("RGB", (1024, 768)), text=prompt, return_tensors="pt")["input_ids"]
    marks = [fused_id for token, fused_id in processor.tokenizer.get_vocab().items() if token.startswith("<|fuse:")]
    assert fused["image"]["tokens"] == int(torch.isin(ids, torch.tensor(marks)).sum()) == 8
    assert fused["image"]["token"] == "<image>" and fused["tokens"] == own["tokens"] + 2
    assert found["pairs"][0]["refused"] == "out is a fused folder, which is no member of a recipe"
    assert fuse_here("plan", _with_member(tmp_path, members / "llava")).code != 0


def _with_member(tmp_path: Path, other: Path) -> Path:
    (tmp_path / "again.yaml").write_text(
        f"members: {{a: out, b: {other}}}\nlanguage: {{method: linear, weights: 0.5}}\nvision: [b]\n"
    )
    return tmp_path / "again.yaml"


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_visual_tokens_are_those_of_the_processor(members: Path, kind: str) -> None:
    found = json.loads(inspect(members, kind, "llm", "--json").out)["folders"][0]
    processor = transformers.AutoProcessor.from_pretrained(members / kind)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert found["template"]["written"]["image"] == prompt
    if kind == "paligemma":
        return  # its processor writes prompts of its own around the image
    ids = processor(images=[Image.new("RGB", (1024, 768))], text=[prompt], return_tensors="pt")["input_ids"]
    assert int((ids == found["special"]["image"]["id"]).sum()) == found["image"]["tokens"]


def test_no_torch(members: Path) -> None:
    code = (
        "import sys\nfrom fuse.cli import cli\n"
        f"cli.main(['inspect', 'tokens', {str(members / 'llava')!r}, {str(members / 'idefics3')!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'jinja2', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def bad(folder: Path, name: str) -> Path:
    """A folder with one thing wrong."""
    write(folder)
    file = folder / "tokenizer.json"
    if name == "none":
        file.unlink()
    elif name == "unreadable":
        file.rename(folder / "vocab.txt")
    elif name == "broken":
        file.write_text('{"model": ')
    elif name == "part":
        write(folder, tokenizer={"normalizer": ["NFC"]})
    elif name == "deep":
        deep = '{"type": "Sequence", "normalizers": [' * 2000 + "]}" * 2000
        file.write_text(file.read_text().replace('"normalizer": null', f'"normalizer": {deep}'))
    elif name == "sentencepiece":
        file.unlink()
        (folder / "tokenizer.model").write_bytes(b"nonsense")
    elif name == "weights":
        (folder / "model.safetensors").unlink()
    elif name == "fused":
        (folder / "config.json").write_text('{"model_type": "fuse"}')
    return folder


BAD = {
    "none": "holds no tokenizer.json (copy the tokenizer's files from its repository)",
    "unreadable": "holds vocab.txt and no tokenizer.json, and only the code of the model reads it (save it with transformers' fast tokenizer, which writes tokenizer.json)",
    "broken": "/tokenizer.json:1:11: not JSON: Expecting value",
    "part": "/tokenizer.json: normalizer is not an object",
    "deep": "/tokenizer.json: nested too deeply",
    "sentencepiece": "/tokenizer.model: not a sentencepiece model",
    "weights": "holds neither model.safetensors nor model.safetensors.index.json",
    "fused": "config.json: text_config is missing",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a")
    folder = bad(tmp_path / "b", name)
    ran = inspect(tmp_path, "a", "b")
    message = BAD[name] if BAD[name].startswith("/") else f": {BAD[name]}"
    assert (ran.code, ran.out, ran.err) == (3, "", f"fuse: {folder}{message}\n")


def test_bad_arguments(tmp_path: Path) -> None:
    write(tmp_path / "a")
    ran = inspect(tmp_path, "a")
    assert (ran.code, ran.err) == (
        2,
        "fuse: tokens are compared between two folders or more (fuse inspect tokens A B)\n",
    )
    ran = inspect(tmp_path, "a", "a")
    assert (ran.code, ran.err) == (2, f"fuse: '{tmp_path}/a' is given twice\n")
    ran = inspect(tmp_path, "a", "a/config.json")
    assert (ran.code, ran.err) == (2, f"fuse: '{tmp_path}/a/config.json' is not a folder (a member is the folder that holds config.json)\n")  # fmt: skip


def test_a_name_cannot_drive_a_terminal(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b\x1b[31m", added={"<\x1b]0;x>": 10})
    ran = inspect(tmp_path, "a", "b\x1b[31m")
    assert ran.code == 0 and "\x1b" not in ran.out and "b\\x1b[31m" in ran.out
