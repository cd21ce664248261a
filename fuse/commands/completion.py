"""`fuse completion`: the script that lets a shell complete fuse's verbs, options, recipes and folders."""

import click

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes verbs, options, their values, recipes and folders.

    \b
    bash: eval "$(fuse completion bash)"      in ~/.bashrc
    zsh:  eval "$(fuse completion zsh)"       in ~/.zshrc, behind compinit
    fish: fuse completion fish | source       in ~/.config/fish/config.fish
    """
    from fuse.completion import script

    click.echo(script(ctx.find_root().command, shell), nl=False)
