"""May these members be mixed? Answered from configs, tokenizers and headers, before any weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.vocabulary import Vocabulary

# Config values that decide what a weight means. The second group may be accepted by the recipe.
SAME = ("family", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size")
ACCEPTABLE = ("norm_eps", "rope_theta", "rope_scaling", "activation")
# Share of the model's own vocabulary that may differ between members of one base (renamed reserved tokens): our choice.
CORE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Verdict:
    """One answer: what was asked, whether all members agree, and a sentence."""

    topic: str
    agrees: bool
    text: str


def judge(host: Member, others: Sequence[Member], accept: Sequence[str]) -> list[Verdict]:
    """Every verdict on mixing the language models of `others` into the host's.

    Raises CheckpointError where mixing would be meaningless: another base, another head, another vocabulary.
    """
    verdicts = [_basis(host, others, accept), _heads(host, others), _vocabularies(host, others)]
    verdicts += [_templates(host, others), _dtypes(host, others), _licences(host, others)]
    return verdicts


def _basis(host: Member, others: Sequence[Member], accept: Sequence[str]) -> Verdict:
    accepted = []
    for other in others:
        for field in SAME + ACCEPTABLE:
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
    basis = host.basis
    text = f"{basis.family}, {basis.layers} layers, hidden {basis.hidden_size}, {basis.heads}/{basis.kv_heads} heads"
    if accepted:
        text += f"; accepted although it differs from {host.name}: {', '.join(accepted)}"
    return Verdict("same base", not accepted, text)


def _show(value: object) -> str:
    return str(value) if value != "" else "none"


def _heads(host: Member, others: Sequence[Member]) -> Verdict:
    untied = [m.name for m in others if not m.is_tied]
    if host.is_tied and untied:
        raise CheckpointError(
            f"{untied[0]} has an output head of its own, {host.name} uses its embedding as head",
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
        _check_core(host, host.vocabulary, other, other.vocabulary)
        notes.append(_difference(host.vocabulary, other.name, other.vocabulary))
    rows = {m.name: m.language[m.text.embedding].shape[0] for m in (host, *others)}
    if len(set(rows.values())) > 1:
        notes.append("stored rows " + ", ".join(f"{name} {n:,}" for name, n in rows.items()))
    same = f"{len(host.vocabulary.ids):,} tokens, the same ids in every member"
    return Verdict("tokens", not notes, "; ".join(notes) if notes else same)


def _check_core(host: Member, mine: Vocabulary, other: Member, theirs: Vocabulary) -> None:
    """Refuse a vocabulary that cannot come from the same base: the model's own tokens at other ids."""
    core = [t for t in mine.ids if t not in mine.added]
    wrong = [t for t in core if theirs.ids.get(t) != mine.ids[t] and mine.ids[t] < theirs.size]
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


def _difference(mine: Vocabulary, name: str, theirs: Vocabulary) -> str:
    moved = sum(theirs.ids.get(t, i) != i for t, i in mine.ids.items())
    only_mine = sum(t not in theirs.ids for t in mine.ids)
    only_theirs = sum(t not in mine.ids for t in theirs.ids)
    return f"{name}: {only_theirs} tokens more, {only_mine} fewer, {moved} at other ids"


def _templates(host: Member, others: Sequence[Member]) -> Verdict:
    have = [m for m in others if m.vocabulary and m.vocabulary.template]
    mine = host.vocabulary.template if host.vocabulary else ""
    differ = [m.name for m in have if m.vocabulary and m.vocabulary.template != mine]
    if differ:
        return Verdict("chat template", False, f"{', '.join(differ)} differ from {host.name}")
    return Verdict("chat template", True, "the same wherever there is one" if mine else "none")


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
