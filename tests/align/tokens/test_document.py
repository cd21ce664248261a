"""What `fuse inspect tokens` finds: against the plan of a merge, transformers' tokenizers, and answers known by hand."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fuse.align.tokens.chat import read_template
from fuse.align.tokens.cutting import read_cutting
from fuse.align.tokens.document import inspect_tokens
from fuse.align.tokens.folder import names_of, open_speaker, open_speakers
from fuse.align.tokens.rows import align, outcomes
from fuse.align.tokens.special import ends, special_tokens, template_names
from fuse.errors import FuseError
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests.token_folders import CORE, write

ADDED = [f"<t{i}>" for i in range(6)]


def test_vocabularies_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "a", added={"<x>": 10, "<y>": 11, "<mine>": 12})
    write(tmp_path / "b", added={"<y>": 10, "<x>": 11, "<theirs>": 12, "<far>": 20}, rows=18)
    host, other = open_speakers([str(tmp_path / "a"), str(tmp_path / "b")])
    found = align(host, other)
    assert (found.kind, found.same_ids, found.other_ids, found.only_host, found.only_other) == ("added", 10, 2, 1, 2)
    assert (found.added_only_host, found.added_only_other, found.own) == (("<mine>",), ("<theirs>", "<far>"), 0)
    assert found.rows == 12 and align(other, host).rows == 12 and found.why == found.refused == ""
    folders = inspect_tokens([str(tmp_path / "a"), str(tmp_path / "b")])["folders"]
    assert [one["embedding"] for one in folders] == [
        {"rows": 16, "width": 8, "padding": 3, "missing": 0, "head_rows": None},
        {"rows": 18, "width": 8, "padding": 5, "missing": 1, "head_rows": None},
    ]


def test_the_same_folder_twice_over_is_the_same_in_everything(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for name in "ab":
        write(
            tmp_path / name, chat_template__jinja=template, tokenizer_config__json={"bos_token": "<s>"},
            config={"eos_token_id": 2},
        )  # fmt: skip
    (pair,) = inspect_tokens([str(tmp_path / name) for name in "ab"], text="the cat")["pairs"]
    assert pair["vocabulary"]["kind"] == "same" and pair["shared_rows"] == 10 and not pair["refused"]
    assert pair["special"] == {role: {"token": True, "id": True} for role in ("bos", "eos")} and pair["same_ends"]
    assert pair["cutting"] == {
        "same": True, "parts_that_differ": [], "same_around": True, "flags_that_differ": {"count": 0, "first": []}
    }  # fmt: skip
    assert pair["template"]["same_text"] and set(pair["template"]["same_prompts"].values()) == {True}


def test_another_vocabulary_is_what_merge_refuses(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", CORE[::-1])
    host, other = open_speakers([str(tmp_path / "a"), str(tmp_path / "b")])
    found = align(host, other)
    assert found.kind == "different" and found.same_ids == 0 and found.other_ids == 10
    with pytest.raises(FuseError) as error:
        make_plan(recipe(tmp_path, ["a", "b"], "merge"))
    assert found.why == error.value.problem  # pyright: ignore


def test_another_base_is_told_in_the_words_of_merge(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", config={"intermediate_size": 24})
    found = align(*open_speakers([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert found.kind == "same"
    assert found.refused == "a and b are not of one base: intermediate_size is 16 in a and 24 in b"


def recipe(root: Path, members: list[str], choice: str, base: str | None = None) -> Any:
    how = "task_arithmetic" if base else "linear"
    text = f"base: {base}\n" if base else ""
    text += f"members: {json.dumps({name: name for name in members})}\n"
    text += f"language: {{method: {how}, weights: 0.5, embeddings: {choice}}}\n"
    (root / "recipe.yaml").write_text(text)
    return load_recipe(root / "recipe.yaml")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.sampled_from(ADDED), unique=True, max_size=5), min_size=2, max_size=3),
    st.lists(st.integers(15, 17), min_size=3, max_size=3), st.booleans(),
)  # fmt: skip
def test_rows_are_those_of_the_plan(tmp_path: Path, added: list[list[str]], rows: list[int], based: bool) -> None:
    """Every choice of `embeddings` gives as many rows, shared and added, as the plan of the same recipe."""
    names = list("abc"[: len(added)])
    for name, tokens, count in zip(names, added, rows, strict=False):
        write(tmp_path / name, added={token: 10 + i for i, token in enumerate(tokens)}, rows=count)
    write(tmp_path / "z", rows=rows[2])
    base = str(tmp_path / "z") if based else None
    speakers = open_speakers([str(tmp_path / name) for name in names], base)
    others = speakers[1 : len(names)]
    for outcome in outcomes(speakers[0], others, speakers[-1] if based else None):
        plan = make_plan(recipe(tmp_path, names, outcome.choice, "z" if based else None))
        (row,) = [row for row in plan.rows if row.canonical == "embed.weight" or "embed" in row.name]
        whole = not row.runs
        assert outcome.rows == row.shape[0] and not outcome.refused
        assert outcome.merged == (row.shape[0] if whole else sum(run.length for run in row.runs))
        assert outcome.added == sum(one.source is not None for one in row.added)
        assert outcome.merged + outcome.kept + outcome.added == outcome.rows


def test_large_vocabularies_are_compared_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a", [f"a{i}" for i in range(40_000)], rows=40_000)
    write(tmp_path / "b", [f"b{i}" for i in range(40_000)], rows=40_000)
    speakers = open_speakers([str(tmp_path / "a"), str(tmp_path / "b")])
    began = time.process_time()
    assert align(*speakers).kind == "different"
    assert (
        time.process_time() - began < 10
    )  # a tenth of a second; minutes where each token measures the other vocabulary


ROLES = {
    "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "unk_token": "<none>",
    "image_token": "<x>", "extra_special_tokens": {"video_token": "<y>"}, "model_max_length": 7,
}  # fmt: skip


def test_roles(tmp_path: Path) -> None:
    config = {
        "bos_token_id": 1,
        "eos_token_id": 7,
        "pad_token_id": -1,
        "image_token_index": 10,
        "decoder_start_token_id": 3,
    }
    folder = write(
        tmp_path / "a", added={"<x>": 10}, config=config, tokenizer_config__json=ROLES,
        special_tokens_map__json={"pad_token": "cat", "mask_token": "mat"}, generation_config__json={"eos_token_id": [7, 2]},
    )  # fmt: skip
    speaker = open_speaker("a", str(folder))
    found = {role: (one.token, one.id, one.stated, one.disagrees) for role, one in special_tokens(speaker).items()}
    assert found == {
        "bos": ("<s>", 1, 1, False), "eos": ("</s>", 2, 7, True), "unk": ("<none>", None, None, False),
        "mask": ("mat", 8, None, False), "image": ("<x>", 10, 10, False),
    }  # fmt: skip
    assert ends(speaker) == (2, 7)
    assert template_names(speaker) == {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<none>", "mask_token": "mat", "image_token": "<x>",
        "video_token": "<y>",
    }  # fmt: skip


def post(before: list[str], behind: list[str]) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": t, "type_id": 0}} for t in before]
    single += [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": t, "type_id": 0}} for t in behind]
    special = {t: {"id": t, "ids": [CORE.index(t)], "tokens": [t]} for t in (*before, *behind)}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
AROUND: dict[str, tuple[Any, dict[str, Any]]] = {
    "nothing": (None, {}),
    "bytes": (BYTES, {}),
    "template": (post(["<s>"], []), {}),
    "both sides": (post(["<s>", "a"], ["</s>"]), {}),
    "a sequence": ({"type": "Sequence", "processors": [BYTES, post(["<s>"], [])]}, {}),
    "stated alone": (None, {"add_bos_token": True}),
    "stated against the template": (post(["<s>"], []), {"add_bos_token": False, "add_eos_token": True}),
    "stated with it": (post(["<s>"], ["</s>"]), {"add_bos_token": True, "add_eos_token": True}),
}


@pytest.mark.parametrize("case", AROUND)
def test_tokens_around_a_text_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    processor, stated = AROUND[case]
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **stated}
    write(tmp_path / "a", tokenizer={"post_processor": processor, "version": "1.0"}, tokenizer_config__json=told)
    found = read_cutting(open_speaker("a", str(tmp_path / "a")))
    made = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert isinstance(made, PreTrainedTokenizerFast)
    assert [*(found.before or ()), "cat", *(found.behind or ())] == made.convert_ids_to_tokens(made("cat").input_ids)
    assert found.before is not None and found.behind is not None
    assert found.stated == {key.split("_")[1]: value for key, value in stated.items()}


def test_around_a_text_of_a_slow_tokenizer_only_what_is_stated_is_known(tmp_path: Path) -> None:
    told = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    folder = write(tmp_path / "a", tokenizer_config__json=told, vocab__json={t: i for i, t in enumerate(CORE)})
    (folder / "tokenizer.json").unlink()
    found = read_cutting(open_speaker("a", str(folder)))
    assert (found.parts, found.flags, found.before, found.behind) == ({}, {}, ("<s>",), None)


def test_a_post_processor_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    write(
        tmp_path / "a", tokenizer={"post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}}
    )
    found = read_cutting(open_speaker("a", str(tmp_path / "a")))
    assert found.before is found.behind is None


def bpe(merges: list[Any], **settings: Any) -> dict[str, Any]:
    return {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges, **settings}


# changes of a second tokenizer.json -> the parts that differ
CHANGED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "merges as pairs": ({"model": bpe([["a", "b"]])}, []),
    "other merges": ({"model": bpe([["b", "a"]])}, ["merges"]),
    "a setting": ({"model": bpe(["a b"], byte_fallback=True)}, ["model"]),
    "the normalizer": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}, ["normalizer"]),
    "the decoder": ({"decoder": {"type": "Fuse"}}, ["decoder"]),
    "scores": (
        {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2], ["ab", 0.5]]}},
        ["model", "merges", "scores"],
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_parts(tmp_path: Path, case: str) -> None:
    changes, differ = CHANGED[case]
    write(tmp_path / "a", tokenizer={"model": bpe(["a b"])})
    write(tmp_path / "b", tokenizer={"model": bpe(["a b"]), **changes})
    (pair,) = inspect_tokens([str(tmp_path / "a"), str(tmp_path / "b")])["pairs"]
    assert pair["cutting"]["parts_that_differ"] == differ
    assert pair["cutting"]["same"] == (not set(differ) - {"decoder", "post_processor"})
    if case == "the normalizer":
        assert read_cutting(open_speaker("b", str(tmp_path / "b"))).parts["normalizer"].word == "Sequence(NFC)"


CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}[INST] <<SYS>>{{ messages[0].content }}<</SYS>> {{ messages[1].content }}"
    "{% else %}[INST] {{ messages[0].content }}{% endif %}{% for m in messages[1:] if m.role != 'system' %}{{ m.content }}{% endfor %}"
)
# template -> what stands for a system message, whether one is written, what is refused
SYSTEMS: dict[str, tuple[str, str, bool, set[str]]] = {
    "chatml": (CHATML, "<|im_start|>system\nBe kind.<|im_end|>", True, set()),
    "llama 2": (LLAMA_2, "", True, set()),
    "vicuna": (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}A chat.{% endif %}"
        "{% for m in messages if m.role != 'system' %} {{ m.role }}: {{ m.content }}{% endfor %}", "A chat.", True, set(),
    ),
    "gemma": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}", "", False, {"system"},
    ),
    "deaf": ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "", False, set()),
}  # fmt: skip


@pytest.mark.parametrize("case", SYSTEMS)
def test_default_system_prompts(tmp_path: Path, case: str) -> None:
    text, default, takes, refused = SYSTEMS[case]
    found = read_template(open_speaker("a", str(write(tmp_path / "a", chat_template__jinja=text))), None)
    inner = "Be kind." if case == "chatml" else default
    assert (found.default_system, found.takes_system, set(found.refused)) == (inner, takes, refused)
    assert set(found.written) == {"question", "system", "turns"} - refused


LISTS = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<img>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
STRINGS = "{% for m in messages %}{{ m.content }}|{% endfor %}"
MIXED = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text or '<img>' }}{% endfor %}{% endif %}{% endfor %}"


@pytest.mark.parametrize(("text", "turns", "image"), [
    (LISTS, "What is the capital of France?Paris.Sure?", "<img>What is it?"),
    (STRINGS, "What is the capital of France?|Paris.|Sure?|", "<img>\nWhat is it?|"),
    (MIXED, "What is the capital of France?Paris.Sure?", "<img>What is it?"),
])  # fmt: skip
def test_every_template_gets_the_contents_that_it_reads(tmp_path: Path, text: str, turns: str, image: str) -> None:
    found = read_template(open_speaker("a", str(write(tmp_path / "a", chat_template__jinja=text))), "<img>")
    assert found.written["turns"] == turns and found.written["image"] == image


def test_no_template(tmp_path: Path) -> None:
    found = read_template(open_speaker("a", str(write(tmp_path / "a"))), None)
    assert (found.text, found.digest, found.default_system, found.takes_system) == ("", "", "", False)


def test_names() -> None:
    assert names_of(["/x/a/m", "/x/b/m", "/y/c"]) == ["a/m", "b/m", "c"]
    assert names_of(["/p/a/m", "/q/a/m", "org/m"]) == ["p/a/m", "q/a/m", "org/m"]
    assert names_of(["/", "/m"]) == ["/", "m"]
