"""Planted units: how often a concept that is known is named, and what stands in the way.

A planted unit follows the coverage of one concept over the probing images, plus noise. Each
similarity function names it. Beside them stand two bounds:

- the best possible: with every coverage and the noise known, the most likely concept;
- the same without a unit's scale, which nobody knows of a network's unit: the concept whose
  coverage correlates most with it. That is the plain cosine with the oracle, as the oracle's
  similarities are centred.

A unit that the first gets wrong is drowned, whatever reads it. One that the first gets right and
the second wrong shows its concept by its scale alone. Any other wrong word is the detector's: a
near twin, whose coverage goes along with the true one, or something else.

Two readings of the noise: a tenth of the image, as specification 7.1 says, and a tenth of the
coverage's own standard deviation.

Public names: `VARIANTS`, `CHOSEN`, `READINGS`, `Named`, `planted`, `best_possible`,
`planted_rows`, `reason_rows`, `clarity_rows`, `confused_rows`, `percent`.

Source: document 2, section 3.1; specification section 4.4 and 7.1, case 12.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lib.data.annotations import CATEGORIES
from lib.monitoring.activations import ConceptSet, LayerActivations
from lib.monitoring.detectors import clip_dissect

# name in the table -> similarity and constants; a = 0 stands for the matched softmax
VARIANTS: dict[str, tuple[str, dict[str, float]]] = {
    "cosine": ("cos", {}),
    "cosine, cubed": ("cos_cubed", {}),
    "rank reorder": ("rank_reorder", {}),
    "WPMI": ("wpmi", {}),
    "soft-WPMI, a = 10": ("soft_wpmi", {}),
    "soft-WPMI, matched": ("soft_wpmi", {"a": 0.0}),
    "soft-WPMI, standardised": ("soft_wpmi_z", {}),
}
CHOSEN = "soft-WPMI, standardised"
SPECIFIED = (CHOSEN, "cosine, cubed")  # those that specification 7.1, case 12, names
ORACLE, TRAINED = "oracle", "trained encoder"
BEST = "best possible"
SCALE_FREE = "cosine"  # with the oracle the largest correlation: what is likeliest at any scale
TWIN = 0.7  # correlation of coverage from which two concepts are near twins
NOISE = 0.1  # sd beside the coverage of a planted unit (specification 7.1, case 12)
READINGS = {"noise .1": False, "noise .1 sd": True}  # name -> `relative` of `planted`
CLARITIES = (0.0, 0.1, 0.3, 1.0, float("inf"))  # edges of the rows of `clarity_rows`
Measured = tuple[float, float]
Sets = Sequence[tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class Named:
    """Planted units by one detector: probing set s, planted concept c."""

    variant: str
    encoder: str
    label: Tensor  # int64 [S, C]: the concept that the unit is named
    likeness: Tensor  # float32 [S, C]: correlation of its coverage with the true concept's
    clarity: Tensor  # float32 [S, C]: standard deviation of the signal over that of the noise
    present: Tensor  # bool [S, C]: the concept is in the probing set

    @property
    def right(self) -> Tensor:
        """Bool `[S, C]`: the concept itself."""
        return self.label == torch.arange(self.label.shape[1])

    @property
    def near(self) -> Tensor:
        """Bool `[S, C]`: right, or a near twin: a tree named "crown", for instance."""
        return self.right | (self.likeness >= TWIN)

    @property
    def share(self) -> Measured:
        """Mean share named right, and its standard deviation over probing sets."""
        return self.share_of(self.right)

    @property
    def near_share(self) -> Measured:
        """The same, counting near twins."""
        return self.share_of(self.near)

    def share_of(self, of: Tensor) -> Measured:
        """Share of the units of concepts that are there for which `of` `[S, C]` holds."""
        each = (of & self.present).sum(1).double() / self.present.sum(1)
        return float(each.mean()), float(each.std()) if len(each) > 1 else 0.0

    def by_category(self, concepts: ConceptSet) -> dict[str, float]:
        """Share named right of the concepts of each category."""
        kinds = concepts.category()
        found = {}
        for name in CATEGORIES:
            mine = self.present & torch.tensor([kind == name for kind in kinds])
            found[name] = float((self.right & mine).sum() / mine.sum().clamp_min(1))
        return found


def planted(
    sets: Sets,
    *,
    noise: float = NOISE,
    relative: bool = False,
    seed: int = 0,
    variants: Sequence[str] = tuple(VARIANTS),
) -> list[Named]:
    """Units that follow the coverage of one concept each, named by every variant.

    Args:
        sets: a probing set each: coverage `[N, C]` and similarities by name of the encoder; rank
            reorder takes a root of mean similarities and is left out where they are negative.
        noise: standard deviation added to the coverage, as a share of the image (a part covers a
            hundredth at best), or with `relative` of the coverage's own standard deviation.
    """
    found: dict[tuple[str, str], list[_One]] = {}
    for number, (coverage, similarities) in enumerate(sets):
        _, acts = _units(coverage, noise, relative, seed + number)
        layer = LayerActivations("planted", torch.arange(len(acts)), acts)
        for who, p in similarities.items():
            for variant in variants:
                one = _compared(_label(p, variant, layer), coverage, noise, relative)
                found.setdefault((variant, who), []).append(one)
    return [_named(variant, who, each) for (variant, who), each in found.items()]


def best_possible(
    sets: Sets, *, noise: float = NOISE, relative: bool = False, seed: int = 0
) -> Named:
    """The same units, named by whoever knows all coverages and the noise: the most likely concept.

    Every concept is planted once, so all are equally likely beforehand, and no rule that looks at
    one unit is right more often (on average over the noise). With activations a and signals s_c
    it is the concept with the least ``|a - s_c|^2``, of those that the set shows.

    Args:
        sets, noise, relative, seed: as for `planted`; similarities are not used.
    """
    each = []
    for number, (coverage, _) in enumerate(sets):
        signal, acts = (x.double() for x in _units(coverage, noise, relative, seed + number))
        evidence = acts.T @ signal - signal.square().sum(0) / 2  # [unit, concept]
        evidence[:, coverage.std(0) == 0] = -torch.inf
        each.append(_compared(evidence.argmax(1), coverage, noise, relative))
    return _named(BEST, ORACLE, each)


_One = tuple[Tensor, Tensor, Tensor, Tensor]  # label, likeness, clarity, present, each [C]


def _units(coverage: Tensor, noise: float, relative: bool, seed: int) -> tuple[Tensor, Tensor]:
    """What each unit follows, and its activations, each `[N, C]`."""
    generator = torch.Generator().manual_seed(seed)
    sd = coverage.std(0)
    signal = coverage / (sd.clamp_min(1e-9) if relative else torch.ones_like(sd))
    return signal, signal + noise * torch.randn(coverage.shape, generator=generator)


def _compared(label: Tensor, coverage: Tensor, noise: float, relative: bool) -> _One:
    sd = coverage.std(0)
    alike = torch.corrcoef(coverage.T).nan_to_num(0.0)[torch.arange(len(label)), label.long()]
    clarity = torch.full_like(sd, 1 / noise) if relative else sd / noise
    return label.long(), alike, clarity, sd > 0


def _named(variant: str, who: str, each: Sequence[_One]) -> Named:
    return Named(variant, who, *(torch.stack(x) for x in zip(*each, strict=True)))


def _label(p: Tensor, variant: str, layer: LayerActivations) -> Tensor:
    similarity, constants = VARIANTS[variant]
    with warnings.catch_warnings():
        # rank reorder of an encoder with negative means; said in the table's caption
        warnings.filterwarnings("ignore", message=".*not positive")
        detector = clip_dissect(p, similarity=similarity, **constants)  # type: ignore[arg-type]
        return detector.detect(layer).label


def planted_rows(
    found: Mapping[str, Sequence[Named]], best: Mapping[str, Named]
) -> list[dict[str, str]]:
    """A row a variant; a column an encoder and noise, and near twins for the first noise.

    Args:
        found: name of the noise -> `planted`; best: the same -> `best_possible`, the last row.
    """
    rows: dict[str, dict[str, str]] = {}
    first = next(iter(found))
    for noise, named in found.items():
        for one in (*named, best[noise]):
            row = rows.setdefault(one.variant, {"similarity": one.variant})
            row[f"{one.encoder}, {noise}"] = percent(one.share)
    for one in (*found[first], best[first]):
        rows[one.variant][f"{one.encoder}, or a twin"] = percent(one.near_share)
    head = list(next(iter(rows.values())))
    return [{column: row.get(column, "") for column in head} for row in rows.values()]


def reason_rows(
    found: Mapping[str, Sequence[Named]],
    best: Mapping[str, Named],
    variants: Sequence[str] = SPECIFIED,
) -> list[dict[str, str]]:
    """Where the planted units go: a row a variant and noise; shares of all units add up to 1.

    Wrong words are counted once, in this order: drowned (the best possible is wrong too), by scale
    alone (the largest correlation is), a near twin, another word.

    Args:
        found: name of the noise -> `planted`, the oracle's cosine among them; best: the same ->
            `best_possible`.
    """
    rows = []
    for noise, named in found.items():
        mine = {one.variant: one for one in named if one.encoder == ORACLE}
        for one in (mine[variant] for variant in variants):
            drowned = ~one.right & ~best[noise].right
            by_scale = ~one.right & ~drowned & ~mine[SCALE_FREE].right
            left = ~one.right & ~drowned & ~by_scale
            rows.append(
                {
                    "similarity": one.variant,
                    "noise": noise,
                    "right": percent(one.share),
                    "drowned": percent(one.share_of(drowned)),
                    "told by scale alone": percent(one.share_of(by_scale)),
                    "near twin": percent(one.share_of(left & one.near)),
                    "another word": percent(one.share_of(left & ~one.near)),
                }
            )
    return rows


def clarity_rows(named: Sequence[Named], best: Named, concepts: ConceptSet) -> list[dict[str, str]]:
    """Share named right by how far the signal stands out; a column a variant, by the oracle.

    Args:
        named: `planted`; best: `best_possible` of the same units, the last column.
    """
    kinds, rows = concepts.category(), []
    for low, high in pairwise(CLARITIES):
        mine = best.present & (best.clarity >= low) & (best.clarity < high)
        n = int(mine.sum())
        if n == 0:
            continue
        count = Counter(kinds[c] for c in mine.nonzero()[:, 1].tolist())
        row = {
            "sd of signal over noise": f"{low:g} to {high:g}" if high < 1e9 else f"above {low:g}",
            "units": f"{n}",
            "of these": ", ".join(f"{k} {name}" for name, k in count.most_common()),
        }
        for one in (*(x for x in named if x.encoder == ORACLE), best):
            row[one.variant] = f"{float((one.right & mine).sum() / n):.0%}"
        rows.append(row)
    return rows


def confused_rows(
    named: Sequence[Named],
    best: Named,
    concepts: ConceptSet,
    *,
    variant: str = CHOSEN,
    n: int = 12,
) -> list[dict[str, str]]:
    """The n most frequent pairs of a planted concept and the wrong word that the oracle gave it.

    Args:
        named: `planted`, with this variant; best: `best_possible` of the same units.
    """
    one = next(x for x in named if (x.variant, x.encoder) == (variant, ORACLE))
    pairs: dict[tuple[int, int], list[int]] = {}
    for s, c in (one.present & ~one.right).nonzero().tolist():
        pairs.setdefault((c, int(one.label[s, c])), []).append(s)
    words, kinds = concepts.words, concepts.category()
    rows = []
    for (c, given), sets in sorted(pairs.items(), key=lambda pair: -len(pair[1]))[:n]:
        rows.append(
            {
                "planted": f"{words[c]} ({kinds[c]})",
                "named": f"{words[given]} ({kinds[given]})",
                "sets": f"{len(sets)} of {len(one.label)}",
                "coverage alike": f"{float(one.likeness[sets, c].mean()):.2f}",
                "sd of signal over noise": f"{float(one.clarity[sets, c].mean()):.2f}",
                "best possible right": f"{int(best.right[sets, c].sum())} of {len(sets)}",
            }
        )
    return rows


def percent(measured: Measured | None) -> str:
    """A share and its spread for a table."""
    return "none" if measured is None else f"{measured[0]:.0%} ± {measured[1]:.0%}"
