"""The numbers that notebook 53's claims are judged by.

Public names: `difference`, `fall`, `best_layer`, `rise_with_weight`, `middle`, `measured`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lib import bootstrap
from lib.backprop.chess.boards import Flags
from lib.backprop.chess.layer_maps import Detection
from lib.backprop.chess.outcomes import Outcome, irrelevant_squares
from lib.backprop.chess.pictures import n_legal_published
from lib.backprop.chess.reading import Reader
from lib.probes import ProbeReport
from lib.shares import average, share

Value = float | tuple[float, float] | None


def difference(a: Flags, b: Flags) -> tuple[float, float]:
    """Share under `a` minus share under `b` on the same boards, and its standard error."""
    gap = a.astype(float) - b.astype(float)
    return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap)))


def fall(found: Detection, a: tuple[int, str], b: tuple[int, str]) -> tuple[float, float]:
    """S at (checkpoint, layer) `a` minus S at `b`, and its standard error."""
    at = [(row, found.layers.index(layer)) for row, layer in (a, b)]
    gap = found.score[at[0]] - found.score[at[1]]
    spread = (found.half[at[0]].square() + found.half[at[1]].square()).sqrt() / 1.96
    return gap.item(), spread.item()


def best_layer(found: Detection) -> str:
    """The layer with the highest S in the trained network."""
    return found.layers[int(found.score[-1].argmax())]


def rise_with_weight(weights: Sequence[float], outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Spearman correlation of the checker's weight and the share of legal boards; 0 if flat.

    With half of its 95% bootstrap interval over boards, which are the same for all weights.
    """
    from scipy.stats import rankdata

    legal = torch.tensor(np.stack([o.legal for o in outcomes])).double()  # [weights, boards]
    order = torch.tensor(rankdata(weights)) - (len(weights) + 1) / 2

    def correlation(rows: Tensor) -> Tensor:
        ranks = torch.tensor(rankdata(legal[:, rows].mean(-1).numpy(), axis=0))
        ranks = ranks - ranks.mean(0)
        scale = order.norm() * ranks.norm(dim=0)
        return torch.where(scale > 0, order @ ranks / scale.clamp(min=1e-12), 0.0)

    whole = correlation(torch.arange(legal.shape[1])[None])[0].item()
    return whole, _half(correlation, legal.shape[1])


def middle(values: Tensor) -> tuple[float, float]:
    """Median and half of its 95% bootstrap interval."""
    wide = values.double()
    return wide.median().item(), _half(lambda rows: wide[rows].median(1).values, len(wide))


def _half(statistic: Callable[[Tensor], Tensor], n: int) -> float:
    ends = bootstrap.interval(statistic, n, generator=torch.Generator().manual_seed(0))
    return (ends[1] - ends[0]).item() / 2


def measured(
    reader: Reader,
    maps: Mapping[str, Detection],
    report: ProbeReport,
    outcomes: Mapping[str, Outcome],
    weights: Sequence[float],
    swept: Sequence[Outcome],
    checked: Sequence[Mapping[str, object]],
) -> dict[str, Value]:
    """Claim -> value, or value and standard error; see the ledger for what each says.

    Args:
        reader: the guarded one.
        maps: of all concepts, the opponent's queen and the coin among them.
        report: of the guarded reader's first layer, on matched positions.
        outcomes: "bop" and "beam" on the same boards, "all" and "sure" (tau .99) on all of them.
        weights, swept: of the learned checker.
        checked: rows of `studies.checker_faults`.
    """
    opening, coin = maps["threat_opp_queen"], maps["random"]
    best = best_layer(opening)
    tower = [x for x in opening.layers if x == "stem" or x.startswith("blocks")]
    control = max(report.controls[k] for k in ("random_network", "shuffled"))
    accepted = next(x["accepted as legal"] for x in checked if x["boards"] == "illegal")
    bop, beam, every = (outcomes[k] for k in ("bop", "beam", "all"))
    edits = every.edits
    extra = irrelevant_squares(reader, bop)
    return {
        "P5-30": fall(opening, (-1, tower[0]), (-1, tower[-1])),
        "P5-31": fall(opening, (-1, best), (0, best)),
        "P5-32": average(coin.score.flatten()),
        "P5-33": share(bop.reached),
        "P5-34": share(bop.legal),
        "P5-35": None if np.isnan(extra) else extra,
        "P5-36": share(every.reached & every.legal),
        "P5-37": None if edits is None else middle(edits),
        "P5-38": share(every.truth),
        "P5-39": share(outcomes["sure"].truth),
        "P5-40": difference(beam.truth, bop.truth),
        "P5-41": rise_with_weight(weights, swept),
        "P5-42": difference(swept[-1].reached, swept[0].reached),
        "P5-43": float(str(accepted)),
        "P5-44": float(n_legal_published()),
        "P5-45": (report.score - control, (report.ci[1] - report.ci[0]) / 3.92),
    }
