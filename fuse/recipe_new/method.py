"""The method of a new recipe: which ones fit the members, which one to begin with, and its numbers."""

from collections.abc import Mapping, Sequence

from fuse.errors import RecipeError
from fuse.methods.method import REQUIRED, Method
from fuse.methods.table import METHODS
from fuse.methods.table_foreign import PREFIX
from fuse.recipe_new.dialogue import Dialogue
from fuse.suggest import did_you_mean

# the methods that are listed, in the order of the list; the others can be named as well
LISTED = ("task_arithmetic", "ties", "dare_ties", "linear", "slerp", "model_stock", "wudi")
NAMED = tuple(name for name in METHODS if not name.startswith(PREFIX) and name != "passthrough")
DENSITY = 0.5  # of methods that thin task vectors; half is where their papers begin
EXPERT = 0.2  # the share of a text expert that the README begins with


def why_not(method: Method, members: int, base: bool) -> str:
    """Why a method cannot mix these members, or ""."""
    least, most = method.inputs
    if members < least or (most is not None and members > most):
        return f"{method.name} takes {least if least == most else f'{least} or more'} members, not {members}"
    return f"{method.name} needs a base" if method.base == "required" and not base else ""


def ask_method(dialogue: Dialogue, members: int, base: bool) -> str:
    """Ask for a method; what does not fit the members is refused with the reason."""
    fitting = [name for name in LISTED if not why_not(METHODS[name], members, base)]

    def read(answer: str) -> str:
        name = fitting[int(answer) - 1] if answer.isdecimal() and 1 <= int(answer) <= len(fitting) else answer
        if name not in NAMED:
            raise RecipeError(f"there is no method {name!r} to ask about ({did_you_mean(name, NAMED)})")
        if why := why_not(METHODS[name], members, base):
            raise RecipeError(why, hint="--base names one" if "base" in why else "")
        return name

    if not dialogue.left("method") and not dialogue.yes:
        dialogue.say("How are the language models mixed?")
        for number, name in enumerate(fitting, 1):
            dialogue.say(f"  {number}. {name:16} {METHODS[name].doc}")
        others = [name for name in NAMED if name not in fitting and not why_not(METHODS[name], members, base)]
        dialogue.say(f"  also: {', '.join(others)}")
    return dialogue.ask("method", "  which", read, fitting[0])


def ask_numbers(
    dialogue: Dialogue, method: str, names: Sequence[str], want: str
) -> dict[str, float | dict[str, float]]:
    """Ask for the weights, and for what else the method needs or lives by."""
    row, found = METHODS[method], dict[str, float | dict[str, float]]()
    if "weights" in row.params:
        if not dialogue.left("weight") and not dialogue.yes:
            dialogue.say(f"How much of each member? ({row.params['weights'].doc})")
        chosen = _weights(dialogue)
        if unknown := [name for name in chosen if name not in names]:
            raise RecipeError(f"{unknown[0]!r} is not a member ({did_you_mean(unknown[0], names)})", where="--weight")
        start = first_weights(row, names, want)
        found["weights"] = {
            name: chosen[name] if name in chosen else dialogue.ask("weight", f"  {name}", number, f"{start[name]:g}")
            for name in names
        }
    for name in ("t", "density"):
        if name in row.params:
            first = (EXPERT if want == "expert" else 0.5) if name == "t" else DENSITY
            found[name] = dialogue.ask(name, f"{name}, {row.params[name].doc}", number, f"{first:g}")
    values = {key: list(value.values()) if isinstance(value, Mapping) else value for key, value in found.items()}
    if all(name in values for name, param in row.params.items() if param.default is REQUIRED) and (
        wrong := row.problem(values, len(names))
    ):
        raise RecipeError(wrong)
    return found


def _weights(dialogue: Dialogue) -> dict[str, float]:
    """`NAME=NUMBER` of --weight, all at once: a name says whose it is, in any order."""
    found: dict[str, float] = {}
    for given in dialogue.given.pop("weight", []):
        name, equals, value = given.partition("=")
        if not equals or name in found:
            raise RecipeError(f"{given!r} is not NAME=NUMBER, once for each member", where="--weight")
        found[name] = number(value)
    return found


def first_weights(row: Method, names: Sequence[str], want: str) -> dict[str, float]:
    """Weights to begin with: equal ones; of an expert little, beside all of the VLM."""
    if want != "expert":
        return {name: round(1 / len(names), 3) for name in names}
    whole = 1.0 if row.base == "required" else 1 - EXPERT
    each = EXPERT if row.base == "required" else round(EXPERT / (len(names) - 1), 3)
    return {name: each if number else whole for number, name in enumerate(names)}


def number(text: str) -> float:
    """A finite number. RecipeError for what is none."""
    try:
        value = float(text)
    except ValueError:
        raise RecipeError(f"{text!r} is not a number") from None
    if not abs(value) < 1e6:
        raise RecipeError(f"{text} is no share of anything")
    return value
