"""What becomes of a concept when networks are trained again on part of the data.

Document 1, removal and retraining; specification of document 1, sections 6.4 and 6.6. Networks
are trained anew on subsets of the rows (epochs are kept, not steps), probes are fitted anew on the
same concept images, and images that neither trained, nor fitted, nor were attributed judge them.

Public names: `Readings`, `read`, `truth_of`, `remaining`, `removals`, `Removal`, `best_layers`,
`unit_sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lib import cache, features, models, parallel, probes, training
from lib.attribution.concept_cases import Case, Study
from lib.attribution.concepts import L2, ridge_probe
from lib.attribution.subsets import check_subsets, sample_subsets
from lib.attribution.truth import REMOVAL, SUBSET, network_seed
from lib.training.loop import LOSSES, SCHEDULES, Progress

DESIGNS = ("top", "bottom", "random", "class-matched")


@dataclass(frozen=True)
class Readings:
    """What probes read in N networks, by (concept, layer)."""

    logits: Mapping[tuple[str, str], Tensor]  # [N, T] signed, attributed images
    accuracy: Mapping[tuple[str, str], Tensor]  # [N] of that ridge probe on images that judge
    sparse: Mapping[tuple[str, str], Tensor]  # [N, K] of logistic probes of 1, 2, 4, ... units
    task: Tensor  # [N] accuracy on the network's own task

    def part(self, rows: Tensor | slice) -> Readings:
        """The readings of some of the networks."""
        return Readings(
            {k: v[rows] for k, v in self.logits.items()},
            {k: v[rows] for k, v in self.accuracy.items()},
            {k: v[rows] for k, v in self.sparse.items()},
            self.task[rows],
        )

    @classmethod
    def join(cls, parts: Sequence[Readings]) -> Readings:
        """The networks of all parts, in order."""

        def joined(
            maps: Sequence[Mapping[tuple[str, str], Tensor]],
        ) -> dict[tuple[str, str], Tensor]:
            return {k: torch.cat([m[k] for m in maps]) for k in maps[0]}

        return cls(
            joined([p.logits for p in parts]),
            joined([p.accuracy for p in parts]),
            joined([p.sparse for p in parts]),
            torch.cat([p.task for p in parts]),
        )


def read(
    study: Study,
    subsets: Tensor,
    seeds: Sequence[int],
    *,
    grid: Sequence[int] = (),
    l2: float = L2,
    progress: Progress | None = None,
) -> Readings:
    """Train a network on each subset and read every concept at every layer.

    Args:
        study: networks and concepts.
        subsets: sorted row indices, int64 `[N, m]`.
        seeds: one a network.
        grid: numbers of units of the sparse probes; those above a layer's width are dropped and
            the width is added. Empty for none.
        l2: penalty of the ridge probe.
        progress: wraps the range of stacks.

    Returns:
        The readings, trained at most once (`lib.cache`).
    """
    check_subsets(subsets, len(study.setting.train))
    if study.setting.prepare is not None:
        raise ValueError("want a setting whose inputs are prepared, got one with `prepare`")
    if len(seeds) != len(subsets):
        raise ValueError(f"want a seed a subset, got {len(seeds)} and {len(subsets)}")
    step = study.setting.stack
    tasks = [
        _Task(study, subsets[i : i + step], tuple(seeds[i : i + step]), tuple(grid), l2)
        for i in range(0, len(subsets), step)
    ]
    on_processor = study.setting.train.x.device.type == "cpu"
    return Readings.join(
        parallel.map_tasks(_fetch, tasks, progress=progress, together=on_processor)
    )


def truth_of(
    study: Study, m: int, repeats: int, *, seed: int = 0, progress: Progress | None = None
) -> tuple[Tensor, dict[tuple[str, str], Tensor]]:
    """Signed logits of every attributed image in networks trained on random halves.

    Args:
        m: halves; repeats: R networks each.
        seed: of the halves and the networks.

    Returns:
        Subsets `[m, n/2]`, and (concept, layer) -> logits `[m, R, T]`.
    """
    subsets = sample_subsets(len(study.setting.train), m, 0.5, seed=seed)
    seeds = [network_seed(seed, SUBSET, j, r) for r in range(repeats) for j in range(m)]
    found = read(study, subsets.repeat(repeats, 1), seeds, progress=progress)
    return subsets, {
        k: v.unflatten(0, (repeats, m)).transpose(0, 1) for k, v in found.logits.items()
    }


def remaining(
    design: str, score: Tensor, labels: Tensor, n_removed: int, generator: torch.Generator
) -> Tensor:
    """The rows that stay, sorted `[n - T]`, when T of them are removed.

    Args:
        design: `top` (highest scores), `bottom` (lowest), `random`, or `class-matched` (random
            with the classes of `top`).
        score: `[n]`.
        labels: class of each row `[n]`.
        n_removed: T.
        generator: of the random designs.

    Raises:
        ValueError: an unknown design; T not in 1..n - 1; NaN among the scores.
    """
    n = len(score)
    if design not in DESIGNS:
        raise ValueError(f"designs are {', '.join(DESIGNS)}; got {design!r}")
    if not 1 <= n_removed < n:
        raise ValueError(
            f"want to remove 1 to {n - 1} of the {n} training rows, got {n_removed}; "
            "T = 0 is the network as it is"
        )
    if not score.isfinite().all():
        raise ValueError("the scores hold NaN or infinity; attribute again before removing")
    order = score.argsort(descending=design != "bottom", stable=True)
    out = order[:n_removed]
    if design == "random":
        out = torch.randperm(n, generator=generator)[:n_removed]
    if design == "class-matched":
        picked = []
        for label, count in zip(*labels[out].unique(return_counts=True), strict=True):
            rows = (labels == label).nonzero()[:, 0]
            picked.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
        out = torch.cat(picked)
    stays = torch.ones(n, dtype=torch.bool)
    stays[out] = False
    return stays.nonzero()[:, 0]


@dataclass(frozen=True)
class Removal:
    """Readings after every removal, N' networks each; seed k is the same in all of them."""

    case: Case
    layer: str  # whose scores rank
    counts: tuple[int, ...]  # T
    whole: Readings  # nothing removed
    after: Mapping[tuple[str, str, int], Readings]  # (ranking, design, T); random: ranking ""
    concept: tuple[int, Readings, Readings] | None  # all of its classes' rows: T, them, random

    def difference(self, ranking: str, n_removed: int, layer: str | None = None) -> Tensor:
        """Accuracy after removing the top minus after removing random rows, `[N']`."""
        at = self.case.name, layer or self.layer
        top = self.after[ranking, "top", n_removed].accuracy[at]
        return top - self.after["", "random", n_removed].accuracy[at]


