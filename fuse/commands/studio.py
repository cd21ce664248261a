"""`fuse studio`: plan, inspect, merge and ask on a web page of this machine."""

from pathlib import Path

import click

BASE = "The language model that the FOLDERs share."
HOST = "Address to listen on. Whoever has the page's key reads and writes files as you."
OPEN = "Show the page in a browser."


@click.command("studio")
@click.argument("folders", nargs=-1, metavar="[FOLDER...|RECIPE]", type=click.Path())
@click.option("--base", metavar="FOLDER", type=click.Path(), help=BASE)
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help=HOST)
@click.option("--open/--no-open", "opened", default=False, show_default=True, help=OPEN)
def command(folders: tuple[str, ...], base: str | None, port: int, host: str, opened: bool) -> None:
    """Show a page to choose members, see the plan, inspect, merge, and ask parents and fused model side by side.

    FOLDERs are members, or hub ids, to begin with; or give one RECIPE. The page is this machine's alone, and its
    address holds a key. Ctrl-C ends it.
    """
    import tempfile
    from importlib.util import find_spec

    from fuse.errors import MachineError

    if find_spec("nicegui") is None:
        raise MachineError("fuse studio shows its page with nicegui, which is not installed",
                           hint="pip install 'fuse-mllm[studio]'")  # fmt: skip
    from fuse.studio.serve import open_browser, serve
    from fuse.studio.state import Studio

    def say(address: str) -> None:
        click.echo(f"studio: {address}")
        if opened:
            open_browser(address)

    with tempfile.TemporaryDirectory(prefix="fuse-studio-") as scratch:
        studio = Studio(Path(scratch), Path.cwd())
        studio.start(folders, base)
        serve(studio, host, port, say)
