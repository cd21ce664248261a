"""Rows of routers that no training made: from prompts (mergekit-moe's hidden gate) and from the matrices (Arrow).

Both give row 0 to the memory and row 1 to the MLP. They are made once, when the host's weights are known, and are saved
with the graft.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fuse.families import Basis
from fuse.grafts.lora_files import TRANSPOSED
from fuse.grafts.lora_names import stored
from fuse.grafts.mks2 import OwnNorm
from fuse.grafts.mks2_files import blocks_of, check_prompts, checked, is_gated
from fuse.grafts.slots import slots_of

Tensors = Mapping[str, torch.Tensor]
BLOCK = 8  # columns of the subspace that is iterated for the top singular vector


def make_rows(
    config: Mapping[str, Any], options: Mapping[str, Any], tensors: Tensors, host: Basis,
    read: Callable[[str], torch.Tensor], load: Callable[[], tuple[Any, Any]],
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The tensors that `mks2_files.made` names, in float32.

    config: what `mks2_files.configured` gave. options: the recipe's, for `prompts`. tensors: the memory's, by their
    names in graft.safetensors. read: canonical name -> tensor of the host that the output runs on. load: gives its
    language model (or the fused model) and tokenizer; called for `prompts` alone. Raises ValueError with a sentence for
    prompts that tell nothing apart.
    """
    config = checked(config)
    layers = config["layers"]
    if config["router"] == "arrow":
        blocks = blocks_of(host)
        rows = [arrow_rows(memory_matrix(tensors, n), host_matrix(host, read, *blocks[n])) for n in layers]
        return {f"layers.{n}.rows.weight": row.float() for n, row in zip(layers, rows, strict=True)}
    check_prompts(options.get("prompts"))
    positive, negative = options["prompts"]["positive"], options["prompts"]["negative"]
    model, tokenizer = load()
    norms = {n: _own_norm(config, tensors, n) for n in layers} if config["norm"] != "host" else {}
    weight, bias = prompt_rows(model, tokenizer, positive, negative, layers, norms)
    found = {f"layers.{n}.rows.weight": weight[i].float() for i, n in enumerate(layers)}
    return found | {f"layers.{n}.rows.bias": bias[i].float() for i, n in enumerate(layers)}


