"""`fuse inspect`: what can be known of parts before anyone merges them."""

from importlib import import_module

import click

from fuse.commands.examples import epilog

# what is inspected -> one line for `fuse inspect --help`, so that no command module is imported to print it
KINDS = {
    "encoders": "How alike the features of members' encoders are, over your images.",
    "deltas": "The geometry of a recipe's task vectors; reads weights, needs no images.",
    "attention": "Where each model looks in an image when it answers a question.",
    "tokens": "Tokenizers, special tokens and chat templates, side by side.",
    "pairs": "Which members to fuse: every pair, in order of a score of measured parts.",
}


class Kinds(click.Group):
    """A group that imports a command only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(KINDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in KINDS:
            return None
        command = import_module(f"fuse.commands.inspect_{cmd_name}").command
        command.epilog = epilog(f"inspect {cmd_name}")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in KINDS:
            ctx.fail(f"nothing called {args[0]!r} to inspect; there are {', '.join(KINDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("What"):
            formatter.write_dl(list(KINDS.items()))


@click.group("inspect", cls=Kinds)
def command() -> None:
    """Tell before a merge whether parts fit together."""
