"""A fused folder that runs without `fuse`: our code beside the weights, for `trust_remote_code=True`.

What runs the folder is taken out of our own modules (`portable_reach`) and written as flat files (`portable_source`)
that config.json and processor_config.json name under `auto_map`, which is how transformers finds the code of a model
that it does not have. Weights stay as they are. fuse.json records the sha256 of every file of code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.card_forms import write_card
from fuse.digests import RECORD, file_sha256, sha256_of, small_files
from fuse.errors import CheckpointError, RecipeError
from fuse.export.folders import CONFIG, Opened, check_target, copy, link, opened
from fuse.export.portable_reach import reached
from fuse.export.portable_roots import ENTRY_ROOTS, by_name
from fuse.export.portable_source import flat, written
from fuse.partial import new_folder
from fuse.small_files import json_bytes, write_json

MODEL = "modeling_fuse.FusedForConditionalGeneration"
PROCESSOR = "processing_fuse.FusedProcessor"
AUTO_MAP = {
    "AutoConfig": "configuration_fuse.FusedConfig",
    "AutoModelForImageTextToText": MODEL,
    "AutoModelForMultimodalLM": MODEL,
    "AutoProcessor": PROCESSOR,
}
PROCESSOR_CONFIG, CONFIG_CODE = "processor_config.json", "configuration_fuse.py"
# transformers takes the model that it knows for a config class; this makes one class of each set of files
TOGETHER = "\n# all files of this folder together: {}\n"


def export_portable(folder: Path, out: Path, *, force: bool) -> None:
    """Write `out`: the fused folder with the code that runs it.

    Weights are hard links where the file system can, copies elsewhere; hidden files stay where they are. Raises
    RecipeError for a folder that needs no code of ours and for a target that cannot be written, CheckpointError for a
    folder that is not as fuse wrote it.
    """
    source = _opened(folder)
    record, config = source.record, source.config
    check_target(folder, out, force=force)
    try:
        code = sources(config)
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError("branches and grafts are of no kind that fuse knows", where=folder / CONFIG) from None
    with new_folder(out, "export", force=force) as made:
        for name in sorted(record.sha256):
            link(folder / name, made / name)
        for name in sorted(small_files(folder)):
            copy(folder / name, made / name)
        write_json(made / CONFIG, {**config, "auto_map": AUTO_MAP})
        told = strict_json.read_object(made / PROCESSOR_CONFIG)
        write_json(made / PROCESSOR_CONFIG, {**told, "auto_map": {"AutoProcessor": PROCESSOR}})
        files = small_files(made)
        for name, text in code.items():
            (made / name).write_text(text, encoding="utf-8")
        tables = {"files": files, "code": {name: file_sha256(made / name) for name in sorted(code)}}
        (made / RECORD).write_bytes(json_bytes({**record.told, **tables}))
        write_card(folder, made)


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """The files of code that run a folder, name -> source. config: its config.json.

    Raises KeyError for a branch, a projector or a graft of a kind that there is none of.
    """
    tables = by_name(config)
    roots = [*ENTRY_ROOTS, *(name for names in tables.values() for name in names)]
    found = reached(roots)
    files = {f"{flat(module)}.py": written(module, kept, tables.get(module, ())) for module, kept in found.items()}
    together = sha256_of(json_bytes(files))[:16]
    return {**files, CONFIG_CODE: files[CONFIG_CODE] + TOGETHER.format(together)}


def _opened(folder: Path) -> Opened:
    """A folder that needs code of ours and has none yet."""
    source = opened(folder)
    if not source.is_fused:
        told = f"transformers has the class of {source.config['model_type']!r} itself: the folder is portable as it is"
        raise RecipeError(told, where=folder)
    if source.record.code:
        raise RecipeError("the folder has its code already: it is portable as it is", where=folder)
    return source
