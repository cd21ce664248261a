"""Chat templates and tokenizers of members: endless, enormous, or not what they should be."""

from pathlib import Path
from typing import Any

import pytest

from tests.attacks.harness import Attack, attack, hold, within
from tests.attacks.making import Make, both, fifo, file, sparse
from tests.attacks.scenes import changed, edited, gone, place

ASK, MERGE = "ask a w5 --max-tokens 2", "merge recipe.yaml out"
TEMPLATE = "a/chat_template.jinja"


def template(text: str | bytes) -> Make:
    return file(TEMPLATE, text)


def nested(depth: int) -> str:
    return "".join(f"{{% for i{n} in range(100000) %}}" for n in range(depth)) + "{% endfor %}" * depth


def tokens(edit: Any) -> Make:
    return edited("a/tokenizer.json", edit)


def slow(**files: object) -> Make:
    """A tokenizer without tokenizer.json; `__` in a name is a dot."""
    return both(gone("a/tokenizer.json"), *(file(f"a/{name.replace('__', '.')}", data) for name, data in files.items()))


TEMPLATES: list[tuple[str, Make, str]] = [
    ("loops in loops", template(nested(3)), "a: the chat template takes more than 2 seconds"),
    ("a range too long", template("{% for i in range(10**9) %}{% endfor %}"), "a: the chat template writes no prompt: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."),
    ("300,000 letters", template("{% for i in range(100000) %}abc{% endfor %}"), "a: the chat template writes 300,000 letters, more than 262,284"),
    ("a text of 10 GB", template("{{ 'a' * 10**10 }}"), "a: the chat template asks for more than 64 MiB or a bounded depth"),
    ("doubled 60 times", template("{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"), "a: the chat template asks for more than 64 MiB or a bounded depth"),
    ("a field of a billion letters", template("{{ '%1000000000d' % 1 }}"), "a: the chat template asks for more than 64 MiB or a bounded depth"),
    ("a number of a billion digits", template("{% set a = messages | length * 9 %}{{ (a ** 99999999) % 10 }}"), "a: the chat template takes more than 2 seconds"),
    ("without end", template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "a: the chat template asks for more than 64 MiB or a bounded depth"),
    ("the classes of Python", template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "a: the chat template writes no prompt: access to attribute '__class__' of 'str' object is unsafe."),
    ("the globals of a function", template("{{ raise_exception.__globals__.x }}"), "a: the chat template writes no prompt: access to attribute '__globals__' of 'function' object is unsafe."),
    ("another file", template("{% include '/etc/passwd' %}"), "a: the chat template writes no prompt: no loader for this environment specified"),
    ("a module", template("{% import 'os' as os %}"), "a: the chat template writes no prompt: no loader for this environment specified"),
    ("half a tag", template("{% for"), "a: the chat template writes no prompt: unexpected 'end of template'"),
    ("a refusal", template("{{ raise_exception('no system here') }}"), "a: the chat template writes no prompt: no system here"),
    ("a name that is not there", template("{{ a.b.c }}"), "a: the chat template writes no prompt: 'a' is undefined"),
    ("a change of the conversation", template("{{ messages.append(1) }}"), "a: the chat template writes no prompt: access to attribute 'append' of 'list' object is unsafe."),
    ("not UTF-8", template(b"\xff\xfe"), "a/chat_template.jinja: not UTF-8 at byte 0"),
    ("of 50 MB", template(b"x" * (50 << 20)), "a/chat_template.jinja: 52,428,800 bytes is more than the 1,048,576 that fuse reads"),
    ("a pipe", fifo(TEMPLATE), "a/chat_template.jinja: this is not a plain file"),
    ("a number", changed("a/tokenizer_config.json", chat_template=7), "a/tokenizer_config.json: chat_template is 7, not text"),
    ("of 2 MB in JSON", changed("a/tokenizer_config.json", chat_template="x" * (2 << 20)), "a/tokenizer_config.json: chat_template has 2,097,152 letters, more than the 1,048,576 that fuse reads"),
]  # fmt: skip
TOKENIZERS: list[tuple[str, str, Make, str]] = [
    ("no tokenizer", MERGE, gone("a/tokenizer.json"), "a: a has no tokenizer, so its embedding rows cannot be matched by token (add its tokenizer.json, or keep the host's rows with `embeddings: a`)"),
    ("no vocabulary", MERGE, tokens(lambda t: t["model"].pop("vocab")), "a/tokenizer.json: model.vocab is not a vocabulary"),
    ("a model by a word", MERGE, tokens(lambda t: t.update(model="x")), "a/tokenizer.json: model.vocab is not a vocabulary"),
    ("an id of 10**12", MERGE, tokens(lambda t: t["model"]["vocab"].update(w5=10**12)), "a/tokenizer.json: token 'w5' has id 1000000000000"),
    ("an id below 0", MERGE, tokens(lambda t: t["model"]["vocab"].update(w5=-1)), "a/tokenizer.json: token 'w5' has id -1"),
    ("an id of 1.5", MERGE, tokens(lambda t: t["model"]["vocab"].update(w5=1.5)), "a/tokenizer.json: token 'w5' has id 1.5"),
    ("an id twice", MERGE, tokens(lambda t: t["model"]["vocab"].update(w5=6)), "a/tokenizer.json: tokens 'w5' and 'w6' share id 6"),
    ("added tokens by a word", MERGE, tokens(lambda t: t.update(added_tokens="x")), "a/tokenizer.json: added_tokens is not a list of {id, content}"),
    ("all ids moved", MERGE, tokens(lambda t: t["model"]["vocab"].update({f"w{i}": 66 - i for i in range(3, 64)})), "b/tokenizer.json: a and b have different vocabularies (64 and 64 tokens): id 63 is 'w3' in a and 'w63' in b, and 60 tokens of the model's own differ (members of one base share its tokens)"),
    ("nested too deeply", MERGE, file("a/tokenizer.json", '{"model":' * 5000 + "1" + "}" * 5000), "a/tokenizer.json: nested too deeply"),
    ("half a file", MERGE, file("a/tokenizer.json", '{"model": {"vocab": {"a": 1,'), "a/tokenizer.json:1:29: not JSON: Expecting property name enclosed in double quotes"),
    ("empty", MERGE, file("a/tokenizer.json", ""), "a/tokenizer.json: the file is empty"),
    ("of 2 GB", MERGE, sparse("a/tokenizer.json", 2 << 30, b"{"), "a/tokenizer.json: 2,147,483,648 bytes is more than the 100,000,000 that fuse reads"),
    ("a pipe", MERGE, fifo("a/tokenizer.json"), "a/tokenizer.json: this is not a plain file"),
    ("a config that is no JSON", MERGE, file("a/tokenizer_config.json", "["), "a/tokenizer_config.json:1:2: not JSON: Expecting value"),
    ("noise as sentencepiece", MERGE, slow(tokenizer__model=b"\xff" * 100), "a/tokenizer.model: not a sentencepiece model"),
    ("an added token at a word", MERGE, slow(vocab__json={"w1": 0}, tokenizer_config__json={"added_tokens_decoder": {"x": {"content": "<q>"}}}), "a/tokenizer_config.json: added_tokens_decoder has 'x': {'content': '<q>'}, not a number and its {content}"),
    ("added tokens as a list", MERGE, slow(vocab__json={"w1": 0}, tokenizer_config__json={"added_tokens_decoder": [1]}), "a/tokenizer_config.json: added_tokens_decoder is not a table of {id: {content}}"),
    ("a list as a token", MERGE, slow(vocab__json={"w1": 0}, tokenizer_config__json={"added_tokens_decoder": {"1": {"content": ["<q>"]}}}), "a/tokenizer_config.json: added_tokens_decoder has '1': {'content': ['<q>']}, not a number and its {content}"),
    ("a word as an id", MERGE, slow(vocab__json={"w1": 0}, added_tokens__json={"q": "x"}), "a/vocab.json: token 'q' has id 'x'"),
    ("asked: an unknown splitter", ASK, tokens(lambda t: t.update(pre_tokenizer={"type": "Evil"})), "a: transformers cannot load it: data did not match any variant of untagged enum PreTokenizerUntagged at line 1 column 499"),
    ("asked: of 2 GB", ASK, sparse("a/tokenizer.json", 2 << 30, b"{"), "a/tokenizer.json: 2,147,483,648 bytes is more than the 100,000,000 that fuse reads"),
    ("asked: generation as a list", ASK, file("a/generation_config.json", "[]"), "a/generation_config.json: holds a JSON list, not an object"),
    ("asked: code to fetch", ASK, changed("a/config.json", attn_implementation="evil/kernels"), "a/config.json: attn_implementation: 'evil/kernels' names code to fetch; fuse never does"),
]  # fmt: skip


