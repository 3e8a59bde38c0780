"""What a record says: counts, births, transitions, spread, convergence to words, retention.

Public names: `counts`, `birth`, `stable_since`, `path_length`, `Approach`, `approach`,
`transitions`, `rises`, `Spread`, `spread`, `retained`, `retention`.

Source: specification section 2.3, 2.4 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import bootstrap
from lib.data.annotations import CATEGORIES
from lib.monitoring.activations import ConceptSet
from lib.monitoring.record import Trace
from lib.monitoring.space import Space

if TYPE_CHECKING:
    import pandas as pd

LOW = ("color", "texture", "material")  # low-level categories
HIGH = ("scene", "object", "part")
NONE = len(CATEGORIES)  # "none" in transitions: a unit that is not interpretable
CHANCE_S1 = 5**-0.5  # relative spread of units that mean five independent words
CLOSE = 5  # rank at which a unit has come to a word


def counts(
    table: pd.DataFrame,
    by: Sequence[str] = ("detector", "arm", "layer", "epoch", "category"),
) -> pd.DataFrame:
    """Interpretable units and distinct concepts among them, by the category of the best concept.

    Args:
        table: `Record.table()`.
        by: columns to group by.

    Returns:
        Columns `by`, `units`, `concepts`, and `share` of the units of the layer; groups that have
        none appear with 0 where `by` ends with category.

    Raises:
        ValueError: grouping by category, and the concept set has none.
    """
    by = list(by)
    best = table[table["rank"] == 0]
    if "category" in by and (best["category"] == "").any():
        raise ValueError("the concept set has no categories; group by something else")
    group = [name for name in by if name != "category"]
    total = best.groupby(group).size().rename("total")
    chosen = best[best["interpretable"]].groupby(by)["concept"].agg(["size", "nunique"])
    chosen.columns = ["units", "concepts"]
    if "category" in by:
        frames = total.reset_index().merge(_categories(), how="cross")
    else:
        frames = total.reset_index()
    found = frames.merge(chosen.reset_index(), on=by, how="left")
    found[["units", "concepts"]] = found[["units", "concepts"]].fillna(0).astype(int)
    found["share"] = found["units"] / found.pop("total")
    return found[[*by, "units", "concepts", "share"]]


def _categories() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"category": CATEGORIES})


def birth(trace: Trace) -> Tensor:
    """First checkpoint from which a unit stays interpretable, int64 `[M]`; -1 if it does not."""
    return _since(trace.interpretable)


def stable_since(trace: Trace) -> Tensor:
    """First checkpoint from which the best concept equals the last one, int64 `[M]`."""
    return _since(trace.label == trace.label[-1])


def _since(holds: Tensor) -> Tensor:
    """First row from which a column holds to the end, -1 if the last does not; `[E, M]`."""
    length = holds.flip(0).long().cumprod(0).sum(0)
    return torch.where(length > 0, len(holds) - length, -1)


def path_length(trace: Trace) -> Tensor:
    """Way a unit goes in the embedding space over the checkpoints, float32 `[M]`."""
    return trace.u.float().diff(dim=0).norm(dim=-1).sum(0)


@dataclass(frozen=True)
class Approach:
    """How near units come to a word, each `[E, M]`."""

    distance: Tensor  # Euclidean, in the embedding space
    cosine: Tensor
    rank: Tensor  # int64, 1 if no concept is nearer by cosine

    @property
    def converged(self) -> Tensor:
        """Whether the word is among the five nearest."""
        return self.rank <= CLOSE


def approach(trace: Trace, space: Space, anchor: Tensor) -> Approach:
    """Distance of each unit to an anchor: the embedding `[D]` of any word.

    Raises:
        ValueError: another width.
    """
    if anchor.shape != space.vectors.shape[1:]:
        raise ValueError(
            f"want an anchor [{space.vectors.shape[1]}], got {tuple(anchor.shape)}; embed it with "
            "the encoder of the concepts"
        )
    u = trace.u.float()
    distance = (u - anchor).norm(dim=-1)
    directions = F.normalize(u, dim=-1)
    cosine = directions @ F.normalize(anchor, dim=0)
    names = F.normalize(space.vectors, dim=1)
    # a hair of room, so that the anchor does not come behind itself
    rank = torch.stack(
        [
            ((d @ names.T) > c[:, None] + 1e-6).sum(1) + 1
            for d, c in zip(directions, cosine, strict=True)
        ]
    )
    return Approach(distance, cosine, rank)


def transitions(trace: Trace, concepts: ConceptSet) -> Tensor:
    """Units that go from one category to another between checkpoints, int64 `[E - 1, 7, 7]`.

    Rows are the category before, columns that after, in the order of `CATEGORIES`; the seventh is
    "none", for units that are not interpretable.
    """
    kinds = _kinds(trace, concepts)
    size = NONE + 1
    pairs = kinds[:-1] * size + kinds[1:]
    return torch.stack([torch.bincount(row, minlength=size**2).view(size, size) for row in pairs])


def _kinds(trace: Trace, concepts: ConceptSet) -> Tensor:
    """Category of each unit's best concept, `NONE` for units that are not interpretable."""
    numbers = torch.tensor([CATEGORIES.index(name) for name in concepts.category()])
    return torch.where(trace.interpretable, numbers[trace.label.long()], NONE)


