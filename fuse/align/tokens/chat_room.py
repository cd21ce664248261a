"""Renders chat templates in a process of its own, which is held to seconds, memory and letters.

Run as a file, not imported: a template comes with a checkpoint, and what it costs is not known before. The environment
is Jinja's immutable sandbox with the settings and names that transformers gives to templates, and without the rest of
what Jinja knows. Stdin is {"template", "names", "conversations": {name: messages}}; stdout is {name: {"text"} or
{"error"}}.
"""

import contextlib
import json
import resource
import sys
from datetime import datetime

SECONDS, MEMORY, LETTERS = 5, 512 << 20, 1 << 20
TODAY = datetime(2024, 7, 26)  # templates that write a date write this one: our choice


def render(template: str, names: dict[str, str], conversations: dict[str, list[dict]]) -> dict[str, dict[str, str]]:
    """Every conversation as the template writes it, ready for an answer; or the template's or Jinja's complaint."""
    try:
        compiled = _environment().from_string(template)
    except Exception as error:  # of Jinja, for what is no template
        return {name: {"error": _told(error)} for name in conversations}
    found = {}
    for name, messages in conversations.items():
        try:
            found[name] = {"text": _text(compiled.generate(messages=messages, add_generation_prompt=True, **names))}
        except Exception as error:  # of Jinja, or of what the template does with the conversation
            found[name] = {"error": _told(error)}
    return found


def _environment():
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Room(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context, operator, left, right):
            if operator == "**" or not all(isinstance(one, int | float) for one in (left, right)):
                raise SecurityError(f"the operator {operator} is not used on {type(left).__name__}")
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """{% generation %} marks an answer for training; here it is its inside."""

        tags = {"generation"}  # noqa: RUF012, as Jinja declares it

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    room = Room(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    for name in ("lipsum", "cycler", "joiner"):
        del room.globals[name]
    room.globals |= {
        "dict": lambda **pairs: pairs, "raise_exception": raise_exception,
        "strftime_now": TODAY.strftime,
    }  # fmt: skip
    room.filters["tojson"] = tojson
    return room


def _text(pieces) -> str:
    found, letters = [], 0
    for piece in pieces:
        letters += len(piece)
        if letters > LETTERS:
            raise MemoryError
        found.append(piece)
    return "".join(found)


def _told(error: Exception) -> str:
    if isinstance(error, MemoryError | RecursionError):
        return f"it asks for more than {LETTERS:,} letters, {MEMORY >> 20:,} MiB or a bounded depth"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _main() -> None:
    given = json.load(sys.stdin)
    for limit, value in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a system that knows no such limit
            resource.setrlimit(limit, (value, value))
    json.dump(render(given["template"], given["names"], given["conversations"]), sys.stdout)


if __name__ == "__main__":
    _main()
