"""SliME's sampler (arXiv 2406.08487): fewer queries than patches for each local view, and a router that reads the text.

Facts: yfzhang114/SliME, llava/model/multimodal_resampler/{sampler,builder}.py. Names are those of its state dict; what
its forward pass leaves unused (`selector.query`, `selector.self_attn`) is here, so that a checkpoint loads whole.
"""

from math import isqrt

import torch
from torch import nn
from torch.nn import functional

from fuse.errors import RecipeError


def heads_of(width: int) -> int:
    """SliME's attention heads are 128 channels wide; a narrower model has one."""
    return max(width // 128, 1)


class Resampler(nn.Module):
    """grid**2 queries attend to a square of features: [B, L, kv_width] to [B, grid**2, width or out_width].

    pos_embed is a fixed table of two-dimensional sines that the checkpoint stores in float16.
    """

    def __init__(self, grid: int, width: int, *, kv_width: int | None = None, out_width: int | None = None) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(grid**2, width), requires_grad=False)
        self.query = nn.Parameter(torch.zeros(grid**2, width))
        plain = kv_width in (None, width)
        self.kv_proj = nn.Identity() if plain else nn.Linear(kv_width or width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, heads_of(width), batch_first=True)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width, 1e-6) for _ in range(3))
        self.proj = nn.Linear(width, out_width) if out_width else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.ln_kv(self.kv_proj(features))
        return self.attend(self.ln_q(self.query).expand(len(features), -1, -1), features)

    def attend(self, query: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Queries [B, grid**2, width] over features [B, L, width]; both get the positions of their square."""
        key = features + positions(self.pos_embed, isqrt(features.shape[1])).to(features.dtype)
        found, _ = self.attn(query + self.pos_embed.to(query.dtype), key, features, need_weights=False)
        return self.proj(self.ln_post(found))


class ResamplerWithText(Resampler):
    """A resampler whose queries read the text first: features [B, L, width], text [B, m, kv_width].

    SliME's code offers it as a projector (`qformer_text`); no published checkpoint uses it. Features are neither
    projected nor normalised here.
    """

    def __init__(self, grid: int, width: int, *, kv_width: int) -> None:
        super().__init__(grid, width, kv_width=kv_width)
        self.self_attn = nn.MultiheadAttention(width, heads_of(width), batch_first=True)

    def forward(self, features: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        if text is None:
            raise RecipeError("a resampler that reads the text was given none")
        together = torch.cat([self.query.expand(len(text), -1, -1), self.ln_kv(self.kv_proj(text))], dim=1)
        read, _ = self.self_attn(together, together, together, need_weights=False)
        return self.attend(self.ln_q(read[:, : len(self.query)]), features)


def positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """The table [g*g, E] of one square for a square of another size: bicubic in float32, rounded to float16."""
    grid = isqrt(len(table))
    cells = table.float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(cells, size=(side, side), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2).half()


class Router(nn.Module):
    """`mm_resampler_type: qformer`: which image tokens [n, E] a text [m, E] asks for: chances [n] in float32."""

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.query = nn.Parameter(torch.zeros(1, width))
        self.self_attn = nn.MultiheadAttention(width, heads_of(width))
        self.cross_attn = nn.MultiheadAttention(width, heads_of(width))
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width) for _ in range(3))
        self.prob_proj = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, 1))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        text = self.ln_kv(text)
        found, _ = self.cross_attn(self.ln_q(image), text, text, need_weights=False)
        logits = self.prob_proj(self.ln_post(found)).squeeze(-1).float()
        return (logits / self.temperature).softmax(-1)


def cosines(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Cosine of every image token [n, E] with every text token [m, E], in float32: [n, m]."""
    image, text = (functional.normalize(t.float(), dim=-1, eps=1e-8) for t in (image, text))
    return image @ text.T


def top_p(scores: torch.Tensor, p: float, temperature: float) -> torch.Tensor:
    """The indices [k], ascending, of the most probable tokens under softmax(scores / temperature).

    As many as stay within p of the probability, and one more; at least one. scores: [n]. Computed in float32, so that
    the choice does not hang on the model's dtype (our choice; SliME stays in the model's).
    """
    chances, order = (scores.float() / temperature).softmax(-1).sort(descending=True, stable=True)
    within = int((chances.cumsum(0) <= p).sum())
    return order[: within + 1].sort().values


class Sampler(nn.Module):
    """`post_qformer` shortens the features of local views; `selector`, or cosines without one, picks their tokens."""

    def __init__(self, grid: int, width: int, hidden_size: int, *, learned: bool, p: float, temperature: float) -> None:
        super().__init__()
        self.p, self.temperature = p, temperature
        self.selector = Router(hidden_size, temperature) if learned else None
        self.post_qformer = Resampler(grid, width)

    def select(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The image tokens [k, E] of [n, E] that the embedded text [m, E] asks for, in their order."""
        return image[self.choose(image, text)]

    def choose(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Which they are: [k], ascending.

        The router's probabilities go through a second softmax, as in SliME's code. Raises RecipeError without text.
        """
        if not len(text):
            raise RecipeError("SliME chooses its image tokens by the words of the prompt, and this prompt has none")
        scores = cosines(image, text).sum(-1) if self.selector is None else self.selector(image, text)
        return top_p(scores, self.p, self.temperature)
