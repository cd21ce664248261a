"""The grafts of a plan: donors opened and held against the host, and a row for each of their tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse import families
from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.fused import GRAFTS, Bridging, Fits, FusedBranch, FusedGraft, Lender
from fuse.fused_turned import bridge_json, donors, graft_turned, making
from fuse.grafts.donor import Donor, donor_of
from fuse.grafts.hosts import why_no_slots
from fuse.names import mistake_in
from fuse.plan import Fold, Row, Source
from fuse.recipe_graft import Graft
from fuse.recipe_yaml import LoadedRecipe
from fuse.safetensors_header import FLOAT_BYTES
from fuse.suggest import did_you_mean, near

MOST_SCALE = 1000  # more of a module than was trained, and numbers overflow where nobody looks; our choice


def open_grafts(loaded: LoadedRecipe, host: Member, branches: Sequence[FusedBranch]) -> tuple[FusedGraft, ...]:
    """Every graft of the recipe, in order.

    Raises RecipeError where an entry is wrong or two grafts cannot be together, CheckpointError where a donor is broken
    or does not fit the host.
    """
    found: list[FusedGraft] = []
    for number, entry in enumerate(loaded.recipe.grafts):
        found.append(_open(loaded, number, entry, host, branches))
        _check_together(loaded, number, found, host)
    return tuple(found)


def _open(loaded: LoadedRecipe, number: int, entry: Graft, host: Member, branches: Sequence[FusedBranch]) -> FusedGraft:
    at = ("grafts", number)
    donor = donor_of(loaded, number)
    name = entry.name or donor.kind
    _check_place(loaded, number, name, branches)
    for key in ("tower", "image"):
        given = getattr(entry, key)
        if given is not None and given not in {branch.name for branch in branches}:
            near = did_you_mean(given, [branch.name for branch in branches]) if branches else "vision has none"
            raise loaded.error((*at, key), f"{given!r} is no branch ({near})")
    config = _configured(loaded, number, entry, donor)
    if why := getattr(donor.files, "why_no_option", lambda options, host: "")(entry.options, host.basis):
        raise loaded.error(at, why, "leave it out")
    _check_tower(loaded, number, name, donor, config, branches)
    settings = families.text_config(host.checkpoint.config, host.family, str(host.folder))
    kind = families.text_type_of(host.checkpoint.config, host.family, str(host.folder))
    if why := why_no_slots({**settings, "model_type": kind}) or (
        donor.files.why_not(config, host.basis) if entry.bridge is None else ""
    ):
        raise CheckpointError(f"{name} cannot be grafted into {host.name}: {why}", where=donor.folder)
    bridge = _bridge(loaded, number, entry, donor, config, host)
    tokens = donor.files.tokens(config)
    why_no_image = _looking(donor, config)
    heard_there = getattr(donor.files, "needs_images", lambda config: False)(config) and not entry.fold
    if (any(tokens.values()) or why_no_image or heard_there) and not branches:
        raise loaded.error(at, f"{name} works on images, and vision has no branch")
    if entry.image is not None and not why_no_image:
        raise loaded.error((*at, "image"), f"{name} looks at no image, so no branch can be named", "leave it out")
    image = entry.image or _seen_by(donor, config, branches)
    looked = next((branch.config for branch in branches if branch.name == image), {})
    if why_no_image and (why := why_no_image(config, looked)):
        raise loaded.error(at, f"{name} cannot look through {image}: {why}", "`image: BRANCH` names another")
    wanted = donor.files.shapes(config)
    places = {key: key for key in wanted if key in donor.tensors}
    dropped = {key: "not of the parts that the recipe asks for" for key in donor.tensors if key not in wanted}
    lender = Lender(GRAFTS + name, entry.from_, donor.tensors, places, dropped)
    made = {key: tuple(shape) for key, shape in wanted.items() if key not in donor.tensors}
    made |= bridge.shapes if bridge is not None else {}
    if abs(entry.scale) > MOST_SCALE:
        raise loaded.error((*at, "scale"), f"is {entry.scale:g}, and a graft is heard at most {MOST_SCALE} times over")
    graft = FusedGraft(
        name, donor.kind, config, entry.scale, entry.tower, image, tokens, donor, lender, made, options=entry.options,
        bridge=bridge,
    )  # fmt: skip
    return graft if bridge is None else _crossed(graft)


def _crossed(graft: FusedGraft) -> FusedGraft:
    from fuse.grafts.bridge_fold_files import crossed  # which needs numpy

    return crossed(graft)


def _bridge(
    loaded: LoadedRecipe, number: int, entry: Graft, donor: Donor, config: Mapping[str, Any], host: Member
) -> Bridging | None:
    if entry.bridge is None:
        return None
    from fuse.fused_bridges import open_bridge  # which needs numpy

    return open_bridge(loaded, number, entry, donor, config, host)


def _check_place(loaded: LoadedRecipe, number: int, name: str, branches: Sequence[FusedBranch]) -> None:
    """The name is one that may stand in paths, and no other graft or branch has it."""
    at: tuple[str | int, ...] = ("grafts", number)
    if wrong := mistake_in(name):
        raise loaded.error(at, f"a graft cannot be called {name!r}: {wrong}")
    if name in {branch.name for branch in branches}:
        raise loaded.error(at, f"{name!r} is the name of a branch", "give the graft a name")
    before = [entry.name or donor_of(loaded, i).kind for i, entry in enumerate(loaded.recipe.grafts[:number])]
    if name in before:
        raise loaded.error(at, f"{name!r} is the name of another graft", "give it a name of its own")


def _configured(loaded: LoadedRecipe, number: int, entry: Graft, donor: Donor) -> Mapping[str, Any]:
    """The donor's config with the recipe's options, checked against those of its kind."""
    known: Mapping[str, tuple[Any, ...]] = donor.files.OPTIONS
    for key, value in entry.options.items():
        at = ("grafts", number, key)
        if key not in known:
            keys = [*known, "name", "scale", "tower", "image", "fold", "bridge"]
            told = did_you_mean(key, keys) if near(key, keys) else f"it takes: {', '.join(keys)}"
            raise loaded.error(at, f"a graft of kind {donor.kind} has no {key} ({told})")
        if known[key] and value not in known[key]:
            raise loaded.error(at, f"{value!r} is not one of {', '.join(map(str, known[key]))}")
    try:
        return donor.files.configured(donor.config, entry.options)
    except ValueError as error:
        raise loaded.error(("grafts", number), str(error)) from None


def _check_tower(
    loaded: LoadedRecipe, number: int, name: str, donor: Donor, config: Mapping[str, Any],
    branches: Sequence[FusedBranch],
) -> None:  # fmt: skip
    """A graft with a part for a vision tower (`tower_of` of its kind) names a branch whose tower has its size."""
    entry, part = loaded.recipe.grafts[number], getattr(donor.files, "tower_of", lambda config: None)(config)
    if entry.tower is None:
        if part:
            hint = "`tower: BRANCH`" + ", or `parts: language` to leave it out" * ("parts" in donor.files.OPTIONS)
            raise loaded.error(("grafts", number), f"{name} has a part for a vision tower, and names no branch", hint)
        return
    if not part:
        raise loaded.error(("grafts", number, "tower"), f"{name} has no part for a vision tower")
    size = tower_size(next(branch.config for branch in branches if branch.name == entry.tower))
    if size and (why := donor.files.why_not_tower(config, *size)):
        raise CheckpointError(f"{name} cannot be grafted into the tower of {entry.tower}: it {why}", where=donor.folder)


def tower_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and layers of a branch's vision transformer, where its JSON tells them: an encoder's, or a member's."""
    tower = config.get("tower") or config.get("vision_config") or {}
    told = tower.get("vision_cfg") or tower
    width, layers = told.get("hidden_size", told.get("width")), told.get("num_hidden_layers", told.get("layers"))
    return (width, layers) if type(width) is int and type(layers) is int else None


