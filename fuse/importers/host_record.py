"""What a donor folder records of the language model that it was cut from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse import families
from fuse.anatomy import Member, open_member
from fuse.errors import CheckpointError
from fuse.importers import Piece

LAYER_NORMS = {"gpt2", "opt", "cohere", "cohere2"}  # families of language models; the others have RMSNorm


def open_host(folder: Path) -> Member:
    """The folder of `--host`. Errors as `open_member` raises them."""
    return open_member(folder.name, str(folder), revision=None, relative_to=None)


def host_config(host: Member) -> Mapping[str, Any]:
    """Its config.json, or the text config inside."""
    return families.text_config(host.checkpoint.config, host.family, str(host.folder))


def host_record(piece: Piece, host: Member | None) -> dict[str, Any]:
    """The `host` of graft.json and projector.json.

    Without a host folder, what the file itself tells, and no embedding: then nobody can tell whether another language
    model has the same basis. Raises CheckpointError where the file and the folder do not agree.
    """
    known = {key: piece.host.get(key, piece.config.get(key)) for key in ("hidden_size", "layers")}
    if host is None:
        told = {"model": "", "model_type": piece.host.get("model_type", ""), **known}
        return told | {"norm": piece.host.get("norm"), "norm_eps": piece.host.get("norm_eps"), "embedding": None}
    from fuse.grafts.basis import fingerprint

    where = str(host.folder)
    kind = families.text_type_of(host.checkpoint.config, host.family, where)
    found = {"hidden_size": host.basis.hidden_size, "layers": host.basis.layers}
    for key, value in known.items():
        if value is not None and value != found[key]:
            raise CheckpointError(f"{key} is {found[key]}, and the imported file was made for {value}", where=where)
    return {
        "model": host.name, "model_type": kind, **found,
        "norm": "layer" if host.text.name in LAYER_NORMS else "rms", "norm_eps": host.basis.norm_eps,
        "embedding": fingerprint(host),
    }  # fmt: skip