def rises(trace: Trace, concepts: ConceptSet, by: int) -> Tensor:
    """Units whose first concept is low-level, whose last is high-level and which keep it.

    Args:
        by: epoch at which the last concept must be there to stay.

    Returns:
        bool `[M]`. The first concept is that of the first checkpoint where the unit is
        interpretable.
    """
    kinds = _kinds(trace, concepts)
    low = torch.tensor([CATEGORIES.index(name) for name in LOW])
    high = torch.tensor([CATEGORIES.index(name) for name in HIGH])
    first = trace.interpretable.long().argmax(0)
    began = kinds.gather(0, first[None])[0]
    since = stable_since(trace)
    epochs = torch.tensor(trace.epochs)
    return torch.isin(began, low) & torch.isin(kinds[-1], high) & (epochs[since] <= by)


@dataclass(frozen=True)
class Spread:
    """How far units lie apart at one checkpoint, with intervals over units about each value."""

    relative: float  # S1: mean distance of two units, of that of two concepts
    relative_interval: tuple[float, float]
    effective: float  # S2: effective number of concepts, 1 to C
    effective_interval: tuple[float, float]
    radius: float  # S3: mean distance to the centre on the map, of the concepts' own
    n: int


def spread(
    trace: Trace,
    epoch: int,
    space: Space,
    points: Tensor,
    *,
    units: str = "alive",
    n_draws: int = 1000,
    seed: int = 0,
) -> Spread:
    """Spread at one checkpoint.

    Args:
        epoch: one of the trace's.
        points: of the concepts on the map, `[C, 2]`.
        units: alive (all that are not dead) or interpretable.
        n_draws: bootstrap resamples of units; pairs of a unit with itself never count.

    Raises:
        ValueError: fewer than two units, or an epoch that is not there.
    """
    if epoch not in trace.epochs or units not in ("alive", "interpretable"):
        raise ValueError(
            f"want an epoch of {trace.epochs} and units alive or interpretable, got {epoch} and "
            f"{units!r}"
        )
    at = trace.epochs.index(epoch)
    chosen = ~trace.dead[at] if units == "alive" else trace.interpretable[at]
    n = int(chosen.sum())
    if n < 2:
        raise ValueError(f"want at least two {units} units at epoch {epoch}, got {n}")
    u = trace.u[at][chosen].float()
    apart = torch.cdist(u, u) / torch.pdist(space.vectors).mean()
    used = torch.zeros(n, len(space.concepts))
    used.scatter_add_(1, trace.concepts[at][chosen].long(), trace.weights[at][chosen])
    apart, used = apart.double(), used.double()

    def both(rows: Tensor) -> Tensor:
        weight = torch.zeros(len(rows), n, dtype=torch.float64)
        weight.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
        pairs = weight.sum(1) ** 2 - weight.square().sum(1)
        s1 = ((weight @ apart) * weight).sum(1) / pairs.clamp_min(1)
        p = (weight @ used) / n
        return torch.stack([s1, torch.special.entr(p).sum(1).exp()])

    value = both(torch.arange(n)[None])[:, 0].tolist()
    generator = torch.Generator().manual_seed(seed)
    low, high = bootstrap.interval(
        both, n, generator=generator, n_draws=n_draws, centred=True
    ).tolist()
    xy = trace.xy[at][chosen]
    own = (points - points.mean(0)).norm(dim=1).mean()
    radius = float((xy - xy.mean(0)).norm(dim=1).mean() / own)
    return Spread(value[0], (low[0], high[0]), value[1], (low[1], high[1]), radius, n)


def retained(
    trace: Trace,
    *,
    when: str = "every",
    by: str = "word",
    space: Space | None = None,
    concepts: ConceptSet | None = None,
) -> Tensor:
    """Units whose concept at later stages is still that of the first, bool `[M]`.

    Args:
        when: every (later stage) or last.
        by: word (equal), category, or cosine (of the two words' embeddings above 0.9).
        space: needed for cosine; concepts: for category.

    Raises:
        ValueError: a single stage, or an unknown option.
    """
    if len(trace.epochs) < 2 or when not in ("every", "last"):
        raise ValueError(
            f"want two stages or more and when = every or last, got {len(trace.epochs)}, {when!r}"
        )
    label = trace.label.long()
    if by == "word":
        same = label[1:] == label[0]
    elif by == "category" and concepts is not None:
        numbers = torch.tensor([CATEGORIES.index(name) for name in concepts.category()])
        same = numbers[label[1:]] == numbers[label[0]]
    elif by == "cosine" and space is not None:
        names = F.normalize(space.vectors, dim=1)
        same = (names[label[1:]] * names[label[0]]).sum(-1) > 0.9
    else:
        raise ValueError(f"by is word, category (with concepts) or cosine (with space), got {by!r}")
    return same.all(0) if when == "every" else same[-1]


def retention(scores: Tensor, kept: Tensor, percents: Sequence[int] = range(10, 101, 10)) -> Tensor:
    """R(x): share of the x % best units that keep their concept, float64 `[len(percents)]`.

    Args:
        scores: best score of each unit at the first stage, `[M]`; ties by unit number.
        kept: bool `[M]`.
        percents: x; the best ``ceil(x M / 100)`` units are taken.

    Source: specification section 3.2 (the document's Figure 5b fixes the axes alone).
    """
    if scores.shape != kept.shape or scores.ndim != 1 or len(scores) == 0:
        raise ValueError(
            f"want scores and kept [M], got {tuple(scores.shape)} and {tuple(kept.shape)}"
        )
    order = scores.sort(descending=True, stable=True).indices
    running = kept[order].double().cumsum(0)
    takes = [-(-x * len(scores) // 100) for x in percents]
    if min(takes) < 1:
        raise ValueError(f"want percents above 0, got {list(percents)}")
    return torch.stack([running[take - 1] / take for take in takes])
