"""`--device` of the verbs that run models: what is no device, or none of this machine, is said first of all."""

from collections.abc import Callable
from typing import Any

import click

SPREAD = "cpu, cuda, cuda:1, mps, or auto, which spreads the model over the GPUs and the CPU."


def device_option(told: str = SPREAD) -> Callable[..., Any]:
    """The option `--device`. told: its help."""
    return click.option("--device", default="cpu", show_default=True, callback=_checked, help=told)


def _checked(ctx: click.Context, _param: click.Parameter, name: str) -> str:
    from fuse.devices import check_device

    if not ctx.resilient_parsing:  # a shell that completes
        check_device(name)
    return name
