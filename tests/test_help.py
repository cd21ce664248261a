"""Every verb's --help ends with commands that its own options allow, and with a page and a heading that are there."""

import shlex

import click
import pytest

from fuse.cli import VERBS, cli
from fuse.commands.examples import EXAMPLES
from fuse.commands.inspect import KINDS
from tests.cli import fuse_here
from tests.test_docs_map import ROOT, headings


def parsed(command: click.Command, args: list[str]) -> click.Command:
    """The command that the words reach; raises click's error where they are not its own."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        _, found, rest = command.resolve_command(context, args)
        assert found is not None
        return parsed(found, rest)
    command.parse_args(context, args)
    return command


def test_every_verb_has_examples() -> None:
    assert EXAMPLES.keys() == {*VERBS, *(f"inspect {kind}" for kind in KINDS)}


@pytest.mark.parametrize("verb", EXAMPLES)
def test_examples_parse_and_pages_exist(verb: str) -> None:
    page, examples = EXAMPLES[verb]
    file, _, heading = page.partition("#")
    assert (ROOT / "docs" / file).exists()
    assert not heading or heading in headings(f"docs/{file}")
    for line in examples:
        words = shlex.split(
            line.removeprefix("eval ").strip('"').removeprefix("$(").removesuffix(")").partition(" > ")[0]
        )
        assert words[: 1 + len(verb.split())] == ["fuse", *verb.split()] if verb != "inspect" else words[1] == "inspect"
        parsed(cli, words[1:])
    with pytest.raises(click.UsageError):
        parsed(cli, [*verb.split(), "--no-such-option"])


@pytest.mark.parametrize("verb", ["plan", "import", "inspect deltas"])
def test_help_shows_them(verb: str) -> None:
    page, examples = EXAMPLES[verb]
    out = fuse_here(*verb.split(), "--help").out
    assert out.endswith("".join(f"    {line}\n" for line in examples) + f"  More: docs/{page}\n")


def test_the_first_help_names_the_pages() -> None:
    assert fuse_here("--help").out.endswith("names its page. The pages are in the\n  folder docs of the source.\n")
