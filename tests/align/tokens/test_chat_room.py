"""Chat templates in their room: the same text as transformers writes, and no template that harms or hangs."""

import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fuse.align.tokens import chat_room
from fuse.align.tokens.chat import CONVERSATIONS, _in_a_room
from tests.tiny_processors import PROCESSORS, template

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
PROMPTS = Path(chat_room.__file__).parent.parent.parent / "prompts"
# what templates of the hub use beyond loops and conditions
WRITTEN = {
    "trimmed blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\nend",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ {'b': '<é>', 'a': 1} | tojson(indent=2) }}",
    "names": "{{ bos_token }}{{ nothing }}{{ messages[0]['content'] + eos_token }}{% if add_generation_prompt %}>{% endif %}",
    "dict": "{{ dict(a=1, b=2)['b'] }}{% for i in range(3) %}{{ i }}{% endfor %}",
    "methods": "{{ messages[0].content.split(' ')[0].strip() | upper }}{{ 3 * 4 }}",
}


@pytest.mark.parametrize("case", [*WRITTEN, *(f.name for f in sorted(PROMPTS.glob("*.jinja"))), *PROCESSORS])
def test_writes_what_transformers_writes(case: str) -> None:
    text = WRITTEN.get(case) or (template(case) if case in PROCESSORS else (PROMPTS / case).read_text())
    found = chat_room.render(text, NAMES, CONVERSATIONS)
    for name, talk in CONVERSATIONS.items():
        try:
            (wanted,), _ = render_jinja_template([talk], chat_template=text, add_generation_prompt=True, **NAMES)
        except Exception:
            assert "error" in found[name]
        else:
            assert found[name] == {"text": wanted}
    assert any("text" in one for one in found.values())


def test_the_date_is_always_the_same() -> None:
    assert chat_room.render("{{ strftime_now('%d %b %Y') }}", {}, {"a": []}) == {"a": {"text": "26 Jul 2024"}}


REFUSED = {
    "{{ raise_exception('System role not supported') }}": "System role not supported",
    "{% for m in messages %}": "Unexpected end of template. Jinja was looking for the following tags: 'endfor' or 'else'. The innermost block that needs to be closed is 'for'.",
    "{{ ''.__class__.mro() }}": "access to attribute '__class__' of 'str' object is unsafe.",
    "{{ messages.append(1) }}": "access to attribute 'append' of 'list' object is unsafe.",
    "{{ (1).__class__.__mro__[1].__subclasses__() }}": "access to attribute '__class__' of 'int' object is unsafe.",
    "{{ 'a' * 99999999999 }}": "the operator * is not used on str",
    "{{ 9 ** 9 ** 9 }}": "the operator ** is not used on int",
    "{{ 1 / 0 }}": "division by zero",
    "{% include '/etc/passwd' %}": "no loader for this environment specified",
    "{{ lipsum() }}": "'lipsum' is undefined",
    "{{ range(999999) | list }}": "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).",
    "{{ 'a' | center(9999999999) }}": "it asks for more than 1,048,576 letters, 512 MiB or a bounded depth",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}": "it asks for more than 1,048,576 letters, 512 MiB or a bounded depth",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    assert _in_a_room(text, {}, {"question": CONVERSATIONS["question"]}) == {"question": {"error": REFUSED[text]}}


@pytest.mark.parametrize(
    "text",
    [
        "{{ '%99999999999d' % 1 }}",
        "{% set n = namespace(t='a') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    ],
)
def test_memory_is_bounded(text: str) -> None:
    (found,) = _in_a_room(text, {}, {"question": []}).values()
    assert found == {"error": "it asks for more than 1,048,576 letters, 512 MiB or a bounded depth"}


def test_an_endless_template_is_called_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick = tmp_path / "room.py"
    quick.write_text(
        Path(chat_room.__file__).read_text().replace("SECONDS, MEMORY, LETTERS = 5", "SECONDS, MEMORY, LETTERS = 1")
    )
    monkeypatch.setattr(chat_room, "__file__", str(quick))
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert _in_a_room(loop, {}, {"a": [], "b": []}) == dict.fromkeys(
        "ab", {"error": "it takes more than 5 seconds, or too much memory"}
    )


def test_one_conversation_does_not_spoil_the_others() -> None:
    text = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    found = _in_a_room(text, {}, {name: CONVERSATIONS[name] for name in ("system", "question")})
    assert found == {"system": {"error": "no"}, "question": {"text": "What is the capital of France?"}}


def test_the_room_is_a_process_without_fuse(tmp_path: Path) -> None:
    """It imports nothing but Jinja and the standard library, so it starts at once."""
    import subprocess
    import sys

    code = f"import runpy, sys\nrunpy.run_path({chat_room.__file__!r})\nassert not {{'fuse', 'torch'}} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)
    given = json.dumps({"template": "{{ messages }}", "names": {}, "conversations": {"a": ["\ud800é"]}})
    done = subprocess.run(
        [sys.executable, "-I", chat_room.__file__], input=given.encode(), capture_output=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == {"a": {"text": "['\\ud800é']"}}
