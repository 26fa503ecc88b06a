"""A small transformer encoder that classifies sentences of token ids, its attention written with linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from amc_env.stdlib_docs import LENGTH, PACKAGES, VOCABULARY, stdlib_docs_arrays
from hw.torch_threads import torch_threads


class Attention(nn.Module):
    """Multi-head attention; queries, keys, values and output are layers of their own, so that each can be pruned."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """(n, length, width) to the same; `seen`, bool (n, 1, 1, length): which positions may be looked at."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """Attention and two linear layers, each behind a layer norm and with a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), seen))
        return x + self.dropout(self.linear2(F.gelu(self.linear1(self.norm2(x)))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TextRecipe:
    """Size of `TextClassifier` and how it is trained; raise `version` whenever code or data change."""

    version: int = 1
    width: int = 64
    heads: int = 4
    blocks: int = 2
    dropout: float = 0.3
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 0.003
    seed: int = 0


class TextClassifier(nn.Module):
    """Token ids, int64 (n, length) with 0 behind the end, to logits (n, classes): the mean over the encoded tokens."""

    def __init__(self, recipe: TextRecipe = TextRecipe(), classes: int = len(PACKAGES)) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, recipe.width)
        self.positions = nn.Parameter(torch.randn(LENGTH, recipe.width) / math.sqrt(recipe.width))
        self.dropout = nn.Dropout(recipe.dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(recipe.width, recipe.heads, recipe.dropout) for _ in range(recipe.blocks)
        )
        self.norm = nn.LayerNorm(recipe.width)
        self.classifier = nn.Linear(recipe.width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = tokens != 0
        x = self.dropout(self.embedding(tokens) + self.positions)
        for block in self.blocks:
            x = block(x, seen[:, None, None, :])
        x = self.norm(x) * seen[:, :, None]
        return self.classifier(x.sum(dim=1) / seen.sum(dim=1, keepdim=True))  # type: ignore[no-any-return]


def train_text_classifier(recipe: TextRecipe = TextRecipe()) -> nn.Module:
    """Train on the training sentences of `stdlib_docs`, in seconds to a minute; the same recipe, the same weights.

    Adam with a one-cycle learning rate, on one thread, in which the order of additions is fixed.
    """
    tokens, labels, _, _ = (torch.from_numpy(array) for array in stdlib_docs_arrays())
    with torch_threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = TextClassifier(recipe)
        optimizer = torch.optim.Adam(network.parameters())
        batches = -(-len(labels) // recipe.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, epochs=recipe.epochs, steps_per_epoch=batches
        )
        for _ in range(recipe.epochs):
            for batch in torch.chunk(torch.randperm(len(labels)), batches):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(network(tokens[batch]), labels[batch]))
                optimizer.step()
                schedule.step()
    return network.eval()
