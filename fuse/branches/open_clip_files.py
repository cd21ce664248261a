"""What the installed open_clip knows about an architecture, read from its files without importing it (or torch).

The architectures are its model_configs/*.json. How images are prepared is written only in its pretrained.py, one row
per set of published weights ("tag"), so that table is read as syntax, never run.
"""

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.suggest import did_you_mean

PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
BESIDE = "open_clip_config.json"  # what hub repositories hold beside the weights
_QUICK = "-quickgelu"
# open_clip.transform.PreprocessCfg: what open_clip uses for an architecture without published weights
_DEFAULT = {
    "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip


def architecture(name: str, where: object) -> dict[str, Any]:
    """`{"embed_dim", "quick_gelu", "vision_cfg"}` of an architecture, as open_clip's own model config states it.

    Raises RecipeError for a name that open_clip does not have, MachineError when open_clip is not installed.
    """
    files = {file.stem: file for file in (_package() / "model_configs").glob("*.json")}
    if name not in files:
        raise RecipeError(
            f"open_clip has no architecture {name!r}", where=where, hint=did_you_mean(name, files) if files else ""
        )
    config = strict_json.read_object(files[name])
    kept = {key: config[key] for key in ("embed_dim", "vision_cfg")}
    return kept | {"quick_gelu": bool(config.get("quick_gelu"))}


def preprocessing(name: str, tag: str, model: Mapping[str, Any], weights: Path, where: object) -> dict[str, Any]:
    """How the weights want images prepared: mean, std, interpolation and resize_mode.

    From the open_clip_config.json beside the weights if there is one, else from open_clip's table of published weights:
    the row `tag`, else what all rows with the architecture's activation agree on, else open_clip's default.
    Raises RecipeError when they do not agree or there is no such tag, CheckpointError when the file beside the weights
    describes another tower.
    """
    beside = weights.parent / BESIDE
    if beside.is_file():
        return _beside(beside, name, model)
    rows = _published().get(name.removesuffix(_QUICK) if name not in _published() else name, {})
    if tag:
        if tag not in rows:
            raise RecipeError(
                f"open_clip has no weights {tag!r} of {name}", where=where, hint=did_you_mean(tag, rows) if rows else ""
            )
        if bool(rows[tag].get("quick_gelu")) != model["quick_gelu"] and "timm_model_name" not in model["vision_cfg"]:
            other = name.removesuffix(_QUICK) if name.endswith(_QUICK) else name + _QUICK
            raise RecipeError(
                f"the weights {tag!r} have another activation than {name}", where=where, hint=f"write {other}:{tag}"
            )
        return {key: rows[tag][key] for key in PREPROCESS}
    fitting = {tag: row for tag, row in rows.items() if bool(row.get("quick_gelu")) == model["quick_gelu"]} or rows
    ways: list[dict[str, Any]] = []
    for row in fitting.values():
        way = {key: row[key] for key in PREPROCESS}
        if way not in ways:
            ways.append(way)
    if len(ways) > 1:
        raise RecipeError(
            f"the published weights of {name} want images prepared in {len(ways)} ways", where=where,
            hint=f"say which they are, e.g. {name}:{next(iter(fitting))}, or keep {BESIDE} beside the weights",
        )  # fmt: skip
    return ways[0] if ways else dict(_DEFAULT)


def _beside(file: Path, name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    told = strict_json.read_object(file)
    said, stated = told.get("model_cfg"), told.get("preprocess_cfg", {})
    if not isinstance(said, dict) or not isinstance(stated, dict) or not isinstance(said.get("vision_cfg"), dict):
        raise CheckpointError("is not {model_cfg, preprocess_cfg}", where=file)
    theirs = {k: v for k, v in said["vision_cfg"].items() if not k.startswith("timm_model_pretrained")}
    ours = {k: v for k, v in model["vision_cfg"].items() if not k.startswith("timm_model_pretrained")}
    if theirs != ours:
        odd = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))[0]
        raise CheckpointError(
            f"the weights beside it are no {name}: {odd} is {theirs.get(odd)!r}, not {ours.get(odd)!r}", where=file
        )
    if bool(said.get("quick_gelu")) != model["quick_gelu"] and "timm_model_name" not in ours:
        hint = f"write {name.removesuffix(_QUICK)}" if model["quick_gelu"] else f"write {name}{_QUICK}"
        raise CheckpointError(f"the weights beside it have another activation than {name}", where=file, hint=hint)
    way = _DEFAULT | {key: stated[key] for key in PREPROCESS if stated.get(key) is not None}
    for key in ("mean", "std"):
        value = way[key]
        if not (isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)):
            raise CheckpointError(f"preprocess_cfg.{key} is {value!r}, not three numbers", where=file)
    if way["interpolation"] not in {"bicubic", "bilinear"} or way["resize_mode"] not in {
        "shortest",
        "longest",
        "squash",
    }:
        raise CheckpointError(
            f"preprocess_cfg asks for {way['interpolation']!r}, {way['resize_mode']!r}, which open_clip does not have",
            where=file,
        )
    return way


