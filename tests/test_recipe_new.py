"""`fuse recipe new` writes recipes that plan, in every branch of its questions, and whose options all hold."""

import io
import os
import pty
import re
import select
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from fuse.recipe_new.lines import Line, written
from fuse.recipe_yaml import load_recipe
from fuse.schema import schema_text
from tests.cli import Ran, fuse_here

ZOO = Path(__file__).parent.parent / "recipes" / "zoo"
OPTION = re.compile(r"^( *)#([a-z_]+: .*)$")


def new(monkeypatch: pytest.MonkeyPatch, out: Path, *options: object, typed: str = "") -> Ran:
    """The command in the zoo's folder, with lines of a pipe as answers."""
    monkeypatch.chdir(ZOO)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return fuse_here("recipe", "new", out, *options)


def without_room(plan: str) -> str:
    """The plan without the free room of the disk, which others use too."""
    return re.sub(r"free disk here [\d.]+ [kMGT]?B", "", plan)


TWO = ("--member", "hue", "--member", "form")
EYES = ("--encoder", "memory/eyes", "--projector", "memory/linear.safetensors")
# what is wanted and how -> a line that the recipe has
BRANCHES = {
    ("fuse", *TWO, "--base", "base"): "  weights: {hue: 0.5, form: 0.5}",
    ("fuse", *TWO, "--member", "sign", "--method", "linear"): "  weights: {hue: 0.333, form: 0.333, sign: 0.333}",
    ("fuse", *TWO, "--base", "base", "--method", "della", "--density", "0.4"): "  density: 0.4",
    ("merge", *TWO, "--method", "slerp", "--eyes", "form"): "  - from: form",
    ("merge", "--member", "form", "--member", "other=stranger", "--eyes", "merge"):
        "    merge: {method: linear, weights: {form: 0.5, other: 0.5}}",
    ("merge", "--member", "expert", "--member", "llm=base", "--method", "karcher", "--dtype", "float32"):
        "  dtype: float32",
    ("expert", "--member", "hue", "--member", "expert", "--base", "base", "--weight", "expert=0.4"):
        "  weights: {hue: 1, expert: 0.4}",
    ("expert", "--member", "hue", "--member", "expert", "--base", ""): "  weights: {hue: 0.8, expert: 0.2}",
    ("encoder", "--member", "expert", *EYES): "    layer: -1",
    ("graft", "--member", "form", "--graft", "memory/mixture"): "    scale: 1.0",
    ("graft", "--member", "base", "--graft", "memory/mixture"): "  weights: {base: 1}",
}  # fmt: skip


@pytest.mark.parametrize("branch", BRANCHES, ids=" ".join)
def test_plans_and_so_does_every_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, branch: tuple[str, ...]
) -> None:
    if branch[-3:] == ("base", "--graft", "memory/mixture"):
        branch = ("graft", "--member", "llm=base", *branch[-2:])  # a member cannot be called base
    ran = new(monkeypatch, tmp_path / "r.yaml", "--want", *branch, "--yes")
    assert ran.code == 0, ran.err
    told = [without_room(one.out) for one in (ran, fuse_here("plan", tmp_path / "r.yaml"))]
    assert told[0] == told[1]
    text = (tmp_path / "r.yaml").read_text()
    assert BRANCHES.get(branch, "  weights: {llm: 1}") in [
        line.partition("  #")[0].rstrip() for line in text.splitlines()
    ]
    options = [number for number, line in enumerate(text.splitlines()) if OPTION.match(line)]
    assert options
    for number in options:
        lines = text.splitlines()
        lines[number] = OPTION.sub(r"\1\2", lines[number])
        (tmp_path / "tried.yaml").write_text("\n".join(lines))
        tried = fuse_here("plan", tmp_path / "tried.yaml")
        assert tried.code == 0, (lines[number], tried.err)


