"""May these members be mixed? Answered from configs, tokenizers and headers, before any weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuse import families
from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.sizes import counted
from fuse.vocabulary import Vocabulary

# Config values that decide what a weight means. The second group may be accepted by the recipe.
SAME = ("family", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size")
# keys of single families that decide it too, compared where both configs state them
STATED = ("logit_scale", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "no_rope_layers")
OF_LAYERS = ("layers", "no_rope_layers")  # of these, what may differ where layers are stacked
# keys of a vision config that change no result
NOT_COMPUTED = {
    "dtype", "torch_dtype", "_name_or_path", "transformers_version", "architectures", "initializer_range",
    "initializer_factor", "attention_dropout", "dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
}  # fmt: skip
ACCEPTABLE = ("norm_eps", "rope_theta", "rope_scaling", "activation")
# Share of the model's own vocabulary that may differ between members of one base (renamed reserved tokens): our choice.
CORE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Verdict:
    """One answer: what was asked, whether all members agree, and a sentence."""

    topic: str
    agrees: bool
    text: str


def judge(host: Member, others: Sequence[Member], accept: Sequence[str], *, stacked: bool = False) -> list[Verdict]:
    """Every verdict on mixing the language models of `others` into the host's.

    stacked: their layers are taken one by one, so that they may have another number of them.
    Raises CheckpointError where mixing would be meaningless: another base, another head, another vocabulary.
    """
    verdicts = [_basis(host, others, accept, OF_LAYERS if stacked else ()), _heads(host, others)]
    verdicts += [_vocabularies(host, others), _dtypes(host, others), _licences(host, others)]
    return verdicts


def judge_eyes(host: Member, others: Sequence[Member]) -> None:
    """Refuse to merge encoders and projectors that compute differently: CheckpointError names the config value.

    Only values that both configs state are compared; shapes are compared tensor by tensor.
    """
    for other in others:
        if other.family.model_type != host.family.model_type:
            raise CheckpointError(
                f"the encoders of {host.name} ({host.family.model_type}) and {other.name} ({other.family.model_type}) "
                "are of two classes and cannot be merged", where=other.folder / "config.json",
            )  # fmt: skip
        mine, theirs = _eye_values(host), _eye_values(other)
        for key in sorted(mine.keys() & theirs.keys()):
            if mine[key] != theirs[key]:
                raise CheckpointError(
                    f"the encoders of {host.name} and {other.name} cannot be merged: {key} is {_show(mine[key])} in "
                    f"{host.name} and {_show(theirs[key])} in {other.name}", where=other.folder / "config.json",
                )  # fmt: skip


def _eye_values(member: Member) -> dict[str, Any]:
    """What the config says of encoder and projector, by dotted key."""
    config = member.checkpoint.config
    inner = [key for key in (member.family.vision, "qformer_config", "perceiver_config") if key]
    found = {k: v for k, v in config.items() if k.startswith(("vision_feature", "mm_", "projector_", "downsample"))}
    for key in inner:
        value = config.get(key)
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
    return {k: v for k, v in found.items() if v is not None and k.rpartition(".")[2] not in NOT_COMPUTED}


def _basis(host: Member, others: Sequence[Member], accept: Sequence[str], free: Sequence[str]) -> Verdict:
    accepted = []
    for other in others:
        for field in (field for field in SAME + ACCEPTABLE if field not in free):
            mine, theirs = getattr(host.basis, field), getattr(other.basis, field)
            if mine == theirs:
                continue
            if field in accept:
                accepted.append(f"{field} {_show(theirs)} in {other.name}")
                continue
            hint = "members of one base agree in this"
            if field in ACCEPTABLE:
                hint += f"; `accept: [{field}]` under language goes on with the host's value"
            raise CheckpointError(
                f"{host.name} and {other.name} are not of one base: {field} is {_show(mine)} in {host.name} "
                f"and {_show(theirs)} in {other.name}",
                where=other.folder / "config.json",
                hint=hint,
            )
        _check_stated(host, other, free)
    basis = host.basis
    depth, heads = counted(basis.layers, "layer"), f"{basis.heads}/{basis.kv_heads} heads"
    text = f"{basis.family}, {depth}, hidden {basis.hidden_size}, {heads}"
    if accepted:
        text += f"; accepted although it differs from {host.name}: {', '.join(accepted)}"
    return Verdict("same architecture", not accepted, text)


def _check_stated(host: Member, other: Member, free: Sequence[str]) -> None:
    mine, theirs = (families.text_config(m.checkpoint.config, m.family, str(m.folder)) for m in (host, other))
    for key in STATED:
        if key not in free and key in mine and key in theirs and mine[key] != theirs[key]:
            raise CheckpointError(
                f"{host.name} and {other.name} are not of one base: {key} is {_show(mine[key])} in {host.name} "
                f"and {_show(theirs[key])} in {other.name}",
                where=other.folder / "config.json",
                hint="members of one base agree in this",
            )


def _show(value: object) -> str:
    return str(value) if value != "" else "none"


def _heads(host: Member, others: Sequence[Member]) -> Verdict:
    untied = [m.name for m in others if not m.is_tied]
    if host.is_tied and untied:
        raise CheckpointError(
            f"{untied[0]} stores an output head, {host.name} uses its embedding as head",
            where=host.folder / "config.json",
            hint="name the member with a head as `output.host`",
        )
    tied = [m.name for m in others if m.is_tied]
    if tied and not host.is_tied:
        return Verdict("output head", False, f"of its own; {', '.join(tied)} lend their embedding as head")
    return Verdict("output head", True, "the embedding (tied)" if host.is_tied else "of its own in every member")


def _vocabularies(host: Member, others: Sequence[Member]) -> Verdict:
    if host.vocabulary is None or any(m.vocabulary is None for m in others):
        names = [m.name for m in (host, *others) if m.vocabulary is None]
        return Verdict("tokens", False, f"unknown: no tokenizer in {', '.join(names)}")
    notes = []
    for other in others:
        assert other.vocabulary is not None
        if other.vocabulary.digest == host.vocabulary.digest:
            continue
        check_core(host, host.vocabulary, other, other.vocabulary)
        notes.append(_difference(host, host.vocabulary, other, other.vocabulary))
    rows = {m.name: m.language[m.text.embedding].shape[0] for m in (host, *others)}
    if len(set(rows.values())) > 1:
        notes.append("stored rows " + ", ".join(f"{name} {n:,}" for name, n in rows.items()))
    same = f"{len(host.vocabulary.ids):,} tokens, the same ids in every member"
    return Verdict("tokens", not notes, "; ".join(notes) if notes else same)


def check_core(host: Member, mine: Vocabulary, other: Member, theirs: Vocabulary) -> None:
    """Refuse a vocabulary that cannot come from the same base: the model's own tokens at other ids."""
    core, size = [t for t in mine.ids if t not in mine.added], theirs.size
    wrong = [t for t in core if theirs.ids.get(t) != mine.ids[t] and mine.ids[t] < size]
    if len(wrong) > CORE_TOLERANCE * max(len(core), 1):
        row = mine.ids[wrong[0]]
        their_token = next((t for t, i in theirs.ids.items() if i == row), None)
        raise CheckpointError(
            f"{host.name} and {other.name} have different vocabularies ({len(mine.ids):,} and {len(theirs.ids):,} "
            f"tokens): id {row} is {wrong[0]!r} in {host.name} and {their_token!r} in {other.name}, "
            f"and {len(wrong):,} tokens of the model's own differ",
            where=other.folder / theirs.source,
            hint="members of one base share its tokens",
        )


def _difference(host: Member, mine: Vocabulary, other: Member, theirs: Vocabulary) -> str:
    moved = sum(theirs.ids.get(t, i) != i for t, i in mine.ids.items())
    only_mine = sum(t not in theirs.ids for t in mine.ids)
    only_theirs = sum(t not in mine.ids for t in theirs.ids)
    more = f"{other.name} has {counted(only_theirs, 'token')} more than {host.name}"
    return f"{more}, {only_mine:,} fewer, {moved:,} at other ids"


def _dtypes(host: Member, others: Sequence[Member]) -> Verdict:
    dtypes = {m.name: m.language[m.text.embedding].dtype for m in (host, *others)}
    if len(set(dtypes.values())) == 1:
        return Verdict("dtype", True, next(iter(dtypes.values())))
    return Verdict("dtype", False, ", ".join(f"{n} {d}" for n, d in dtypes.items()))


def _licences(host: Member, others: Sequence[Member]) -> Verdict:
    licences = {m.name: m.licence or "not stated" for m in (host, *others)}
    if len(set(licences.values())) == 1:
        return Verdict("licence", True, next(iter(licences.values())))
    return Verdict("licence", False, ", ".join(f"{n} {v}" for n, v in licences.items()))
