"""What notebook 21 measures: planted units, agreement of detectors, the null, two spaces.

Public names: `Named`, `planted`, `planted_rows`, `Agreement`, `agreement`, `agreement_rows`,
`white_noise`, `shares`, `Compared`, `compare_spaces`, `table_1`.

Source: document 2, section 3.1 and table 1; specification section 1, 3.5, 4.5 and 7.1.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib import bootstrap
from lib.data.annotations import CATEGORIES
from lib.monitoring.activations import ConceptScores, ConceptSet, LayerActivations
from lib.monitoring.calibration import Rule
from lib.monitoring.detectors import Detector, clip_dissect
from lib.monitoring.learned_space import learn, moves, place

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
NOISE = 0.1  # sd beside the coverage of a planted unit (specification 7.1, case 12)
Measured = tuple[float, float]


@dataclass(frozen=True)
class Named:
    """Planted units by one detector, probing set by probing set."""

    variant: str
    encoder: str
    right: Tensor  # bool [S, C]: seed, planted concept; NaN-free because absent ones are left out
    present: Tensor  # bool [S, C]: the concept is in the probing set

    @property
    def share(self) -> Measured:
        """Mean share named right, and its standard deviation over probing sets."""
        each = (self.right & self.present).sum(1).double() / self.present.sum(1)
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
    sets: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
    *,
    noise: float = NOISE,
    seed: int = 0,
    variants: Sequence[str] = tuple(VARIANTS),
) -> list[Named]:
    """Units that follow the coverage of one concept each, named by every variant.

    Args:
        sets: a probing set each: coverage `[N, C]` and similarities by name of the encoder; rank
            reorder takes a root of mean similarities and is left out where they are negative.
        noise: standard deviation added to the coverage.
    """
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for number, (coverage, similarities) in enumerate(sets):
        generator = torch.Generator().manual_seed(seed + number)
        acts = coverage + noise * torch.randn(coverage.shape, generator=generator)
        layer = LayerActivations("planted", torch.arange(len(acts)), acts)
        present = coverage.std(0) > 0
        for encoder, p in similarities.items():
            for variant in variants:
                label = _label(p, variant, layer)
                right = label == torch.arange(coverage.shape[1])
                found.setdefault((variant, encoder), []).append((right, present))
    return [
        Named(variant, encoder, *(torch.stack(x) for x in zip(*each, strict=True)))
        for (variant, encoder), each in found.items()
    ]


def _label(p: Tensor, variant: str, layer: LayerActivations) -> Tensor:
    similarity, constants = VARIANTS[variant]
    with warnings.catch_warnings():
        # rank reorder of an encoder with negative means; said in the table's caption
        warnings.filterwarnings("ignore", message=".*not positive")
        detector = clip_dissect(p, similarity=similarity, **constants)
        return detector.detect(layer).label


def planted_rows(found: Sequence[Named]) -> list[dict[str, str]]:
    """A row a variant, a column an encoder."""
    rows = []
    for variant in dict.fromkeys(one.variant for one in found):
        row = {"similarity": variant}
        for one in found:
            if one.variant == variant:
                share, sd = one.share
                row[one.encoder] = f"{share:.0%} ± {sd:.0%}"
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Agreement:
    """Two detectors on the detectors of Network Dissection in one layer."""

    same_word: Tensor  # bool [n]
    same_category: Tensor  # bool [n]
    in_five: Tensor  # bool [n]: Network Dissection's five best hold the other's word
    m: int  # units of the layer

    def share(self, of: Tensor, *, seed: int = 0) -> Measured | None:
        """Mean, and half a 95% bootstrap interval over units; None without any."""
        n = len(of)
        if n == 0:
            return None
        values = of.double()
        generator = torch.Generator().manual_seed(seed)
        low, high = bootstrap.interval(
            lambda rows: values[rows].mean(-1), n, generator=generator
        ).tolist()
        return float(values.mean()), (high - low) / 2


def agreement(
    masks: ConceptScores, words: ConceptScores, concepts: ConceptSet, cut: float = 0.04
) -> Agreement:
    """Words of a detector beside those of Network Dissection, where the latter has detectors.

    Args:
        masks: intersections over union; words: scores of the same units and concepts.
        cut: above which a unit is a detector.
    """
    if masks.h.shape != words.h.shape:
        raise ValueError(
            f"want the same units and concepts, got {tuple(masks.h.shape)} and "
            f"{tuple(words.h.shape)}"
        )
    chosen = (masks.best > cut) & ~masks.dead
    numbers = torch.tensor([CATEGORIES.index(name) for name in concepts.category()])
    five = masks.top(min(5, len(concepts)))[1][chosen]
    word = words.label[chosen]
    return Agreement(
        five[:, 0] == word,
        numbers[five[:, 0].long()] == numbers[word.long()],
        (five == word[:, None]).any(1),
        len(chosen),
    )


def agreement_rows(found: Mapping[tuple[str, str], Agreement]) -> list[dict[str, str]]:
    """A row for each (layer, encoder)."""
    return [
        {
            "layer": layer,
            "encoder": encoder,
            "detectors": f"{len(one.same_word)} of {one.m}",
            "same word": _percent(one.share(one.same_word)),
            "same category": _percent(one.share(one.same_category)),
            "word among five": _percent(one.share(one.in_five)),
        }
        for (layer, encoder), one in found.items()
    ]


def _percent(measured: Measured | None) -> str:
    return "none" if measured is None else f"{measured[0]:.0%} ± {measured[1]:.0%}"


def white_noise(
    detector: Detector, rule: Rule, ids: Tensor, *, m: int = 2000, seeds: Sequence[int] = (0, 1, 2)
) -> tuple[Tensor, Tensor]:
    """Shares of units on white noise that pass a rule's threshold, and the whole rule, `[S]`."""
    scores, whole = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(ids), m, generator=generator)
        found = detector.detect(LayerActivations("white noise", ids, noise))
        scores.append(Rule(rule.tau).interpretable(found).double().mean())
        whole.append(rule.interpretable(found).double().mean())
    return torch.stack(scores), torch.stack(whole)


