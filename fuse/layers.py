"""Decoders stacked from ranges of the members' layers (`language.layers`): what each layer is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fuse.anatomy import Member
from fuse.families.basis import MAX_LAYERS
from fuse.methods.table import METHODS
from fuse.parameters import LAYER, Parameters, layer_position
from fuse.recipe_merge import PARAMETERS
from fuse.recipe_yaml import LoadedRecipe
from fuse.safetensors_header import TensorEntry
from fuse.sizes import counted
from fuse.suggest import did_you_mean
from fuse.tensor_rows import check_count
from fuse.verdicts import Verdict

PATH = ("language", "layers")
# language models that are no one stack of layers alike, by the name of their table
NO_STACK = {
    "t5": "has an encoder and a decoder, and `layers` stacks one decoder",
    "mllama": "reads images in some of its layers, which cannot stand elsewhere",
}


@dataclass(frozen=True)
class Stack:
    """The decoder of the output.

    prefix: what stands before a layer's number in canonical names. layers: of each layer of the output, the member's
    layer that it is made of, by member in the order of the recipe. entries: the number of the recipe's entry, by layer.
    """

    prefix: str
    layers: tuple[Mapping[str, int], ...]
    entries: tuple[int, ...]

    def sources(self, canonical: str) -> dict[str, str]:
        """Who gives a tensor of the output, and under which name.

        What stands before the layers is made from the members of the first entry, what stands behind them from those of
        the last, as mergekit does.
        """
        if match := LAYER.match(canonical):
            rest = canonical[match.end() :]
            return {name: f"{self.prefix}{n}.{rest}" for name, n in self.layers[int(match[2])].items()}
        return dict.fromkeys(self.layers[0 if layer_position(canonical, {}) == 0 else -1], canonical)

    def is_in_place(self, member: Member) -> bool:
        """Every layer stands where it came from, and there are as many as the member has."""
        there = all(n == number for number, layer in enumerate(self.layers) for n in layer.values())
        return there and len(self.layers) == member.basis.layers

    def why_left_out(self, member: str, canonical: str) -> str:
        """Why nothing of the output is made of this tensor of a member or of the base; "" where something should be."""
        mine = [layer[member] for layer in self.layers if member in layer]
        if match := LAYER.match(canonical):
            taken = mine or [n for layer in self.layers for n in layer.values()]  # the base's are the members' numbers
            return "" if int(match[2]) in taken else f"layer {match[2]} of {member} is not among the layers"
        if not mine or member in self.sources(canonical):
            return ""
        where = "before" if layer_position(canonical, {}) == 0 else "behind"
        owners = " and ".join(f"{name}'s" for name in self.sources(canonical))
        return f"what stands {where} the layers is {owners}"


def stacked_members(loaded: LoadedRecipe, members: Mapping[str, Member]) -> list[str]:
    """The members that the language model is made of: all of them where the recipe stacks no layers.

    Raises RecipeError where an entry names no member, or a parameter one that is in no entry.
    """
    entries = loaded.recipe.language.layers
    if entries is None:
        return list(members)
    for i, entry in enumerate(entries):
        if unknown := [name for name in entry if name not in members]:
            near = did_you_mean(unknown[0], members)
            raise loaded.error((*PATH, i, unknown[0]), f"is not a member ({near})")
    named = {name for entry in entries for name in entry}
    for field in PARAMETERS:
        value = loaded.recipe.language.given(field)
        for name in value if isinstance(value, dict) else ():
            if name in members and name not in named:
                raise loaded.error(("language", field, name), "is in no entry of layers")
    return [name for name in members if name in named]


def stack_of(
    loaded: LoadedRecipe, members: Mapping[str, Member], base: Member | None, host: Member, language: Parameters
) -> Stack | None:
    """What the recipe's `layers` come to; None where it has none. Raises RecipeError for an entry that cannot be."""
    entries = loaded.recipe.language.layers
    if entries is None:
        return None
    if host.text.name in NO_STACK:
        raise loaded.error(PATH, f"{host.name} ({host.text.name}) {NO_STACK[host.text.name]}")
    layers: list[dict[str, int]] = []
    numbers: list[int] = []
    for i, entry in enumerate(entries):
        _check(loaded, i, entry, members, base, language)
        ranges = {name: range(*entry[name]) for name in language.members if name in entry}
        layers += [dict(zip(ranges, one, strict=True)) for one in zip(*ranges.values(), strict=True)]
        numbers += [i] * (len(layers) - len(numbers))
    if len(layers) >= MAX_LAYERS:
        raise loaded.error(PATH, f"come to {len(layers):,} layers, and fuse reads up to {MAX_LAYERS - 1:,}")
    prefix = next(match[1] for name in host.language if (match := LAYER.match(name)))
    stack = Stack(prefix, tuple(layers), tuple(numbers))
    _check_host(loaded, stack, host)
    return stack


