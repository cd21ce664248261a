"""Where an answer looks: the attention of the generated tokens over every branch's visual tokens.

VisionFuse observes that members of one family attend to different regions for the same image and question (arXiv
2412.01289, first observation); `fuse.report.overlay` draws that figure. What is averaged is our choice. Numpy in, numpy
out: attentions may be torch tensors, but torch is not imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float64]
Attentions = Sequence[Sequence[Any]]  # generated token -> layer -> [batch, heads, queries, keys], as `generate` gives


def answer_attention(attentions: Attentions, prompt: int, *, row: int = 0) -> Map:
    """What the answer pays to each token of the prompt: float64 [prompt], a mean over generated tokens, layers, heads.

    attentions: `generate(..., output_attentions=True, return_dict_in_generate=True).attentions`, or what
    `fuse.report.watch.watching` kept of it. The query that counts is each step's last one: the one the next token is
    drawn from, so the first is the prompt's last token. Layers without attention (None) are left out. A key axis longer
    than the text so far (static cache) is cut at its end; a shorter one (sliding window) holds the latest tokens. The
    sum is at most 1: the rest went to the answer itself.
    """
    total, count = np.zeros(prompt), 0
    for step, layers in enumerate(attentions):
        for layer in layers:
            if layer is None:
                continue
            total += _on_prompt(_mean_over_heads(layer, row), prompt, step)
            count += 1
    if not count:
        raise ValueError("no attentions: the model must run with attn_implementation eager and output_attentions=True")
    return total / count


def _mean_over_heads(layer: Any, row: int) -> Map:
    last = layer[row, :, -1, :]
    last = last.detach().float().cpu().numpy() if hasattr(last, "detach") else last
    return np.asarray(last, dtype=np.float64).mean(0)


def _on_prompt(keys: Map, prompt: int, step: int) -> Map:
    written = prompt + step
    hidden = max(0, written - len(keys))  # tokens before the window
    seen = keys[: written - hidden]
    return np.concatenate([np.zeros(hidden), seen])[:prompt]


def attention_shares(paid: Map, input_ids: Sequence[int], tokens: Mapping[str, int]) -> dict[str, float]:
    """The part of the answer's attention that goes to each branch, over all images.

    paid: from `answer_attention`. input_ids: [n], the prompt. tokens: branch name -> the id of its placeholder.
    """
    ids = np.asarray(input_ids)
    return {name: float(paid[ids == token].sum()) for name, token in tokens.items()}
