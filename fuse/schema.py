"""The JSON schema of recipes, made from the pydantic model; a copy is kept in `fuse/recipe.schema.json`."""

import json

from fuse.recipe import Recipe


def schema_text() -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fuse recipe"}
    return json.dumps(schema | Recipe.model_json_schema(by_alias=True), indent=2, sort_keys=True) + "\n"
