"""What notebooks 12 and 13 compute from scores and retrained networks, as numbers and rows.

Document 1, main results; specification of document 1, sections 6.1, 6.2, 6.4 and 6.6.

Public names: `fetch_scores`, `Spread`, `spread`, `spread_rows`, `Agreement`, `split_halves`,
`split_all`, `between`, `Validity`, `validity`, `validity_rows`, `class_shares`, `equivalence`,
`Equivalence`, `effect_rows`, `equivalence_rows`, `location_shares`, `units_ratio`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import cache
from lib.attribution import concepts, metrics
from lib.attribution.concept_cases import Case, Study
from lib.attribution.concept_retraining import Readings, Removal, images_of
from lib.attribution.concepts import ConceptAttribution
from lib.probes import presence

SCORES = ("unweighted", "by_model", "weights")  # arrays of a ConceptAttribution
TOP = 100  # rows of the smaller overlap
N_RESAMPLES = 300


def fetch_scores(
    study: Study,
    case: Case,
    networks: Sequence[nn.Module],
    layers: Sequence[str],
    *,
    k: int,
    ridge: float,
    seed: int = 0,
    null: bool = False,
    progress: Callable[[Iterable[nn.Module]], Iterable[nn.Module]] | None = None,
) -> ConceptAttribution:
    """`concepts.attribute` on a study's training images, kept: figures come from saved arrays.

    Args: as there; all networks are of the study's setting.
    """
    train = (study.setting.train.x, study.setting.train.y)
    config = {
        "network": [study.setting.network, dict(study.setting.spec)],
        "states": [cache.state_hash(dict(network.state_dict())) for network in networks],
        "train": cache.state_hash(dict(zip(("x", "y"), train, strict=True))),
        "concept": cache.state_hash(images_of(case)),
        "layers": list(layers),
        "options": [k, ridge, seed, null],
    }
    names = (*concepts.VERSIONS, *(["null"] if null else []))

    def build() -> dict[str, Tensor]:
        found = concepts.attribute(
            networks,
            train,
            case.data,
            layers,
            k=k,
            ridge=ridge,
            seed=seed,
            null=null,
            progress=progress,
        )
        return {part: getattr(found, part).contiguous() for part in SCORES}

    arrays = cache.fetch("concept-scores", config, build, code=[concepts.attribute])
    return ConceptAttribution(tuple(layers), names, **arrays)


@dataclass(frozen=True)
class Spread:
    """How the positive scores of a ranking are distributed over the training examples."""

    gini: float
    n_effective: float  # (sum a)^2 / sum a^2
    top_share: float  # of the sum that the top 1% carry
    decades: float  # from the largest to the median positive score
    negative: float  # share of the scores below 0


def spread(score: Tensor) -> Spread:
    """Concentration of scores `[n]`; negative ones count as 0 except for `negative`."""
    metrics.refuse_nan(score, "score", "training example")
    positive = score.double().clamp(min=0).sort(descending=True).values
    total, n = positive.sum(), len(positive)
    if total == 0:
        raise ValueError("no score is positive; nothing helps this concept, look at the sign")
    rank = torch.arange(n, 0, -1, dtype=torch.float64)  # of the sorted values, smallest is 1
    gini = (2 * (rank * positive).sum() / (n * total) - (n + 1) / n).item()
    above = positive[positive > 0]
    return Spread(
        gini=gini,
        n_effective=(total**2 / positive.square().sum()).item(),
        top_share=(positive[: max(1, n // 100)].sum() / total).item(),
        decades=(above[0] / above.median()).log10().item(),
        negative=(score < 0).double().mean().item(),
    )


def spread_rows(
    found: Mapping[str, ConceptAttribution], words: Mapping[str, str]
) -> list[dict[str, object]]:
    """The spread of mean scores, one row a concept, layer and version; `words` name versions."""
    rows: list[dict[str, object]] = []
    for name, attribution in found.items():
        for layer in attribution.layers:
            for version in attribution.versions:
                s = spread(attribution.mean(version, layer))
                rows.append(
                    {
                        "concept": name,
                        "layer": layer,
                        "version": words[version],
                        "Gini": s.gini,
                        "effective number": s.n_effective,
                        "top 1% carry": s.top_share,
                        "decades to the median": s.decades,
                        "negative": s.negative,
                    }
                )
    return rows


@dataclass(frozen=True)
class Agreement:
    """Agreement of rankings from two disjoint halves of the networks, over random splits."""

    spearman: Tensor  # [S]
    tenth: Tensor  # [S] share of the top tenth in common; chance .1
    head: Tensor  # [S] share of the top 100 in common; chance 100 / n
    chance: float  # of `head`


def split_halves(
    found: ConceptAttribution, version: str, layer: str, *, n_splits: int, seed: int = 0
) -> Agreement:
    """Split the checkpoints at random and compare the mean scores of both halves.

    Raises:
        ValueError: fewer than two checkpoints.
    """
    n_models, n = found.weights.shape
    if n_models < 2:
        raise ValueError(f"want at least two checkpoints to split, got {n_models}")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n_splits):
        order = torch.randperm(n_models, generator=generator)
        halves = order[: n_models // 2], order[n_models // 2 : 2 * (n_models // 2)]
        a, b = (found.mean(version, layer, half) for half in halves)
        rank = metrics.spearman(a[:, None].double(), b[:, None].double())[0]
        rows.append([rank.item(), overlap(a, b, n // 10), overlap(a, b, TOP)])
    columns = torch.tensor(rows, dtype=torch.float64).T
    return Agreement(columns[0], columns[1], columns[2], TOP / n)


def split_all(
    found: Mapping[str, ConceptAttribution], version: str, *, n_splits: int, seed: int = 0
) -> dict[tuple[str, str], Agreement]:
    """`split_halves` of every concept and layer, by (concept, layer)."""
    return {
        (name, layer): split_halves(attribution, version, layer, n_splits=n_splits, seed=seed)
        for name, attribution in found.items()
        for layer in attribution.layers
    }


def overlap(a: Tensor, b: Tensor, k: int) -> float:
    """Share of the k largest of `a` `[n]` that are among the k largest of `b`."""
    top = [set(x.topk(k).indices.tolist()) for x in (a, b)]
    return len(top[0] & top[1]) / k


def between(found: Mapping[str, ConceptAttribution], version: str) -> tuple[list[str], Tensor]:
    """Spearman correlations of mean scores between all concepts and layers: names, `[C, C]`."""
    names, columns = [], []
    for name, attribution in found.items():
        for layer in attribution.layers:
            names.append(f"{name}\n{layer}")
            columns.append(attribution.mean(version, layer).double())
    n = len(columns)
    pairs = [metrics.spearman(a[:, None], b[:, None])[0] for a in columns for b in columns]
    return names, torch.stack(pairs).view(n, n)


@dataclass(frozen=True)
class Validity:
    """How well scores predict what networks trained on halves of the data show of a concept."""

    concept: str
    layer: str
    version: str
    image: float  # mean LDS over images
    image_interval: tuple[float, float]  # 95%, over subsets
    mean: float  # LDS of the mean over images
    mean_interval: tuple[float, float]
    image_ceiling: float
    mean_ceiling: float


def validity(
    name: str,
    found: ConceptAttribution,
    subsets: Tensor,
    outputs: Mapping[tuple[str, str], Tensor],
) -> list[Validity]:
    """Scores of every version and layer against the truth of `concept_retraining.truth_of`."""
    rows = []
    for layer in found.layers:
        truth = outputs[name, layer]  # [m, R, T]
        mean = truth.mean(2, keepdim=True)
        ceilings = metrics.ceiling(truth).lds, metrics.ceiling(mean).lds
        for version in found.versions:
            tau, one = found.tau(version, layer), found.mean(version, layer)[:, None]
            image, whole = truth.mean(1), mean.mean(1)
            rows.append(
                Validity(
                    name,
                    layer,
                    version,
                    metrics.lds(tau, subsets, image).mean,
                    metrics.bootstrap(tau, subsets, image, n_resamples=N_RESAMPLES).subsets,
                    metrics.lds(one, subsets, whole).mean,
                    metrics.bootstrap(one, subsets, whole, n_resamples=N_RESAMPLES).subsets,
                    *ceilings,
                )
            )
    return rows


def validity_rows(rows: Sequence[Validity], words: Mapping[str, str]) -> list[dict[str, object]]:
    """The same for a table; `words` name versions."""

    def cell(value: float, ends: tuple[float, float]) -> str:
        return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"

    return [
        {
            "concept": v.concept,
            "layer": v.layer,
            "version": words[v.version],
            "each image": cell(v.image, v.image_interval),
            "ceiling": v.image_ceiling,
            "their mean": cell(v.mean, v.mean_interval),
            "ceiling of it": v.mean_ceiling,
        }
        for v in rows
    ]


def class_shares(score: Tensor, labels: Tensor, n_classes: int, k: int = TOP) -> Tensor:
    """Classes of the k highest scores, of the k lowest, and of all rows: shares `[3, C]`."""
    order = score.argsort(descending=True)
    parts = [labels[order[:k]], labels[order[-k:]], labels]
    return torch.stack([torch.bincount(p, minlength=n_classes) / len(p) for p in parts])


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t-tests of paired differences against a margin."""

    mean: float
    low: float  # of the 90% interval: equivalent where both ends lie within the margin
    high: float
    p: float  # the larger of both tests

    @property
    def farther(self) -> float:
        """The end of the interval that is farther from 0, without its sign."""
        return max(abs(self.low), abs(self.high))


