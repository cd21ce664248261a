"""The model card: metadata that the hub reads, commands that run, hashes that are those of the files."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from fuse.card import licence_keys
from fuse.card_forms import in_form, with_weights, without_fused, without_scores
from fuse.card_tables import BRANCHES
from fuse.card_use import BEGIN, END, use_text
from fuse.digests import file_sha256
from fuse.evaluate import card_table
from fuse.licence_files import Stated
from fuse.licences import Parent, RollUp
from tests import fused_members, tiny_text
from tests.cli import fuse_here
from tests.members import TEMPLATE, perturbed, save_member

FRONT = "---\nlicense: {}\nlanguage: [en, {}]\ndatasets:\n- org/data\ntags: [theirs]\n---\n\n# A model\n"


def merged(folder: Path, recipe: str) -> Path:
    (folder / "recipe.yaml").write_text(recipe)
    ran = fuse_here("merge", folder / "recipe.yaml", folder / "out")
    assert ran.code == 0, ran.err
    return folder / "out"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two fine-tunes, in many files."""
    folder = tmp_path_factory.mktemp("text")
    model = tiny_text.build("llama")
    for name, seed, language in (("a", 1, "de"), ("b", 2, "fr")):
        save_member(perturbed(model, seed), folder / name, template=TEMPLATE)
        (folder / name / "README.md").write_text(FRONT.format("mit", language))
    return merged(
        folder, "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\noutput: {shard_size: 9KB}\n"
    )


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders in one model, one of which may say little."""
    folder = tmp_path_factory.mktemp("seeing")
    for seed, name in enumerate(("a", "b"), 1):
        fused_members.save("llava", folder / name, seed, base=9)
    (folder / "a" / "README.md").write_text(FRONT.format("llama3", "de"))
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "photo.jpg")
    recipe = "members: {a: a, b: b}\nlanguage: {method: linear, weights: 0.5}\nvision: [a, {from: b, max_tokens: 2}]\n"
    return merged(folder, recipe)


def blocks(folder: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [text for told, text in found if told == language]


def run_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the Python of a card says, for a picture that is called photo.jpg."""
    (block,) = blocks(folder, "python")
    exec(compile(block.replace("path/to/this/folder", str(folder)), "README.md", "exec"), {})
    return capsys.readouterr().out


def run_commands(folder: Path) -> list[str]:
    """Every `fuse` command of a card is run; the other commands."""
    others = []
    for line in "".join(blocks(folder, "")).splitlines():
        words = re.findall(r'"[^"]*"|\S+', line.replace("path/to/this/folder", str(folder)))
        if words[0] != "fuse":
            others.append(line)
            continue
        if words[1] == "export":
            words[-1] = str(folder.parent / words[-1])
        ran = fuse_here(*(word.strip('"') for word in words[1:]))
        assert ran.code == 0, (line, ran.err)
    return others


def test_metadata(text: Path, seeing: Path) -> None:
    """What huggingface_hub reads of the card, and writes again as it is."""
    card = ModelCard((text / "README.md").read_text())
    assert card.data.to_dict() == {
        "library_name": "transformers", "license": "mit", "pipeline_tag": "text-generation", "tags": ["merge", "fuse"],
        "language": ["de", "en", "fr"], "datasets": ["org/data"],
    }  # fmt: skip
    assert str(card) == (text / "README.md").read_text()
    assert ModelCard((seeing / "README.md").read_text()).data.to_dict() == {
        "library_name": "transformers", "license": "other", "pipeline_tag": "image-text-to-text",
        "tags": ["merge", "fuse", "multimodal"], "language": ["de", "en"], "datasets": ["org/data"],
    }  # fmt: skip


def test_hashes_are_those_of_the_files(text: Path) -> None:
    rows = re.findall(r"^\| (.*) \| (.*) \| `(\w{64})` \|$", (text / "README.md").read_text(), re.MULTILINE)
    folders = {"a": text.parent / "a", "b": text.parent / "b", "this folder": text}
    assert [name for name, *_ in rows] == ["a", "b", *["this folder"] * 4]
    assert all(file_sha256(folders[name] / file) == sha256 for name, file, sha256 in rows)
    count = len(list(text.glob("*.safetensors")))
    assert f"| this folder | {count - 4} more files | in `fuse.json` |\n" in (text / "README.md").read_text()


def test_what_is_not_hashed(text: Path) -> None:
    folder = text.parent
    assert fuse_here("merge", folder / "recipe.yaml", folder / "bare", "--no-hash").code == 0
    assert "| a | model.safetensors | not hashed |\n" in (folder / "bare" / "README.md").read_text()


