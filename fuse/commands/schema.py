"""`fuse schema`: the JSON schema of recipes, for editors."""

import click


@click.command("schema")
def command() -> None:
    """Print the JSON schema of recipes.

    Put `# yaml-language-server: $schema=PATH` on the first line of a recipe, and editors complete and check it.
    """
    from fuse.schema import schema_text

    click.echo(schema_text(), nl=False)