def equivalence(difference: Tensor, margin: float = 0.02) -> Equivalence:
    """Whether paired differences `[N']` are 0 within `margin`: TOST at level .05.

    Raises:
        ValueError: fewer than 3 pairs, or a margin that is not positive.
    """
    from scipy import stats

    n = len(difference)
    if n < 3 or not margin > 0:
        raise ValueError(f"want at least 3 pairs and a margin > 0, got {n} and {margin}")
    d = difference.double()
    mean, error = d.mean().item(), (d.std() / n**0.5).item()
    if error == 0:
        inside = abs(mean) < margin
        return Equivalence(mean, mean, mean, 0.0 if inside else 1.0)
    reach = stats.t.ppf(0.95, n - 1) * error
    p = max(stats.t.sf((mean + margin) / error, n - 1), stats.t.sf((margin - mean) / error, n - 1))
    return Equivalence(mean, mean - reach, mean + reach, float(p))


def effect_rows(found: Removal, rankings: Sequence[str]) -> list[dict[str, object]]:
    """One row a number of removed images: concept accuracy / task accuracy of every design."""
    at = found.case.name, found.layer

    def cell(readings: Readings) -> str:
        return f"{readings.accuracy[at].mean():.3f} / {readings.task.mean():.3f}"

    columns = [(name, design) for name in rankings for design in ("top", "class-matched", "bottom")]
    rows: list[dict[str, object]] = []
    for count in (0, *found.counts):
        row: dict[str, object] = {"removed": count}
        row["random"] = cell(found.after["", "random", count] if count else found.whole)
        for name, design in columns:
            here = found.after[name, design, count] if count else found.whole
            row[f"{design}, {name}"] = cell(here)
        rows.append(row)
    return rows


