"""Completion of shells: what may stand where the cursor is, and the script that asks for it.

Click walks the command line; what a path may be is told by the parameter's name, so that no verb has to say it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

VARIABLE = "_FUSE_COMPLETE"

# Click's own has one kind of answer at a time, and breaks names at spaces.
BASH = """\
%(complete_func)s() {
    local kind value told
    COMPREPLY=()
    told=$(IFS=$'\\n'; COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete $1)
    while IFS=, read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            path) COMPREPLY+=("$value"); compopt -o filenames ;;
            dir) compopt -o filenames -o plusdirs ;;
            file) compopt -o filenames -o default ;;
        esac
    done <<< "$told"
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class PathNamed(click.ParamType[Any]):
    """A path that is completed by folders, and by files that end in one of `suffixes`; any file where there is "".

    The value stays as it is typed: nothing is converted while a line is completed.
    """

    name = "path"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        if "" in self.suffixes:
            return [CompletionItem(incomplete, type="file")]
        return [*(CompletionItem(name, type="path") for name in self._files(incomplete)),
                CompletionItem(incomplete, type="dir")]  # fmt: skip

    def _files(self, incomplete: str) -> list[str]:
        """The files that begin so, as the user writes their folder."""
        folder, begin = os.path.split(incomplete)
        at = Path(folder or ".").expanduser()
        try:
            names = sorted(entry.name for entry in at.iterdir() if entry.suffix in self.suffixes and entry.is_file())
        except OSError:
            return []
        written = incomplete.removesuffix(begin)
        return [written + name for name in names if name.startswith(begin) and "\n" not in name]


class Words(click.ParamType[Any]):
    """A word of a table that a verb reads itself."""

    name = "word"

    def __init__(self, words: Mapping[str, object] | tuple[str, ...]) -> None:
        self.words = words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


def _kinds() -> dict[str, click.ParamType[Any]]:
    """What parameters are, by their names."""
    from fuse.importers import IMPORTERS
    from fuse.recipe_new.method import NAMED
    from fuse.recipe_new.wants import DTYPES, WANTS

    recipe, folder, anything = PathNamed(".yaml", ".yml"), PathNamed(), PathNamed("")
    return {
        "recipe": recipe, "folder": PathNamed(".yaml", ".yml"), "folders": folder, "out": folder, "host": folder,
        "staging": folder, "sources": folder, "report": folder, "data": PathNamed(".jsonl"),
        "test": PathNamed(".jsonl"), "source": anything, "images": anything, "attention": PathNamed(".png"),
        "member": folder, "base": folder, "encoder": folder, "projector": anything, "graft": folder,
        "kind": Words(IMPORTERS), "device": Words(("cpu", "cuda", "auto")), "want": Words(WANTS),
        "method": Words(NAMED), "dtype": Words(DTYPES),
    }  # fmt: skip


class _Told(ShellComplete):
    """Answers with the kinds of paths; a line that makes no sense has no answer, and nothing is said of it."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        command: click.Command | None = self.cli
        kinds = _kinds()
        try:
            for word in args:
                if not isinstance(command, click.Group):
                    break
                command = command.get_command(click.Context(command), word)
            for param in command.params if command else ():
                if not isinstance(param.type, click.Choice):
                    param.type = kinds.get(str(param.name), param.type)
            return super().get_completions(args, incomplete)
        except click.UsageError:
            return []


class Bash(_Told, BashComplete):
    source_template = BASH


class Zsh(_Told, ZshComplete):
    def format_completion(self, item: CompletionItem[str]) -> str:
        return super().format_completion(_plain(item))


class Fish(_Told, FishComplete):
    def format_completion(self, item: CompletionItem[str]) -> str:
        return super().format_completion(_plain(item))


def _plain(item: CompletionItem[str]) -> CompletionItem[str]:
    return CompletionItem(item.value, "plain" if item.type == "path" else item.type, item.help)


SHELLS: Mapping[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


def script(cli: click.Command, shell: str) -> str:
    """The script that a shell of SHELLS evaluates at its start."""
    return SHELLS[shell](cli, {}, "fuse", VARIABLE).source()


def answer(cli: click.Command, instruction: str) -> str | None:
    """What completes the line in COMP_WORDS, for an instruction such as `bash_complete`; None for another one."""
    shell, _, what = instruction.partition("_")
    if shell not in SHELLS or what != "complete":
        return None
    return SHELLS[shell](cli, {}, "fuse", VARIABLE).complete()