def removals(
    study: Study,
    case: Case,
    layer: str,
    rankings: Mapping[str, Tensor],
    counts: Sequence[int],
    *,
    n_models: int,
    grid: Sequence[int],
    seed: int = 0,
    progress: Progress | None = None,
) -> Removal:
    """Remove T rows by every ranking and design, and retrain with the same seeds throughout.

    Random designs draw new rows for every network, so that they stand for any random set.

    Args:
        study, case, layer: what is read; `case` must be of the study.
        rankings: name -> scores `[n]`; each gets `top`, `bottom` and `class-matched`.
        counts: T.
        n_models: N' networks each.
        grid: numbers of units of the sparse probes.
        seed: of networks and random sets.
        progress: wraps the range of stacks.
    """
    labels, n = study.setting.train.y, len(study.setting.train)
    seeds = [network_seed(seed, REMOVAL, k, 0) for k in range(n_models)]
    number = 1 + list(study.cases).index(case.name)  # random sets of every concept's own
    generator = torch.Generator().manual_seed(network_seed(seed, REMOVAL, 0, number))
    plan: dict[tuple[str, str, int], Tensor] = {}

    def draw(design: str, score: Tensor, count: int) -> Tensor:
        return torch.stack(
            [remaining(design, score, labels, count, generator) for _ in range(n_models)]
        )

    for count in counts:
        plan["", "random", count] = draw("random", next(iter(rankings.values())), count)
        for name, score in rankings.items():
            for design in ("top", "bottom", "class-matched"):
                plan[name, design, count] = draw(design, score, count)
    plan["", "whole", 0] = torch.arange(n).expand(n_models, n)
    shown = case.shown_by(labels)
    n_shown = int(shown.sum())
    if n_shown:
        plan["", "concept", n_shown] = (~shown).nonzero()[:, 0].expand(n_models, -1)
        plan["", "not the concept", n_shown] = draw("random", shown.float(), n_shown)
    by_size: dict[int, list[tuple[str, str, int]]] = {}
    for key, rows in plan.items():
        by_size.setdefault(rows.shape[1], []).append(key)
    after: dict[tuple[str, str, int], Readings] = {}
    sizes = list(by_size.values())
    for index in progress(range(len(sizes))) if progress else range(len(sizes)):
        keys = sizes[index]
        rows = torch.cat([plan[key] for key in keys])
        found = read(study, rows, seeds * len(keys), grid=grid)
        for i, key in enumerate(keys):
            after[key] = found.part(slice(i * n_models, (i + 1) * n_models))
    whole, concept = after.pop(("", "whole", 0)), None
    if n_shown:
        pair = [after.pop(("", name, n_shown)) for name in ("concept", "not the concept")]
        concept = n_shown, pair[0], pair[1]
    return Removal(case, layer, tuple(counts), whole, after, concept)


def best_layers(study: Study, *, n_models: int, seed: int = 0) -> dict[str, str]:
    """For each concept the layer where networks trained on all rows read it best on average.

    Judged on the attributed images: those that judge removals take no part in the choice.
    """
    n = len(study.setting.train)
    seeds = [network_seed(seed, REMOVAL, k, 0) for k in range(n_models)]
    whole = read(study, torch.arange(n).expand(n_models, n), seeds)
    return {
        name: max(study.layers, key=lambda x: (whole.logits[name, x] > 0).double().mean().item())
        for name in study.cases
    }


