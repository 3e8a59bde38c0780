"""The image-text study of notebook 46: which pairs an alignment needs.

Document 4, applications of TRAK: CLIP; specification sections 7.3 and 4.7. Two towers are trained
on digits with captions. For held-out pairs whose image and caption they align, TRAK and the nearest
neighbours in the model's own joint embedding rank the training pairs; networks trained without the
highest tell what each target's cosine owes to them. TRAK is asked in three ways: for the
log-probability of the pair, for its margin, and for the cosine.

Public names: `prepare`, `Study`, `remove`, `Removal`, `half`, `of_margin`, `cosine_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib import bootstrap, cache, gradients, two_tower
from lib.attribution import trak
from lib.attribution.brittleness import paired_difference
from lib.attribution.subsets import sample_subsets
from lib.config import Run
from lib.data import captions
from lib.parallel import map_tasks
from lib.training import Recipe
from lib.training.loop import SCHEDULES, Progress

TRAK, MARGIN, COSINE = "TRAK", "TRAK of the margin", "TRAK of the cosine"
NEIGHBOURS, RANDOM = "neighbours", "random"
SIMULATED = 300  # pairs of the simulated batch (the published study's)
HELD_OUT = 60  # pairs that targets are chosen from
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Study:
    """Trained towers, targets and scores."""

    pairs: captions.Pairs  # training pairs first
    n: int  # training pairs
    spec: Mapping[str, int]
    recipe: Recipe
    targets: Tensor  # int64 [T]: rows of held-out pairs
    cosines: Tensor  # of the networks on all pairs, [M, HELD_OUT]
    top1: float  # share of held-out images whose own caption is the nearest of all held-out ones
    scores: Mapping[str, Tensor]  # method -> [n, T]
    unfitted: Tensor  # 1 - p of training pairs in the simulated batch, mean over networks, [n]

    def shared(self, a: str, b: str, k: int) -> float:
        """Share of a method's k highest pairs that another also has, mean over targets."""
        tops = [
            torch.zeros_like(self.scores[m], dtype=torch.bool).scatter_(
                0, self.scores[m].topk(k, 0).indices, True
            )
            for m in (a, b)
        ]
        return (tops[0] & tops[1]).sum(0).double().mean().item() / k


@dataclass(frozen=True)
class Removal:
    """Cosines of targets after training without some pairs."""

    ks: tuple[int, ...]
    before: Tensor  # by networks on all pairs that nothing was chosen with, [M, T]
    after: Mapping[str, Tensor]  # method -> [K, T, R]

    def drop(self, method: str) -> Tensor:
        """Fall of a target's mean cosine, float64 `[K, T]`."""
        return self.before.double().mean(0) - self.after[method].double().mean(-1)

    def interval(self, method: str) -> Tensor:
        """Mean drop and its 95% interval over targets, `[K, 3]`."""
        zero = torch.zeros(self.before.shape[1], dtype=torch.float64)
        return torch.tensor([paired_difference(drop, zero) for drop in self.drop(method)])

    def ratio(self, a: str, b: str) -> tuple[float, float]:
        """Mean drop by a over that by b at the largest k, and half its interval over targets."""
        top, below = self.drop(a)[-1], self.drop(b)[-1]
        low, high = bootstrap.interval(
            lambda rows: top[rows].mean(1) / below[rows].mean(1),
            len(top),
            generator=torch.Generator().manual_seed(0),
            n_draws=N_RESAMPLES,
        ).tolist()
        return (top.mean() / below.mean()).item(), (high - low) / 2

    def difference(self, a: str, b: str) -> tuple[float, float]:
        """Mean drop by a minus that by b at the largest k, and half its interval over targets."""
        value, low, high = paired_difference(self.drop(a)[-1], self.drop(b)[-1])
        return value, (high - low) / 2


