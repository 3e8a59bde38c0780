"""A small transformer that classifies rows of word numbers, such as pairs of sentences.

Embedding of the word, its side of the separator and its position on that side; blocks of
self-attention and a two-layer network, each after a layer normalisation and added to its input;
the mean over words; a linear output. All weights are in linear, embedding and normalisation layers
that are called once, so that per-example gradients can be read with hooks as well as with
torch.func.

Source: document 4's score for language models, at the size of a processor (specification 7.1);
the block is the usual one with normalisation first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.nlp import PAD, SEPARATOR, SPECIAL

MASKED = len(SPECIAL)  # the number of the masked word, after those of the vocabulary


class Transformer(nn.Module):
    """Encoder and classifier; words numbered `PAD` are neither attended to nor averaged."""

    def __init__(
        self,
        n_words: int,
        length: int,
        width: int = 32,
        n_blocks: int = 2,
        n_heads: int = 4,
        n_out: int = 3,
    ) -> None:
        """Build the layers.

        Args:
            n_words: size of the vocabulary.
            length: the longest row.
            width: of a word's representation, a multiple of `n_heads`.
        """
        super().__init__()
        if width % n_heads or min(n_words, length, width, n_blocks, n_heads, n_out) < 1:
            raise ValueError(
                f"want positive sizes and a width that is a multiple of n_heads, got n_words = "
                f"{n_words}, length = {length}, width = {width}, n_blocks = {n_blocks}, n_heads = "
                f"{n_heads}, n_out = {n_out}"
            )
        self.length = length
        self.words = nn.Embedding(n_words, width)
        self.positions = nn.Embedding(length, width)
        self.sides = nn.Embedding(2, width)
        for i in range(1, n_blocks + 1):
            self.add_module(f"block{i}", _Block(width, n_heads))
        self.n_blocks = n_blocks
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Word numbers int64 `[..., t]` with t <= length to logits `[..., n_out]`."""
        if x.shape[-1] > self.length:
            raise ValueError(
                f"want rows of at most {self.length} words, got {x.shape[-1]}; "
                "build the network with a larger length"
            )
        present = x != PAD
        ended = (x == SEPARATOR).cumsum(-1)
        side = (ended - (x == SEPARATOR).long()).clamp(0, 1)  # the separator ends the first one
        n_first = (1 - side).sum(-1, keepdim=True)
        position = torch.arange(x.shape[-1], device=x.device) - side * n_first
        h = self.words(x) + self.positions(position) + self.sides(side)
        for i in range(1, self.n_blocks + 1):
            h = self.get_submodule(f"block{i}")(h, present)
        weight = present / present.sum(-1, keepdim=True).clamp(min=1)
        return self.out((self.norm(h) * weight[..., None]).sum(-2))


class _Block(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, n_heads)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h), present)
        return h + self.back(F.relu(self.hidden(self.norm2(h))))


class _Attention(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """Every word reads every present word: `h` [..., t, width], `present` [..., t]."""
        parts = self.query_key_value(h).unflatten(-1, (3 * self.n_heads, -1)).transpose(-3, -2)
        query, key, value = parts.chunk(3, dim=-3)  # each [..., heads, t, width / heads]
        scores = query @ key.mT * query.shape[-1] ** -0.5
        # a row of padding alone would otherwise be a softmax over nothing
        scores = scores.masked_fill(~present[..., None, None, :], torch.finfo(scores.dtype).min)
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        read = weight @ value / weight.sum(-1, keepdim=True)
        return self.mix(read.transpose(-3, -2).flatten(-2))


class MaskedWord(nn.Module):
    """A masked language model: the same blocks, an output over words at the masked word.

    A row holds exactly one word numbered `MASKED`; what stands there is read after the blocks.
    """

    def __init__(
        self, n_words: int, length: int, width: int = 32, n_blocks: int = 1, n_heads: int = 4
    ) -> None:
        """Build the layers; arguments as for `Transformer`, the output is over all words."""
        super().__init__()
        if width % n_heads or min(n_words, length, width, n_blocks, n_heads) < 1:
            raise ValueError(
                f"want positive sizes and a width that is a multiple of n_heads, got n_words = "
                f"{n_words}, length = {length}, width = {width}, n_blocks = {n_blocks}, n_heads = "
                f"{n_heads}"
            )
        self.length = length
        self.words = nn.Embedding(n_words, width)
        self.positions = nn.Embedding(length, width)
        for i in range(1, n_blocks + 1):
            self.add_module(f"block{i}", _Block(width, n_heads))
        self.n_blocks = n_blocks
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, n_words)

    def forward(self, x: Tensor) -> Tensor:
        """Word numbers int64 `[..., t]` with t <= length to logits `[..., n_words]`."""
        if x.shape[-1] > self.length:
            raise ValueError(
                f"want rows of at most {self.length} words, got {x.shape[-1]}; "
                "build the network with a larger length"
            )
        place = torch.arange(x.shape[-1], device=x.device).expand_as(x)
        h = self.words(x) + self.positions(place)
        for i in range(1, self.n_blocks + 1):
            h = self.get_submodule(f"block{i}")(h, x != PAD)
        read = (h * (x == MASKED)[..., None]).sum(-2)
        return self.out(self.norm(read))
