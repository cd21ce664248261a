"""What language models make of visual tokens, added to the document of a comparison of encoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from fuse.align.encoders.pair import Drawn, matrices, measured, space_between
from fuse.align.features.llm import language_states
from fuse.align.features.open import Encoder
from fuse.align.measures.cka.linear import LinearCKA
from fuse.progress import count_progress

NO_LANGUAGE = "has no language model"


class Wanted(Protocol):
    """How the language models are run: `fuse.align.encoders.compare.Options`."""

    @property
    def limit(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def shown(self) -> bool: ...
    @property
    def device(self) -> str: ...


def add_llm(
    document: dict[str, Any], encoders: Mapping[str, Encoder], files: Sequence[Path], texts: Sequence[str], how: Wanted
) -> None:
    """Fill `llm` of members and pairs. One language model is loaded at a time.

    files: images that can be read; of more than `limit` every second, third ... is asked about. A sample is an image:
    the mean of its visual tokens. Hidden states of an image behind every block of both sides are compared, and the
    table's other measures are taken behind the last.
    """
    step = -(-len(files) // how.limit)
    files = files[::step]
    hosts: dict[Path, str] = {}
    for name, encoder in encoders.items():
        if encoder.host:
            hosts.setdefault(encoder.host, name)
    states: dict[Path, dict[str, torch.Tensor]] = {}
    for host, name in hosts.items():
        with count_progress(len(files), f"language model of {name}", "images", shown=how.shown) as done:
            states[host] = language_states(host, files, texts, batch=how.batch, done=done, device=how.device)
    found: dict[str, torch.Tensor] = {}
    for name, encoder in encoders.items():
        if encoder.host:
            branch = encoder.branch["name"] if encoder.branch["name"] in states[encoder.host] else ""
            found[name] = states[encoder.host][branch]
            count, images, width = found[name].shape
            document["members"][name]["llm"] = {"blocks": count, "width": width, "images": images}
    for pair in document["pairs"]:
        pair["llm"] = _pair(pair["a"], pair["b"], found, encoders)


def _pair(a: str, b: str, states: Mapping[str, torch.Tensor], encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    without = [name for name in (a, b) if name not in states]
    if without:
        return {"unmeasured": {"cka": f"{' and '.join(without)} {NO_LANGUAGE}"}}
    first, second = states[a], states[b]
    cka = LinearCKA(first.shape[1])
    cka.add(list(first), list(second))
    layers = matrices(cka, (a, b), (list(range(len(first))), list(range(len(second)))))
    last = [Drawn(one[-1], one[-1]) for one in (first, second)]
    _, no_space = space_between((encoders[a].words, encoders[b].words), (first.shape[-1], second.shape[-1]), (a, b))
    told = measured(last[0], last[1], (a, b), no_space)
    if "unmeasured" in layers:
        return {**told, "layers": layers, "unmeasured": {"cka": layers["unmeasured"], **told["unmeasured"]}}
    streamed = {"cka": layers["unbiased"][-1][-1], "cka_biased": layers["biased"][-1][-1]}
    return {**told, "layers": layers, "values": {**streamed, **told["values"]}}
