"""Trains the adapters of the experiment with pretrained weights: a projector and a low-rank delta for each encoder.

    python tools/real_parts.py build/packages build/real
    python tools/train_real_parts.py build/real dino
    python tools/train_real_parts.py build/real lite

Encoder and LLM stay as they are. What the encoder gives is computed once for a few views of every training picture,
and kept in PARTS/features. One thread and fixed seeds: one machine writes the same adapter again.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import click
import torch
from PIL import Image
from real_emoji import GROUP_ASK, NAME_ASK, TRAINED_ARTWORK, Emoji, read_emoji, trained
from real_members import ENCODERS, LAYER
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_demo_members import LowRank, norm

VIEWS, BATCH, RANK = 3, 16, 4
STEPS = {"dino": 440, "lite": 600}  # under 20 minutes each on one core with AMX
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MIDDLE = {"dino": 576, "lite": 384}  # the projector's inner width: LLaVA's is the LLM's; a narrow one weighs less
PROJECTOR_RATE, DELTA_RATE = 2e-3, 4e-4
ADAPTERS = Path(__file__).parent.parent / "recipes" / "real"
UNSEEN = -100


def view(image: Image.Image, number: int, random: Random) -> Image.Image:
    """The picture itself, and for number > 0 one moved and scaled by up to an eighth on white."""
    if number == 0:
        return image
    side = image.width
    new = round(side * random.uniform(0.8, 1.0))
    canvas = Image.new("RGB", image.size, "white")
    at = random.randint(0, side - new), random.randint(0, side - new)
    canvas.paste(image.resize((new, new), Image.Resampling.BICUBIC), at)
    return canvas


def eyes_of(name: str, parts: Path) -> Any:
    """A function from RGB images to an encoder's patch tokens [B, n, width] in float32.

    The weights are rounded to bf16, as members hold them: that moves EfficientNet's tokens by 8%.
    """
    if name == "dino":
        from transformers import AutoImageProcessor, Dinov2Model

        tower, prepare = (
            Dinov2Model.from_pretrained(parts / name, dtype=torch.bfloat16).float().eval(),
            AutoImageProcessor.from_pretrained(parts / name),
        )

        def look(images: Sequence[Image.Image]) -> Tensor:
            pixels = prepare(images=list(images), return_tensors="pt")["pixel_values"]
            return tower(pixels, output_hidden_states=True).hidden_states[LAYER][:, 1:]

        return look
    from timm import create_model
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    model = create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(parts / name / "model.safetensors"))
    model.bfloat16().float()
    told = json.loads((parts / name / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    transform: Any = create_transform(**resolve_data_config(pretrained_cfg=told))
    return lambda images: model.forward_features(torch.stack([transform(i) for i in images])).flatten(2).mT


@torch.inference_mode()
def features(name: str, parts: Path, emoji: Sequence[Emoji]) -> Tensor:
    """What the encoder gives of VIEWS views of every emoji: bfloat16 [emoji, VIEWS, n, width]; kept in a file."""
    file = parts / "features" / f"{name}.safetensors"
    if file.exists():
        return load_file(file)["features"]
    look, random, found = eyes_of(name, parts), Random("views"), []
    for begin in range(0, len(emoji), 16):
        images = [Image.open(parts / one.picture(TRAINED_ARTWORK)).convert("RGB") for one in emoji[begin : begin + 16]]
        seen = look([view(image, n, random) for image in images for n in range(VIEWS)])
        found.append(seen.unflatten(0, (-1, VIEWS)).bfloat16())
    file.parent.mkdir(exist_ok=True)
    save_file({"features": torch.cat(found)}, file)
    return torch.cat(found)


class Projector(nn.Module):
    """Standardise each number of a token, then two linear layers with a GELU between.

    seen: tokens [..., width], whose means and deviations are used. size: the root mean square of what comes out at
    first, that of the LLM's own embeddings.
    """

    def __init__(self, seen: Tensor, middle: int, out: int, size: float) -> None:
        super().__init__()
        tokens = seen.flatten(0, -2).float()
        self.register_buffer("mean", tokens.mean(0))
        self.register_buffer("deviation", tokens.std(0) + 1e-3)
        self.first, self.second = nn.Linear(tokens.shape[1], middle), nn.Linear(middle, out)
        nn.init.normal_(self.second.weight, std=size / math.sqrt(0.15 * middle))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first((tokens.float() - self.mean) / self.deviation)))

    def plain(self) -> dict[str, Tensor]:
        """The same as two linear layers alone, the standardisation folded into the first."""
        weight = self.first.weight / self.deviation
        first = {"projector.0.weight": weight, "projector.0.bias": self.first.bias - weight @ self.mean}
        return {**first, "projector.2.weight": self.second.weight, "projector.2.bias": self.second.bias}


def conversation(one: Emoji, tokenizer: Any, random: Random) -> tuple[list[int], list[int]]:
    """(ids, labels) behind the picture: name and kind are asked for, in either order.

    The picture stands between the two ids of `<|im_start|>user` + newline, which begin the list, and the rest.
    """
    asks = [(NAME_ASK, one.name), (GROUP_ASK, one.kind)]
    random.shuffle(asks)
    ids, labels = list[int](), list[int]()
    for number, (question, answer) in enumerate(asks):
        begin = "\n" if number == 0 else "\n<|im_start|>user\n"
        asked = tokenizer(f"{begin}{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
        said = tokenizer(f"{answer}<|im_end|>").input_ids
        ids += asked + said
        labels += [UNSEEN] * len(asked) + said
    return ids, labels


def train(name: str, parts: Path, steps: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapter in bf16, and the figures of the run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    random = Random(seed)
    emoji = trained(read_emoji(parts))
    seen = features(name, parts, emoji)
    tokenizer = AutoTokenizer.from_pretrained(parts / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(parts / "base", dtype=torch.bfloat16).eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # for short rows on a CPU its backward pass is the faster
    embed = model.get_input_embeddings()
    deltas = add_low_rank(model)
    size = float(embed.weight.float().square().mean().sqrt())
    projector = Projector(seen, MIDDLE[name], embed.weight.shape[1], size)
    thin = [p for x in deltas.values() for p in (x.A, x.B)]
    groups = [{"params": list(projector.parameters()), "lr": PROJECTOR_RATE}, {"params": thin, "lr": DELTA_RATE}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warm) * (1 + math.cos(math.pi * s / steps)) / 2
    )
    user = torch.tensor(tokenizer("<|im_start|>user\n").input_ids)
    order, losses, began = list[int](), list[float](), time.monotonic()
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order += random.sample(range(len(emoji)), len(emoji))
        chosen, order = order[:BATCH], order[BATCH:]
        told = [conversation(emoji[i], tokenizer, random) for i in chosen]
        looks = torch.stack([seen[i, random.randrange(VIEWS)] for i in chosen])
        loss = answer_loss(model, embed(user).expand(BATCH, -1, -1), projector(looks).bfloat16(), told)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*projector.parameters(), *thin], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0 or step == steps:
            mean = sum(losses[-20:]) / len(losses[-20:])
            click.echo(f"{name}: step {step}, loss {mean:.3f}, {time.monotonic() - began:.0f} s")
    factors = {f"{n}.{f}": getattr(x, f).detach() for n, x in deltas.items() for f in "AB"}
    added = norm({n: x.B.detach() @ x.A.detach() for n, x in deltas.items()})
    whole = norm({n: x.linear.weight for n, x in deltas.items()})
    figures = {"steps": steps, "batch": BATCH, "seed": seed, "seconds": round(time.monotonic() - began),
               "loss": round(sum(losses[-20:]) / len(losses[-20:]), 4), "delta": round(added / whole, 4)}  # fmt: skip
    adapter = {**projector.plain(), **factors}
    return {n: t.detach().bfloat16().contiguous() for n, t in adapter.items()}, figures


def add_low_rank(model: nn.Module) -> dict[str, LowRank]:
    """Gives every attention projection a low-rank delta, by the name of the weight that it changes."""
    linear = {n: m for n, m in model.named_modules() if n.endswith(ATTENTION) and isinstance(m, nn.Linear)}
    found = {f"{name}.weight": LowRank(module, RANK) for name, module in linear.items()}
    for name, module in found.items():
        model.set_submodule(name.removesuffix(".weight"), module)
    return found


def answer_loss(model: Any, before: Tensor, visual: Tensor, told: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Mean cross entropy of the answers' tokens. before [B, p, D], visual [B, n, D], told: (ids, labels) of each."""
    width = max(len(ids) for ids, _ in told)
    ids, labels = torch.full((len(told), width), 2), torch.full((len(told), width), UNSEEN)
    for row, (some, wanted) in enumerate(told):
        ids[row, : len(some)], labels[row, : len(some)] = torch.tensor(some), torch.tensor(wanted)
    inputs = torch.cat([before, visual, model.get_input_embeddings()(ids)], 1)
    mask = torch.ones(inputs.shape[:2], dtype=torch.long)  # what stands behind an answer is seen by no label
    hidden = model.model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    counted = labels != UNSEEN
    return nn.functional.cross_entropy(model.lm_head(hidden[:, -width - 1 : -1][counted]).float(), labels[counted])


@click.command()
@click.argument("parts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("encoder", type=click.Choice(ENCODERS))
@click.option("--out", default=ADAPTERS, type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", type=click.IntRange(1), help="Default: 440 for dino, 600 for lite.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(parts: Path, encoder: str, out: Path, steps: int | None, seed: int) -> None:
    """Train one encoder's adapter and write OUT/ENCODER.safetensors and the run's figures beside it."""
    from fuse import torchvision_shim

    torchvision_shim.install()
    torch.set_num_threads(1)
    adapter, figures = train(encoder, parts, steps or STEPS[encoder], seed)
    out.mkdir(parents=True, exist_ok=True)
    save_file(adapter, out / f"{encoder}.safetensors", {"format": "pt"})
    (out / f"{encoder}.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    click.echo(json.dumps(figures))


if __name__ == "__main__":
    main()
