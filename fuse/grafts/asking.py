"""What a question may ask of grafts: `--set lion.task=region`, and words that a graft puts around the question."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.errors import RecipeError
from fuse.grafts.kinds import files_of
from fuse.suggest import did_you_mean

Options = dict[str, dict[str, str]]  # by graft


def options_of(settings: Sequence[str], config: Mapping[str, Any]) -> Options:
    """`GRAFT.KEY=VALUE`, each once, for grafts that the folder has. config: its config.json.

    Raises RecipeError for anything else. What values a graft takes, the graft says when it is asked.
    """
    names = [graft["name"] for graft in config.get("grafts") or ()]
    found: Options = {}
    for setting in settings:
        target, is_set, value = setting.partition("=")
        name, has_key, key = target.partition(".")
        if not (is_set and has_key and name and key):
            raise RecipeError(f"--set {setting!r} is not GRAFT.KEY=VALUE", hint="such as --set lion.task=region")
        if name not in names:
            raise RecipeError(f"--set: there is no graft {name!r} "
                              f"({did_you_mean(name, names) if names else 'the folder has none'})")  # fmt: skip
        if key in found.setdefault(name, {}):
            raise RecipeError(f"--set: {target} stands twice")
        found[name][key] = value
    return found


def slots_behind(grafts: Sequence[Mapping[str, Any]], images: int) -> str:
    """What grafts write behind a question about so many images: slots, of kinds that have `behind`. grafts: as
    config.json has them.
    """
    found = ""
    for graft in grafts:
        write = getattr(files_of(graft["kind"]), "behind", None)
        if write is not None and graft["scale"] != 0 and images:
            names = graft.get("tokens") or {}
            found += write(graft["config"], images, {name: f"<|fuse:{graft['name']}.{name}|>" for name in names})
    return found


def phrased(question: str, options: Options, config: Mapping[str, Any]) -> tuple[str, Options]:
    """The question with the words that grafts put around it, and the options that are left for the model.

    Raises RecipeError for words that a graft is asked to write that is not heard.
    """
    left = {name: dict(given) for name, given in options.items()}
    for graft in config.get("grafts") or ():
        files, mine = files_of(graft["kind"]), left.get(graft["name"], {})
        if "tags" in mine and hasattr(files, "phrase"):
            if graft["scale"] == 0:
                told = f"graft {graft['name']!r} has scale 0, and is not asked about tags"
                raise RecipeError(told, hint="leave the tags out")
            tokens = graft.get("tokens") or {}
            hint = f"<|fuse:{graft['name']}.hint|>" if "hint" in tokens else ""
            question = files.phrase(question, mine.pop("tags"), hint)
    return question, {name: given for name, given in left.items() if given}
