"""Recipes that are YAML and ask for what cannot be: values, members, paths, outputs."""

import shutil
from pathlib import Path

import pytest

from tests.attacks.harness import Attack, hold
from tests.attacks.making import GOOD, Make, directory, fifo, file, link, recipe

FAMILY = True  # base, a and b lie beside the recipe
TIES = "base: base\nmembers: {a: a, b: b}\nlanguage: {method: ties, weights: 0.5}\n"
SLERP = "members: {a: a, b: b}\nlanguage: {method: slerp, t: 0.5}\n"


def weights(value: str) -> str:
    return GOOD.replace("0.5", value)


def at(path: str) -> str:
    """The recipe with member b at a path, written as YAML reads it."""
    return f"members: {{a: a, b: {path}}}\nlanguage: {{method: linear, weights: 0.5}}\n"


VALUES: list[tuple[str, str, str]] = [
    ("NaN", weights(".nan"), "recipe.yaml:2:37: .nan is not a finite number"),
    ("infinity", weights(".inf"), "recipe.yaml:2:37: .inf is not a finite number"),
    ("minus infinity", weights("-.INF"), "recipe.yaml:2:37: -.INF is not a finite number"),
    ("1e400", weights("1e400"), "recipe.yaml:2:37: 1e400 is not a finite number"),
    ("1e39", weights("1e39"), "recipe.yaml:2:28: language.weights: 1e+39 is beyond float32, whose largest number is 3.40282e+38"),
    ("5,000 digits", weights("9" * 5000), "recipe.yaml:2:37: the number has too many digits"),
    ("a hexadecimal of 5,000 digits", weights("0x" + "f" * 5000), "recipe.yaml:2:37: the number has too many digits"),
    ("a number of the sixties", weights("1:30:00"), "recipe.yaml:2:28: language.weights: should be a valid number, not '1:30:00'"),
    ("a number in words", weights("one"), "recipe.yaml:2:28: language.weights: should be a valid number, not 'one'"),
    ("a date", weights("2001-01-01"), "recipe.yaml:2:28: language.weights: should be a valid number, not '2001-01-01'"),
    ("true", weights("true"), "recipe.yaml:2:28: language.weights: should be a valid number, not True"),
    ("null", weights("null"), "recipe.yaml:2:28: language.weights: linear needs weights"),
    ("an empty list", weights("[]"), "recipe.yaml:2:28: language.weights: should have 1 or more entries, and has 0"),
    ("an empty table", weights("{}"), "recipe.yaml:2:28: language.weights: should have 1 or more entries, and has 0"),
    ("a list of lists", weights("[[1]]"), "recipe.yaml:2:38: language.weights.0: should be a valid number, not [1]"),
    ("a table of tables of tables", weights("{a: {'*': {x: 1}}}"), "recipe.yaml:2:42: language.weights.a.*: should be a number or a list, not {'x': 1}"),
    ("weights that sum to zero", weights("{a: 1, b: -1}"), "recipe.yaml:2:1: language: linear: the weights sum to zero, so normalize cannot divide by their sum, at lm_head.weight"),
    ("weights for a stranger", weights("{a: 1, c: 1}"), "recipe.yaml:2:44: language.weights.c: is not a member (known: a, b)"),
    ("a pattern that backtracks", weights("{'" + "*a" * 200 + "': 1, '*': 0.5}"), "recipe.yaml:2:38: language.weights.*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*...: the pattern fits no tensor, or an earlier one takes all it fits"),
    ("a pattern of brackets", weights("{'[[[[[[!a-': 1, '*': 0.5}"), "recipe.yaml:2:38: language.weights.[[[[[[!a-: the pattern fits no tensor, or an earlier one takes all it fits"),
    ("density 0", TIES.replace("0.5", "0.5, density: 0"), "recipe.yaml:3:40: language.density: should be greater than 0, not 0.0"),
    ("density 1.5", TIES.replace("0.5", "0.5, density: 1.5"), "recipe.yaml:3:40: language.density: should be at most 1, not 1.5"),
    ("density -1", TIES.replace("0.5", "0.5, density: -1"), "recipe.yaml:3:40: language.density: should be greater than 0, not -1.0"),
    ("density NaN", TIES.replace("0.5", "0.5, density: .nan"), "recipe.yaml:3:49: .nan is not a finite number"),
    ("t of 2", SLERP.replace("0.5", "2"), "recipe.yaml:2:27: language.t: should be at most 1, not 2.0"),
    ("t of -1", SLERP.replace("0.5", "-1"), "recipe.yaml:2:27: language.t: should be at least 0, not -1.0"),
    ("a seed of 2 to the 63", TIES.replace("ties, weights: 0.5", f"dare_ties, weights: 0.5, density: 0.5, seed: {1 << 63}"), "recipe.yaml:3:59: language.seed: should be less than 9223372036854775808, not 9223372036854775808"),
    ("a negative seed", TIES.replace("ties, weights: 0.5", "dare_ties, weights: 0.5, density: 0.5, seed: -1"), "recipe.yaml:3:59: language.seed: should be greater than or equal to 0, not -1"),
    ("a method that is code", GOOD.replace("linear", "os.system"), "recipe.yaml:2:12: language.method: unknown method 'os.system' (known: arcee_fusion, aswudi, breadcrumbs, breadcrumbs_ties, dare_linear, dare_ties, della, della_linear, iso_c, karcher, linear, model_stock, multislerp, nuslerp, optmerge, passthrough, sce, slerp, swudi, task_arithmetic, ties, tsv, wudi)"),
    ("a method that is a path", GOOD.replace("linear", "../../linear"), "recipe.yaml:2:12: language.method: unknown method '../../linear' (did you mean: linear)"),
    ("a method of mergekit that is a path", GOOD.replace("linear", "mergekit/../linear"), "recipe.yaml:2:12: language.method: unknown method 'mergekit/../linear' (did you mean: mergekit/linear, mergekit/dare_linear, mergekit/della_linear)"),
    ("a method of a quarter megabyte", GOOD.replace("linear", "l" * 250_000), "recipe.yaml:2:12: language.method: unknown method 'llllllllllllllllllllllllllllllllllllllllllllllllllllllll... (known: arcee_fusion, aswudi, breadcrumbs, breadcrumbs_ties, dare_linear, dare_ties, della, della_linear, iso_c, karcher, linear, model_stock, multislerp, nuslerp, optmerge, passthrough, sce, slerp, swudi, task_arithmetic, ties, tsv, wudi)"),
    ("an unknown key", GOOD + "trust_remote_code: true\n", "recipe.yaml:3:1: trust_remote_code: unknown key (known: base, grafts, language, members, output, prompt, vision)"),
    ("a key with a near name", GOOD + "otuput: {}\n", "recipe.yaml:3:1: otuput: unknown key (did you mean: output)"),
    ("no members", "language: {method: linear, weights: 1}\n", "recipe.yaml:1:1: members: is missing"),
    ("members that are empty", "members: {}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:1: members: should have 1 or more entries, and has 0"),
    ("members that are a list", "members: [a, b]\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:1: members: should be a table, not ['a', 'b']"),
    ("65 members", "members: {" + ", ".join(f"m{i}: a" for i in range(65)) + "}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:1: members: has more than 64 entries"),
    ("no language", "members: {a: a}\n", "recipe.yaml:1:1: language: is missing"),
    ("a base that is a member's name", GOOD.replace("members", "base: c\nmembers"), "recipe.yaml:1:1: base: 'c' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("no base for ties", TIES.replace("base: base\n", ""), "recipe.yaml:2:12: language.method: ties needs a base (add `base:` to the recipe)"),
    ("slerp of one", "members: {a: a}\nlanguage: {method: slerp, t: 0.5}\n", "recipe.yaml:2:12: language.method: slerp takes 2 members, not 1"),
    ("a member named base", "members: {base: a}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:11: members.base: a member cannot be called 'base': the word has a meaning in recipes"),
    ("a member named half", "members: {half: a}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:11: members.half: a member cannot be called 'half': torch's modules keep the word for themselves"),
    ("a member named ..", "members: {..: a}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:11: members...: a member cannot be called '..': a name is a letter followed by letters, digits, - or _"),
    ("a member with a point", "members: {a.b: a}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:11: members.a.b: a member cannot be called 'a.b': a name is a letter followed by letters, digits, - or _"),
    ("a member with a mark up", "members: {<script>: a}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:11: members.<script>: a member cannot be called '<script>': a name is a letter followed by letters, digits, - or _"),
    ("a member with an escape", 'members: {"\\e[31m": a}\nlanguage: {method: linear, weights: 1}\n', "recipe.yaml:1:11: members.\\x1b[31m: a member cannot be called '\\x1b[31m': a name is a letter followed by letters, digits, - or _"),
    ("a member that turns the line", 'members: {"\\u202e": a}\nlanguage: {method: linear, weights: 1}\n', "recipe.yaml:1:11: members.\\u202e: a member cannot be called '\\u202e': a name is a letter followed by letters, digits, - or _"),
    ("a member of rich's markup", 'members: {"[red]": a}\nlanguage: {method: linear, weights: 1}\n', "recipe.yaml:1:11: members.[red]: a member cannot be called '[red]': a name is a letter followed by letters, digits, - or _"),
    ("a member in full width", "members: {\uff41: a}\nlanguage: {method: linear, weights: 1}\n", "recipe.yaml:1:11: members.\uff41: a member cannot be called '\uff41': a name is a letter followed by letters, digits, - or _"),
    ("a shard size of 0", GOOD + "output: {shard_size: 0}\n", "recipe.yaml:3:10: output.shard_size: should be greater than or equal to 1000, not 0"),
    ("a shard size below zero", GOOD + "output: {shard_size: -5GB}\n", "recipe.yaml:3:10: output.shard_size: '-5GB' is not a size (such as 5GB or 500MB)"),
    ("a shard size of 400 digits", GOOD + f"output: {{shard_size: {'9' * 400}GB}}\n", "recipe.yaml:3:10: output.shard_size: '99999999999999999999999999999999999999999999999999999999... is not a size (such as 5GB or 500MB)"),
    ("a dtype of a quantiser", GOOD + "output: {dtype: int8}\n", "recipe.yaml:3:10: output.dtype: should be 'bfloat16', 'float16' or 'float32', not 'int8'"),
    ("an empty stack", GOOD.replace("0.5", "0.5, layers: []"), "recipe.yaml:2:42: language.layers: has 0 entries, and a stack has from 1 to 1,024"),
    ("a range backwards", GOOD.replace("0.5", "0.5, layers: [{a: [2, 0]}]"), "recipe.yaml:2:52: language.layers.0.a: [2, 0] holds no layer: a range is its first layer and the one behind its last"),
    ("a range of a billion", GOOD.replace("0.5", "0.5, layers: [{a: [0, 1000000000], b: [0, 1000000000]}]"), "recipe.yaml:2:52: language.layers.0.a: [0, 1000000000] reaches beyond the 2 layers of a ([0, 2] ends with its last)"),
    ("1,025 entries of a stack", GOOD.replace("0.5", "0.5, layers: [" + "{a: [0, 1], b: [0, 1]}, " * 1025 + "]"), "recipe.yaml:2:42: language.layers: has 1,025 entries, and a stack has from 1 to 1,024"),
]  # fmt: skip

PATHS: list[tuple[str, str, str]] = [
    ("nothing", "''", "recipe.yaml:1:17: members.b: is empty"),
    ("a home", "~/model", "recipe.yaml:1:17: members.b: '~/model' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a variable", "$HOME/model", "recipe.yaml:1:17: members.b: '$HOME/model' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("an address of a file", "file:///etc", "recipe.yaml:1:17: members.b: 'file:///etc' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("an address of the web", "https://example.com/model", "recipe.yaml:1:17: members.b: 'https://example.com/model' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("above everything", "../../../../../../../../nowhere", "recipe.yaml:1:17: members.b: '../../../../../../../../nowhere' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("/dev/zero", "/dev/zero", "recipe.yaml:1:17: members.b: '/dev/zero' is not a folder (a member is the folder that holds config.json)"),
    ("/proc/self/fd/0", "/proc/self/fd/0", "recipe.yaml:1:17: members.b: '/proc/self/fd/0' is not a folder (a member is the folder that holds config.json)"),
    ("a hub id that climbs", "hf://../../etc", "recipe.yaml:1:17: members.b: 'hf://../../etc' is no repository of the hub (such as hf://org/name)"),
    ("a hub id with a colon", "hf://evil:x/y", "recipe.yaml:1:17: members.b: 'hf://evil:x/y' is no repository of the hub (such as hf://org/name)"),
    ("an empty hub id", "hf://", "recipe.yaml:1:17: members.b: 'hf://' is no repository of the hub (such as hf://org/name)"),
    ("NUL", '"a\\0"', "recipe.yaml:1:17: members.b: 'a\\x00' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("an escape", '"\\e]0;evil\\a"', "recipe.yaml:1:17: members.b: '\\x1b]0;evil\\x07' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a new line", '"a\\nfuse: done"', "recipe.yaml:1:17: members.b: 'a\\nfuse: done' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a line that turns", '"\\u202eyadot"', "recipe.yaml:1:17: members.b: '\\u202eyadot' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("300 letters", "x" * 300, "recipe.yaml:1:17: members.b: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... does not exist (a name in it is too long for a disk)"),
    ("a revision of a folder", "{path: b, revision: main}", "recipe.yaml:1:17: members.b: 'b' is a local folder and has no revision (leave `revision` out)"),
    ("a revision that climbs", "{path: b, revision: ../../x}", "recipe.yaml:1:30: members.b.revision: '../../x' is not a commit, tag or branch"),
    ("a revision with blanks", "{path: b, revision: 'a b'}", "recipe.yaml:1:30: members.b.revision: 'a b' is not a commit, tag or branch"),
    ("a base alone", "{base: base}", "recipe.yaml:1:17: members.b: an adapter needs its base, and a base its adapter: {base: X, adapter: Y}"),
    ("a path and an adapter", "{path: b, base: base, adapter: a}", "recipe.yaml:1:17: members.b: a member is a path, or a base and an adapter, each with a revision of its own"),
]  # fmt: skip


def member_b(*makes: Make) -> Make:
    """b replaced."""

    def make(folder: Path) -> None:
        shutil.rmtree(folder / "b")
        for one in makes:
            one(folder)

    return recipe(GOOD, make)


OTHERS = [
    Attack("a member that is a file", member_b(file("b", b"x")), 2, "recipe.yaml:1:17: members.b: 'b' is not a folder (a member is the folder that holds config.json)"),
    Attack("a member that is a FIFO", member_b(fifo("b")), 2, "recipe.yaml:1:17: members.b: 'b' is not a folder (a member is the folder that holds config.json)"),
    Attack("a member that is a link to itself", member_b(link("b", "b")), 2, "recipe.yaml:1:17: members.b: 'b' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    Attack("a member that is a link to nothing", member_b(link("b", "nowhere")), 2, "recipe.yaml:1:17: members.b: 'b' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    Attack("a member that is an empty folder", member_b(directory("b")), 3, "b/config.json: the file is missing"),
    Attack("an output in a member", recipe(GOOD), 2, "a/out: the output and the member a would lie in each other", "merge recipe.yaml a/out"),
    Attack("an output that is a member", recipe(GOOD), 2, "a: the output and the member a would lie in each other", "merge recipe.yaml a --force"),
    Attack("an output that holds the members", recipe(GOOD), 2, ".: the output has no name of its own (name a folder, such as ../out)", "merge recipe.yaml . --force"),
    Attack("an output through a link into a member", recipe(GOOD, link("l", "a")), 2, "l/out: the output and the member a would lie in each other", "merge recipe.yaml l/out"),
    Attack("an output that is a link", recipe(GOOD, link("out", "a")), 2, "out: the output is a link (name the folder itself)"),
    Attack("an output that is a link to itself", recipe(GOOD, link("out", "out")), 2, "out: the output is a link (name the folder itself)"),
    Attack("an output that is there", recipe(GOOD, directory("out")), 2, "out: the output already exists (choose another folder, or --force)"),
    Attack("an output that is a file", recipe(GOOD, file("out", b"")), 2, "out: the output exists and is not a folder", "merge recipe.yaml out --force"),
    Attack("an output that is a FIFO", recipe(GOOD, fifo("out")), 2, "out: the output exists and is not a folder", "merge recipe.yaml out --force"),
    Attack("an output that others made", recipe(GOOD, file("out/x", b"")), 2, "out: the output exists and fuse did not make it (it has no fuse.json) (choose another folder, or remove it yourself)", "merge recipe.yaml out --force"),
    Attack("an output that holds the recipe", recipe(GOOD, file("out/fuse.json", {}), file("out/r.yaml", at("../b").replace("a: a", "a: ../a"))), 2, "out: the recipe lies in the output that would be replaced", "merge out/r.yaml out --force"),
    Attack("an output in no folder", recipe(GOOD), 2, "no/such/out: the folder 'no/such' does not exist (make it first)", "merge recipe.yaml no/such/out"),
    Attack("an output in a file", recipe(GOOD), 2, "recipe.yaml/out: the folder 'recipe.yaml' does not exist (make it first)", "merge recipe.yaml recipe.yaml/out"),
    Attack("an output of 300 letters", recipe(GOOD), 2, ".: the output's name is longer than 246 bytes (choose a shorter one)", f"merge recipe.yaml {'o' * 300}"),
    Attack("an output of 250 letters", recipe(GOOD), 2, ".: the output's name is longer than 246 bytes (choose a shorter one)", f"merge recipe.yaml {'o' * 250}"),
    Attack("an empty output", recipe(GOOD), 2, ".: the output has no name of its own (name a folder, such as ../out)", ("merge", "recipe.yaml", "")),
    Attack("an output that is a device", recipe(GOOD), 2, "/dev/null: the output exists and is not a folder", "merge recipe.yaml /dev/null --force"),
]  # fmt: skip

CASES = [
    *(Attack(name, recipe(text), 2, sentence) for name, text, sentence in VALUES),
    *(Attack(f"a path: {name}", recipe(at(path)), 2, sentence) for name, path, sentence in PATHS),
    *OTHERS,
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses(case: Attack, family: Path, tmp_path: Path) -> None:
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    hold(case, tmp_path)
