"""A decoder of the Llama family from torch.nn alone: its sizes and operations are what is wanted of it, on the meta device.

Root mean square norms, grouped-query attention, a gated MLP; rotary embeddings, which have no weights and few operations, are
left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Size:
    """Width, layers, heads of queries and of keys, hidden units of the MLP, and words."""

    width: int
    layers: int
    heads: int
    key_heads: int
    hidden: int
    words: int


#: As published: Llama 2 (arXiv 2307.09288) and Llama 3 (arXiv 2407.21783). GPT-3 175B (arXiv 2005.14165) has an MLP of two
#: matrices of 4 x width, here three of 8/3: as many numbers and operations.
SIZES = {
    "Llama 2 7B": Size(4096, 32, 32, 32, 11008, 32000),
    "Llama 2 70B": Size(8192, 80, 64, 8, 28672, 32000),
    "Llama 3 8B": Size(4096, 32, 32, 8, 14336, 128256),
    "Llama 3 70B": Size(8192, 80, 64, 8, 28672, 128256),
    "GPT 175B": Size(12288, 96, 96, 96, 32768, 50000),
}


class Layer(nn.Module):
    """Attention and MLP, each after a norm and beside a skip connection."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, self.heads, self.key_heads = size.width, size.heads, size.key_heads
        keys = width // size.heads * size.key_heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = nn.Linear(width, keys, bias=False), nn.Linear(width, keys, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, size.hidden, bias=False), nn.Linear(width, size.hidden, bias=False)
        self.down = nn.Linear(size.hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)
        q, k, v = (part(h).unflatten(-1, (n, -1)).transpose(1, 2) for part, n in self._projections())
        repeats = self.heads // self.key_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.norm_2(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))

    def _projections(self) -> list[tuple[nn.Linear, int]]:
        return [(self.query, self.heads), (self.key, self.key_heads), (self.value, self.key_heads)]


class Decoder(nn.Module):
    """Embedding, layers, norm, and logits over the words."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.words, size.width)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.words, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def on_meta(name: str) -> Decoder:
    """One of :data:`SIZES`, without numbers."""
    with torch.device("meta"):
        return Decoder(SIZES[name])
