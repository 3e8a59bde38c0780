"""What notebook 44 computes on a training set with planted secrets (`lib.attribution.planted`).

Document 4, applications of datamodels; specification section 3.4: leakage, embedding, comparison.
Two groups of networks of the first algorithm are trained, on separate subsets, and one group of
the second algorithm on the second group's subsets: the groups of one algorithm are the null of the
comparison. Leakage and clusters use both groups together.

Public names: `prepare`, `Study`, `leakage`, `find`, `Leakage`, `growth`, `weight_by_margin`,
`clusters`, `Cluster`, `similarities`, `compare`, `Difference`, `turned`, `turned_more`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import bootstrap, training
from lib.attribution import baselines, datamodels, embedding, metrics, trak, truth
from lib.attribution.planted import (
    LEFT,
    PAIRS,
    RIGHT,
    SIDE,
    Planted,
    planted_digits,
    planted_mnist,
    shift,
)
from lib.config import Run
from lib.data.base import Split
from lib.training.loop import Progress

Sizes = Mapping[str, int]
PLANTED: dict[str, Callable[[Run, Sizes], Planted]] = {
    "digits": lambda run, s: planted_digits(
        s["n"], s["n_targets"], s["n_others"], s["n_copies"], run.seed
    ),
    "mnist": lambda run, s: planted_mnist(
        s["n"], s["n_targets"], s["n_others"], s["n_copies"], run.seed, run.data_root
    ),
}
N_DRAWS = 1000
RIDGE, K = 0.1, 256  # of TRAK, as in notebook 45
N_DIRECTIONS = 5


@dataclass(frozen=True)
class Study:
    """The planted set, networks on subsets of it, and attributions fitted to them."""

    planted: Planted
    subsets: Tensor  # of the first algorithm, [2m, n/2]
    outputs: Tensor  # [2m, T + T'], of all targets
    second: Tensor  # of the second algorithm on the last m subsets, [m, T + T']
    datamodel: Tensor  # LASSO on all of the first algorithm, of the drawn targets, [n, T]
    trak: Tensor  # [n, T]
    networks: tuple[list[nn.Module], list[nn.Module]]  # on all rows, of both algorithms

    @property
    def m(self) -> int:
        """Networks in a group."""
        return len(self.second)

    @property
    def drawn(self) -> Split:
        """The targets that are drawn as the training rows are."""
        targets, n = self.planted.plain.targets, self.planted.n_drawn
        return Split(targets.x[:n], targets.y[:n])

    @property
    def groups(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Subsets and outputs of each group of networks."""
        first, again = self.subsets[: self.m], self.subsets[self.m :]
        return {
            "one": (first, self.outputs[: self.m]),
            "one again": (again, self.outputs[self.m :]),
            "two": (again, self.second),
        }


@dataclass(frozen=True)
class Leakage:
    """How a score over pairs of training row and target finds the planted copies."""

    method: str
    pairs: Tensor  # (row, target) from the highest score down, int64 [r, 2]
    found: Tensor  # whether each is planted, bool [r]
    recall: tuple[float, float]  # among as many pairs as are planted, and half its interval
    auc: tuple[float, float]
    first: float  # share of copied targets whose highest row is the copy

    @property
    def precision(self) -> Tensor:
        """Share of planted pairs among the first 1, 2, ..., r, `[r]`."""
        return self.found.double().cumsum(0) / torch.arange(1, len(self.found) + 1)


@dataclass(frozen=True)
class Cluster:
    """Two clusters of the targets of one pair against the digits, or against the side."""

    method: str
    pair: int
    rand: float
    ends: tuple[float, float]  # of the 95% interval over targets, the clusters as they are
    chance: float  # 95th percentile of clusters dealt out at random

    @property
    def measured(self) -> tuple[float, float]:
        """The index and half its interval."""
        return self.rand, (self.ends[1] - self.ends[0]) / 2


@dataclass(frozen=True)
class Difference:
    """Two groups of networks compared, directions and shares from separate halves of each."""

    halves: tuple[embedding.Contrast, embedding.Contrast]

    @property
    def first(self) -> Tensor:
        """Share of the variance of the first group along each direction, `[k]`."""
        return torch.stack([half.first for half in self.halves]).mean(0)

    @property
    def second(self) -> Tensor:
        """The same of the second group."""
        return torch.stack([half.second for half in self.halves]).mean(0)

    @property
    def direction(self) -> Tensor:
        """The first residual direction, the mean of those of both halves, `[n]`."""
        a, b = (half.directions[:, 0] for half in self.halves)
        return F.normalize(a + b * (a @ b).sign(), dim=0)

    @property
    def agreement(self) -> float:
        """Cosine, without its sign, of the two halves' first directions."""
        a, b = (half.directions[:, 0] for half in self.halves)
        return (a @ b).abs().item()

    def weight_on(self, rows: Tensor) -> float:
        """Share of the squared first direction that lies on some rows, bool `[n]`."""
        return self.direction.square()[rows].sum().item()

    def ratio(self, *, seed: int = 0) -> tuple[float, float]:
        """Share of the first direction, first group over second, and half its 95% interval.

        The interval resamples targets.
        """
        squares = torch.stack([half.per_target for half in self.halves])  # [2, 2, T]
        totals = torch.stack([half.totals for half in self.halves])

        def ratio(pick: Tensor) -> Tensor:
            shares = (squares[..., pick].sum(-1) / totals[..., pick].sum(-1)).mean(0)  # [2, b]
            return shares[0] / shares[1]

        low, high = _ends(ratio, squares.shape[2], seed)
        return (self.first[0] / self.second[0]).item(), (high - low) / 2


