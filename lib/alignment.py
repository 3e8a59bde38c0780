"""A small network that compares two sentences word by word.

Each word of one sentence attends to the words of the other, is compared with what it found, and
both sentences' comparisons are pooled. Words of equal number attract each other from the start:
with few training pairs, alignment is what a network learns last and needs first. Weights are in
linear and embedding layers that are called once, so that per-example gradients can be read with
hooks.

Source: decomposable attention (Parikh et al. 2016); the pull between equal words, the flag "also
occurs in the other sentence" and pooling by mean and maximum are this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.nlp import PAD, SEPARATOR

PULL = 2.0  # added to the score of two equal words


class Alignment(nn.Module):
    """Classifier of rows of word numbers: premise, separator, hypothesis, padding."""

    def __init__(self, n_words: int, width: int = 64, n_out: int = 3, drop: float = 0.4) -> None:
        """Build the layers.

        Args:
            n_words: size of the vocabulary.
            width: of a word's representation.
            drop: share of units that are left out in training, by masks that depend on the
                number of the call alone: same data and seed, same network.
        """
        super().__init__()
        if min(n_words, width, n_out) < 1 or not 0 <= drop < 1:
            raise ValueError(
                f"want positive sizes and 0 <= drop < 1, got n_words = {n_words}, width = {width}, "
                f"n_out = {n_out}, drop = {drop}"
            )
        self.drop, self.calls = drop, 0
        self.words = nn.Embedding(n_words, width)
        self.attend = nn.Linear(width, width)
        self.compare = nn.Linear(4 * width + 2, width)
        self.mix = nn.Linear(width, width)
        self.pooled = nn.Linear(4 * width, width)
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Word numbers int64 `[..., t]` to logits `[..., n_out]`."""
        is_word = (x != PAD) & (x != SEPARATOR)
        side = (x == SEPARATOR).cumsum(-1).clamp(max=1)  # 0 in the premise, 1 in the hypothesis
        h = self._dropped(self.words(x))
        across = (side[..., :, None] != side[..., None, :]) & is_word[..., None, :]
        same = ((x[..., :, None] == x[..., None, :]) & across).to(h.dtype)
        projected = F.relu(self.attend(h))
        scores = projected @ projected.mT * h.shape[-1] ** -0.5 + PULL * same
        found = scores.masked_fill(~across, torch.finfo(h.dtype).min).softmax(-1) @ h
        flags = torch.stack([same.amax(-1), side.to(h.dtype)], -1)
        compared = F.relu(self.compare(torch.cat([h, found, h - found, h * found, flags], -1)))
        compared = F.relu(self.mix(self._dropped(compared)))
        parts = []
        for k in (0, 1):
            mine = (is_word & (side == k)).to(h.dtype)[..., None]
            total = (compared * mine).sum(-2)
            parts += [total / mine.sum(-2).clamp(min=1), (compared * mine).amax(-2)]
        return self.out(F.relu(self.pooled(self._dropped(torch.cat(parts, -1)))))

    def _dropped(self, h: Tensor) -> Tensor:
        """In training, `h` without a share of its units and scaled to the same mean."""
        if not self.training or not self.drop:
            return h
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        kept = torch.rand(h.shape, generator=generator) >= self.drop
        return h * (kept.to(h) / (1 - self.drop))
