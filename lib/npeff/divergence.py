"""How predictions change with the parameters: KL divergences, and gradients of the loss.

Divergences are computed in float64 from the logits, both ways. The forward pass runs in the model's
own precision: below about 1e-6 nats the divergences of a float32 model are noise; measure those
with ``model.double()`` and data in float64.

Public names: `measured_kl`, `Reference`, `log_probabilities`, `divergences`, `FORWARD`, `REVERSE`,
`loss_and_gradient`.

Source: document 3, equation 2; specification 5.2. The paper's is KL(original || perturbed); its
code computes the other one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.features import evaluating
from lib.gradients import cross_entropy
from lib.npeff.perturb import block, perturbed
from lib.npeff.store import Parameters

FORWARD, REVERSE = 0, 1  # KL(original || perturbed), the paper's; KL(perturbed || original)
CHUNK = 1024  # examples of a forward pass

Data = tuple[Tensor, Tensor]  # inputs [n, ...] and labels int64 [n]


@dataclass(frozen=True)
class Reference:
    """Predictions of the unchanged model on some rows, computed once."""

    data: Data
    rows: Tensor  # int64 [u], ascending
    log_p: Tensor  # float64 [u, C]

    @classmethod
    def of(cls, model: nn.Module, data: Data, rows: Tensor, chunk: int = CHUNK) -> Reference:
        """On the distinct ones of `rows`."""
        if len(data[0]) != len(data[1]):
            raise ValueError(f"want a label each, got {len(data[0])} inputs, {len(data[1])} labels")
        distinct = rows.unique()
        return cls(data, distinct, log_probabilities(model, data[0], distinct, chunk))

    def after(
        self, model: nn.Module, changes: Tensor, parameters: Parameters, rows: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Divergences `[S, 2, n]` and whether right before and after, float64 `[1 + S, n]`.

        Args:
            changes: ``[S, m]``, rows: int64 ``[n]`` among those of this object.
        """
        log_p = self.log_p[torch.searchsorted(self.rows, rows)]
        y = self.data[1][rows.to(self.data[1].device)].cpu()
        kl, right = [], [(log_p.argmax(1) == y).double()]
        for change in changes:
            with perturbed(model, change, parameters):
                log_q = log_probabilities(model, self.data[0], rows, chunk)
            kl.append(divergences(log_p, log_q))
            right.append((log_q.argmax(1) == y).double())
        return torch.stack(kl), torch.stack(right)


@torch.no_grad()
def log_probabilities(model: nn.Module, x: Tensor, rows: Tensor, chunk: int = CHUNK) -> Tensor:
    """Log-softmax of the logits of some rows, float64 on the CPU, `[n, C]`.

    Raises:
        ValueError: logits that are not ``[n, C]`` with C >= 2, or with NaN or infinity.
    """
    if chunk < 1:
        raise ValueError(f"want chunk >= 1, got {chunk}")
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for part in rows.split(chunk):
            logits = model(x[part.to(x.device)].to(device))
            if logits.ndim != 2 or logits.shape[1] < 2:
                raise ValueError(f"want logits [n, C], C >= 2, got {tuple(logits.shape)}")
            found.append(logits.double().log_softmax(1).cpu())
    log_p = torch.cat(found)
    if not log_p.isfinite().all():
        bad = rows[int((~log_p.isfinite().all(1)).nonzero()[0])]
        raise ValueError(
            f"the logits of example {int(bad)} hold NaN or infinity; look at its input, and if "
            "the model is perturbed choose a smaller norm"
        )
    return log_p


def divergences(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)`` and ``KL(q || p)`` in nats, `[2, n]`, from log-probabilities `[n, C]`."""
    forward = (log_p.exp() * (log_p - log_q)).sum(1)
    reverse = (log_q.exp() * (log_q - log_p)).sum(1)
    return torch.stack([forward, reverse]).clamp_min(0)  # round-off may be below


def measured_kl(
    model: nn.Module,
    data: Data,
    changes: Tensor,
    parameters: Parameters,
    rows: Tensor,
    *,
    chunk: int = CHUNK,
) -> Tensor:
    """Divergences of some examples after each change, `[S, m]` to float64 `[S, 2, n]`, nats."""
    rows = checked_rows(rows[None], 1, len(data[0]))[0]
    return Reference.of(model, data, rows, chunk).after(model, changes, parameters, rows, chunk)[0]


def loss_and_gradient(
    model: nn.Module,
    data: Data,
    parameters: Parameters,
    rows: Tensor,
    *,
    weights: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[float, Tensor]:
    """Summed cross-entropy of some examples in nats, and its gradient `[m]` in the model's dtype.

    Args:
        rows: int64 ``[n]``, weights: of each example in the sum, ``[n]``, 1 if not given.

    Raises:
        ValueError: a gradient that is not finite.
    """
    rows = checked_rows(rows[None], 1, len(data[0]))[0]
    leaves = {k: w.detach().requires_grad_() for k, w in block(model, parameters).items()}
    first = next(iter(leaves.values()))
    scale = torch.ones(len(rows)) if weights is None else weights
    value = 0.0
    total = torch.zeros(sum(w.numel() for w in leaves.values())).to(first)
    with evaluating(model), torch.enable_grad():
        for part, share in zip(rows.split(chunk), scale.to(first).split(chunk), strict=True):
            x, y = (t[part.to(t.device)].to(first.device) for t in data)
            loss = (cross_entropy(functional_call(model, leaves, (x,)), y) * share).sum()
            value += float(loss.detach())
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            flat = [
                (torch.zeros_like(w) if g is None else g).flatten()
                for g, w in zip(found, leaves.values(), strict=True)
            ]
            total += torch.cat(flat)
    if not total.isfinite().all():
        raise ValueError("the gradient of the loss holds NaN or infinity; look at the inputs")
    return value, total


def checked_rows(rows: Tensor, k: int, n: int) -> Tensor:
    """Indices int64 `[k, T]` on the CPU; refuses what is not among n examples."""
    if rows.ndim != 2 or len(rows) != k or not rows.numel():
        raise ValueError(
            f"want examples [{k}, T], a row a component, or [B], got {tuple(rows.shape)}"
        )
    if rows.dtype != torch.int64 or int(rows.min()) < 0 or int(rows.max()) >= n:
        raise ValueError(
            f"want int64 indices of examples in 0..{n - 1}, got {rows.dtype} in "
            f"{int(rows.min())}..{int(rows.max())}"
        )
    return rows.cpu()
