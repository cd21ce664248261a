"""Every mistake in a recipe is one line with file, line, column and what would work."""

import errno
import os
from pathlib import Path

import pytest

from fuse.errors import RecipeError
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe

HEAD = "members:\n  a: x\n  b: {path: y, revision: 0123abc}\n"


def refusal(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    assert error.value.exit_code == 2
    return str(error.value)


def test_reads_a_recipe(tmp_path: Path) -> None:
    text = HEAD + (
        "base: z\nlanguage:\n  method: ties\n  weights: {a: [0, 1e-5], b: {'*.mlp.*': 1, '*': 0x10}}\n  density: 0.5\n"
        "  lambda: 2\n  normalize: false\nvision: [a]\noutput: {dtype: bfloat16, shard_size: 1.5MB}\n"
    )
    (tmp_path / "recipe.yaml").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    loaded = load_recipe(tmp_path / "recipe.yaml")
    recipe = loaded.recipe
    assert recipe.members["a"].path == "x" and recipe.members["b"].revision == "0123abc"
    assert recipe.language.weights == {"a": [0.0, 1e-5], "b": {"*.mlp.*": 1.0, "*": 16.0}}
    assert recipe.language.given("lambda") == 2 and recipe.language.normalize is False
    assert recipe.vision is not None and recipe.vision[0].from_ == "a"
    assert recipe.output.shard_size == 1_500_000
    assert loaded.error(("language", "weights", "b", "*"), "no").where == "recipe.yaml:7:45"


LINEAR = "language: {method: linear, weights: 1}\n"
CASES = {
    "members:\n  mgm:\n    path: x\n\n    revison: y\n" + LINEAR:
        "recipe.yaml:5:5: members.mgm.revison: unknown key (did you mean: revision)",
    HEAD + "language:\n  method: linear\n  wieghts: 1\n  weights: 1\n":
        "recipe.yaml:6:3: language.wieghts: unknown key (did you mean: weights)",
    HEAD + LINEAR + "otuput: {}\n": "recipe.yaml:5:1: otuput: unknown key (did you mean: output)",
    "members:\n  a: x\n  a: y\n" + LINEAR: "recipe.yaml:3:3: members.a: the key stands twice",
    HEAD + "language: {method: linaer, weights: 1}\n":
        "recipe.yaml:4:12: language.method: unknown method 'linaer' (did you mean: linear)",
    HEAD + "language: {method: linear}\n": "recipe.yaml:4:1: language.weights: linear needs weights",
    HEAD + "language: {method: linear, weights: 1, density: 1}\n":
        "recipe.yaml:4:40: language.density: linear has no density (it takes: weights, normalize)",
    HEAD + "language: {method: linear, weights: .nan}\n": "recipe.yaml:4:37: .nan is not a finite number",
    HEAD + "language: {method: linear, weights: -.inf}\n": "recipe.yaml:4:37: -.inf is not a finite number",
    HEAD + "language: {method: linear, weights: 1e400}\n": "recipe.yaml:4:37: 1e400 is not a finite number",
    HEAD + "language: {method: linear, weights: [1, -1e39]}\n":
        "recipe.yaml:4:41: language.weights.1: -1e+39 is beyond float32, whose largest number is 3.40282e+38",
    HEAD + "language: {method: mergekit/linear, parameters: {weight: 1e39}}\n":
        "recipe.yaml:4:50: language.parameters.weight: 1e+39 is beyond float32, whose largest number is 3.40282e+38",
    HEAD + "language: {method: linear, weights: 1, normalize: yes}\n":
        "recipe.yaml:4:40: language.normalize: should be true or false, not 'yes'",
    HEAD + "language: linear\n": "recipe.yaml:4:1: language: should be a table, not 'linear' (such as {method: linear})",
    HEAD + "language: {method: arcee_fusion, t: 1}\n":
        "recipe.yaml:4:34: language.t: arcee_fusion has no t (it takes: no parameters)",
    HEAD + "language: {method: nuslerp, weights: 1, row_wise: true}\n":
        "recipe.yaml:4:41: language.row_wise: row_wise means something with flatten: false only",
    HEAD + "language: {method: aswudi, share: 0.5, rank: entropy}\n":
        "recipe.yaml:4:28: language.share: share means something with rank: cumvar only",
    HEAD + LINEAR + "grafts: {}\n": "recipe.yaml:5:1: grafts: should be a list, not {}",
    "members: {" + ", ".join(f"m{i}: x" for i in range(65)) + "}\n" + LINEAR:
        "recipe.yaml:1:1: members: has more than 64 entries",
    HEAD + "language: {method: linear, weights: {a: lots}}\n":
        "recipe.yaml:4:38: language.weights.a: should be a valid number, not 'lots'",
    HEAD + "language: {method: linear, weights: true}\n":
        "recipe.yaml:4:28: language.weights: should be a valid number, not True",
    HEAD + "language: {method: linear, weights: []}\n":
        "recipe.yaml:4:28: language.weights: should have 1 or more entries, and has 0",
    LINEAR: "recipe.yaml:1:1: members: is missing",
    "members: {}\n" + LINEAR:
        "recipe.yaml:1:1: members: should have 1 or more entries, and has 0",
    "members: {1a: x}\n" + LINEAR:
        "recipe.yaml:1:11: members.1a: a member cannot be called '1a': a name is a letter followed by letters, digits, - or _",
    "members: {base: x}\n" + LINEAR:
        "recipe.yaml:1:11: members.base: a member cannot be called 'base': the word has a meaning in recipes",
    HEAD + LINEAR + "grafts: [{kind: mks2}]\n": "recipe.yaml:5:10: grafts.0.from: is missing",
    HEAD + LINEAR + "output: {shard_size: 5 potatoes}\n":
        "recipe.yaml:5:10: output.shard_size: '5 potatoes' is not a size (such as 5GB or 500MB)",
    HEAD + LINEAR + "output: {dtype: bf16}\n":
        "recipe.yaml:5:10: output.dtype: should be 'bfloat16', 'float16' or 'float32', not 'bf16'",
    HEAD + LINEAR + "vision: [a, {from: b, max_tokens: 0}]\n":
        "recipe.yaml:5:23: vision.1.max_tokens: should be greater than or equal to 1, not 0",
    HEAD + LINEAR + "vision: [{from: a, prune: cls}]\n":
        "recipe.yaml:5:20: vision.0.prune: prune needs max_tokens beside it",
    HEAD + LINEAR + "vision: [{from: a, max_tokens: 5, prune: clz}]\n":
        "recipe.yaml:5:35: vision.0.prune: should be 'pool', 'norm', 'cls' or 'similarity', not 'clz'",
    HEAD + LINEAR + "vision: [{name: c, open_clip: ViT-B-32}]\n":
        "recipe.yaml:5:10: vision.0.weights: is missing, and a branch with open_clip needs it",
    HEAD + LINEAR + "vision: [{open_clip: ViT-B-32, timm: y}]\n":
        "recipe.yaml:5:10: vision.0: names open_clip and timm, and a branch has one encoder",
    HEAD + LINEAR + "vision: [{name: c, weights: w}]\n":
        "recipe.yaml:5:10: vision.0: a branch is a member (from) or one encoder (open_clip, timm or encoder)",
    HEAD + LINEAR + "vision: [{name: 1x, timm: y, weights: w, projector: p}]\n":
        "recipe.yaml:5:11: vision.0.name: a branch cannot be called '1x': a name is a letter followed by letters, digits, - or _",
    HEAD + LINEAR + "vision: [{from: a, weights: w}]\n":
        "recipe.yaml:5:20: vision.0.weights: is for encoder branches, and this branch is a member's",
    HEAD + LINEAR + "vision: [{name: c, encoder: f, projector: p, weights: w}]\n":
        "recipe.yaml:5:46: vision.0.weights: encoder is a folder, which holds its weights",
    HEAD + LINEAR + "output: {model: fused}\n":
        "recipe.yaml:5:10: output.model: should be 'native' or 'fuse', not 'fused'",
    "members: {a: {path: x, towers: {tower: y}}}\n" + LINEAR:
        "recipe.yaml:1:33: members.a.towers.tower: unknown key (known: vision_tower, vision_tower_aux)",
    "members: {a: !!python/object/apply:os.system [id]}\n":
        "recipe.yaml:1:14: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed in a recipe",
    "members: &x [*x]\n":
        "recipe.yaml:1:10: anchors and aliases are not allowed in a recipe (write it out)",
    "members: {a: x, <<: {b: y}}\n": "recipe.yaml:1:17: a key is a plain word",
    "": "recipe.yaml: the recipe is empty (it needs members and language)",
    "# nothing\n": "recipe.yaml: the recipe is empty (it needs members and language)",
    "a: 1\n---\nb: 2\n": "recipe.yaml:2:1: a recipe is one document",
    "members:\n\ta: x\n": "recipe.yaml:2:1: not YAML: found character '\\t' that cannot start any token",
    "- 1\n": "recipe.yaml:1:1: recipe: should be a table, not [1]",
    "merge_method: linear\nmodels: []\n": "recipe.yaml:2:1: models: is empty",
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_refuses(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text) == CASES[text]


def test_every_mistake_has_a_line(tmp_path: Path) -> None:
    text = HEAD + "language: {method: linear, weights: 1}\noutput: {dtype: int8, shard_sise: 3}\n"
    assert refusal(tmp_path, text).splitlines() == [
        "recipe.yaml:5:10: output.dtype: should be 'bfloat16', 'float16' or 'float32', not 'int8'",
        "recipe.yaml:5:23: output.shard_sise: unknown key (did you mean: shard_size)",
    ]


def test_hostile_text(tmp_path: Path) -> None:
    file = str(tmp_path / "recipe.yaml")
    assert refusal(tmp_path, b"members: \xe9\n") == f"{file}: not UTF-8 at byte 9"
    assert "not YAML" in refusal(tmp_path, "members: \0")
    assert refusal(tmp_path, b"a" * 2_000_000) == f"{file}: 2,000,000 bytes is more than a recipe's 262,144"
    assert refusal(tmp_path, "[" * 10_000).split(": ", 1)[1] in {
        "nested too deeply", "not YAML: expected the node content, but found '<stream end>'"
    }  # fmt: skip
    assert "nested too deeply" in refusal(tmp_path, "members: " + "[" * 40 + "]" * 40)
    assert "too many digits" in refusal(tmp_path, HEAD + "language: {method: linear, weights: " + "9" * 5000 + "}")


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such file"):
        load_recipe(tmp_path / "absent.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="this is not a plain file"):
        load_recipe(tmp_path / "pipe.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder, not a recipe (a recipe is a file such as recipe.yaml)"
    for name in ("b.yaml", "a.yml"):
        (tmp_path / name).touch()
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path)
    told = f"{tmp_path}: is a folder, not a recipe (name a file in it, such as {tmp_path}/a.yml)"
    assert str(caught.value) == told


def test_a_machine_without_handles_is_no_mistake_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "recipe.yaml").write_text("a: b")
    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(OSError, match="Too many open files"):
        load_recipe(tmp_path / "recipe.yaml")


MISSPELT = {
    "member: {a: x}\n" + LINEAR: "recipe.yaml:1:1: member: unknown key (did you mean: members)",
    HEAD + "language: {metod: linear, weights: 1}\n":
        "recipe.yaml:4:12: language.metod: unknown key (did you mean: method)",
    HEAD + "language: {method: TIES}\n": "recipe.yaml:4:12: language.method: unknown method 'TIES' (did you mean: ties)",
    HEAD + "language: {method: dare-ties}\n":
        "recipe.yaml:4:12: language.method: unknown method 'dare-ties' (did you mean: dare_ties)",
    HEAD + "language: {method: mergekit/tise}\n":
        "recipe.yaml:4:12: language.method: unknown method 'mergekit/tise' (did you mean: mergekit/ties, mergekit/sce, "
        "mergekit/slerp)",
    HEAD + LINEAR + "vision: a\n": "recipe.yaml:5:1: vision: should be a list, not 'a' (such as [a])",
    HEAD + LINEAR + "prompt: a\n": "recipe.yaml:5:1: prompt: should be a table, not 'a' (such as {template: a})",
    HEAD + LINEAR + "output: bfloat16\n":
        "recipe.yaml:5:1: output: should be a table, not 'bfloat16' (such as {dtype: bfloat16})",
    HEAD + LINEAR + "grafts: [{form: x}]\n":
        "recipe.yaml:5:10: grafts.0.from: is missing (did you mean it by `form`?)",
    HEAD + "language: {method: linear, weights: 0,5}\n":
        "recipe.yaml:4:39: language.5: unknown key (a number with a decimal comma? It is written with a point, such as 0.5)",
}  # fmt: skip


@pytest.mark.parametrize("text", MISSPELT)
def test_what_is_misspelt_is_told_once_with_what_was_meant(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert str(caught.value) == MISSPELT[text]


def test_a_file_of_nearly_that_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(HEAD + LINEAR)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yml")
    assert str(caught.value) == f"{tmp_path}/recipe.yml: there is no such file (did you mean: recipe.yaml)"
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "notes.yaml")
    assert str(caught.value) == f"{tmp_path}/notes.yaml: there is no such file"


def test_a_folder_of_nearly_that_name(tmp_path: Path) -> None:
    for name in ("mistral", "other"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text("members: {a: ./models/mistrall}\n" + LINEAR)
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(tmp_path / "recipe.yaml"))
    assert str(caught.value).startswith("recipe.yaml:1:11: members.a: './models/mistrall' does not exist")
    assert str(caught.value).endswith(" (did you mean: ./models/mistral)")