def prepare(run: Run) -> Study:
    """Train towers on all pairs, choose targets, and rank the pairs for each.

    Targets are drawn from the half of the held-out pairs that the towers align best.
    """
    size = run.size.pairs
    n = size["n"]
    pairs = captions.load(n + HELD_OUT, source=size["source"], root=run.data_root)
    spec = {"image_size": pairs.images.shape[-1], "patch": 6, "width": size["width"], "heads": 2}
    spec |= {"layers": 1, "embed": 16, "n_words": len(captions.VOCABULARY)}
    spec |= {"length": captions.LENGTH}
    recipe = Recipe(
        size["epochs"], size["batch_size"], size["lr"], optimizer="adam", schedule="triangular"
    )
    state = _fetch_towers(spec, recipe, pairs, n, size["n_models"], run.seed)
    images, texts = two_tower.embed_stacked(spec, state, pairs.images, pairs.texts)  # [M, N, d]
    cosines = (images[:, n:] * texts[:, n:]).sum(-1)
    nearest = (images[:, n:] @ texts[:, n:].mT).argmax(-1)
    top1 = (nearest == torch.arange(HELD_OUT)).double().mean().item()
    aligned = cosines.mean(0).argsort(descending=True)[: HELD_OUT // 2]
    pick = torch.randperm(len(aligned), generator=torch.Generator().manual_seed(run.seed))
    targets = n + aligned[pick[: size["n_targets"]]].sort().values
    near = (images[:, :n] @ images[:, targets].mT + texts[:, :n] @ texts[:, targets].mT).mean(0) / 2
    networks = [two_tower.unstack(spec, state, k) for k in range(size["n_models"])]
    batch = torch.randperm(n, generator=torch.Generator().manual_seed(run.seed))[:SIMULATED]
    asked: dict[str, tuple[trak.Data | trak.TargetGradients, gradients.Output, trak.Loss]] = {
        TRAK: ((targets,), two_tower.contrastive, half),
        MARGIN: ((targets,), two_tower.margin, of_margin),
        COSINE: (cosine_gradients(targets), two_tower.contrastive, half),
    }
    found = {
        name: trak.trak(
            [two_tower.InBatch(m, pairs.images, pairs.texts, batch) for m in networks],
            (torch.arange(n),),
            wanted,
            k=size["k"],
            seed=run.seed,
            ridge=0.1,
            output=output,
            loss=loss,
        )
        for name, (wanted, output, loss) in asked.items()
    }
    scores = {**{name: one.tau for name, one in found.items()}, NEIGHBOURS: near}
    unfitted = 2 * found[MARGIN].weights
    return Study(pairs, n, spec, recipe, targets, cosines, top1, scores, unfitted)


def half(output: Tensor) -> Tensor:
    """The loss of a pair's output: training minimises half of its negative."""
    return -0.5 * output


def of_margin(output: Tensor) -> Tensor:
    """The loss of a pair's summed margins, `-log p` at their mean: its weight is half of 1 - p.

    Training minimises the mean of `-log p` over both directions, which is this where they agree;
    the published software averages the two p instead of the two margins.
    """
    return F.softplus(-0.5 * output)


def cosine_gradients(rows: Tensor) -> trak.TargetGradients:
    """Gradients of the cosines of pairs, for `trak.trak` on networks that are `InBatch`."""

    def targets(model: nn.Module, block: Sequence[str] | None) -> Tensor:
        def cosine(weights: dict[str, Tensor], row: Tensor) -> Tensor:
            own = functional_call(model, weights, (row[None],))[0, 0, 0]
            return own * torch.exp(-weights["clip.logit_scale"][0])

        return gradients.functional_gradients(cosine, model, (rows,), block=block)

    return targets


def remove(run: Run, study: Study, progress: Progress | None = None) -> Removal:
    """Train towers without each target's k highest pairs by each method, and without random ones.

    Random sets are shared by all targets; their number is that of the targets.
    """
    size = run.size.pairs
    ks, repeats, n_targets = tuple(size["ks"]), size["repeats"], len(study.targets)
    whole = torch.arange(study.n).expand(n_targets, -1)
    jobs = [_job(study, whole, run.seed, repeat) for repeat in range(repeats)]
    for k in ks:
        drawn = sample_subsets(study.n, n_targets, 1 - k / study.n, seed=run.seed + k)
        for method in (*size["methods"], RANDOM):
            kept = drawn
            if method != RANDOM:
                order = study.scores[method].argsort(dim=0, descending=True, stable=True)
                kept = order[k:].T.sort(1).values
            count = 1 if method == RANDOM else repeats
            jobs += [_job(study, kept, run.seed, repeat) for repeat in range(count)]
    with sdpa_kernel(SDPBackend.MATH):  # for all threads alike
        parts = iter(map_tasks(_cosines_without, jobs, progress=progress, together=True))
    before = torch.cat([next(parts) for _ in range(repeats)])
    after: dict[str, list[Tensor]] = {}
    for _ in ks:
        for method in (*size["methods"], RANDOM):
            if method == RANDOM:
                found = next(parts).T  # [T, sets]
            else:  # of each network, the target that it was trained without
                found = torch.stack([next(parts).diagonal() for _ in range(repeats)], 1)
            after.setdefault(method, []).append(found)
    return Removal(ks, before, {m: torch.stack(x) for m, x in after.items()})


@dataclass(frozen=True)
class _Job:
    """Towers of some subsets, to be read at the targets."""

    study: Study
    subsets: Tensor  # [T, m]
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        return f"towers on {self.subsets.shape[1]} pairs, seeds {self.seeds[0]} and on"


def _job(study: Study, kept: Tensor, seed: int, repeat: int) -> _Job:
    first = 1_000_000 * (seed + 1) + 1000 * repeat  # not those of the towers on all pairs
    return _Job(study, kept, tuple(range(first, first + len(kept))))


def _cosines_without(job: _Job) -> Tensor:
    """Cosines `[T, T]`: a network a row, a target a column."""
    study, pairs = job.study, job.study.pairs
    config = {
        "spec": dict(study.spec),
        "recipe": asdict(study.recipe),
        "data": pairs.provenance.sha256,
        "subsets": cache.state_hash({"subsets": job.subsets, "targets": study.targets}),
        "seeds": list(job.seeds),
    }

    def build() -> dict[str, Tensor]:
        rows = study.targets
        state = two_tower.train_stacked(
            study.spec, pairs.images, pairs.texts, study.recipe,
            seeds=job.seeds, subsets=job.subsets,
        )  # fmt: skip
        a, b = two_tower.embed_stacked(study.spec, state, pairs.images[rows], pairs.texts[rows])
        return {"cosines": (a * b).sum(-1)}

    return cache.fetch("tower-cosines", config, build, code=_code(study.recipe))["cosines"]


def _fetch_towers(
    spec: Mapping[str, int], recipe: Recipe, pairs: captions.Pairs, n: int, count: int, seed: int
) -> dict[str, Tensor]:
    """The stacked state of towers on all training pairs, through the cache."""
    seeds = [1000 * seed + k for k in range(count)]
    data = pairs.provenance.sha256
    config = {"spec": dict(spec), "recipe": asdict(recipe), "data": data, "n": n, "seeds": seeds}

    def build() -> dict[str, Tensor]:
        subsets = torch.arange(n).expand(count, -1)
        return two_tower.train_stacked(
            spec, pairs.images, pairs.texts, recipe, seeds=seeds, subsets=subsets
        )

    return cache.fetch("towers", config, build, code=_code(recipe))


def _code(recipe: Recipe) -> list[Callable[..., object]]:
    return [two_tower.train_stacked, two_tower.embed_stacked, SCHEDULES[recipe.schedule]]
