"""The `fuse` command: a lazy group, one file per verb under `commands/`."""

import atexit
import gc
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from fuse import __version__, process
from fuse.commands.examples import epilog
from fuse.errors import FuseError, one_line
from fuse.handles import reason, take_all
from fuse.interruption import listen
from fuse.suggest import did_you_mean

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# verb -> one line for `fuse --help`, so that no command module is imported to print it
VERBS = {
    "recipe": "Write a recipe by answering a few questions (recipe new).",
    "plan": "Show what a recipe will do to every tensor; reads no weights.",
    "inspect": "Tell before a merge whether parts fit together.",
    "merge": "Run a recipe into a folder that transformers loads.",
    "verify": "Check that a folder is whole, and still what it was.",
    "commit": "Put together what the workers of a merge wrote.",
    "import": "Turn an official checkpoint into parts that recipes name.",
    "ask": "Ask a model folder a question.",
    "search": "Search a recipe's coefficients and options, without training.",
    "eval": "Score model folders on questions, with intervals; compare them.",
    "export": "Write a finished folder in another form, such as one that needs no fuse.",
    "push": "Send a finished folder to a repository of the hub.",
    "schema": "Print the JSON schema of recipes.",
    "studio": "Plan, inspect, merge and ask on a web page of this machine.",
    "completion": "Print the script that lets a shell complete fuse's commands.",
}


class Verbs(click.Group):
    """A group that imports a command only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = "import_" if cmd_name == "import" else cmd_name  # a word of Python
        command = import_module(f"fuse.commands.{module}").command
        command.epilog = epilog(cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in VERBS:
            ctx.fail(f"no verb {args[0]!r} ({did_you_mean(args[0], VERBS)})")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem[str]]":
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(name, help=line) for name, line in VERBS.items() if name.startswith(incomplete)]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


NAMES_OF_FILES = ("utf-8", "surrogateescape")  # where Python writes them byte for byte

EPILOG = "Each verb's --help has examples and names its page. The pages are in the folder docs of the source."


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(__version__, prog_name="fuse")
def cli() -> None:
    """Compose multimodal LLMs out of parts that exist, without training."""


def main() -> NoReturn:
    """Run the command line; exits 0, 1 (bug), 2 (input), 3 (checkpoint), 4 (machine), 130 or 143 (interrupted)."""
    gc.set_threshold(
        100_000, 20, 20
    )  # imports make many objects and no cycles: looking for them costs more than it frees
    listen()
    if instruction := os.environ.get("_FUSE_COMPLETE"):
        _complete(instruction)
    told = sys.stdout
    try:
        cli.main(standalone_mode=False)
    except FuseError as error:
        click.echo(f"fuse: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        more = f" ({error.ctx.command_path} --help)" if isinstance(error, click.MissingParameter) and error.ctx else ""
        _say(" ".join(error.format_message().split()) + more)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as stop:
        _say(f"interrupted; {_left(stop) or 'nothing was written'}")
        sys.exit(130)
    except SystemExit as stop:
        if sys.stdout is not told:  # where nobody reads what is said click takes the stream's place, and ends with 1
            sys.exit(0)
        if stop.code == 143:
            _say(f"interrupted; {_left(stop) or 'nothing was written'}")
        raise
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        name = str(error.filename or "")
        _say(f"{name[:80] + '...' if len(name) > 80 else name}: {reason(error)}" if name else reason(error))
        sys.exit(4)
    except MemoryError:
        _say("out of memory; nothing was written")
        sys.exit(4)
    sys.exit(0)


def _complete(instruction: str) -> NoReturn:
    """Answer a shell that asks what may stand at the cursor."""
    from fuse.completion import answer

    told = answer(cli, instruction)
    if told is not None:
        click.echo(told)
    sys.exit(0 if told is not None else 2)


def run() -> NoReturn:
    """`main` as a process: once all is said and every exit handler has run, it ends without unloading what it imported,
    which takes torch a good part of a second."""
    code: object = 0
    process.OURS = True
    _open_streams()
    take_all()
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    except OSError:
        code = 4
    os._exit(code if isinstance(code, int) else 0)


def _open_streams() -> None:
    """Where the shell closed a standard stream no file takes its number, and what is said goes nowhere.

    A letter that the stream's encoding does not have is said as an escape, and bytes that are no text are read as they
    are in the names of files.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, TextIOWrapper) and (sys.stdout.encoding.lower(), sys.stdout.errors) != NAMES_OF_FILES:
        sys.stdout.reconfigure(errors="backslashreplace")


def _left(stop: BaseException) -> str:
    """What an interrupted command leaves, as it noted on its way out."""
    return "; ".join(getattr(stop.__cause__ or stop, "__notes__", ()))


def _say(text: str) -> None:
    click.echo(f"fuse: {one_line(text)}", err=True)