def shares(
    scores: Mapping[str, ConceptScores], taus: Tensor, attainments: Sequence[float]
) -> dict[tuple[str, float], Tensor]:
    """Share of interpretable units at each threshold and attainment asked for, `[T]`."""
    return {
        (name, cut): torch.stack(
            [Rule(float(tau), cut).interpretable(one).double().mean() for tau in taus]
        )
        for name, one in scores.items()
        for cut in attainments
    }


@dataclass(frozen=True)
class Compared:
    """Our space and a learned one under the same changes; moves in units of the mean distance."""

    learn_seconds: float  # activations and learning
    embed_seconds: float  # of all concept words
    anchors: Tensor  # float32 [A], largest move of each anchor over all changes, ours
    units_probe: Tensor  # float32 [M], units in the learned space, another probing set
    units_again: Tensor  # float32 [M], the same probing set, learned again from another start
    units_half: Tensor  # float32 [M], the same images, half of the units' images drawn anew
    ours_probe: Tensor  # float32 [M], units in our space, another probing set
    base_changes: Tensor  # float32 [M], a model's own units: learned, against placed in another's


def compare_spaces(
    acts: Sequence[Callable[[], Tensor]],
    embed: Callable[[], Tensor],
    anchors: Sequence[int],
    ours: Sequence[Tensor],
    *,
    seed: int = 0,
) -> Compared:
    """Learn a space for two probing sets and two base models, and embed the words each time.

    Args:
        acts: make activations `[N, M]`: base model A on probing set 1, A on set 2, B on set 1.
        embed: embeds the concept words, `[C, D]`; called for every setting anew.
        anchors: numbers of words.
        ours: A's units in our space on sets 1 and 2, `[M, D]`.
        seed: of the learning.
    """
    start = time.perf_counter()
    first = learn(acts[0](), seed=seed)
    learn_seconds = time.perf_counter() - start
    start = time.perf_counter()
    words = embed()
    embed_seconds = time.perf_counter() - start
    a_first, a_second, b_first = (make() for make in acts)
    second, again = learn(a_second, seed=seed), learn(a_first, seed=seed + 1)
    of_b = learn(b_first, seed=seed)
    scale = torch.pdist(words).mean()
    moved = torch.stack(
        [(embed()[list(anchors)] - words[list(anchors)]).norm(dim=1) / scale for _ in acts]
    )
    half = a_first[torch.randperm(len(a_first), generator=torch.Generator().manual_seed(seed))]
    return Compared(
        learn_seconds,
        embed_seconds,
        moved.amax(0),
        moves(first.units, second.units),
        moves(first.units, again.units),
        moves(first.units, learn(half[: len(half) // 2], seed=seed).units),
        moves(*ours),
        moves(of_b.units, place(first, b_first)),
    )


def table_1(found: Compared, n_words: int) -> list[dict[str, str]]:
    """The document's table 1, measured."""

    def mean(values: Tensor) -> str:
        return f"{float(values.mean()):.2f}"

    return [
        {
            "question": "seconds before the first unit is placed",
            "document": "ConceptEvo trains, ours does not",
            "learned": f"{found.learn_seconds:.1f}",
            "ours": f"{found.embed_seconds:.2f} for {n_words} words",
        },
        {
            "question": "anchors: largest move over probing sets and base models",
            "document": "no against yes",
            "learned": "has none",
            "ours": f"{float(found.anchors.max()):.0e}",
        },
        {
            "question": "units: mean move on another probing set",
            "document": "not flexible against flexible",
            "learned": mean(found.units_probe),
            "ours": mean(found.ours_probe),
        },
        {
            "question": "units: mean move when learned from another start",
            "document": "no number",
            "learned": mean(found.units_again),
            "ours": "0, nothing is drawn",
        },
        {
            "question": "units of a second model: placed in the first's space, or in its own",
            "document": "trained anew for each base model",
            "learned": mean(found.base_changes),
            "ours": "0, one space",
        },
    ]