def prepare(run: Run, progress: Progress | None = None) -> Study:
    """Plant, train and fit, or take it from the cache."""
    size = run.size.planted
    planted = PLANTED[size["data"]](run, size)
    plain, m, seed = planted.plain, size["m"], run.seed + truth.FITTING
    both = truth.measure(plain, 2 * m, seed=seed, progress=progress)
    wide = planted.expand(both.subsets[m:])
    second = truth.subset_outputs(planted.shifted, wide, seed=seed + 1, progress=progress)
    halves = truth.checkpoints(plain, size["n_trak"], seed=run.seed)
    ones, twos = (
        truth.checkpoints(setting, size["n_networks"], share=1.0, seed=run.seed)
        for setting in (plain, planted.shifted)
    )
    outputs = both.outputs[:, 0]
    n = planted.n_drawn
    rows, targets = (plain.train.x, plain.train.y), (plain.targets.x[:n], plain.targets.y[:n])
    scores = trak.trak(halves, rows, targets, k=K, ridge=RIDGE, seed=run.seed)
    model = datamodels.fit_lasso(both.subsets, outputs[:, :n], len(plain.train))
    return Study(planted, both.subsets, outputs, second[:, 0], model.tau, scores.tau, (ones, twos))


def leakage(study: Study, *, n_ranks: int = 100, seed: int = 0) -> dict[str, Leakage]:
    """Every method's list of pairs: datamodel, TRAK, similarity of features and pixels, chance."""
    planted = study.planted
    x, target_x = planted.plain.train.x, study.drawn.x
    low = x.min()  # ink is what is above the background
    chance = torch.randn(study.trak.shape, generator=torch.Generator().manual_seed(seed))
    scale = study.datamodel.square().mean(0).sqrt().clamp(min=1e-12)
    scores = {
        "datamodel": study.datamodel,
        "datamodel, by target": study.datamodel / scale,
        "TRAK": study.trak,
        "cosine of features": _features(study, x, target_x),
        "cosine of pixels": F.normalize(x - low, dim=1) @ F.normalize(target_x - low, dim=1).T,
        "random": chance,
    }
    pairs = planted.of_pairs()
    return {name: find(name, score, pairs, n_ranks=n_ranks) for name, score in scores.items()}


def growth(study: Study, sizes: Sequence[int]) -> dict[int, Leakage]:
    """How the datamodel of the first m networks finds the copies, for each m of `sizes`."""
    n, pairs = len(study.planted.plain.train), study.planted.of_pairs()
    found = {}
    for m in sizes:
        outputs = study.outputs[:m, : study.planted.n_drawn]
        model = datamodels.fit_lasso(study.subsets[:m], outputs, n)
        found[m] = find("datamodel", model.tau, pairs)
    return found


def weight_by_margin(study: Study) -> float:
    """Rank correlation over copies of their weight with the mean margin of their target."""
    planted = study.planted
    margins = study.outputs.double().mean(0)[planted.originals]
    weights = study.datamodel[planted.copies, planted.originals]
    return metrics.spearman(weights[:, None], margins[:, None]).item()


