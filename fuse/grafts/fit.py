"""Whether the grafts of a plan were cut from the host's basis: a verdict for the plan, or a refusal."""

from collections.abc import Sequence

from fuse.anatomy import Member
from fuse.errors import CheckpointError
from fuse.fused import FusedGraft
from fuse.grafts.basis import is_told, likeness, why_another_basis
from fuse.grafts.donor import JSON
from fuse.recipe_graft import Graft
from fuse.verdicts import Verdict

BRIDGE = "cut it from a fine-tune of the same base, or name a `bridge` on the graft"


def basis_verdict(grafts: Sequence[FusedGraft], entries: Sequence[Graft], host: Member) -> list[Verdict]:
    """One verdict on the bases of all grafts; none where there are none.

    Raises CheckpointError for a graft from another basis.
    """
    told, agrees = [], True
    for graft, entry in zip(grafts, entries, strict=True):
        record = graft.donor.host
        if entry.bridge is not None:
            told.append(f"{graft.name} crosses a bridge")
            continue
        if why := why_another_basis(record, host):
            raise CheckpointError(f"{graft.name}: {why}", where=graft.donor.folder / JSON, hint=BRIDGE)
        if is_told(record):
            told.append(f"{graft.name} {likeness(record['embedding'], host)[0]:.3f}")
        else:
            told.append(f"{graft.name} does not record its host's embedding, only sizes and norms were compared")
            agrees = False
    return [Verdict("basis of grafts", agrees, "; ".join(told))] if told else []
