"""The frozen text tower of a CLIP as LMEye uses it: between its first and its last token stand vectors, not words."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


class ClipText(nn.Module):
    """transformers' blocks under the names of `CLIPTextModelWithProjection`.

    Of the embedding tables two rows are kept: the tokens that begin and end a text, at their positions. What stands
    between them has no position of its own (as in the official code, Lmeye/clip/clip_model.py).
    """

    def __init__(self, clip: Mapping[str, Any], width: int) -> None:
        """clip: the tower's part of a graft's config. width: c."""
        super().__init__()
        told = CLIPTextConfig(
            hidden_size=width, intermediate_size=clip["intermediate"], num_hidden_layers=clip["layers"],
            num_attention_heads=clip["heads"], hidden_act=clip["activation"], layer_norm_eps=clip["eps"],
        )  # fmt: skip
        told._attn_implementation = "sdpa"
        layers = nn.ModuleList(CLIPEncoderLayer(told) for _ in range(clip["layers"]))
        ends = {"token_embedding": nn.Embedding(2, width), "position_embedding": nn.Embedding(2, width)}
        self.text_model = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(ends),
                "encoder": nn.ModuleDict({"layers": layers}),
                "final_layer_norm": nn.LayerNorm(width, eps=clip["eps"]),
            }
        )
        self.text_projection = nn.Linear(width, width, bias=False)

    def forward(self, middle: torch.Tensor) -> torch.Tensor:
        """[n, m, c] between the two ends: what the tower gives behind its last norm, [n, m + 2, c]."""
        parts: Any = self.text_model
        ids = torch.arange(2, device=middle.device)
        ends = parts["embeddings"]["token_embedding"](ids) + parts["embeddings"]["position_embedding"](ids)
        first, last = ends[:, None, None].expand(-1, len(middle), 1, -1)
        x = torch.cat([first, middle, last], 1)
        length = x.shape[1]
        causal = x.new_full((length, length), torch.finfo(x.dtype).min).triu(1)[None, None]
        for layer in parts["encoder"]["layers"]:
            x = layer(x, causal)
        return parts["final_layer_norm"](x)
