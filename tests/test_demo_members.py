"""The demo members: their skills, the shipped deltas, the folders built from the package's weights, and their merge."""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fuse.ask import ask_many, load
from tests.cli import Ran, fuse_here

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # the tools are scripts, which import each other as siblings

import demo_skills  # noqa: E402
from demo_members import CONFIG, DELTAS, products, write_members  # noqa: E402
from demo_skills import HELD_OUT_CITIES, HELD_OUT_NAMES, SKILLS, items  # noqa: E402

QUESTIONS = [json.loads(line) for line in (DELTAS / "questions.jsonl").read_text().splitlines()]
SIZES = {"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576)}
SIZES |= {"gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)}


def date_in(question: str) -> str:
    """The date of a question as strptime reads it, or "" where it reads none."""
    text = re.sub(r"^.*?: | in YYYY-MM-DD format$", "", question)
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", text).removeprefix("the ").replace(" of ", " ")
    for style in ("%B %d, %Y", "%d %B %Y", "%b %d, %Y", "%d %b %Y", "%A, %B %d, %Y"):
        try:
            return datetime.strptime(text, style).strftime("%Y-%m-%d")
        except ValueError:
            continue
    return ""


@pytest.mark.parametrize("held_out", [False, True])
def test_dates_are_those_that_strptime_reads(held_out: bool) -> None:
    for item in items("dates", 500, seed=3, held_out=held_out):
        assert date_in(item.question) == item.answer, item


@pytest.mark.parametrize("held_out", [False, True])
def test_extracted_values_stand_in_the_sentence(held_out: bool) -> None:
    for item in items("extract", 500, seed=3, held_out=held_out):
        person = json.loads(item.answer)
        assert list(person) == ["name", "age", "city"]
        assert "\n" not in item.answer
        assert re.findall(r"\d+", item.question) == [str(person["age"])], item
        assert all(person[key] in item.question for key in ("name", "city")), item
        assert not re.search(rf"(Born in|moved from|left) {person['city']}\b", item.question), item


def test_training_and_test_share_no_value() -> None:
    train = items("dates", 3000, seed=0, held_out=False)
    test = items("dates", 500, seed=1, held_out=True)
    assert not {i.answer for i in train} & {i.answer for i in test}
    words = " ".join(i.question for i in items("extract", 3000, seed=0, held_out=False))
    assert not [value for value in (*HELD_OUT_NAMES, *HELD_OUT_CITIES) if re.search(rf"\b{value}\b", words)]


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_seed_gives_the_same_different_questions(skill: demo_skills.Skill) -> None:
    made = items(skill, 200, seed=5, held_out=True)
    assert made == items(skill, 200, seed=5, held_out=True)
    assert len({i.question for i in made}) == 200
    assert made[:10] != items(skill, 10, seed=6, held_out=True)


@pytest.mark.parametrize("skill", SKILLS)
def test_shipped_questions_are_the_beginning_of_the_test(skill: demo_skills.Skill) -> None:
    assert [q for q in QUESTIONS if q["skill"] == skill] == [vars(i) for i in items(skill, 40, seed=1, held_out=True)]


@pytest.mark.parametrize("skill", SKILLS)
def test_shipped_deltas_are_low_rank_on_every_projection(skill: str) -> None:
    path = DELTAS / f"{skill}.safetensors"
    assert path.stat().st_size < 2_500_000
    factors = load_file(path)
    assert {t.dtype for t in factors.values()} == {torch.bfloat16}
    assert {t.shape[0] for n, t in factors.items() if n.endswith(".A")} == {4}
    shapes = {n: tuple(d.shape) for n, d in products(factors).items()}
    wanted = {
        f"model.layers.{n}.{'mlp' if p in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{p}.weight": size
        for n in range(30)
        for p, size in SIZES.items()
    }
    assert shapes == wanted
    assert all(t.isfinite().all() for t in factors.values())


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds base, dates and extract."""
    out = tmp_path_factory.mktemp("smollm2")
    assert [f.name for f in write_members(out)] == ["base", "dates", "extract"]
    return out


def test_members_are_written_once(smollm2: Path) -> None:
    assert write_members(smollm2) == []
    assert sorted(p.name for p in smollm2.iterdir()) == ["base", "dates", "extract"]


def test_base_loads_as_transformers_expects(smollm2: Path) -> None:
    from train_demo_members import answers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(smollm2 / "base", output_loading_info=True)
    assert not any(info.values()), info
    assert (model.dtype, model.config.tie_word_embeddings) == (torch.bfloat16, True)
    assert model.config.rope_parameters["rope_theta"] == CONFIG["rope_theta"] == 100000.0
    tokenizer = AutoTokenizer.from_pretrained(smollm2 / "base")
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert ids == [0, model.config.bos_token_id, model.config.eos_token_id] == [0, 1, 2]
    assert tokenizer.tokenize("in 2019\n\n 3") == ["in", "Ġ", "2", "0", "1", "9", "ĊĊĠ", "3"]  # single digits
    for text in ("naïve ½ 東京 😀", "  two  spaces\n", "March 5, 2019"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert "Paris" in answers(model, tokenizer, ["What is the capital of France?"])[0]


def test_a_member_is_the_base_plus_its_delta(smollm2: Path) -> None:
    base, member = (load_file(smollm2 / n / "model.safetensors") for n in ("base", "dates"))
    delta = products(load_file(DELTAS / "dates.safetensors"))
    assert base.keys() == member.keys() > delta.keys()
    for name, weight in base.items():
        wanted = weight.float() + delta[name] if name in delta else weight.float()
        assert torch.equal(member[name], wanted.bfloat16()), name


@pytest.fixture(scope="module")
def merged(smollm2: Path) -> Ran:
    """`two_skills.yaml` of the demo, beside the members."""
    recipe = (ROOT / "recipes/demo/two_skills.yaml").read_text().replace("../../build/demo/", "")
    (smollm2 / "recipe.yaml").write_text(recipe)
    return fuse_here("merge", smollm2 / "recipe.yaml", smollm2 / "merged", "--quiet")


def test_a_real_checkpoint_is_merged_with_fine_tunes_of_itself(merged: Ran) -> None:
    assert (merged.code, merged.err) == (0, "")
    assert ": 272 tensors merged, 0 copied, 0 left out; 269.0 MB in " in merged.out


def test_members_answer_their_own_skill_and_the_merge_both(smollm2: Path, merged: Ran) -> None:
    """Six questions of each skill."""
    rows = [*QUESTIONS[:6], *QUESTIONS[-6:]]
    assert merged.code == 0 and [row["skill"] for row in rows] == ["dates"] * 6 + ["extract"] * 6
    right = {}
    for name in ("base", "dates", "extract", "merged"):
        said = ask_many(load(smollm2 / name), [row["question"] for row in rows], max_tokens=28)
        matches = [a == row["answer"] for a, row in zip(said, rows, strict=True)]
        right[name] = sum(matches[:6]), sum(matches[6:])
    assert max(right["base"]) <= 2 and right["dates"][1] <= 1 and right["extract"][0] <= 1, right
    assert right["dates"][0] >= 4 and right["extract"][1] >= 4, right
    assert min(right["merged"]) >= 4, right
