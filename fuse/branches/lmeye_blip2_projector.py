"""BLIP-2's Q-Former with LMEye's projection behind it, of transformers' blocks under their own names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerLayer


class LmeyeBlip2Projector(nn.Module):
    """`post_layernorm` of the vision tower, `query_tokens`, `qformer` and `language_projection`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `fuse.branches.lmeye_blip2_projector_files` describes it."""
        super().__init__()
        w, n = config["width"], config["queries"]
        told = Blip2QFormerConfig(
            hidden_size=w, num_hidden_layers=config["layers"], num_attention_heads=config["heads"],
            intermediate_size=config["intermediate"], hidden_act=config["activation"], layer_norm_eps=config["eps"],
            cross_attention_frequency=config["every"], encoder_hidden_size=config["vision"],
            use_qformer_text_input=False,
        )  # fmt: skip
        told._attn_implementation = "sdpa"
        self.post_layernorm = nn.LayerNorm(config["vision"], eps=config["vision_eps"])
        self.query_tokens = nn.Embedding(n, w)
        layers = nn.ModuleList(Blip2QFormerLayer(told, i) for i in range(config["layers"]))
        norm = nn.LayerNorm(w, eps=config["eps"])
        self.qformer = nn.ModuleDict({"layernorm": norm, "encoder": nn.ModuleDict({"layer": layers})})
        self.language_projection = nn.Linear(w, config["hidden_size"])

    def look(self, features: torch.Tensor) -> torch.Tensor:
        """What the Q-Former makes of the tower's tokens [B, 1, p, v]: [B, queries, w]. Grafts look at this."""
        image = self.post_layernorm(features[:, 0])
        parts: Any = self.qformer
        rows = torch.arange(self.query_tokens.num_embeddings, device=image.device)
        x = parts["layernorm"](self.query_tokens(rows)).expand(len(image), -1, -1)
        for layer in parts["encoder"]["layer"]:
            x = layer(x, None, image, query_length=len(rows))
        return x

    def forward(self, looked: torch.Tensor) -> torch.Tensor:
        """[B, queries, w] -> [B, queries, d]."""
        return self.language_projection(looked)
