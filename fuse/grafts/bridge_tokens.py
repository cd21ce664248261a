"""The map between the input embeddings of two language models, from words that both know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fuse import families
from fuse.anatomy import Member
from fuse.engine.read import Reader
from fuse.errors import CheckpointError
from fuse.fused import Fit
from fuse.grafts.bridge_files import EMBEDDING
from fuse.grafts.bridge_fit import Bridge, fit, fits, held_out, shared_rows
from fuse.grafts.bridge_states import same_words
from fuse.plan import Source

LEAST_ROWS = 10  # embeddings without as many shared tokens say nothing


@dataclass(frozen=True)
class Words:
    """What a language model reads for a token. rows: ids [n] -> [n, width]. count: how many rows there are."""

    tokenizer: Any
    rows: Callable[[torch.Tensor], torch.Tensor]
    count: int

    @property
    def tokens(self) -> list[tuple[str, int]]:
        return [(token, row) for token, row in self.tokenizer.get_vocab().items() if row < self.count]


def of_embeddings(method: str, donor: Words, host: Words, texts: Sequence[str] = ()) -> tuple[Bridge, Fit]:
    """The map, and how well it fits every fifth pair of tokens, which is held out.

    A pair is a token that both vocabularies have; where texts are given, two tokens that stand for the same characters
    of them, each pair once (our choice: the map is fitted to the words that matter). method: `ridge`, or an orthogonal
    map for all others. Raises CheckpointError where there are fewer than ten pairs.
    """
    if texts:
        pairs = same_words(donor.tokenizer, host.tokenizer, texts)
        rows = [a for a, b in pairs if b < host.count], [b for _, b in pairs if b < host.count]
    else:
        rows = shared_rows(donor.tokens, host.tokens)
    if len(rows[0]) < LEAST_ROWS:
        where = " in the texts" if texts else ""
        raise CheckpointError(f"the two vocabularies share {len(rows[0])} tokens{where}, which fit no bridge")
    y, x = (one.rows(torch.tensor(ids)).detach().cpu() for one, ids in zip((donor, host), rows, strict=True))
    test = held_out(torch.arange(len(y)))
    own = fit(y[~test], x[~test], "ridge" if method == "ridge" else "procrustes")
    return own, Fit(EMBEDDING, *fits(own, y[test], x[test]), int((~test).sum()))


def made_of_tokens(
    bridge: Mapping[str, Any], donor: Words, host: Words, texts: Sequence[str]
) -> tuple[dict[str, torch.Tensor], Fit]:
    """The tensors of a bridge of `bridge_fold_files.token_bridge`, in float64, and how well its map fits."""
    texts = () if bridge["method"] == "embedding" else texts
    own, how = of_embeddings(bridge["method"], donor, host, texts)
    return named(EMBEDDING, own), how


def named(name: str, own: Bridge) -> dict[str, torch.Tensor]:
    """The tensors of one map, as `bridge_files.shapes` calls them."""
    size = {} if own.size is None else {"size": torch.tensor([own.size], dtype=torch.float64)}
    tensors = {"down": own.down, "offset": own.offset, "up": own.up, "up_offset": own.up_offset, **size}
    return {f"bridge.{name}.{key}": tensor for key, tensor in tensors.items()}


def words_of(member: Member, reader: Reader) -> Words:
    """The words of a member, of which only the embedding is read."""
    from transformers import AutoTokenizer

    table = reader.tensor(Source.of(member, member.language[member.text.embedding]))
    return of_table(table, member, AutoTokenizer.from_pretrained(member.folder, trust_remote_code=False))


def of_table(table: torch.Tensor, member: Member, tokenizer: Any) -> Words:
    """The words of a stored embedding [V, width] of a language model like the member's."""
    kind = families.text_type_of(member.checkpoint.config, member.family, str(member.folder))
    loud = table.shape[1] ** 0.5 if kind.startswith("gemma") else 1.0  # Gemma reads its rows times as much
    return Words(
        tokenizer, lambda ids: table[ids].to(torch.promote_types(table.dtype, torch.float32)) * loud, len(table)
    )
