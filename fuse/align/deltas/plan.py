"""Which task vectors a recipe has: the plan of its merge, over the base."""

from fuse.methods.table import METHODS
from fuse.plan import Plan, Row, without
from fuse.planner import make_plan
from fuse.recipe import Language
from fuse.recipe_yaml import LoadedRecipe


def delta_plan(loaded: LoadedRecipe) -> Plan:
    """The recipe's plan; where its method looks at no base (linear, slerp ...), that of task arithmetic instead.

    Raises RecipeError where the recipe names no base, and what `make_plan` raises.
    """
    recipe, language = loaded.recipe, loaded.recipe.language
    if recipe.base is None:
        raise loaded.error(
            ("base",), "task vectors are differences to a base, and the recipe names none",
            hint="add `base:`, the language model that the members were trained from",
        )  # fmt: skip
    if METHODS[language.method].base == "none":
        given = language.given("weight" if "weight" in METHODS[language.method].params else "weights")
        named = [name for name in recipe.members if isinstance(given, dict) and name in given]
        instead = Language.model_validate({
            "method": "task_arithmetic", "weights": dict.fromkeys(named, 1.0) if named else 1.0,
            "embeddings": language.embeddings, "layers": language.layers, "accept": language.accept,
        })  # fmt: skip
        loaded = LoadedRecipe(
            recipe.model_copy(update={"language": instead}), loaded.file, loaded.text, loaded.positions
        )
    return make_plan(loaded)


def delta_rows(plan: Plan) -> list[Row]:
    """The rows that merge members over the base, as they are before grafts are folded into them."""
    rows = [without(row) if row.action == "fold" else row for row in plan.rows]
    return [row for row in rows if row is not None and row.action == "merge" and row.base is not None]