def prompt_rows(
    model: Any, tokenizer: Any, positive: Sequence[str], negative: Sequence[str], layers: Sequence[int],
    norms: Mapping[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Router rows [n, 2, d] and biases [n, 2] of n blocks, float64, from what their MLPs read at prompts.

    As mergekit-moe's `gate_mode: hidden`: an expert's row is the mean over its positive prompts minus that over its
    negative ones, of unit length; the MLP's positive prompts are the memory's negative ones, so its row is the other's
    opposite. The mean over a prompt's tokens, and the biases that put the middle between the two means at equal shares,
    are our choice: without them what all prompts have in common would decide.

    model: a language model, or a fused one. norms: of memories that read the residual behind a norm of their own.
    Raises ValueError for a prompt without tokens, and where the two means are one.
    """
    wanted = [means_of(model, tokenizer, texts, layers, norms or {}) for texts in (positive, negative)]
    apart, middle = wanted[0] - wanted[1], (wanted[0] + wanted[1]) / 2  # [n, d]
    length = apart.norm(dim=-1, keepdim=True)
    if not bool((length > 1e-6 * middle.norm(dim=-1, keepdim=True)).all()):
        raise ValueError("positive and negative prompts look the same to the host")
    rows = apart / length
    bias = -(rows * middle).sum(-1)
    return torch.stack([rows, -rows], 1), torch.stack([bias, -bias], 1)


@torch.no_grad()
def means_of(
    model: Any, tokenizer: Any, texts: Sequence[str], layers: Sequence[int],
    norms: Mapping[int, Callable[[torch.Tensor], torch.Tensor]],
) -> torch.Tensor:  # fmt: skip
    """The mean over texts, of the mean over a text's tokens, of what memories read: float64 [n, d].

    An encoder-decoder reads each text in its encoder, and its decoder the token that it starts with.
    """
    language = model.language_model if getattr(model.config, "model_type", "") == "fuse" else model
    slots = slots_of(language)
    blocks = [(stack, number) for stack in slots.values() for number in range(stack.layers)]
    sums = {number: torch.zeros((), dtype=torch.float64) for number in layers}

    def keep(number: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def look(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            seen = norms[number](x) if number in norms else x
            sums[number] = sums[number] + seen.double().mean((0, 1)).cpu()
            return y

        return look

    try:
        for number in layers:
            stack, index = blocks[number]
            (stack.ffn_residual if number in norms else stack.ffn)(index, keep(number))
        for text in texts:
            _run(language, tokenizer, text)
    finally:
        for stack in slots.values():
            stack.remove()
    return torch.stack([sums[number] for number in layers]) / len(texts)


def _run(language: Any, tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, return_tensors="pt")["input_ids"].to(language.get_input_embeddings().weight.device)
    if not ids.numel():
        raise ValueError(f"prompt {text!r} has no tokens")
    begins = {}
    if language.config.is_encoder_decoder:
        begins = {"decoder_input_ids": ids.new_full((1, 1), language.config.decoder_start_token_id)}
    language(input_ids=ids, use_cache=False, **begins)


def arrow_rows(memory: torch.Tensor, mlp: torch.Tensor) -> torch.Tensor:
    """Prototypes of memory and MLP, [2, d] in float64.

    memory, mlp: [any, d], all that each does with its input first. Arrow takes the top right singular vector of a
    LoRA's product; that it is taken of the input matrices, gate and up one above the other, is our choice.
    """
    return torch.stack([top_direction(memory), top_direction(mlp)])


def top_direction(matrix: torch.Tensor) -> torch.Tensor:
    """The unit vector that a matrix [n, d] stretches most, float64 [d], its largest entry positive.

    By subspace iteration from a fixed start: hundreds of times faster than a whole decomposition at the sizes of LLMs.
    """
    matrix = matrix.double()
    start = torch.randn(matrix.shape[1], min(BLOCK, *matrix.shape), generator=torch.Generator().manual_seed(0)).double()
    held, before, found = torch.linalg.qr(start)[0], start[:, 0], start[:, 0]
    for _ in range(1000):
        held = torch.linalg.qr(matrix.T @ (matrix @ held))[0]
        _, sizes, turned = torch.linalg.svd(matrix @ held, full_matrices=False)
        found = held @ turned[0]
        if (found - before).norm() < 1e-9 or (found + before).norm() < 1e-9 or not sizes[0]:
            break
        before = found
    return found * found[found.abs().argmax()].sign()


def memory_matrix(tensors: Tensors, number: int) -> torch.Tensor:
    """[h or 2 h, d]: a memory's gate and up, one above the other."""
    names = [f"layers.{number}.{name}.weight" for name in ("gate", "up")]
    return torch.cat([tensors[name].double() for name in names if name in tensors])


def host_matrix(host: Basis, read: Callable[[str], torch.Tensor], stack: str, number: int) -> torch.Tensor:
    """[F or 2 F, d]: the gate and up of the host's MLP in one block, one above the other."""
    found = []
    for part in ("gate", "up") if is_gated(host) else ("up",):
        name, (begin, end) = stored(host, stack, number, part)
        weight = read(name).double()
        found.append((weight.T if host.family in TRANSPOSED else weight)[begin:end])
    return torch.cat(found)


def _own_norm(config: Mapping[str, Any], tensors: Tensors, number: int) -> OwnNorm:
    norm = OwnNorm(config["norm"], config["hidden_size"], config["norm_eps"])
    prefix = f"layers.{number}.norm."
    norm.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    return norm
