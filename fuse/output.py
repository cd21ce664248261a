"""Where an output may be written, and whether it was written as planned."""

from collections.abc import Mapping
from pathlib import Path

from fuse import families, strict_json
from fuse.checkpoint import free_bytes, read_tensors
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.fused import BRANCHES, GRAFTS, LANGUAGE
from fuse.plan import Plan
from fuse.replaced import check_place
from fuse.safetensors_header import TensorEntry
from fuse.small_files import check_small
from fuse.unfinished import home_of

SMALL_FILES = 64 << 20  # room for tokenizer, configs and card


def check_target(plan: Plan, target: Path, *, force: bool) -> None:
    """Refuse a target that exists (unless forced), that lies in a member or in another output, or that the disk has no
    room for; and, forced or not, one that holds a file which fuse did not write.

    And members whose small files are too large to go into it, which would be seen only once all weights are written.
    """
    home_of(target)  # refuses what is no name
    if target.is_symlink():
        raise RecipeError("the output is a link", where=target, hint="name the folder itself")
    if target.exists() and not force:
        raise RecipeError("the output already exists", where=target, hint="choose another folder, or --force")
    if target.exists() and not target.is_dir():
        raise RecipeError("the output exists and is not a folder", where=target)
    if target.is_mount():
        raise RecipeError("the output is where a disk begins, which cannot be replaced", where=target,
                          hint="name a folder in it")  # fmt: skip
    if not target.parent.is_dir():
        raise RecipeError(f"the folder {str(target.parent)!r} does not exist", where=target, hint="make it first")
    real = target.resolve()
    folders = {m.name: m.folder for m in plan.members}
    folders |= {m.name: m.checkpoint.folder for m in plan.lenders if m.checkpoint}
    for name, lent in folders.items():
        check_small(lent)
        inside = lent.resolve()
        if real == inside or inside in real.parents or real in inside.parents:
            raise RecipeError(f"the output and the member {name} would lie in each other", where=target)
    for file in (file for lender in plan.lenders for file in lender.files):
        if real in file.resolve().parents:
            raise RecipeError(f"the output would replace {file.name}, which it is made of", where=target)
    if real in plan.recipe_file.resolve().parents and target.exists():
        raise RecipeError("the recipe lies in the output that would be replaced", where=target)
    if target.exists() and not (target / "fuse.json").exists() and any(target.iterdir()):
        raise RecipeError("the output exists and fuse did not make it (it has no fuse.json)", where=target,
                          hint="choose another folder, or remove it yourself")  # fmt: skip
    check_place(target)
    need, free = plan.bytes_written + SMALL_FILES, free_bytes(target.parent) + _reserved(target)
    if need > free:
        raise MachineError(f"the output needs {need:,} bytes and the disk has {free:,} free", where=target)


def _reserved(target: Path) -> int:
    """Bytes of the disk that an unfinished output has, which the next run keeps or frees."""
    found = home_of(target).rglob("*")
    return sum(path.lstat().st_blocks * 512 for path in found)


def check_written(plan: Plan, folder: Path) -> None:
    """Reopen the folder as any reader would and compare it with the plan, tensor by tensor."""
    written = fused_tensors(folder) if plan.fused else native_tensors(folder)
    for row in plan.rows:
        entry = written.get(row.name)
        if entry is None or (entry.dtype, entry.shape) != (row.dtype, row.shape):
            raise CheckpointError(f"tensor {row.name!r} was not written as planned", where=folder)
    if len(written) != len(plan.rows):
        raise CheckpointError(f"{len(written)} tensors were written, {len(plan.rows)} were planned", where=folder)
    if plan.fused:
        from fuse.model.check import check_loads

        check_loads(folder)


def native_tensors(folder: Path) -> Mapping[str, TensorEntry]:
    from fuse.anatomy import open_member

    return open_member("output", str(folder.resolve()), revision=None, relative_to=folder).checkpoint.tensors


def fused_tensors(folder: Path) -> Mapping[str, TensorEntry]:
    """The tensors of a fused folder, after a check that its text config describes its language model."""
    tensors = read_tensors(folder)
    config = strict_json.read_object(folder / "config.json")
    where = str(folder / "config.json")
    names = {key: key.removeprefix(LANGUAGE) for key in tensors if key.startswith(LANGUAGE)}
    places = families.places(config["text_config"], list(names.values()), where)
    if alien := [key for key, name in names.items() if (p := places[name]) is None or p.canonical != name]:
        raise CheckpointError(f"tensor {alien[0]!r} is not named as the language model names it", where=folder)
    families.check_language(config["text_config"], {name: tensors[key].shape for key, name in names.items()}, where)
    known = (LANGUAGE, *(f"{BRANCHES}{branch['name']}." for branch in config["branches"]))
    known += tuple(f"{GRAFTS}{graft['name']}." for graft in config.get("grafts", ()))
    if strange := [key for key in tensors if not key.startswith(known)]:
        raise CheckpointError(f"tensor {strange[0]!r} belongs to no branch and no graft of config.json", where=folder)
    return tensors
