"""Recipes whose bytes, YAML or depth are hostile: refused before any member is opened."""

from pathlib import Path

import pytest

from tests.attacks.harness import Attack, hold
from tests.attacks.making import GOOD, LINEAR, directory, fifo, link, recipe, sparse

EMPTY = "recipe.yaml: the recipe is empty (it needs members and language)"
ALIAS = "anchors and aliases are not allowed in a recipe (write it out)"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "recipe.yaml: nested too deeply"
AT_40 = "recipe.yaml:1:43: nested too deeply"


def nothing(folder: Path) -> None:
    pass


TEXTS: list[tuple[str, str | bytes, str]] = [
    ("empty file", "", EMPTY),
    ("only white space", " \n\n \n", EMPTY),
    ("only comments", "# a\n# b\n", EMPTY),
    ("only a document mark", "---\n", "recipe.yaml:2:1: recipe: should be a table, not null"),
    ("only a byte order mark", b"\xef\xbb\xbf", EMPTY),
    ("null", "null\n", "recipe.yaml:1:1: recipe: should be a table, not null"),
    ("a word", "linear\n", "recipe.yaml:1:1: recipe: should be a table, not 'linear'"),
    ("a list", "- a\n- b\n", "recipe.yaml:1:1: recipe: should be a table, not ['a', 'b']"),
    ("two documents", "a: 1\n---\nb: 2\n", "recipe.yaml:2:1: a recipe is one document"),
    ("a document that ends and another", f"{GOOD}...\n---\n{GOOD}", "recipe.yaml:4:1: a recipe is one document"),
    ("tab as indentation", "members:\n\ta: x\n", "recipe.yaml:2:1: not YAML: found character '\\t' that cannot start any token"),
    ("latin-1", "members: é".encode("latin-1"), "recipe.yaml: not UTF-8 at byte 9"),
    ("UTF-16", "members: {}".encode("utf-16"), "recipe.yaml: not UTF-8 at byte 0"),
    ("UTF-16 without a mark", "members: {}".encode("utf-16-le"), "recipe.yaml: not YAML: unacceptable character #x0000: special characters are not allowed"),
    ("overlong UTF-8", b"members: \xc0\xaf", "recipe.yaml: not UTF-8 at byte 9"),
    ("a surrogate in UTF-8", b"members: \xed\xa0\x80", "recipe.yaml: not UTF-8 at byte 9"),
    ("half a surrogate pair as an escape", 'members: {a: "\\ud800"}\n' + LINEAR, "recipe.yaml:1:14: holds half of a surrogate pair, which is no text"),
    ("NUL", "members: {a: \0}\n", "recipe.yaml: not YAML: unacceptable character #x0000: special characters are not allowed"),
    ("NUL as an escape", 'members: {a: "x\\0y"}\n' + LINEAR, "recipe.yaml:1:11: members.a: 'x\\x00y' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("a bell", "members: {a: \a}\n", "recipe.yaml: not YAML: unacceptable character #x0007: special characters are not allowed"),
    ("an escape of the terminal", "members: \x1b[31m\n", "recipe.yaml: not YAML: unacceptable character #x001b: special characters are not allowed"),
    ("a byte order mark in the middle", "members: {a: \ufeffx}\n" + LINEAR, "recipe.yaml:1:11: members.a: '\\ufeffx' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
    ("random bytes", bytes(range(256)) * 40, "recipe.yaml: not UTF-8 at byte 128"),
    ("a safetensors file", b"\x08\0\0\0\0\0\0\0{}      ", "recipe.yaml: not YAML: unacceptable character #x0008: special characters are not allowed"),
    ("10 MB", b"a" * 10_000_000, "recipe.yaml: 10,000,000 bytes is more than a recipe's 262,144"),
    ("10 MB of table", b"members: {a: b}\n" * 625_000, "recipe.yaml: 10,000,000 bytes is more than a recipe's 262,144"),
    ("50,000 keys at once", b"a: 1\n" * 50_000, "recipe.yaml:10000:4: more than 20,000 keys and values"),
    ("a quarter megabyte of keys", "".join(f"k{i}: 1\n" for i in range(22_000)), "recipe.yaml:10000:8: more than 20,000 keys and values"),
    ("a quarter megabyte of list", "[" + "1," * 130_000 + "]", "recipe.yaml:1:40000: more than 20,000 keys and values"),
    ("a quarter megabyte of brackets", "[" * 250_000, "recipe.yaml:1:33: nested too deeply"),
    ("a quarter megabyte of members", "members: {" + ", ".join(f"m{i}: x" for i in range(20_500)) + "}\n" + LINEAR, "recipe.yaml:1:98888: more than 20,000 keys and values"),
    ("a quarter megabyte in a name", "members: {" + "a" * 250_000 + ": x}\n" + LINEAR, "recipe.yaml:1:250011: not YAML: expected ',' or '}', but got ':'"),
    ("a quarter megabyte in a path", "members: {a: " + "x" * 250_000 + "}\n" + LINEAR, "recipe.yaml:1:11: members.a: has more than 4,096 characters"),
    ("a quarter megabyte of quotes", 'members: {a: "' + "\\\n" * 130_000 + '"}\n' + LINEAR, "recipe.yaml:1:11: members.a: is empty"),
    ("a quarter megabyte of comments", "#\n" * 130_000, EMPTY),
    ("a quarter megabyte of weights", GOOD.replace("0.5", "[" + "1," * 130_000 + "]"), "recipe.yaml:2:40012: more than 20,000 keys and values"),
    ("10,000 flow brackets deep", "[" * 10_000, "recipe.yaml:1:33: nested too deeply"),
    ("10,000 flow braces deep", "{a: " * 10_000, "recipe.yaml:1:129: nested too deeply"),
    ("10,000 dashes deep", "- " * 10_000, "recipe.yaml:1:65: nested too deeply"),
    ("500 lines deep", "".join(" " * i + "a:\n" for i in range(500)), "recipe.yaml:33:33: nested too deeply"),
    ("question marks deep", "? " * 10_000, "recipe.yaml:1:65: nested too deeply"),
    ("40 deep", "members: " + "[" * 40 + "]" * 40, "recipe.yaml:1:41: nested too deeply"),
    ("a tag that runs a program", "members: {a: !!python/object/apply:os.system [id]}\n", "recipe.yaml:1:14: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed in a recipe"),
    ("a tag of a Python name", "members: !!python/name:os.system ''\n", "recipe.yaml:1:10: the tag tag:yaml.org,2002:python/name:os.system is not allowed in a recipe"),
    ("a tag of our own", "members: !member {a: x}\n", "recipe.yaml:1:10: the tag !member is not allowed in a recipe"),
    ("a tag of binary", "members: {a: !!binary aGVsbG8=}\n", "recipe.yaml:1:14: the tag tag:yaml.org,2002:binary is not allowed in a recipe"),
    ("a tag of a set", "members: !!set {a, b}\n", "recipe.yaml:1:10: the tag tag:yaml.org,2002:set is not allowed in a recipe"),
    ("a tag on a key", "members: {!!str a: x}\n", "recipe.yaml:1:11: the tag tag:yaml.org,2002:str is not allowed in a recipe"),
    ("a tag behind a directive", "%TAG ! tag:evil,2000:\n---\nmembers: !x {a: x}\n", "recipe.yaml:1:1: directives are not allowed in a recipe"),
    ("a directive", f"%YAML 1.1\n---\n{GOOD}", "recipe.yaml:1:1: directives are not allowed in a recipe"),
    ("an unknown directive", f"%EVIL 1\n---\n{GOOD}", "recipe.yaml:1:1: directives are not allowed in a recipe"),
    ("YAML 9.9", f"%YAML 9.9\n---\n{GOOD}", "recipe.yaml:1:1: directives are not allowed in a recipe"),
    ("an anchor", "members: &x {a: x}\n", "recipe.yaml:1:10: anchors and aliases are not allowed in a recipe (write it out)"),
    ("an alias", "members: *x\n", "recipe.yaml:1:10: anchors and aliases are not allowed in a recipe (write it out)"),
    ("an alias that holds itself", "members: &x [*x]\n", f"recipe.yaml:1:10: {ALIAS}"),
    ("a billion laughs", LAUGHS, f"recipe.yaml:1:4: {ALIAS}"),
    ("a billion laughs in the members", "members:\n  " + LAUGHS.replace("\n", "\n  "), "recipe.yaml:2:6: anchors and aliases are not allowed in a recipe (write it out)"),
    ("a merge key", "members: {<<: {b: y}}\n", "recipe.yaml:1:11: a key is a plain word"),
    ("a merge key with a list", "members: {<<: [{b: y}, {c: z}]}\n", "recipe.yaml:1:11: a key is a plain word"),
    ("a list as key", "members: {[a, b]: x}\n", "recipe.yaml:1:11: a key is a plain word"),
    ("a table as key", "? {a: b}\n: x\n", "recipe.yaml:1:3: a key is a plain word"),
    ("an empty key", GOOD + ": x\n", "recipe.yaml:3:1: '': unknown key (known: base, grafts, language, members, output, prompt, vision)"),
    ("a null key", GOOD + "~: x\n", "recipe.yaml:3:1: ~: unknown key (known: base, grafts, language, members, output, prompt, vision)"),
    ("a number as key", GOOD + "1: x\n", "recipe.yaml:3:1: 1: unknown key (known: base, grafts, language, members, output, prompt, vision)"),
    ("a key of 2,000 letters", "a" * 2000 + ": x\n", "recipe.yaml:1:2001: not YAML: mapping values are not allowed here"),
    ("duplicate key", GOOD + "members: {a: x}\n", "recipe.yaml:3:1: members: the key stands twice"),
    ("duplicate key, quoted otherwise", "members: {a: x, 'a': y}\n" + LINEAR, "recipe.yaml:1:17: members.a: the key stands twice"),
    ("duplicate key deep down", GOOD.replace("0.5", "{a: 1, b: {'*': 1, \"*\": 2}}"), "recipe.yaml:2:56: language.weights.b.*: the key stands twice"),
    ("an unclosed quote", "members: 'a\n", "recipe.yaml:2:1: not YAML: found unexpected end of stream"),
    ("an unclosed brace", "members: {a: x\n", "recipe.yaml:2:1: not YAML: expected ',' or '}', but got '<stream end>'"),
    ("an unclosed bracket and a key", "members: [a\nlanguage: 1\n", "recipe.yaml:2:9: not YAML: expected ',' or ']', but got ':'"),
    ("a colon too many", "members: a: b\n", "recipe.yaml:1:11: not YAML: mapping values are not allowed here"),
    ("an at sign", "members: @a\n", "recipe.yaml:1:10: not YAML: found character '@' that cannot start any token"),
    ("a backtick", "members: `a`\n", "recipe.yaml:1:10: not YAML: found character '`' that cannot start any token"),
    ("a percent sign", "members: {a: %x}\n", "recipe.yaml:1:14: not YAML: found character '%' that cannot start any token"),
    ("a bad escape", 'members: {a: "\\q"}\n', "recipe.yaml:1:16: not YAML: found unknown escape character 'q'"),
    ("an escape beyond Unicode", 'members: {a: "\\UFFFFFFFF"}\n' + LINEAR, "recipe.yaml: not YAML: an escape is beyond Unicode"),
    ("a line separator", "members: {a: x}\u2028language: 1\n", "recipe.yaml:1:17: not YAML: expected <block end>, but found '<block mapping start>'"),
    ("JSON with NaN", '{"members": {"a": "x"}, "language": {"method": "linear", "weights": NaN}}', "recipe.yaml:1:58: language.weights: should be a valid number, not 'NaN'"),
    ("a block of text as member", "members:\n  a: |\n    x\n    y\n" + LINEAR, "recipe.yaml:2:3: members.a: 'x\\ny\\n' does not exist (a folder, relative to the recipe, or a hub id org/name)"),
]  # fmt: skip

# a recipe that is no recipe's file
FILES = [
    Attack("absent", nothing, 2, "recipe.yaml: there is no such file"),
    Attack("a directory", directory("recipe.yaml"), 2, "recipe.yaml: is a folder, not a recipe (a recipe is a file such as recipe.yaml)"),
    Attack("a FIFO", fifo("recipe.yaml"), 2, "recipe.yaml: this is not a plain file"),
    Attack("a link to /dev/zero", link("recipe.yaml", "/dev/zero"), 2, "recipe.yaml: this is not a plain file"),
    Attack("/dev/zero", nothing, 2, "/dev/zero: this is not a plain file", "merge /dev/zero out"),
    Attack("/dev/stdin", nothing, 2, "/dev/stdin: this is not a plain file", "merge /dev/stdin out"),
    Attack("/dev/full", nothing, 2, "/dev/full: this is not a plain file", "merge /dev/full out"),
    Attack("a link to itself", link("recipe.yaml", "recipe.yaml"), 2, "recipe.yaml: there is no such file"),
    Attack("a link to nothing", link("recipe.yaml", "nowhere"), 2, "recipe.yaml: there is no such file"),
    Attack("a file of /proc without end", link("recipe.yaml", "/proc/self/pagemap"), 2, "recipe.yaml: cannot be read (Invalid argument)"),
    Attack("the memory of the process", link("recipe.yaml", "/proc/self/mem"), 2, "recipe.yaml: cannot be read (Input/output error)"),
    Attack("a terabyte", sparse("recipe.yaml", 1 << 40), 2, "recipe.yaml: 1,099,511,627,776 bytes is more than a recipe's 262,144"),
    Attack("a name of 300 letters", nothing, 4, "rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr...: File name too long", f"merge {'r' * 300} out"),
    Attack("a name of 5,000 letters", nothing, 4, "r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/r/...: File name too long", f"merge {'r/' * 2500} out"),
    Attack("an empty name", nothing, 2, ".: is a folder, not a recipe (a recipe is a file such as recipe.yaml)", ("merge", "", "out")),
    Attack("a file in a file", recipe(GOOD), 2, "recipe.yaml/x: there is no such file", "merge recipe.yaml/x out"),
    Attack("a name with an escape", nothing, 2, "\\x1b[31mr: there is no such file", ("merge", "\x1b[31mr", "out")),
    Attack("a name that turns the line", nothing, 2, "\\u202er: there is no such file", ("merge", "\u202er", "out")),
    Attack("a name with a new line", nothing, 2, "a\\nfuse: done: there is no such file", ("merge", "a\nfuse: done", "out")),
]  # fmt: skip

CASES = [*(Attack(name, recipe(text), 2, sentence) for name, text, sentence in TEXTS), *FILES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refuses(case: Attack, tmp_path: Path) -> None:
    hold(case, tmp_path)
