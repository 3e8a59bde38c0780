"""The objective of concept backpropagation (document 5, II-B and II-C; specification 1.1).

    J(delta) = loss_weight * loss(P, target) + sum_k weight_k * dist_k(delta),
    P = link(probe(layer(s ⊙ delta))),

for each row on its own: model and probe are frozen, only `delta` moves. `layer` is any callable
from inputs to activations (`Prefix` takes a named layer of a module), `probe` any callable to the
pre-activation `[n]`, `⊙` an `Operator` (`add`, `decoding`).

Public names: `Objective`, `Term`, `Operator`, `add`, `decoding`, `Prefix`, `weights_hash`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.backprop.distances import Distance, Kinked, Simple
from lib.cache import state_hash
from lib.features import recorded

LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda p: p,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}
LOSSES = ("squared", "bce")


def _unchanged(s: Tensor) -> Tensor:
    return s


@dataclass(frozen=True)
class Operator:
    """How a perturbation acts: `combine(place(s), delta)` is the model's input.

    `place` maps samples to the space that is perturbed and runs once; `combine` runs each step.
    """

    combine: Callable[[Tensor, Tensor], Tensor]
    place: Callable[[Tensor], Tensor] = _unchanged
    modules: tuple[nn.Module, ...] = ()  # networks inside, to be checked as frozen


add = Operator(torch.add)
"""`s + delta`, for tables (document 5, II-C-1)."""


def decoding(encoder: nn.Module, decoder: nn.Module) -> Operator:
    """`decoder(encoder(s) + delta)`, for pictures (document 5, II-C-2)."""
    return Operator(lambda z, delta: decoder(z + delta), encoder, (encoder, decoder))


class Prefix(nn.Module):
    """The part of a module up to a named layer: inputs -> activations `[n, d]`, flattened.

    Raises:
        ValueError: no such layer (it lists those there are), or its output is not one tensor.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        with recorded(model, [layer]):  # refuses an unknown name now rather than later
            pass
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        with recorded(self.model, [self.layer]) as seen:
            self.model(x)
        if self.layer not in seen:
            raise ValueError(f"the forward pass does not reach layer {self.layer!r}")
        return seen[self.layer].flatten(1)


class Term(NamedTuple):
    """A weighted distance; the weight is one number or one a row, `[n]`."""

    weight: Tensor | float
    distance: Distance

    def take(self, rows: Tensor) -> Term:
        """The same for some of the rows."""
        each = torch.as_tensor(self.weight)
        weight = each[rows] if each.ndim == 1 and len(each) > 1 else self.weight
        return Term(weight, self.distance.take(rows))


@dataclass(frozen=True)
class Objective:
    """What is minimised; see the module's docstring.

    Args (fields):
        layer: inputs -> activations `[n, d]`.
        probe: activations -> pre-activation `[n]`.
        terms: weighted distances, at most one of them kinked.
        operator: how delta acts on a sample.
        link: identity, relu or sigmoid, from pre-activation to concept value.
        loss: "squared", or "bce" on logits (needs the sigmoid link).
        loss_weight: the document's lambda 1; the terms' weights are its lambda 2.
        activity_penalty: adds this times the concept value, as one of the authors' notebooks does.
        any_rows: layer, probe and operator accept any subset of the rows (no stack of networks,
            nothing that knows a row by its place); rows that are done are then left out of the
            network's batch.

    Raises:
        ValueError: unknown link or loss, bce without sigmoid, no term, or two kinked terms.
    """

    layer: Callable[[Tensor], Tensor]
    probe: Callable[[Tensor], Tensor]
    terms: Sequence[Term | tuple[Tensor | float, Distance]]
    operator: Operator = add
    link: str = "identity"
    loss: str = "squared"
    loss_weight: float = 1.0
    activity_penalty: float = 0.0
    any_rows: bool = False

    def __post_init__(self) -> None:
        if self.link not in LINKS or self.loss not in LOSSES:
            raise ValueError(
                f"link is one of {', '.join(LINKS)} and loss one of {', '.join(LOSSES)}; "
                f"got {self.link!r} and {self.loss!r}"
            )
        if self.loss == "bce" and self.link != "sigmoid":
            raise ValueError(f"the bce loss reads a sigmoid probe; the link here is {self.link!r}")
        if sum(isinstance(distance, Kinked) for _, distance in self.terms) > 1:
            raise ValueError(
                "at most one of L1, L2 and Hamming per objective: their sum has no simple prox"
            )
        if not self.terms:
            raise ValueError("want at least one weighted distance, or nothing holds delta back")

    def concept(self, preactivation: Tensor) -> Tensor:
        """The concept value `P`, `[n]`."""
        return LINKS[self.link](preactivation)

    def preactivation(self, point: Tensor, delta: Tensor) -> Tensor:
        """The probe's reading of the perturbed samples, before the link, `[n]`."""
        return self.probe(self.layer(self.operator.combine(point, delta)))

    def misfit(self, preactivation: Tensor, target: Tensor) -> Tensor:
        """`loss_weight * loss + activity penalty` of each row, `[n]`."""
        value = self.concept(preactivation)
        if self.loss == "bce":
            loss = F.binary_cross_entropy_with_logits(preactivation, target, reduction="none")
        else:
            loss = (value - target) ** 2
        return self.loss_weight * loss + self.activity_penalty * value

    def weighted(self, delta: Tensor) -> Tensor:
        """Weighted sum of all distances, `[n]`: the second half of J."""
        return torch.stack([w * d.value(delta) for w, d in self.terms]).sum(0)

    def distance(self, delta: Tensor) -> Tensor:
        """Sum of all distances, unweighted, `[n]`."""
        return torch.stack([d.value(delta) for _, d in self.terms]).sum(0)

    def split(self) -> tuple[Term | None, list[Term]]:
        """The term to take through its prox (a kinked one if there is one), and the others."""
        terms = [Term(*t) for t in self.terms]
        simple = [t for t in terms if isinstance(t.distance, Simple)]
        kinked = [t for t in simple if isinstance(t.distance, Kinked)]
        first = next(iter(kinked + simple), None)
        return first, [t for t in terms if t is not first]

    def modules(self) -> Iterator[nn.Module]:
        """Every module this objective can see: they must be in evaluation mode and not change."""
        owners = (self.layer, self.probe, *self.operator.modules)
        for part in (*owners, *(getattr(d, "decoder", None) for _, d in self.terms)):
            part = getattr(part, "__self__", part)  # probe.score -> probe
            if isinstance(part, nn.Module):
                yield part