def equivalence_rows(
    found: Removal, rankings: Sequence[str], margin: float = 0.02
) -> list[dict[str, object]]:
    """One row a ranking and number: accuracy after top minus after random removal, and TOST."""
    rows: list[dict[str, object]] = []
    for name in rankings:
        for count in found.counts:
            e = equivalence(found.difference(name, count), margin)
            task = found.after[name, "top", count].task - found.after["", "random", count].task
            rows.append(
                {
                    "ranking": name,
                    "removed": count,
                    "concept: top - random": e.mean,
                    "90% interval": f"{e.low:.4f} to {e.high:.4f}",
                    f"p (within {margin:g})": e.p,
                    "equal": "yes" if e.p < 0.05 else "not shown",
                    "own task: top - random": task.mean().item(),
                }
            )
    return rows


def location_shares(readings: Readings, study: Study, case: Case, *, seed: int = 0) -> Tensor:
    """How often each layer reads the concept best, over bootstrap draws of the networks `[L]`."""
    dense = torch.stack([readings.accuracy[case.name, layer] for layer in study.layers])
    return presence.location(dense, generator=torch.Generator().manual_seed(seed))


def units_ratio(found: Removal, ranking: str, count: int, sizes: Sequence[int]) -> float:
    """Median number of units for 95% of the dense accuracy, after over before the removal."""
    at = found.case.name, found.layer
    medians = [
        presence.units_needed(r.sparse[at].T, sizes).double().median().item()
        for r in (found.after[ranking, "top", count], found.whole)
    ]
    return medians[0] / medians[1]
