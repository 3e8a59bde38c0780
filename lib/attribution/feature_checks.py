"""Checks of saliency maps on any image classifier: randomised weights, deletion, agreement.

Document 4, recap (saliency maps, different versions). The sanity check is that of Adebayo and
others: a map that explains a trained network must change when the network forgets what it learned.
Layers are randomised from the output down, one after the other. Here forgetting is shuffling the
entries of each of a layer's tensors, which keeps their sizes (the study draws new weights): a
network with folded batch normalisation then still passes signals on.

Public names: `cascade`, `Sanity`, `parameter_layers`, `shuffled_layers`, `rank_correlation`,
`agreement`, `perturbation_curves`, `Curves`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.attribution import metrics
from lib.features import Progress, evaluating

Explain = Callable[[nn.Module], Mapping[str, Tensor]]  # a network -> method -> maps [n, ...]


@dataclass(frozen=True)
class Sanity:
    """How alike maps stay while a network forgets from the output down."""

    stages: tuple[str, ...]  # the layers randomised last, in order; "none" first
    correlation: dict[str, Tensor]  # method -> rank correlation with the trained map, [S, n]
    null: dict[str, Tensor]  # method -> the same of a row's map with the next row's, trained, [n]
    outputs: Tensor  # rank correlation of all the logits with the trained ones, [S, n]
    examples: dict[str, Tensor]  # method -> maps of the first row, [S, ...]


def parameter_layers(model: nn.Module) -> list[str]:
    """The children of a model that hold weights, from input to output."""
    return [name for name, child in model.named_children() if any(True for _ in child.parameters())]


def shuffled_layers(
    model: nn.Module, layers: Sequence[str], generator: torch.Generator
) -> nn.Module:
    """A copy in which the entries of each parameter of the named layers are shuffled.

    Raises:
        ValueError: a layer that is not there.
    """
    forgot = copy.deepcopy(model)
    modules = dict(forgot.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"no layer {', '.join(unknown)} in this model; it has {known}")
    with torch.no_grad():
        for name in layers:
            for weight in modules[name].parameters():
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].reshape(weight.shape))
    return forgot


def cascade(
    model: nn.Module,
    x: Tensor,
    explain: Explain,
    *,
    layers: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sanity:
    """Randomise a network from the output down and compare its maps with the trained one's.

    Args:
        model: the trained network.
        x: the rows that `explain` explains, `[n, ...]`.
        explain: makes the maps of a network; the same rows, targets and seeds each time.
        layers: groups of layers from input to output, a group a stage; default the model's
            children that hold weights, one by one.
        progress: wraps the range of stages.

    Returns:
        Rank correlations of |map|, whose sign the network's output no longer fixes.
    """
    groups = list(layers or [[name] for name in parameter_layers(model)])[::-1]
    trained = {name: maps.clone() for name, maps in explain(model).items()}
    logits = _logits(model, x)
    found: dict[str, list[Tensor]] = {name: [] for name in trained}
    first: dict[str, list[Tensor]] = {name: [] for name in trained}
    said = []
    steps = range(len(groups) + 1)
    for k in progress(steps) if progress else steps:
        # the same seed at each stage: a layer, once forgotten, stays as it is
        gone = [name for group in groups[:k] for name in reversed(group)]
        forgot = shuffled_layers(model, gone, torch.Generator().manual_seed(seed))
        for name, maps in explain(forgot).items():
            found[name].append(rank_correlation(maps, trained[name]))
            first[name].append(maps[0])
        said.append(rank_correlation(_logits(forgot, x), logits, signed=True))
    return Sanity(
        ("none", *(_named(group) for group in groups)),
        {name: torch.stack(values) for name, values in found.items()},
        {name: rank_correlation(maps, maps.roll(1, 0)) for name, maps in trained.items()},
        torch.stack(said),
        {name: torch.stack(values) for name, values in first.items()},
    )


def _named(group: Sequence[str]) -> str:
    """ "features.1" to "features.3" as "features.1-3"."""
    return group[0] if len(group) == 1 else f"{group[0]}-{group[-1].rpartition('.')[2]}"


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        return torch.cat([model(part) for part in x.split(64)])


def rank_correlation(a: Tensor, b: Tensor, *, signed: bool = False) -> Tensor:
    """Spearman correlation over pixels of two maps a row, `[n]`; 0 where a map is constant.

    Args:
        a, b: `[n, c, h, w]` (channels are summed first) or `[n, d]`.
        signed: compare values rather than sizes.
    """
    flat = [z.sum(1).flatten(1) if z.ndim == 4 else z.flatten(1) for z in (a, b)]
    flat = [z if signed else z.abs() for z in flat]
    return metrics.spearman(flat[0].T, flat[1].T).nan_to_num(0.0)


def agreement(maps: Mapping[str, Tensor]) -> Tensor:
    """Mean rank correlation of |map| of every two methods over rows, `[m, m]`."""
    names = list(maps)
    found = torch.eye(len(names), dtype=torch.float64)
    for i, a in enumerate(names):
        for j in range(i):
            found[i, j] = found[j, i] = rank_correlation(maps[a], maps[names[j]]).mean()
    return found


@dataclass(frozen=True)
class Curves:
    """Probability of the explained class as pixels are taken away, or put back."""

    shares: Tensor  # [S] of the pixels changed so far
    deletion: Tensor  # [n, S] most important pixels set to the baseline first
    insertion: Tensor  # [n, S] most important pixels put into the baseline first

    @property
    def gap(self) -> Tensor:
        """Mean height of insertion minus that of deletion, `[n]`; near 0 for a random order."""
        return self.insertion.mean(1) - self.deletion.mean(1)


@torch.no_grad()
def perturbation_curves(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    maps: Tensor,
    *,
    baseline: Tensor | float,
    n_steps: int = 16,
    chunk: int = 64,
    seed: int = 0,
) -> Curves:
    """Deletion and insertion of pixels in the order of a map, largest first.

    Args:
        x, maps: `[n, c, h, w]`; a pixel's channels are summed and go together.
        target: class whose probability is followed, int64 `[n]`.
        baseline: what a pixel is set to.
        n_steps: steps from none to all pixels.
        seed: of the order among equal pixels.
    """
    n, _, h, w = x.shape
    score = maps.sum(1).flatten(1)
    ties = torch.rand(h * w, generator=torch.Generator().manual_seed(seed)).argsort()
    order = ties[score[:, ties].argsort(dim=1, descending=True, stable=True).cpu()]
    rank = order.argsort(1).reshape(n, 1, h, w).to(x.device)
    counts = torch.linspace(0, h * w, n_steps + 1).round().long()
    base = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    with evaluating(model):
        for i in range(n):
            first = rank[i][None] < counts[:, None, None, None].to(x.device)
            for insert in (True, False):
                mixed = torch.where(first if insert else ~first, x[i], base)
                out = torch.cat([model(part) for part in mixed.split(chunk)])
                found[insert].append(out.softmax(1)[:, int(target[i])])
    return Curves(counts / (h * w), torch.stack(found[False]), torch.stack(found[True]))
