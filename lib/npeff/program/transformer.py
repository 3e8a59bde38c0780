"""The network that a program is compiled to: an encoder of attention and ReLU layers.

No layer normalisation, no biases, no mask. All parameters are weights of `nn.Linear` layers that
are called once, so per-example gradients can be read with hooks (`lib.gradients`); the embedding
and the read-out are fixed and are buffers. A first position, BOS, is put before the words.

Public names: `CompiledTransformer`, `Layer`, `MATRICES`.

Source: specification sections 6.3 and 6.4, step 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import debug_unwrap

from lib.npeff.program.expressions import check_ids

MATRICES = ("w_q", "w_k", "w_v", "w_o", "w_1", "w_2")  # of each layer


class CompiledTransformer(nn.Module):
    """Word numbers int64 `[..., t]` to logits `[..., C]`, read at the last position.

    The weights of layer i are `layers.<i>.w_q`, `w_k`, `w_v` `[H k, d]`, `w_o` `[d, H k]`, `w_1`
    `[h, d]` and `w_2` `[d, h]`, stored as `nn.Linear` does: the transpose of the specification's.
    """

    words: Tensor
    positions: Tensor
    bos: Tensor
    readout: Tensor

    def __init__(
        self,
        words: Tensor,
        positions: Tensor,
        bos: Tensor,
        readout: Tensor,
        *,
        n_layers: int,
        n_heads: int,
        key_size: int,
        n_hidden: int,
        beta: float,
    ) -> None:
        """Build the network with all weights zero; the compiler fills them.

        Args:
            words: embedding `[v, d]`; positions: `[T, d]`; bos: `[d]`; readout: `[d, C]`.
            beta: the logits are beta times the read-out.
        """
        super().__init__()
        for name, tensor in (("words", words), ("positions", positions), ("bos", bos)):
            self.register_buffer(name, tensor)
        self.register_buffer("readout", readout)
        self.beta = beta
        width = len(bos)
        self.layers = nn.ModuleList(
            Layer(width, n_heads, key_size, n_hidden) for _ in range(n_layers)
        )

    def layer(self, i: int) -> Layer:
        """One of the layers."""
        layer = self.layers[i]
        assert isinstance(layer, Layer)
        return layer

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `[..., C]`.

        Raises:
            ValueError: not integers, a number outside the vocabulary, or too many words.
        """
        return self.beta * (self.residual(ids)[..., -1, :] @ self.readout)

    def residual(self, ids: Tensor) -> Tensor:
        """The residual stream after the last layer, `[..., 1 + t, d]`; the first position is BOS.

        Every variable is written once, so all of them stand in it.
        """
        n_words, t = len(self.words), ids.shape[-1] if ids.ndim else 0
        if not 1 <= t <= len(self.positions):
            raise ValueError(
                f"want 1 to {len(self.positions)} words, got {t}; "
                "build the program with more positions"
            )
        check_ids(debug_unwrap(ids), n_words)  # under vmap the whole batch
        rows = ids.reshape(-1, t)
        x = self.words[rows] + self.positions[:t]
        x = torch.cat([self.bos.expand(len(rows), 1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return x.reshape(*ids.shape[:-1], t + 1, -1)


class Layer(nn.Module):
    """Attention, then a ReLU layer, each added to its input."""

    def __init__(self, width: int, n_heads: int, key_size: int, n_hidden: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        inner = n_heads * key_size
        self.w_q = _zeros(width, inner)
        self.w_k = _zeros(width, inner)
        self.w_v = _zeros(width, inner)
        self.w_o = _zeros(inner, width)
        self.w_1 = _zeros(width, n_hidden)
        self.w_2 = _zeros(n_hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream `[n, 1 + t, d]` before to after."""
        q, k, v = (
            w(x).unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)  # [n, heads, 1 + t, k]
            for w in (self.w_q, self.w_k, self.w_v)
        )
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.w_o((attention @ v).transpose(-3, -2).flatten(-2))
        return x + self.w_2(self.w_1(x).relu())


def _zeros(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer of zeros; the usual one would draw from the global generator."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=False)
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    return layer
