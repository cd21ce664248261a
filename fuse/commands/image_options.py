"""How a folder of images is looked at: the options that kinds of `fuse inspect` share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fuse.commands.device_option import device_option

if TYPE_CHECKING:
    from fuse.align.encoders.compare import Options

LIMIT = "The most samples for measures that need them together (all but linear CKA, which reads every one)."
SKIP = "Leave out images that cannot be read, and list them."
DEVICE = "Where encoders run: cpu, cuda, cuda:1, mps, or auto, a GPU where there is one."
OPTIONS = (
    click.option("--limit", default=2000, show_default=True, type=click.IntRange(4, 20_000), help=LIMIT),
    click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1, 1024)),
    device_option(DEVICE),
    click.option("--skip-bad", is_flag=True, help=SKIP),
    click.option("--quiet", is_flag=True, help="No progress."),
)


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with these options, which `options_of` takes."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def options_of(*, limit: int, batch_size: int, device: str, skip_bad: bool, quiet: bool, **more: Any) -> "Options":
    """What `fuse.align.encoders.compare` takes. more: its other options, as they are called there."""
    from fuse.align.encoders.compare import Options

    return Options(limit=limit, batch=batch_size, device=device, skip_bad=skip_bad, shown=not quiet, **more)