@pytest.mark.parametrize("case", [Attack(name, make, 3, said, argv=ASK) for name, make, said in TEMPLATES], ids=str)
def test_templates_are_bounded(case: Attack, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    hold(case, tmp_path)


@pytest.mark.parametrize(
    "case", [Attack(name, make, 3, said, argv=argv) for name, argv, make, said in TOKENIZERS], ids=str
)
def test_tokenizers(case: Attack, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    hold(case, tmp_path)


@pytest.mark.parametrize("argv", ["plan recipe.yaml", MERGE])
def test_a_plan_and_a_merge_render_no_template(argv: str, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    template(nested(3))(tmp_path)
    ran = attack(argv, tmp_path)
    assert (ran.code, ran.err) == (0, "")
    within(ran)


@pytest.mark.parametrize("case", ["a token beyond the table", "an added token beyond the table"])
def test_tokens_without_a_row_of_their_own_are_common(case: str, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    added = {"id": 70, "content": "<x>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}  # fmt: skip
    edit = {"a token beyond the table": lambda t: t["model"]["vocab"].update(more=64)}
    tokens(edit.get(case, lambda t: t["added_tokens"].append(added)))(tmp_path)
    ran = attack(MERGE, tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert attack("ask out w5 --max-tokens 2", tmp_path).code == 0
