"""How near a merged folder is to the exact result, for tools/bench_merge.py: float64 in numpy, a few tensors.

The oracles are written from the formulas, apart from `fuse`: linear is the mean, task_arithmetic arXiv 2212.04089
section 2, ties 2306.01708 section 4 with each tensor trimmed by itself, slerp Shoemake's, model_stock 2403.19522
equation 7 with two members.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

Array = NDArray[np.float64]
Members = Mapping[str, Array]
GROUP = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "input_layernorm")  # of the layer in the middle
HALF_WAY = 1e-6  # of the spacing


def linear(x: Members, weights: Mapping[str, float]) -> Array:
    return sum((w * x[name] for name, w in weights.items()), np.float64(0)) / sum(weights.values())


def task_arithmetic(x: Members, weights: Mapping[str, float]) -> Array:
    return x["base"] + sum((w * (x[name] - x["base"]) for name, w in weights.items()), np.float64(0))


def slerp(x: Members, t: float) -> Array:
    a, b = x["a"], x["b"]
    cosine = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
    if abs(cosine) > 0.9995:  # both tools then take the straight line
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def ties(x: Members, weights: Mapping[str, float], density: float) -> Array:
    """NaN where a delta is as large as the last one kept, and where deltas cancel: neither is decided by the paper."""
    deltas, undecided = {}, np.zeros(x["base"].shape, bool)
    for name in weights:
        delta = x[name] - x["base"]
        size = np.abs(delta)
        place = size.size - max(1, int(density * size.size))
        least = np.partition(size, place)[place]
        undecided |= size == least
        deltas[name] = np.where(size >= least, delta, 0)
    total = sum(w * deltas[name] for name, w in weights.items())
    undecided |= (np.abs(total) < 1e-9) & (sum(map(np.abs, deltas.values())) > 0)
    sign = np.where(total >= 0, 1, -1)
    agree = {name: np.sign(delta) == sign for name, delta in deltas.items()}
    top = sum(w * deltas[name] * agree[name] for name, w in weights.items())
    share = sum(w * agree[name] for name, w in weights.items())
    return np.where(undecided, np.nan, x["base"] + top / np.where(share == 0, 1, share))


def model_stock(x: Members) -> Array:
    a, b = x["a"] - x["base"], x["b"] - x["base"]
    cosine = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
    t = 2 * cosine / (1 + cosine)
    return t * (x["a"] + x["b"]) / 2 + (1 - t) * x["base"]


ORACLES: dict[str, Callable[..., Array]] = {
    one.__name__: one for one in (linear, task_arithmetic, slerp, ties, model_stock)
}


def group(layers: int) -> list[str]:
    return [f"model.layers.{layers // 2}.{name}.weight" for name in GROUP]


def values(folder: Path, name: str) -> Array:
    """A tensor of a folder, flat."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                return opened.get_tensor(name).flatten().to(torch.float64).numpy()
    raise KeyError(name)


def spacing(number: Array) -> Array:
    """The distance of neighbouring bf16 numbers at a number's magnitude."""
    _, exponent = np.frexp(number)
    return np.ldexp(1.0, np.maximum(exponent, -125) - 8)


def accuracy(
    method: str, arguments: Mapping[str, Any], folder: Path, reads: tuple[str, ...], out: Path, layers: int
) -> dict[str, Any]:  # fmt: skip
    """An output beside the exact result, over the tensors of `group`.

    weights: how many were compared; not those whose exact result is undecided, or half way between two bf16 numbers,
    where the last bit of any arithmetic decides. wrong: the share that is not the exact result rounded to bf16.
    max, rms: of the error, in units of the spacing of bf16 numbers at the largest of the result and its inputs;
    rounding alone gives at most 0.5, and an rms of 0.29 where errors are spread evenly.
    """
    count = wrong = 0
    most = squares = 0.0
    for name in group(layers):
        inputs = {member: values(folder / member, name) for member in reads}
        exact, found = ORACLES[method](inputs, **arguments), values(out, name)
        unit = spacing(exact)
        keep = np.abs(np.abs(exact / unit) % 1 - 0.5) > HALF_WAY  # False for NaN
        largest = np.abs(np.stack([exact, *inputs.values()])).max(axis=0)[keep]
        exact, found, unit = exact[keep], found[keep], unit[keep]
        error = (found - exact) / spacing(largest)
        count += exact.size
        wrong += int(np.count_nonzero(found != np.rint(exact / unit) * unit))
        most, squares = max(most, float(np.abs(error).max(initial=0))), squares + float(error @ error)
    return {"weights": count, "wrong": wrong / count, "max": most, "rms": (squares / count) ** 0.5}