def _seen_by(donor: Donor, config: Mapping[str, Any], branches: Sequence[FusedBranch]) -> str | None:
    """The branch whose features a graft looks at: the first whose projector is of the donor's kind, else the first that
    the kind can look through (`why_no_image`), else the first.
    """
    kinds = [branch.config.get("projector") for branch in branches]
    mine = [b for b, p in zip(branches, kinds, strict=True) if isinstance(p, Mapping) and p.get("kind") == donor.kind]
    why_not = _looking(donor, config)
    able = [branch for branch in branches if why_not is None or not why_not(config, branch.config)]
    return (mine or able or list(branches))[0].name if branches else None


def _looking(donor: Donor, config: Mapping[str, Any]) -> Any:
    """`why_no_image` of the donor's kind; None where none of its grafts looks at images, or not this one (`looks`)."""
    looks = getattr(donor.files, "looks", lambda config: True)
    return getattr(donor.files, "why_no_image", None) if looks(config) else None


def _check_together(loaded: LoadedRecipe, number: int, grafts: Sequence[FusedGraft], host: Member) -> None:
    """No graft wants another host than one before it: what they change in its config (`host_settings`) is the same."""
    heard = [graft for graft in grafts if graft.scale != 0 and hasattr(graft.donor.files, "host_settings")]
    if not heard or heard[-1] is not grafts[-1]:
        return
    *others, new = [(graft.name, graft.donor.files.host_settings(graft.config, host.basis)) for graft in heard]
    for other in others:
        for key in {**new[1], **other[1]}:
            if new[1].get(key) != other[1].get(key):
                wants = [f"{name} needs {key} {told.get(key, f'of {host.name} itself')}" for name, told in (new, other)]
                told = f"{new[0]} and {other[0]} exclude each other: {', and '.join(wants)}"
                raise loaded.error(("grafts", number), told)