@dataclass(frozen=True)
class _Task:
    """The networks of one stack."""

    study: Study
    subsets: Tensor  # [N, m]
    seeds: tuple[int, ...]
    grid: tuple[int, ...]
    l2: float

    def __str__(self) -> str:
        return (
            f"{self.study.setting.name}, {len(self.seeds)} networks on {self.subsets.shape[1]} rows"
        )


def _fetch(task: _Task) -> Readings:
    study, setting = task.study, task.study.setting
    recipe = setting.recipe
    images = {
        f"{case.name} {part}": rows
        for case in study.cases.values()
        for part, rows in images_of(case).items()
    }
    config = {
        "network": setting.network,
        "spec": dict(setting.spec),
        "recipe": asdict(recipe),
        "data": setting.data_hash,
        "concepts": cache.state_hash(images),
        "layers": list(study.layers),
        "subsets": cache.state_hash({"subsets": task.subsets}),
        "seeds": list(task.seeds),
        "grid": list(task.grid),
        "l2": task.l2,
    }
    code: list[Callable[..., object]] = [
        _build,
        models.NETWORKS[setting.network],
        LOSSES[recipe.loss],
        SCHEDULES[recipe.schedule],
    ]
    found = cache.fetch("concept-readings", config, lambda: _build(task), code=code)

    def those(what: str) -> dict[tuple[str, str], Tensor]:
        keys = [key.split("|") for key in found if key.startswith(f"{what}|")]
        return {(name, layer): found[f"{what}|{name}|{layer}"] for _, name, layer in keys}

    return Readings(those("logits"), those("accuracy"), those("sparse"), found["task"])


def images_of(case: Case) -> dict[str, Tensor]:
    """The images and labels of a concept, for the key of the cache."""
    data = case.data
    return {
        "fit": data.fit_x,
        "fit labels": data.fit_y,
        "attributed": data.x,
        "attributed labels": data.y,
        "judging": case.eval_x,
        "judging labels": case.eval_y,
    }


def _build(task: _Task) -> dict[str, Tensor]:
    """Train the stack and read it; keys are `what|concept|layer`."""
    study = task.study
    outputs, look = _train(task)
    out = {"task": (outputs.argmax(-1) == study.setting.targets.y).float().mean(1).cpu()}
    for case in study.cases.values():
        data = case.data
        seen = look(torch.cat([data.fit_x, data.x, case.eval_x]))
        parts = [len(data.fit_x), len(data.x), len(case.eval_x)]
        for layer in study.layers:
            fit, attributed, judging = seen[layer].split(parts, dim=1)
            probe = ridge_probe(fit, data.fit_y, task.l2)
            score = [h @ probe[:, :-1, None] + probe[:, None, -1:] for h in (attributed, judging)]
            name = f"{case.name}|{layer}"
            out[f"logits|{name}"] = data.sign * score[0][..., 0]
            out[f"accuracy|{name}"] = probes.accuracy(score[1][..., 0], case.eval_y)
            if task.grid:
                sizes = unit_sizes(task.grid, fit.shape[-1])
                sparse = probes.fit_sparse(
                    fit, data.fit_y, probes.rank_channels(fit, data.fit_y), sizes
                )
                out[f"sparse|{name}"] = probes.accuracy(sparse.score(judging), case.eval_y).T
    return {k: v.contiguous() for k, v in out.items()}


def unit_sizes(grid: Iterable[int], width: int) -> tuple[int, ...]:
    """The sizes of sparse probes that a layer of `width` units allows, with `width` itself."""
    return (*(k for k in sorted(grid) if k < width), width)


def _train(task: _Task) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """Outputs on the targets `[N, n, C]`, and a function that reads pooled activations."""
    study, setting = task.study, task.study.setting
    network, spec, train, layers = setting.network, setting.spec, setting.train, study.layers
    if setting.stack == 1:
        generator = torch.Generator().manual_seed(task.seeds[0])
        model = models.build(network, generator, train.x.device, **spec)
        rows = task.subsets[0].to(train.x.device)
        training.train(model, train.x[rows], train.y[rows], setting.recipe, generator=generator)

        def look(x: Tensor) -> dict[str, Tensor]:
            return {k: h[None].cpu() for k, h in features.activations(model, x, layers).items()}

        return training.predict(model, setting.targets.x)[None], look
    state = training.train_stacked(
        network, spec, train.x, train.y, setting.recipe, seeds=task.seeds, subsets=task.subsets
    )

    def look_at_all(x: Tensor) -> dict[str, Tensor]:
        seen = training.forward_stacked(network, spec, state, x.to(train.x.device), layers)[1]
        return {k: (h.mean(dim=(3, 4)) if h.ndim == 5 else h).cpu() for k, h in seen.items()}

    return training.forward_stacked(network, spec, state, setting.targets.x)[0], look_at_all