def test_what_the_first_line_names_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The schema lies beside the recipe, where it travels along; what else has its name stays as it is."""
    for name in ("one.yaml", "two.yaml"):
        assert new(monkeypatch, tmp_path / name, "--want", "fuse", *TWO, "--yes").code == 0
        assert (tmp_path / name).read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert (tmp_path / "recipe.schema.json").read_text() == schema_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.yaml", "recipe.schema.json", "two.yaml"]
    (tmp_path / "recipe.schema.json").write_text("mine")
    assert new(monkeypatch, tmp_path / "three.yaml", "--want", "fuse", *TWO, "--yes").code == 0
    named = (tmp_path / "three.yaml").read_text().splitlines()[0].partition("=")[2]
    assert Path(named).is_absolute() and Path(named).read_text() == schema_text()
    assert (tmp_path / "recipe.schema.json").read_text() == "mine"


def test_answers_from_a_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    typed = "2\nhue\nblue=form\n\nbase\nties\n\n0.3\n\n\nbfloat16\n"
    ran = new(monkeypatch, tmp_path / "r.yaml", typed=typed)
    assert ran.code == 0, ran.err
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert (recipe.language.method, recipe.language.density) == ("ties", 0.5)
    assert recipe.language.weights == {"hue": 0.5, "blue": 0.3} and recipe.output.dtype == "bfloat16"
    assert [branch.title for branch in recipe.vision or []] == ["hue"]
    assert "  blue: llava on llama, 4 layers, hidden 128, sees, 2.0 MB\n" in ran.err


def test_members_elsewhere_are_not_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = new(monkeypatch, tmp_path / "r.yaml", "--want", "merge", "--member", "org/One-7B", "--member", "s3://b/two",
              "--yes")  # fmt: skip
    assert (ran.code, ran.out) == (
        0,
        f"not planned, since not all of it lies on this disk: fuse plan {tmp_path}/r.yaml\n",
    )
    assert "  one_7b: org/One-7B is not on this disk, so nothing of it is checked here: `fuse plan` will\n" in ran.err
    assert load_recipe(tmp_path / "r.yaml").recipe.members["two"].path == "s3://b/two"


REFUSED = {
    ("--want", "fues"): "--want: 'fues' is none of these (did you mean: fuse)",
    ("--want", "fuse", "--member", "hue", "--member", "hu"): "--member: there is no folder 'hu' (did you mean: hue)",
    ("--want", "fuse", "--member", "hue", "--member", "hue"): "--member: 'hue' is hue already",
    ("--want", "fuse", "--member", "hue", "--member", "hue=form"):
        "--member: 'hue' is the name of another member (NAME=PATH gives it another name)",
    ("--want", "fuse", "--member", "hue", "--member", "merge=form"):
        "--member: a member cannot be called 'merge': the word has a meaning in recipes (NAME=PATH gives it another name)",
    ("--want", "fuse", "--member", "expert"): "--member: expert has no encoder (name a VLM)",
    ("--want", "expert", "--member", "expert"): "--member: expert has no encoder (name the VLM first)",
    ("--want", "fuse", "--member", "hue"):
        "nothing says Member 2, another VLM of the same base: folder, hub id or NAME=PATH (give --member)",
    ("--want", "fuse", *TWO, "--method", "tise", "--base", "base"):
        "--method: there is no method 'tise' to ask about (did you mean: ties)",
    ("--want", "fuse", *TWO, "--method", "ties"): "--method: ties needs a base (--base names one)",
    ("--want", "fuse", *TWO, "--member", "sign", "--method", "slerp"): "--method: slerp takes 2 members, not 3",
    ("--want", "fuse", *TWO, "--weight", "hu=1"): "--weight: 'hu' is not a member (did you mean: hue)",
    ("--want", "fuse", *TWO, "--weight", "1"): "--weight: '1' is not NAME=NUMBER, once for each member",
    ("--want", "fuse", *TWO, "--weight", "hue=1", "--weight", "form=-1"):
        "linear: the weights sum to zero, so normalize cannot divide by their sum",
    ("--want", "fuse", *TWO, "--base", "base", "--method", "ties", "--density", "2"):
        "ties: density should be at most 1, not 2.0",
    ("--want", "fuse", *TWO, "--dtype", "bf16"): "--dtype: 'bf16' is none of these (did you mean: bfloat16)",
    ("--want", "fuse", *TWO, "--graft", "memory/mixture"):
        "--graft: 'memory/mixture' answers no question here (leave it out)",
    ("--want", "graft", "--member", "form", "--graft", "memory"):
        "memory: holds no graft.json (`fuse import KIND FILE OUT` makes one of an official checkpoint)",
    ("--want", "encoder", "--member", "expert", "--encoder", "memory/eyes", "--projector", "no.safetensors"):
        "--projector: there is no file 'no.safetensors' (a safetensors file, or a folder of `fuse import`)",
    ("--want", "merge", *TWO, "--eyes", "merge"):
        "form/config.json: the encoders of hue and form cannot be merged: vision_config.image_size is 24 in hue and 48 in "
        "form",
}  # fmt: skip


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_refused_where_it_is_asked_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    ran = new(monkeypatch, tmp_path / "r.yaml", *options, "--yes")
    said = ran.err.splitlines()[-1].replace(f"{ZOO}/", "")
    assert ran.code in {2, 3} and said == f"fuse: {REFUSED[options]}"
    assert not list(tmp_path.iterdir())


def test_another_base_is_told_at_the_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in (ZOO / "expert").iterdir():
        (tmp_path / "short" / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / "short" / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "short" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 7'))
    ran = new(monkeypatch, tmp_path / "r.yaml", "--want", "expert", "--member", "hue", "--member", tmp_path / "short")
    assert ran.code == 3
    assert (
        f"{config}: hue and short are not of one base: norm_eps is " in ran.err and not (tmp_path / "r.yaml").exists()
    )


def test_an_existing_recipe_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("mine")
    for typed in ("fuse\n", ""):
        ran = new(monkeypatch, tmp_path / "r.yaml", *(["--yes"] if not typed else []), typed=typed)
        assert (ran.code, ran.err) == (2, f"fuse: {tmp_path}/r.yaml: exists (--force replaces it)\n")
    assert (tmp_path / "r.yaml").read_text() == "mine"
    assert new(monkeypatch, tmp_path / "r.yaml", "--want", "fuse", *TWO, "--yes", "--force").code == 0
    ran = new(monkeypatch, tmp_path / "r.txt", "--yes")
    assert (ran.code, ran.err) == (2, f"fuse: {tmp_path}/r.txt: a recipe's name ends in .yaml\n")
    ran = new(monkeypatch, tmp_path / "no" / "r.yaml", "--yes")
    assert ran.err == f"fuse: {tmp_path}/no/r.yaml: the folder '{tmp_path}/no' does not exist (make it first)\n"


def test_answers_that_end_too_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = new(monkeypatch, tmp_path / "r.yaml", typed="fuse\nhue\n")
    said = "fuse: the answers end where `member` is asked for (give --member, or --yes for defaults)"
    assert (ran.code, ran.err.splitlines()[-1]) == (2, said) and not list(tmp_path.iterdir())


def test_paths_lead_from_the_recipe_and_are_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a: b #c", "it's true", "null"):
        (tmp_path / name).symlink_to(ZOO / "hue")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    ran = fuse_here("recipe", "new", "inner/r.yaml", "--want", "merge", "--member", "x=./a: b #c", "--member",
                    "it's true", "--member", "n=null", "--yes")  # fmt: skip
    assert ran.code == 0, ran.err
    paths = {name: member.path for name, member in load_recipe(tmp_path / "inner" / "r.yaml").recipe.members.items()}
    assert paths == {"x": "../a: b #c", "it_s_true": "../it's true", "n": "../null"}


def test_a_person_types_again_and_may_stop(tmp_path: Path) -> None:
    """In a terminal a wrong answer is asked for again; Ctrl-C leaves nothing."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ZOO)
        os.execv(
            sys.executable, [sys.executable, "-m", "fuse", "recipe", "new", str(tmp_path / "r.yaml"), "--want", "fuse"]
        )
    shown = ""

    def until(text: str, again: bytes = b"") -> None:
        nonlocal shown
        for _ in range(12):
            while text not in shown and select.select([terminal], [], [], 5)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
            if text in shown:
                shown = shown.partition(text)[2]
                return
            os.write(terminal, again)
        raise AssertionError(f"{text!r} did not come after {shown!r}")

    until("NAME=PATH: ")
    os.write(terminal, b"expert\n")
    until("expert has no encoder (name a VLM)")
    until("NAME=PATH: ")
    os.write(terminal, b"hue\n")
    until("  hue: llava on llama")
    until("NAME=PATH: ")
    os.write(terminal, b"\x03")
    # `input` of CPython loses a signal that comes between its prompt and its wait: a program is quick enough for that.
    until("fuse: interrupted; nothing was written", again=b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert not list(tmp_path.iterdir())
    os.close(terminal)


def test_the_help_of_recipe_says_all_of_its_line() -> None:
    assert "\n  new  Write a recipe by answering a few questions.\n" in fuse_here("recipe", "--help").out


def test_options_are_marked_without_a_space() -> None:
    lines = [Line("a: 1"), Line("  b: 2", "why", option=True)]
    assert written(lines) == f"a: 1\n{'  #b: 2':34}  # why\n"
    assert YAML(typ="safe").load(written(lines, [1]).replace("a: 1", "a:")) == {"a": {"b": 2}}