def _check(
    loaded: LoadedRecipe, number: int, entry: Mapping[str, Sequence[int]], members: Mapping[str, Member],
    base: Member | None, language: Parameters,
) -> None:  # fmt: skip
    at, merge = (*PATH, number), language.merge
    for name, (first, stop) in entry.items():
        if name not in language.members:
            raise loaded.error((*at, name), "has no weight")
        if stop > (depth := members[name].basis.layers):
            told = f"[{first}, {stop}] reaches beyond the {counted(depth, 'layer')} of {name}"
            raise loaded.error((*at, name), told, f"[{min(first, depth - 1)}, {depth}] ends with its last")
    lengths = {name: stop - first for name, (first, stop) in entry.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{counted(length, 'layer')} of {name}" for name, length in lengths.items())
        raise loaded.error(at, f"ranges that are merged have one length, and these are {told}")
    check_count(loaded, at, merge, len(entry))
    if METHODS[merge.method].base == "none" or base is None:
        return
    if len({tuple(one) for one in entry.values()}) > 1:
        told = f"{merge.method} takes the base's layers of the same numbers, and these ranges differ"
        raise loaded.error(at, told, "use a method without a base, or one range")
    if (stop := next(iter(entry.values()))[1]) > base.basis.layers:
        raise loaded.error(at, f"reaches beyond the {counted(base.basis.layers, 'layer')} of base")


def _check_host(loaded: LoadedRecipe, stack: Stack, host: Member) -> None:
    """RecipeError where something else of the output hangs on the numbers of the host's layers."""
    if stack.is_in_place(host):
        return
    if loaded.recipe.grafts:
        told = f"grafts are attached to the layers that {host.name} has, and `layers` stacks others"
        raise loaded.error(("grafts",), told, "merge the layers first, and graft onto that folder")
    if host.family.model_type == "qwen3_vl" and host.sees:
        told = f"{host.name} (qwen3_vl) adds image features behind its first layers (DeepStack), so they stay in place"
        raise loaded.error(PATH, told)


def output_tensors(host: Member, stack: Stack | None) -> list[tuple[str, str, TensorEntry]]:
    """Every tensor of the output's language model: its stored name, its canonical name, and the host's tensor like it.

    A layer that the host gives is like that one; another one is like the host's of its number, or like its last.
    """
    own = {
        place.canonical: (key, host.checkpoint.tensors[key])
        for key, place in host.places.items()
        if place is not None and place.part == "language"
    }
    if stack is None:
        return [(key, canonical, entry) for canonical, (key, entry) in own.items()]
    found = [(key, canonical, entry) for canonical, (key, entry) in own.items() if not LAYER.match(canonical)]
    zero = f"{stack.prefix}0."
    rests = [name.removeprefix(zero) for name in own if name.startswith(zero)]
    for number, layer in enumerate(stack.layers):
        like = layer.get(host.name, min(number, host.basis.layers - 1))
        for rest in rests:
            key, entry = own[f"{stack.prefix}{like}.{rest}"]
            key = f"{key.removesuffix(f'{like}.{rest}')}{number}.{rest}"
            found.append((key, f"{stack.prefix}{number}.{rest}", replace(entry, name=key)))
    return found


def layers_verdict(loaded: LoadedRecipe, stack: Stack) -> Verdict:
    """How many layers the output has, and whose."""
    entries = loaded.recipe.language.layers or []
    told = [" + ".join(f"{name} {first}-{stop - 1}" for name, (first, stop) in entry.items()) for entry in entries]
    return Verdict("layers", True, f"{len(stack.layers)} stacked: {', '.join(told)}")