def find(method: str, scores: Tensor, planted: Tensor, *, n_ranks: int = 100) -> Leakage:
    """Rank all pairs by their score and compare with the planted ones.

    Args:
        scores: `[n, T]`, high where row and target look like copies.
        planted: bool `[n, T]`, with at least one pair.
        n_ranks: length of the list that is kept.

    Source: specification section 3.4, train-test leakage.
    """
    if scores.shape != planted.shape or planted.dtype != torch.bool or not planted.any():
        raise ValueError(
            f"want scores and bool planted [n, T] with a planted pair, got {list(scores.shape)} "
            f"and {planted.dtype} {list(planted.shape)}"
        )
    if not 1 <= n_ranks <= scores.numel():
        raise ValueError(f"want 1 to {scores.numel()} ranks, got {n_ranks}")
    flat = scores.double().flatten()
    order = flat.argsort(descending=True, stable=True)[:n_ranks]
    pairs = torch.stack([order // scores.shape[1], order % scores.shape[1]], 1)
    mine, others = flat[planted.flatten()], flat[~planted.flatten()].sort().values
    below = torch.searchsorted(others, mine) + torch.searchsorted(others, mine, right=True)
    wins = below.double() / (2 * len(others))  # of each planted pair over all others, ties half
    n_planted = len(mine)
    cut = flat.topk(n_planted).values[-1]
    hits = (mine >= cut).double()
    row, target = planted.nonzero(as_tuple=True)
    is_first = scores.argmax(0)[target] == row
    return Leakage(
        method,
        pairs,
        planted.flatten()[order],
        (hits.mean().item(), _half(hits)),
        (wins.mean().item(), _half(wins)),
        is_first.double().mean().item(),
    )


def similarities(study: Study) -> dict[str, Tensor]:
    """Similarities of targets `[T, T]` by datamodel, TRAK, features and pixels."""
    x = study.drawn.x
    ink = F.normalize(x - study.planted.plain.train.x.min(), dim=1)
    return {
        "datamodel": embedding.cosines(study.datamodel.T),
        "TRAK": embedding.cosines(study.trak.T),
        "features": _features(study, x, x),
        "pixels": ink @ ink.T,
    }


def clusters(study: Study, *, seed: int = 0) -> list[Cluster]:
    """Split the targets of each pair in two, by every similarity, and compare with the digits.

    Last for each similarity, as pair `len(PAIRS)`: the split of the pair `SIDE` against the side.
    """
    planted, labels, n = study.planted, study.drawn.y, study.planted.n_drawn
    digits, aside = planted.target_digits[:n], planted.targets_aside[:n]
    cases = [(k, labels == k, digits == pair[1]) for k, pair in enumerate(PAIRS)]
    cases.append((len(PAIRS), labels == SIDE, aside))
    found = []
    for method, similarity in similarities(study).items():
        for pair, mine, is_second in cases:
            split = embedding.spectral_clusters(similarity[mine][:, mine])
            found.append(_judged(method, pair, split, is_second[mine].long(), seed))
    return found


def compare(
    study: Study, first: str = "one", second: str = "two", *, as_drawn: bool = False
) -> Difference:
    """Residual directions between two groups of networks.

    Ridge datamodels of half of each group give directions, those of the other half the shares; then
    the halves change places.

    Args:
        first, second: of `Study.groups`.
        as_drawn: look at the targets that are drawn as the training rows are; else at the others,
            of which half stand aside.
    """
    n, groups, n_drawn = len(study.planted.plain.train), study.groups, study.planted.n_drawn
    columns = slice(0, n_drawn) if as_drawn else slice(n_drawn, None)
    half = study.m // 2
    rows = []
    for part in (slice(0, half), slice(half, 2 * half)):
        fits = [
            datamodels.fit_ridge(groups[name][0][part], groups[name][1][part, columns], n)
            for name in (first, second)
        ]
        rows.append((fits[0].tau.T, fits[1].tau.T))
    a, b = rows
    return Difference(
        (
            embedding.contrast(a, [b], N_DIRECTIONS),
            embedding.contrast(b, [a], N_DIRECTIONS),
        )
    )


def turned(study: Study) -> Tensor:
    """Share of targets of other pairs that networks take for the planted pair, `[2, 3, R]`.

    For both algorithms: as they are, shifted to the planted side, shifted to the other side; for
    each of R networks trained on all rows.
    """
    planted = study.planted
    height = round(study.drawn.x.shape[1] ** 0.5)
    images = study.drawn.x[study.drawn.y != SIDE].unflatten(1, (height, height))
    moved = [shift(images, 0, side * planted.step) for side in (0, LEFT, RIGHT)]
    return torch.tensor(
        [
            [
                [
                    (training.predict(f, x.flatten(1)).argmax(1) == SIDE).double().mean().item()
                    for f in networks
                ]
                for x in moved
            ]
            for networks in study.networks
        ],
        dtype=torch.float64,
    )


def turned_more(shares: Tensor) -> tuple[float, float]:
    """How much more the planted side turns than the other, algorithm one less two; sd over R.

    Args:
        shares: as `turned` gives them, `[2, 3, R]`.
    """
    more = shares[:, 1] - shares[:, 2]
    gap = more[0] - more[1]
    return gap.mean().item(), gap.std().item()


def _features(study: Study, a: Tensor, b: Tensor) -> Tensor:
    """Cosines of what the last layer reads, mean over networks of the first algorithm."""
    parts = [
        F.normalize(baselines.penultimate(f, a), dim=1)
        @ F.normalize(baselines.penultimate(f, b), dim=1).T
        for f in study.networks[0]
    ]
    return torch.stack(parts).mean(0)


def _judged(method: str, pair: int, split: Tensor, is_second: Tensor, seed: int) -> Cluster:
    return Cluster(
        method,
        pair,
        embedding.rand_index(split, is_second).item(),
        _ends(lambda p: embedding.rand_index(split[p], is_second[p]), len(split), seed),
        embedding.chance_rand(split, is_second, seed=seed),
    )


def _ends(statistic: Callable[[Tensor], Tensor], n: int, seed: int = 0) -> tuple[float, float]:
    """The 95% interval over resamples of n rows."""
    generator = torch.Generator().manual_seed(seed)
    low, high = bootstrap.interval(statistic, n, generator=generator, n_draws=N_DRAWS).tolist()
    return low, high


def _half(values: Tensor) -> float:
    """Half of the interval of the mean."""
    low, high = _ends(lambda pick: values[pick].mean(1), len(values))
    return (high - low) / 2
