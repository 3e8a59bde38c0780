"""What notebook 44 computes on the setting of notebook 43: data support and counterfactuals.

Document 4, applications of datamodels; specification section 3.4. Datamodels are those of the
networks that notebook 43 trains. All other methods name rows for the same targets, and networks
are trained on what is left.

Public names: `prepare`, `Study`, `remove`, `Removals`, `counterfactuals`, `Group`, `agreement`,
`wrong_at`, `share_wrong`, `interval`, `least_difference`, `supports`, `example`, `Example`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib import bootstrap, training
from lib.attribution import baselines, brittleness, kfac, metrics, trak, truth
from lib.attribution.datamodel_studies import FITS, SETTINGS
from lib.attribution.subsets import sample_subsets
from lib.config import Run
from lib.data.base import Split
from lib.training.loop import Progress

METHODS = ("datamodel", "TRAK", "influence (EK-FAC)", "similar representation")
RANDOM, NEAR = "random", "similar representation"
CURVATURE_NETWORKS = 5  # of EK-FAC
N_DRAWS = 1000


@dataclass(frozen=True)
class Study:
    """A setting, the targets that are right on average, and what each method says of them."""

    setting: truth.Setting
    names: tuple[str, ...]  # of the classes
    networks: list[nn.Module]  # trained on all rows
    before: Tensor  # their margins at all targets, [R, T]
    targets: list[int]  # Q of those that are right
    scores: Mapping[str, Tensor]  # method -> [n, Q], high for rows that help
    ks: tuple[int, ...]  # numbers of rows to remove
    repeats: int
    seed: int

    @property
    def margins(self) -> Tensor:
        """Mean margins of the chosen targets before anything is removed, `[Q]`."""
        return self.before[:, self.targets].mean(0)


@dataclass(frozen=True)
class Removals:
    """Margins of the chosen targets from networks trained without some rows."""

    highest: Mapping[str, Tensor]  # method -> [K, Q, R], without the target's highest rows
    lowest: Tensor  # without the datamodel's `k_lowest` lowest rows, [1, Q, R]
    k_lowest: int  # the middle one of the numbers of rows
    random: Tensor  # without random rows, the same for all targets, [K, S, Q, R]
    by_class: Tensor  # without random rows of one class, [K, C, Q, R]
    random_rows: Tensor  # which were removed: bool [K, S, n]
    class_rows: Tensor  # bool [K, C, n]


@dataclass(frozen=True)
class Group:
    """Predicted and actual changes of mean margins, one kind of removed rows."""

    kind: str
    predicted: Tensor  # [G, Q]
    actual: Tensor  # [G, Q]
    noise: float  # sd of an actual change by seeds alone


@dataclass(frozen=True)
class Agreement:
    """How predicted changes follow actual ones, each with half its 95% interval over targets."""

    pearson: tuple[float, float]
    slope: tuple[float, float]  # of actual on predicted


@dataclass(frozen=True)
class Example:
    """One target before and after the removal of a few rows, by networks of their own."""

    target: int
    removed: Tensor  # rows, the most helpful first
    before: Tensor  # class probabilities of each network, [R, C]
    after: Tensor  # [R, C]
    label: int

    @property
    def becomes(self) -> int:
        """The class that is most probable after the removal, on average."""
        return int(self.after.mean(0).argmax())

    def right(self, probabilities: Tensor) -> float:
        """Share of networks that give the target its label."""
        return (probabilities.argmax(1) == self.label).double().mean().item()


def prepare(run: Run, progress: Progress | None = None) -> Study:
    """Choose targets, fit the datamodel, and let every other method score the training rows."""
    size, seed = run.size, run.seed
    make, names = SETTINGS[size.data]
    setting = make(run)
    fitting = truth.measure(setting, size.m_fit, seed=seed + truth.FITTING, progress=progress)
    networks = truth.checkpoints(setting, size.n_before, share=1.0, seed=seed)
    before = margins_of(setting, networks)
    generator = torch.Generator().manual_seed(seed)
    targets = choose(before.mean(0), size.n_targets, generator)
    few = Split(setting.targets.x[targets], setting.targets.y[targets])
    halves = truth.checkpoints(setting, size.n_trak, seed=seed)
    scores = score(setting, few, fitting, targets, networks, halves, run)
    return Study(
        setting, names, networks, before, targets, scores, tuple(size.ks), size.repeats, seed
    )


def choose(margins: Tensor, n: int, generator: torch.Generator) -> list[int]:
    """n targets at random among those with a positive mean margin `[T]`, in rising order."""
    right = (margins > 0).nonzero()[:, 0]
    if not 1 <= n <= len(right):
        raise ValueError(
            f"want 1 to {len(right)} targets that are right on average, got {n}; ask for fewer"
        )
    return right[torch.randperm(len(right), generator=generator)[:n]].sort().values.tolist()


def score(
    setting: truth.Setting,
    targets: Split,
    fitting: truth.Truth,
    columns: Sequence[int],
    networks: Sequence[nn.Module],
    halves: Sequence[nn.Module],
    run: Run,
) -> dict[str, Tensor]:
    """Scores `[n, Q]` of every method, in the order of `METHODS`.

    Raises:
        ValueError: a datamodel without weights, as LASSO's is where networks are too few: the
            order of its rows would be that of the file.
    """
    rows, asked = (setting.train.x, setting.train.y), (targets.x, targets.y)
    n, size = len(setting.train), run.size
    tau = FITS[size.fit](fitting.subsets, fitting.outputs[:, 0, list(columns)], n).tau
    refuse_empty(tau, columns, size.fit)
    ours = trak.trak(halves, rows, asked, k=size.k, ridge=size.ridge, seed=run.seed)
    curved = []
    for index, network in enumerate(halves[:CURVATURE_NETWORKS]):
        generator = torch.Generator().manual_seed(run.seed + index)
        curvature = kfac.fit_ekfac(network, rows[0], generator=generator)
        curved.append(kfac.influence(curvature, network, rows, asked))
    near = [baselines.representation(network, rows, asked) for network in networks]
    found = (tau, ours.tau, torch.stack(curved).mean(0), torch.stack(near).mean(0))
    return dict(zip(METHODS, found, strict=True))


def refuse_empty(tau: Tensor, targets: Sequence[int], fit: str) -> None:
    """Raise a ValueError that names the first target whose column of `[n, Q]` is zero."""
    empty = (tau == 0).all(0)
    if empty.any():
        raise ValueError(
            f"{int(empty.sum())} of {len(empty)} targets have no weights by {fit} (target "
            f"{targets[int(empty.nonzero()[0])]}), so none of their rows ranks above another; fit "
            "on more networks, or by ridge"
        )


def remove(study: Study, n_random: int, progress: Progress | None = None) -> Removals:
    """Train without the rows that each method names, and without random ones.

    Args:
        n_random: sets of random rows for each number of rows.
    """
    setting, repeats, seed = study.setting, study.repeats, study.seed
    n, q = len(setting.train), len(study.targets)
    found = brittleness.margins_without(  # one call, so that stacks are full
        setting,
        torch.cat([s.double() for s in study.scores.values()], 1),
        study.targets * len(study.scores),
        study.ks,
        repeats=repeats,
        seed=seed,
        progress=progress,
    ).split(q, 1)
    k_lowest = study.ks[len(study.ks) // 2]
    lowest = brittleness.margins_without(
        setting,
        -study.scores["datamodel"],
        study.targets,
        [k_lowest],
        repeats=repeats,
        seed=seed,
        progress=progress,
    )
    generator = torch.Generator().manual_seed(seed)
    classes = setting.train.y.unique().tolist()
    gone_random, gone_class, margins = [], [], []
    for k in study.ks:
        sets = [_complement(n, s) for s in sample_subsets(n, n_random, 1 - k / n, seed=seed + k)]
        of_class = []
        for label in classes:
            members = (setting.train.y == label).nonzero()[:, 0]
            if len(members) < k:
                raise ValueError(f"class {label} has {len(members)} rows, cannot remove {k}")
            of_class.append(members[torch.randperm(len(members), generator=generator)[:k]])
        gone = torch.stack([*sets, *of_class])
        kept = torch.stack([_complement(n, s) for s in gone])
        outputs = truth.subset_outputs(setting, kept, repeats=repeats, seed=seed, progress=progress)
        margins.append(outputs[:, :, study.targets].transpose(1, 2))  # [S + C, Q, R]
        gone_random.append(_indicator(gone[:n_random], n))
        gone_class.append(_indicator(gone[n_random:], n))
    all_margins = torch.stack(margins)
    return Removals(
        dict(zip(study.scores, found, strict=True)),
        lowest,
        k_lowest,
        all_margins[:, :n_random],
        all_margins[:, n_random:],
        torch.stack(gone_random),
        torch.stack(gone_class),
    )


def counterfactuals(study: Study, removals: Removals) -> list[Group]:
    """Predicted change `-sum of tau over the removed rows` beside the actual one.

    Source: specification section 3.4; the datamodel's weights, and means over networks.
    """
    tau = study.scores["datamodel"].double()
    before = study.margins.double()
    order = tau.argsort(dim=0, descending=True, stable=True)  # as `margins_without` removes
    back = (-tau).argsort(dim=0, descending=True, stable=True)
    top, bottom = (
        torch.stack([-tau.gather(0, rows[:k]).sum(0) for k in ks])
        for rows, ks in ((order, study.ks), (back, [removals.k_lowest]))
    )
    random, by_class = (
        -(gone.flatten(0, 1).double() @ tau) for gone in (removals.random_rows, removals.class_rows)
    )
    made = (
        ("most helpful", top, removals.highest["datamodel"]),
        ("most harmful", bottom, removals.lowest),
        ("random", random, removals.random.flatten(0, 1)),
        ("of one class", by_class, removals.by_class.flatten(0, 1)),
    )
    seeds = study.before[:, study.targets].double().var(0).mean()
    noise = (seeds / study.repeats + seeds / len(study.before)).sqrt().item()
    return [
        Group(kind, guess, margins.double().mean(-1) - before, noise)
        for kind, guess, margins in made
    ]


def agreement(groups: Sequence[Group], *, seed: int = 0) -> Agreement:
    """Correlation and slope over all groups and targets; intervals resample targets."""
    guess = torch.cat([g.predicted for g in groups]).double()
    seen = torch.cat([g.actual for g in groups]).double()
    if guess.shape != seen.shape or guess.numel() < 3:
        raise ValueError(
            f"want at least 3 predicted and actual changes, got {list(guess.shape)} and "
            f"{list(seen.shape)}"
        )
    n = guess.shape[1]

    def fit(picks: Tensor) -> Tensor:
        """Correlation and slope of each resample of targets, `[2, b]`."""
        a = torch.stack([guess[:, p].flatten() for p in picks], 1)
        b = torch.stack([seen[:, p].flatten() for p in picks], 1)
        r = metrics.pearson(a, b)
        return torch.stack([r, r * b.std(0) / a.std(0)])

    r, slope = fit(torch.arange(n)[None])[:, 0].tolist()
    low, high = bootstrap.interval(
        lambda picks: fit(picks).nan_to_num(0.0),
        n,
        generator=torch.Generator().manual_seed(seed),
        n_draws=N_DRAWS,
    )
    half_r, half_slope = ((high - low) / 2).tolist()
    return Agreement((r, half_r), (slope, half_slope))


def wrong_at(study: Study, removals: Removals) -> dict[str, Tensor]:
    """Whether the mean margin is negative, `[K, Q]`; at random, the share of sets for which."""
    found = {name: brittleness.is_flipped(m).double() for name, m in removals.highest.items()}
    return {**found, RANDOM: brittleness.is_flipped(removals.random).double().mean(1)}


def least_difference(wrong: Mapping[str, Tensor]) -> tuple[float, float]:
    """Smallest lead of the datamodel over both controls at any k, and half its 95% interval."""
    found = [
        brittleness.paired_difference(wrong["datamodel"][k], wrong[control][k])
        for control in (NEAR, RANDOM)
        for k in range(len(wrong["datamodel"]))
    ]
    mean, low, high = min(found)
    return mean, (high - low) / 2


def supports(study: Study, removals: Removals) -> dict[str, Tensor]:
    """Data support by each method, rows, `[Q]`; `[S Q]` at random; infinite where no k is enough.

    An upper bound: another set of rows might be smaller.
    """
    found = {
        name: brittleness.data_support(m, study.margins, study.ks)
        for name, m in removals.highest.items()
    }
    margins = removals.random.flatten(1, 2)  # [K, S Q, R]
    repeated = study.margins.repeat(removals.random.shape[1])
    return {**found, RANDOM: brittleness.data_support(margins, repeated, study.ks)}


def interval(values: Tensor, *, seed: int = 0) -> Tensor:
    """The 95% interval `[2]` of the mean of `[Q]` over targets."""
    return bootstrap.interval(
        lambda rows: values.double()[rows].mean(1),
        len(values),
        generator=torch.Generator().manual_seed(seed),
        n_draws=N_DRAWS,
    )


def share_wrong(wrong: Tensor) -> tuple[float, float]:
    """Mean of `[Q]` and half its 95% interval over targets."""
    low, high = interval(wrong).tolist()
    return wrong.mean().item(), (high - low) / 2


def example(study: Study, removals: Removals) -> Example:
    """The target that the fewest rows turn most clearly, measured again with new networks.

    It was chosen for its margins; networks with other seeds say whether it was chance.
    """
    margins = removals.highest["datamodel"].mean(-1)
    place = int(margins[0].argmin())
    k, t = study.ks[0], study.targets[place]
    order = study.scores["datamodel"][:, place].argsort(descending=True, stable=True)
    kept = order[k:].sort().values
    train = study.setting.train
    rest = replace(
        study.setting,
        name=f"{study.setting.name} without {k} rows",
        train=Split(train.x[kept], train.y[kept]),
    )
    count, seed = len(study.networks), study.seed + 1
    x = study.setting.targets.x[t : t + 1]
    probabilities = [
        torch.stack([training.predict(f, x)[0].softmax(0) for f in networks])
        for networks in (
            truth.checkpoints(study.setting, count, share=1.0, seed=seed),
            truth.checkpoints(rest, count, share=1.0, seed=seed),
        )
    ]
    label = int(study.setting.targets.y[t])
    return Example(t, order[:k], probabilities[0], probabilities[1], label)


def margins_of(setting: truth.Setting, networks: Sequence[nn.Module]) -> Tensor:
    """Outputs of networks at all targets, `[R, T]`."""
    data = setting.targets
    return torch.stack(
        [
            setting.output(training.predict(f, data.x, prepare=setting.prepare), data.y)
            for f in networks
        ]
    )


def _complement(n: int, rows: Tensor) -> Tensor:
    """The other rows, in order."""
    return (~_indicator(rows[None], n)[0]).nonzero()[:, 0]


def _indicator(rows: Tensor, n: int) -> Tensor:
    """Rows `[S, k]` as bool `[S, n]`."""
    return torch.zeros(len(rows), n, dtype=torch.bool).scatter_(1, rows, True)