def test_commands_of_a_merged_model_run(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_python(text, capsys).strip()
    assert run_commands(text) == ["transformers serve path/to/this/folder"]
    assert "import fuse" not in (text / "README.md").read_text()


def test_commands_of_a_fused_model_run(
    seeing: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of the portable folder that they make, whose card differs in that part alone."""
    monkeypatch.chdir(seeing.parent)
    said = run_python(seeing, capsys)
    assert run_commands(seeing) == ["transformers serve portable --trust-remote-code"]
    portable = seeing.parent / "portable"
    cards = [(folder / "README.md").read_text() for folder in (seeing, portable)]
    outside = [(card.partition(BEGIN)[0], card.partition(END)[2]) for card in cards]
    assert outside[0] == outside[1] and cards[0] != cards[1]
    (block,) = blocks(portable, "python")
    assert "import fuse" not in block and block.count("trust_remote_code=True") == 2
    assert run_commands(portable) == ["transformers serve path/to/this/folder --trust-remote-code"]
    assert said.strip() and fuse_here("verify", portable, "--no-load").code == 0


def test_limits(text: Path, seeing: Path) -> None:
    known = [
        re.search(r"## Known limits\n\n(.*?)<!--", (folder / "README.md").read_text(), re.DOTALL)
        for folder in (text, seeing)
    ]
    few, more = (found[1].splitlines() for found in known if found)
    assert few == ["- Nothing was trained: what it can do is known as far as it was measured (`fuse eval` adds a table of "
                   "scores)."]  # fmt: skip
    assert [line.split(":")[0] for line in more[1:]] == [
        "- The class is that of `fuse`", "- Images alone, no video.",
        "- `b` gives at most 2 visual tokens an image (pool)", "- Its parents do not all state one licence",
    ]  # fmt: skip


def test_licences_of_parents(seeing: Path) -> None:
    card = (seeing / "README.md").read_text()
    assert "| a | a | llama3 | README.md | has terms of its own, which go with what is made of it |\n" in card
    assert "| b | b | not stated | - | - |\n" in card
    assert "\n- What b allows is not known: ask before you share.\n" in card


def test_an_original_layout(text: Path, tmp_path: Path) -> None:
    """transformers has no class: no command is told that would not run."""
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama", "mm_vision_tower": "clip"}')
    told = use_text(tmp_path)
    assert "## Load\n\nThis folder has the layout of the original code" in told and "```" not in told
    assert "- transformers has no class for this layout" in told and "- Images alone, no video.\n" in told


@pytest.mark.parametrize(
    ("stated", "keys"),
    [
        ([Stated("mit")] * 2, {"license": "mit"}),
        ([Stated("gpl-3.0 + mit")], {"license": ["gpl-3.0", "mit"]}),
        ([Stated("mit"), Stated("gpl-3.0")], {"license": "other"}),
        ([Stated()], {"license": "other"}),
        (
            [Stated("their-own", "https://a.b/c", "README.md", True)] * 2,
            {"license": "other", "license_name": "their-own", "license_link": "https://a.b/c"},
        ),
        ([Stated("their-own", "", "README.md", True)], {"license": "other", "license_name": "their-own"}),
    ],
)
def test_licence_in_the_metadata(stated: list[Stated], keys: dict[str, str]) -> None:
    assert licence_keys(RollUp(tuple(Parent(str(i), "x", one) for i, one in enumerate(stated)))) == keys


USE = f"{BEGIN}\nnew\n{END}\n"
SCORES = f"{card_table.BEGIN}\nscores\n{card_table.END}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"# A\n\n{BEGIN}\nold\n{END}\n\nMine.\n", f"# A\n\n{USE}\nMine.\n"),
        (
            f"# A\r\n{BEGIN}\r\nold\r\n{END}\r\nMine.\r\n",
            f"# A\r\n{USE}Mine.\r\n".replace("\r", "").replace("\n", "\r\n"),
        ),
        ("# A\n\nMine.\n", f"# A\n\nMine.\n\n{USE}"),
        (f"# A\n\n{SCORES}", f"# A\n\n{USE}\n{SCORES}"),
        (f"# A\n{END}\n{BEGIN}\n", f"# A\n{END}\n{BEGIN}\n\n{USE}"),
    ],
)
def test_a_card_in_another_form(before: str, after: str) -> None:
    assert in_form(before, USE) == after


HASH = "`" + "0" * 64 + "`"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_is_no_longer_so_leaves_a_card(newline: str) -> None:
    """And what people changed of it stays."""
    branches = f"## Branches\n\n{BRANCHES}\n\n| branch | kind |\n|---|---|\n| a | clip |\n\n"
    grafts = "## Grafts\n\n| graft | from |\n|---|---|\n| g | x |\n\n"
    rows = f"| this folder | a.safetensors | {HASH} |\n| this folder | 3 more files | in `fuse.json` |\n"
    text = f"# A fused model\n\nMine.\n\n{branches}{grafts}## Recipe\n\n| a | a.safetensors | {HASH} |\n{rows}Mine.\n"
    text = text.replace("\n", newline)
    told = without_fused(with_weights(text, {"b.safetensors": ""}))
    assert told == (
        f"# A merged model\n\nMine.\n\n## Recipe\n\n| a | a.safetensors | {HASH} |\n"
        "| this folder | b.safetensors | not hashed |\nMine.\n"
    ).replace("\n", newline)
    own = "# Mine\n\n## Branches\n\nOf a tree.\n\n## Grafts\n\nOf an apple.\n".replace("\n", newline)
    assert without_fused(with_weights(own, {"b.safetensors": ""})) == own


def test_scores_leave_a_card() -> None:
    assert without_scores(f"# A\n\n{SCORES}\nMine.\n") == "# A\n\nMine.\n"
    odd = f"# A\n{card_table.END}\n{card_table.BEGIN}\n"
    assert without_scores(odd) == odd and without_scores("# A\n") == "# A\n"
