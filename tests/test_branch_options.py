"""Options of branches from the recipe to the answer: separator, positions and norm; what is refused, word for word."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import fuse  # noqa: F401 - makes the Auto classes know the folder
from fuse.branches.branch import Seen
from fuse.errors import CheckpointError
from fuse.model import visual
from fuse.model.config import FusedConfig
from tests import fused_members, recipe_members, tiny_text
from tests.cli import fuse_here
from tests.original_branches import picture
from tests.test_fused_continuing import say

torch.set_num_threads(1)
NEWLINE = 4  # its id in the tiny vocabulary
HALF = "members: {a: a, b: b, tiles: tiles}\nlanguage: {method: linear, weights: 0.5}\n"


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("members")
    for seed, (name, kind) in enumerate({"a": "llava", "b": "llava_next", "tiles": "idefics3"}.items(), 1):
        fused_members.save(kind, root / name, seed=seed)
    fused_members.save("qwen2_vl", root / "qwen")
    picture(60, 40).save(root / "photo.png")
    return root


def write(members: Path, tmp_path: Path, vision: str, rest: str = HALF) -> Path:
    """A recipe beside nothing: its members lie elsewhere."""
    text = rest.replace("a: a,", f"a: {members}/a,").replace("b: b,", f"b: {members}/b,")
    text = text.replace("tiles: tiles", f"tiles: {members}/tiles").replace("qwen: qwen", f"qwen: {members}/qwen")
    (tmp_path / "r.yaml").write_text(f"{text}vision: {vision}\n")
    return tmp_path / "r.yaml"


def merged(recipe: Path, out: str = "out") -> Path:
    ran = fuse_here("merge", recipe, recipe.parent / out)
    assert (ran.code, ran.err) == (0, ""), ran
    return recipe.parent / out


def opened(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder)


def branches_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "config.json").read_text())["branches"]


ALL = '[a, {from: tiles, separator: "\\n w7", positions: shared, norm: match}, {from: b, norm: embeddings}]'


@pytest.fixture(scope="module")
def everything(members: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged(write(members, tmp_path_factory.mktemp("everything"), ALL))


def test_config_and_provenance_say_the_options(everything: Path) -> None:
    plain, tiles, b = branches_of(everything)
    assert not {"separator", "positions", "norm"} & plain.keys()
    assert tiles["separator"] == {"text": "\n w7", "ids": [NEWLINE, 7]}
    assert (tiles["positions"], tiles["norm"]) == ("shared", "match")
    assert b["norm"] == "embeddings" and not {"separator", "positions"} & b.keys()
    told = json.loads((everything / "fuse.json").read_text())["branches"]
    assert told[1]["separator"] == tiles["separator"] and "norm" not in told[0]
    rows = [
        line
        for line in (everything / "README.md").read_text().splitlines()
        if line.startswith(("| tiles | i", "| b | l"))
    ]
    said = (
        'all, behind the separator "\\\\n w7", at the positions of the first branch, with the norm of the first branch'
    )
    assert rows[0].split(" | ")[-1] == said + " |"
    assert rows[1].split(" | ")[-1] == "all, with the norm of the embeddings |"


def test_the_separator_stands_before_its_branch(everything: Path) -> None:
    """Between the blocks of each image, before the markers of the branch; nothing else in the prompt changes."""
    _, processor = opened(everything)
    image = picture(60, 40)
    token = processor.image_token
    ids = processor(images=[image, image], text=[f"w5 {token} w6 {token} w8"])["input_ids"][0].tolist()
    a, tiles, b = processor.fused.placeholder_ids
    for number in (0, 1):
        first = [i for i, t in enumerate(ids) if t == a][4 * number : 4 * number + 4]
        assert first == list(range(first[0], first[0] + 4))
        assert ids[first[-1] + 1 : first[-1] + 3] == [NEWLINE, 7]
        assert ids[first[-1] + 3] != tiles, "idefics3 writes a marker first"
    assert ids.count(7) == 2, "idefics3 writes newlines too"
    assert ids.index(b) > max(i for i, t in enumerate(ids[: ids.index(6)]) if t == tiles)


def test_plan_counts_separators(members: Path, everything: Path, tmp_path: Path) -> None:
    recipe = write(members, tmp_path, ALL)
    ran = fuse_here("plan", recipe, "--image-size", "60x40")
    assert ran.code == 0, ran.err
    lines = ran.out[ran.out.index("encoders (") :].splitlines()
    assert lines[1:4] == [
        "  a: clip_vision_model, 4 visual tokens",
        "  tiles: idefics3_vision, 5 visual tokens, 13 markers, 2 separator tokens, positions shared with the first branch, "
        "norm of the first branch",
        "  b: clip_vision_model, 14 visual tokens, norm of the embeddings",
    ]
    told = json.loads(fuse_here("plan", recipe, "--image-size", "60x40", "--json").out)["fused"]
    assert [b["separator"] for b in told["branches"]] == [0, 2, 0]
    assert [b["positions"] for b in told["branches"]] == ["continued", "shared", "continued"]
    assert [b["norm"] for b in told["branches"]] == ["none", "match", "embeddings"]
    _, processor = opened(everything)
    token = processor.image_token
    written = processor(images=[picture(60, 40)], text=[f"w5 {token} w6"])["input_ids"].shape[1]
    words = processor(text=["w5 w6"])["input_ids"].shape[1]
    assert written - words == told["context"] - told["context_left"]


def test_the_context_counts_separators(members: Path, tmp_path: Path) -> None:
    """An image that fits the context to the token, and does not with the separator."""
    many = " ".join(["w7"] * (256 - 18 + 1))
    recipe = write(members, tmp_path, f"[a, {{from: b, separator: {many}}}]")
    ran = fuse_here("plan", recipe, "--image-size", "60x40")
    told = "one image of 60x40 pixels takes 18 visual tokens, and the context holds 256 (`max_tokens` on a branch, a "
    assert (ran.code, ran.err) == (2, f"fuse: {told}smaller image, or fewer branches)\n")
    folder = merged(recipe)
    ran = fuse_here("ask", folder, "w5", "--image", members / "photo.png")
    assert ran.code == 2 and "tokens, 18 of them visual, and the context is 256" in ran.err


def test_asked_and_watched(members: Path, everything: Path, tmp_path: Path) -> None:
    asked = ("ask", everything, "w5 w6", "--image", members / "photo.png", "--max-tokens", 4, "--json")
    plain = fuse_here(*asked)
    watched = fuse_here(*asked, "--attention", tmp_path / "seen.png")
    assert (plain.code, watched.code) == (0, 0), (plain.err, watched.err)
    assert json.loads(plain.out)["answer"] == json.loads(watched.out)["answer"]
    assert (tmp_path / "seen.png").stat().st_size > 1000


def test_left_as_they_are_they_change_no_byte(members: Path, tmp_path: Path) -> None:
    """A recipe with the defaults spelt out writes the folder of one without, but for the recipe in card and provenance."""
    (tmp_path / "two").mkdir()
    one = merged(write(members, tmp_path, "[a, tiles]", HALF.replace("b: b, ", "")))
    spelt = "[a, {from: tiles, positions: continued, norm: none}]"
    two = merged(write(members, tmp_path / "two", spelt, HALF.replace("b: b, ", "")))
    files = [
        f.relative_to(one) for f in sorted(one.rglob("*")) if f.is_file() and f.name not in {"README.md", "fuse.json"}
    ]
    assert len(files) > 10
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    assert not {"separator", "positions", "norm"} & {key for branch in branches_of(one) for key in branch}


LEARNT = {
    "gpt2": {"vocab_size": 96, "n_positions": 64},
    "opt": {"vocab_size": 96, "max_position_embeddings": 64},
    "llama": {"vocab_size": 96},
}


@pytest.mark.parametrize("kind", LEARNT)
def test_hosts_with_learnt_positions_take_shared_ones(kind: str, tmp_path: Path) -> None:
    """Two encoders from files on a text model: each step of an answer is a pass over the whole, by the rule's positions."""
    model = tiny_text.build(kind, **LEARNT[kind])
    model.save_pretrained(tmp_path / "llm")
    fused_members.tokenizer([]).save_pretrained(tmp_path / "llm")
    for seed, name in enumerate(("one", "two")):
        recipe_members.save_encoder(tmp_path / name)
        generator = torch.Generator().manual_seed(seed)
        save_file({"weight": torch.randn(32, 12, generator=generator)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "r.yaml").write_text(
        "members: {llm: llm}\nlanguage: {method: linear, weights: 1}\nvision:\n"
        "  - {name: one, encoder: one, projector: one.safetensors, norm: embeddings}\n"
        "  - {name: two, encoder: two, projector: two.safetensors, max_tokens: 5, separator: w7, positions: shared, "
        "norm: match}\n"
    )
    model, processor = opened(merged(tmp_path / "r.yaml"))
    batch = processor(images=[[picture(60, 40)], []], text=["w5 <image>", "w5 w6"])
    said = say(model, batch, 4)
    begin = batch["input_ids"].shape[1]
    beginning = 1 + int(batch["input_ids"][0, 0] == 1)  # a beginning of text, and w5
    span = [beginning + (2 * i + 1) * 16 // 12 for i in range(6)]  # the separator and five tokens over 16 positions
    at = [*range(beginning + 16), *span, *range(beginning + 16, beginning + 20)]
    ids = said.sequences[:1]
    with torch.no_grad():
        prompt = model.read(**{k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
        embeds = torch.cat([prompt.embeds, model.get_input_embeddings()(ids[:, begin:])], 1)
        wanted = model.language_model(
            inputs_embeds=embeds, attention_mask=torch.ones_like(ids), position_ids=torch.tensor([at])
        ).logits[:, begin - 1 : -1]
        counted = model.language_model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits
    assert (torch.stack(said.logits, 1)[:1] - wanted).abs().max() < 1e-4
    assert (counted[:, begin - 1 : -1] - wanted).abs().max() > 1e-4


def test_separators_are_no_words_to_an_encoder_that_reads_them(
    everything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = opened(everything)
    heard: list[list[int]] = []
    run = visual.run_branch

    def listening(*args: Any, text: list[torch.Tensor], **kwargs: Any) -> list[Seen]:
        heard.extend(words.tolist() for words in text)
        return run(*args, text=[], **kwargs)

    monkeypatch.setattr(visual, "VARIABLE", frozenset({"native"}))
    monkeypatch.setattr(visual, "run_branch", listening)
    batch = processor(images=[picture(60, 40)], text=["w5 <image> w6 \n"])
    with torch.no_grad():
        model.read(**batch)
    words = [t for t in batch["input_ids"][0].tolist() if t not in model.config.placeholder_ids]
    at = words.index(7)
    assert words[at - 1] == NEWLINE
    assert heard == [words[: at - 1] + words[at + 1 :]] * 3


REFUSED = {
    '[{from: a, separator: "\\n"}, b]':
        "vision.0.separator: stands between two branches, and this is the first one (it belongs to a later branch)",
    '[{from: a, separator: "\\n"}]':
        "vision.0.separator: stands between two branches, and this is the first one (it belongs to a later branch)",
    "[{from: a, positions: shared}, b]":
        "vision.0.positions: shared takes the positions of the first branch, and this is the first one (it belongs to a "
        "later branch)",
    "[{from: a, norm: match}, b]":
        "vision.0.norm: match takes the norm of the first branch's tokens, and this is the first one (it belongs to a "
        "later branch)",
    '[a, {from: b, separator: ""}]': "vision.1.separator: '' gives no token of a's tokenizer (such as \"\\n\")",
    '[a, {from: b, separator: "  "}]': "vision.1.separator: '  ' gives no token of a's tokenizer (such as \"\\n\")",
    '[a, {from: b, separator: "w5 §"}]':
        "vision.1.separator: 'w5 §' holds what a's tokenizer does not know (such as \"\\n\")",
    '[a, {from: b, separator: "w5<image>"}]':
        "vision.1.separator: 'w5<image>' holds '<image>', which stands for an image (words or signs separate)",
    '[a, {from: b, separator: "<|fuse:a|>"}]':
        "vision.1.separator: '<|fuse:a|>' holds '<|fuse:a|>', which stands for an image (words or signs separate)",
    "[a, {from: b, separator: 3}]": "vision.1.separator: should be a valid string, not 3",
    "[a, {from: b, positions: same}]": "vision.1.positions: should be 'continued' or 'shared', not 'same'",
    "[a, {from: b, norm: large}]": "vision.1.norm: should be 'none', 'match' or 'embeddings', not 'large'",
}  # fmt: skip


@pytest.mark.parametrize("vision", REFUSED)
def test_refused_by_plan_and_merge(members: Path, tmp_path: Path, vision: str) -> None:
    recipe = write(members, tmp_path, vision)
    ran = fuse_here("merge", recipe, tmp_path / "out")
    where, _, said = ran.err.removeprefix("fuse: ").partition(": ")
    assert (ran.code, said, (tmp_path / "out").exists()) == (2, REFUSED[vision] + "\n", False)
    assert where.startswith("r.yaml:3:")
    assert fuse_here("plan", recipe).err == ran.err


def test_hosts_whose_positions_are_places_in_a_grid_share_none(members: Path, tmp_path: Path) -> None:
    one = "members: {qwen: qwen}\nlanguage: {method: linear, weights: {qwen: 1}}\n"
    recipe = write(members, tmp_path, "[qwen, {name: e, encoder: e, projector: p, positions: shared}]", one)
    told = (
        "vision.1.positions: shared has no meaning on qwen2_vl, where an image's tokens stand at the rows and columns of "
        "its grid (leave it out)"
    )
    for verb in ("plan", "merge"):
        ran = fuse_here(verb, recipe, *([tmp_path / "out"] if verb == "merge" else []))
        assert (ran.code, ran.err) == (2, f"fuse: r.yaml:3:52: {told}\n")


def test_a_norm_alone_needs_the_fused_class(members: Path, tmp_path: Path) -> None:
    one = "members: {a: a, }\nlanguage: {method: linear, weights: {a: 1}}\n"
    recipe = write(members, tmp_path, "[{from: a, norm: embeddings}]", one)
    assert branches_of(merged(recipe))[0]["norm"] == "embeddings"
    recipe.write_text(recipe.read_text() + "output: {model: native}\n")
    ran = fuse_here("plan", recipe)
    assert (ran.code, ran.err) == (
        2, "fuse: r.yaml:4:10: output.model: native has no place for norm (leave it out, or write fuse)\n"
    )  # fmt: skip


FOREIGN = {
    "separator of '\\n'": (1, {"separator": "\n"}, "branch 'tiles' has separator '\\n'"),
    "no ids": (1, {"separator": {"text": "", "ids": []}}, "branch 'tiles' has separator {'text': '', 'ids': []}"),
    "far ids": (1, {"separator": {"text": "x", "ids": [10**6]}},
                "branch 'tiles' has separator {'text': 'x', 'ids': [1000000]}"),
    "a placeholder": (1, {"separator": {"text": "x", "ids": [4, 80]}},
                      "the separator of branch 'tiles' holds the placeholder 80"),
    "positions": (1, {"positions": "same"}, "branch 'tiles' has positions 'same'"),
    "norm": (1, {"norm": 2}, "branch 'tiles' has norm 2"),
    "first": (0, {"norm": "match"}, "norm of branch 'a': match takes the norm of the first branch's tokens, and this is "
                                    "the first one"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_a_config_may_not_say(everything: Path, case: str) -> None:
    number, change, told = FOREIGN[case]
    config = json.loads((everything / "config.json").read_text())
    if case == "a placeholder":
        change = {"separator": {"text": "x", "ids": [4, config["branches"][2]["token_id"]]}}
        told = told.replace("80", str(config["branches"][2]["token_id"]))
    config["branches"][number] |= change
    with pytest.raises(CheckpointError) as caught:
        FusedConfig(**config)
    assert caught.value.problem == f"config.json: {told}"


def test_an_older_folder_loads(everything: Path) -> None:
    config = json.loads((everything / "config.json").read_text())
    for branch in config["branches"]:
        for key in ("separator", "positions", "norm"):
            branch.pop(key, None)
    assert FusedConfig(**config).branches == config["branches"]
