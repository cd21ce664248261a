"""Questions and answers: from options of the command line, else from whoever types, else the default."""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from fuse.errors import FuseError, RecipeError, one_line
from fuse.suggest import did_you_mean

T = TypeVar("T")


class Dialogue:
    """Asks on stderr, so that stdout holds what was asked for.

    given: answers from options, by the option's name, each used once. yes: take defaults without asking. A wrong
    answer is asked for again where a person types, and raises RecipeError or CheckpointError everywhere else.
    """

    def __init__(self, given: Mapping[str, Iterable[str]], *, yes: bool) -> None:
        self.given = {key: list(values) for key, values in given.items()}
        self.yes = yes
        self.typed = sys.stdin is not None and sys.stdin.isatty()

    def say(self, text: str) -> None:
        """A line between questions."""
        click.echo(text, err=True)

    def left(self, key: str) -> bool:
        """Whether an option has an answer that was not used yet."""
        return bool(self.given.get(key))

    def ask(self, key: str, question: str, read: Callable[[str], T], default: str | None = None) -> T:
        """The answer as `read` makes it. default: what an empty line stands for; None where one has to answer.

        read: raises FuseError where the answer cannot be. Raises RecipeError where nobody answers.
        """
        if self.given.get(key):
            return self._read(read, self.given[key].pop(0), f"--{key}")
        if self.yes and default is not None:
            return self._read(read, default, f"--{key}")
        if self.yes:
            raise RecipeError(f"nothing says {question}", hint=f"give --{key}")
        while True:
            answer = self._line(key, question, default)
            try:
                return self._read(read, answer, "")
            except FuseError as error:
                if not self.typed:
                    raise
                self.say(f"  {error}")

    def choose(
        self, key: str, question: str, choices: Mapping[str, str], default: str,
        check: Callable[[str], None] = lambda word: None,
    ) -> str:  # fmt: skip
        """One of the words, which are listed with what each gives; its number does as well.

        check: raises FuseError where a word cannot be chosen.
        """
        words = list(choices)

        def read(answer: str) -> str:
            word = words[int(answer) - 1] if answer.isdecimal() and 1 <= int(answer) <= len(words) else answer
            if word not in choices:
                raise RecipeError(f"{answer!r} is none of these ({did_you_mean(answer, choices)})")
            check(word)
            return word

        if not self.left(key) and not self.yes:
            wide = max(map(len, words))
            self.say(question)
            for number, word in enumerate(words, 1):
                self.say(f"  {number}. {word:{wide}}  {choices[word]}".rstrip())
            question = "  which"
        return self.ask(key, question, read, default)

    def done(self) -> None:
        """Raises RecipeError for an option that answered no question."""
        for key, values in self.given.items():
            if values:
                raise RecipeError(f"{values[0]!r} answers no question here", where=f"--{key}", hint="leave it out")

    def _line(self, key: str, question: str, default: str | None) -> str:
        prompt = f"{question} [{one_line(default)}]: " if default else f"{question}: "
        if self.typed and sys.stdout.isatty():
            line = _typed(prompt)
        else:
            click.echo(prompt, nl=False, err=True)
            line = sys.stdin.readline() if sys.stdin is not None else ""
            if not self.typed:  # nobody typed a line break
                self.say(one_line(line.rstrip("\n")))
        if not line:
            raise RecipeError(
                f"the answers end where `{key}` is asked for", hint=f"give --{key}, or --yes for defaults"
            )
        return line.strip() or (default or "")

    @staticmethod
    def _read(read: Callable[[str], T], answer: str, where: str) -> T:
        try:
            return read(answer)
        except RecipeError as error:
            if not where or error.where:
                raise
            raise RecipeError(error.problem, where=where, hint=error.hint) from None


def _typed(prompt: str) -> str:
    """A line with its break, typed in a terminal where keys edit it and the tab key completes paths; "" at its end."""
    try:
        import readline
    except ImportError:  # Python may be built without
        pass
    else:
        readline.set_completer(_paths)
        readline.set_completer_delims(" \t\n=")
        readline.parse_and_bind("tab: complete")
    try:
        return input(prompt) + "\n"
    except EOFError:
        click.echo("")
        return ""


def _paths(begin: str, number: int) -> str | None:
    folder, _, name = begin.rpartition("/")
    written, at = begin.removesuffix(name), Path(f"{folder}/" if "/" in begin else ".").expanduser()
    found = sorted(one for one in at.iterdir() if one.name.startswith(name)) if at.is_dir() else []
    return f"{written}{found[number].name}{'/' * found[number].is_dir()}" if number < len(found) else None