def graft_rows(grafts: Sequence[FusedGraft], dtype: str) -> list[Row]:
    """A row for every tensor of every graft, under `grafts.<name>.`; those that are made come last."""
    copied, made = [], []
    for graft in grafts:
        shapes = graft.donor.files.shapes(graft.config) if graft.joined or graft.turned else {}
        for key in graft.lender.places if not graft.joined else ():
            if key in graft.turned:
                continue
            entry = graft.donor.tensors[key]
            kept = dtype if dtype and entry.dtype in FLOAT_BYTES else entry.dtype
            source = Source(graft.lender.name, entry)
            copied.append(Row(graft.prefix + key, "copy", key, "graft", entry.shape, kept, (source,)))
        for key in graft.joined:
            if key in graft.turned:
                continue
            sources = donors(graft, (key,))
            fold = Fold(graft.name, graft.kind, graft.unfolded)
            kept = dtype or sources[0].tensor.dtype
            copied.append(Row(graft.prefix + key, "fold", key, "graft", tuple(shapes[key]), kept, sources, fold=fold))
        made += graft_turned(graft, dtype)
        for key, shape in graft.made.items():
            kept = dtype or next(iter(graft.donor.tensors.values())).dtype
            note = "fitted to both hosts" if graft.bridge and key in graft.bridge.shapes else "made from the host"
            how = making(graft.bridge) if graft.bridge else dict(graft.options)
            made.append(Row(graft.prefix + key, "make", key, "graft", shape, kept, (), parameters=how, note=note))
    return [*copied, *made]


def graft_json(graft: FusedGraft, ids: Mapping[str, int]) -> dict[str, Any]:
    """The graft's entry in config.json. ids: the row of every placeholder, by token."""
    return {
        "name": graft.name, "kind": graft.kind, "config": dict(graft.config), "scale": graft.scale,
        "tower": graft.tower, "image": graft.image, "tokens": dict(graft.tokens),
        "token_ids": {name: ids[graft.token(name)] for name in graft.tokens},
        **({"bridge": dict(graft.bridge.config)} if graft.bridge and not graft.bridge.folded else {}),
    }  # fmt: skip


def grafts_json(
    grafts: Sequence[FusedGraft], sources: Mapping[str, Mapping[str, str]], fits: Fits
) -> list[dict[str, Any]]:
    """The grafts as fuse.json states them: what each was cut from, the sha256 of its file, and of a bridge what it was
    fitted to and how well.
    """
    return [
        {
            "name": graft.name, "kind": graft.kind, "scale": graft.scale, "origin": graft.lender.origin,
            "host": {key: value for key, value in graft.donor.host.items() if key != "embedding"},
            "sha256": next(iter(sources[graft.lender.name].values()), ""),
            **({"bridge": bridge_json(graft, graft.bridge, sources, fits)} if graft.bridge else {}),
        }
        for graft in grafts
    ]  # fmt: skip