def weights_hash(*modules: nn.Module) -> str:
    """SHA-256 of all parameters and buffers: equal before and after, or something trained."""
    state = {
        f"{i}.{name}": value
        for i, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }
    return state_hash(state)


def prepare(
    objective: Objective, s: Tensor, target: Tensor | float, start: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check everything that enters a maximisation, once.

    Returns:
        point (where delta acts), target `[n]`, start of delta (zeros unless given).

    Raises:
        ValueError: one sentence per fault: samples that are not finite or not `[n, ...]`; a target
            of another length or outside the link's range; weights per row of another length; a
            module in training mode; activations that do not depend on delta; a probe that cannot
            read them or does not give `[n]`.
    """
    if s.ndim < 2 or len(s) == 0 or not s.is_floating_point():
        raise ValueError(f"want samples [n, ...] of a float type, got {tuple(s.shape)} {s.dtype}")
    if not bool(torch.isfinite(s).all()):
        raise ValueError("the samples hold NaN or infinite values; drop or fill those rows first")
    for module in objective.modules():
        if any(m.training for m in module.modules()):
            raise ValueError(
                f"{type(module).__name__} is in training mode, so its output is not a function of "
                "its input; call .eval() first"
            )
    with torch.no_grad():
        point = objective.operator.place(s)
    delta = torch.zeros_like(point) if start is None else start.detach().clone()
    if len(delta) != len(s):
        raise ValueError(f"want one start of delta a row: {len(s)} rows, {len(delta)} starts")
    _check_probe(objective, point, delta, len(s))
    for weight, _ in objective.terms:
        sizes = torch.as_tensor(weight)
        if sizes.ndim > 1 or sizes.numel() not in (1, len(s)) or bool((sizes < 0).any()):
            raise ValueError(
                "a distance's weight is a number >= 0, or one such number a row; "
                f"got shape {tuple(sizes.shape)} for {len(s)} rows"
            )
    return point, _checked_target(objective, target, s), delta


def _check_probe(objective: Objective, point: Tensor, delta: Tensor, n: int) -> None:
    trial = delta.clone().requires_grad_()
    h = objective.layer(objective.operator.combine(point, trial))
    if not h.requires_grad:
        raise ValueError(
            "the layer's activations do not depend differentiably on delta (a detach, an argmax, "
            "a rounding?), so no gradient can guide it"
        )
    try:
        p = objective.probe(h)
    except RuntimeError as error:
        raise ValueError(
            f"the probe cannot read activations of shape {tuple(h.shape)}: it was fitted on "
            "another layer or width"
        ) from error
    if p.shape != (n,):
        raise ValueError(f"the probe must give one number a row, [{n}]; it gave {tuple(p.shape)}")
    if not p.requires_grad:
        raise ValueError("the probe's output carries no gradient; do not detach it")
    if not bool(torch.isfinite(p).all()):
        raise ValueError("the probe reads NaN or infinite values on the unperturbed samples")


def _checked_target(objective: Objective, target: Tensor | float, s: Tensor) -> Tensor:
    wanted = torch.as_tensor(target, dtype=s.dtype, device=s.device)
    if wanted.ndim > 1 or wanted.numel() not in (1, len(s)):
        raise ValueError(
            f"want one target or one a row ({len(s)} rows), got shape {tuple(wanted.shape)}"
        )
    wanted = wanted.expand(len(s)).clone()
    low = -math.inf if objective.link == "identity" else 0.0
    high = 1.0 if objective.link == "sigmoid" else math.inf
    if not bool((torch.isfinite(wanted) & (wanted >= low) & (wanted <= high)).all()):
        raise ValueError(
            f"a {objective.link} probe gives values in [{low:g}, {high:g}]; a target lies outside"
        )
    return wanted