def _package() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.origin:
        raise MachineError("open_clip is not installed", hint="pip install open_clip_torch")
    return Path(spec.origin).parent


@cache
def _published() -> dict[str, dict[str, dict[str, Any]]]:
    """open_clip.pretrained's table: architecture -> tag -> {mean, std, interpolation, resize_mode, quick_gelu?}."""
    package = _package()
    try:
        reader = _Reader()
        for file in ("constants.py", "pretrained.py"):
            reader.read(ast.parse((package / file).read_text(encoding="utf-8")))
        return {
            name: {tag: _plain(row) for tag, row in tags.items()} for name, tags in reader.values["_PRETRAINED"].items()
        }
    except (OSError, SyntaxError, KeyError, ValueError, AttributeError) as error:
        raise MachineError(
            f"its table of published weights is not written as expected ({type(error).__name__})",
            where=package / "pretrained.py", hint=f"keep {BESIDE} beside the weights",
        ) from None  # fmt: skip


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}


class _Reader:
    """Values of a module's plain assignments: literals, names, `dict(...)`, and functions that return one literal."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.functions: dict[str, ast.FunctionDef] = {}

    def read(self, module: ast.Module) -> None:
        for node in module.body:
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                try:
                    self.values[node.targets[0].id] = self.value(node.value, self.values)
                except (KeyError, ValueError):
                    if node.targets[0].id == "_PRETRAINED":
                        raise

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Name):
            return names[node.id]
        if isinstance(node, ast.Tuple):
            return tuple(self.value(item, names) for item in node.elts)
        if isinstance(node, ast.Dict):
            made: dict[Any, Any] = {}
            for key, item in zip(node.keys, node.values, strict=True):
                made |= {self.value(key, names): self.value(item, names)} if key else self.value(item, names)
            return made
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self.call(node, node.func.id, names)
        return ast.literal_eval(node)

    def call(self, node: ast.Call, name: str, names: Mapping[str, Any]) -> Any:
        given = {word.arg: self.value(word.value, names) for word in node.keywords if word.arg}
        if name == "dict" and not node.args:
            return given
        function = self.functions[name]
        words = [argument.arg for argument in function.args.args]
        defaults = dict(zip(words, (self.value(d, names) for d in function.args.defaults), strict=True))
        given |= dict(zip(words[: len(node.args)], (self.value(item, names) for item in node.args), strict=True))
        rest = {key: value for key, value in given.items() if key not in words}
        local = {**self.values, **defaults, **given, function.args.kwarg.arg if function.args.kwarg else "": rest}
        (answer,) = (line for line in function.body if isinstance(line, ast.Return))
        return self.value(answer.value or ast.Constant(None), local)
