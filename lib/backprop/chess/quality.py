"""Beyond the beam: other edits, other ideas of legal and of good, and how good its answers are.

`modes` runs the search once with each of three changes: edits that change a piece's colour, a
price on boards unlike played ones, and legality that asks for a move that leads there. `certified`
counts edits against the fewest there are (`certificates`). Deeper networks: `depth`.

Public names: `MODES`, `modes`, `mode_rows`, `certified`, `certificate_rows`, `measured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lib.backprop.chess import depth
from lib.backprop.chess.certificates import Certificate, certify_all
from lib.backprop.chess.edits import ALL_KINDS, KINDS
from lib.backprop.chess.moves import is_legal
from lib.backprop.chess.outcomes import Outcome, answered, first
from lib.backprop.chess.reading import Reader
from lib.backprop.chess.search import Beam, maximise_boards
from lib.backprop.chess.studies import Bed
from lib.backprop.chess.typical import Typical, fit_typical
from lib.backprop.chess.unmoves import has_predecessor, is_legal_with_history
from lib.backprop.chess.verdicts import Value
from lib.shares import share

MODES = ("with recolouring", "typical", "with a move before it")
KAPPA = 0.3  # logits a nat


def modes(
    bed: Bed,
    probe: Reader,
    beam: Outcome,
    *,
    names: Sequence[str],
    n: int,
    kappa: float = KAPPA,
) -> dict[str, Outcome]:
    """The beam as it is, and in each of the modes, on its first n boards; by name.

    Args:
        beam: what it answered; its tau is that of the modes.
        names: among `MODES`.
        kappa: weight of -log q, in logits a nat.

    Raises:
        ValueError: a mode that there is not.

    Source: specification of document 5, section 5.5 (recolour edits, the "typical" mode) and 5.4
    (the stronger tier of legality).
    """
    if not set(names) <= set(MODES):
        raise ValueError(f"modes are {', '.join(MODES)}; got {', '.join(names)}")
    found = {"beam": first(beam, n)}
    boards = found["beam"].before
    for name in names:
        made = maximise_boards(
            probe,
            boards,
            beam.tau,
            Beam(kinds=ALL_KINDS if name == "with recolouring" else KINDS),
            legal=is_legal_with_history if name == "with a move before it" else is_legal,
            cost=_typical(bed).cost(kappa) if name == "typical" else None,
        )
        found[name] = answered(name, probe, boards, beam.tau, made)
    return found


def mode_rows(bed: Bed, made: Mapping[str, Outcome]) -> list[dict[str, object]]:
    """What each mode answers, and how like a position of a game."""
    typical = _typical(bed)
    rows: list[dict[str, object]] = []
    for name, o in made.items():
        nats = typical.log_density(o.after) - typical.log_density(o.before)
        rows.append(
            {
                "search": name,
                f"P >= {o.tau:g} and legal": round(float((o.reached & o.legal).mean()), 3),
                "confirmed by the rules": round(float(o.truth.mean()), 3),
                "edits (mean)": round(float(np.mean([len(a.edits) for a in o.answers])), 2),
                "log q, change (nats)": (float(nats.mean()), _error(nats)),
                "a move leads there": round(float(has_predecessor(o.after).mean()), 3),
                "boards read": round(o.evaluations),
            }
        )
    return rows


def certified(
    probe: Reader, beam: Outcome, *, n: int, budget: int, further: int
) -> list[Certificate]:
    """The fewest edits of the beam's first n boards, see `certificates.certify`."""
    return certify_all(probe, beam.before[:n], beam.tau, budget=budget, further=further)


def certificate_rows(beam: Outcome, certificates: Sequence[Certificate]) -> list[dict[str, object]]:
    """The fewest edits of the first boards, and how many the beam made of them.

    One row for each number of edits that some board needs; where it is not decided, the beam's
    answer has no fewer than the boards read allow.
    """
    groups: dict[str, list[int]] = {}
    for k, c in enumerate(certificates):
        words = "undecided" if not c.decided else "more than 2"
        groups.setdefault(words if c.n_edits is None else str(c.n_edits), []).append(k)
    rows: list[dict[str, object]] = []
    for words, members in sorted(groups.items()):
        some = [certificates[k] for k in members]
        exact = all(c.complete for c in some)
        rows.append(
            {
                "fewest edits": words,
                "positions": len(members),
                "beam has as many": sum(bool(_agrees(beam, k, certificates[k])) for k in members)
                if words != "undecided"
                else "",
                "beam, edits (mean)": round(
                    float(np.mean([len(beam.answers[k].edits) for k in members])), 2
                ),
                "different answers (median)": ("" if exact else "at least ")
                + f"{np.median([c.n_answers for c in some]):g}"
                if some[0].n_answers
                else "",
                "boards read": round(float(np.mean([c.evaluations for c in some]))),
            }
        )
    return rows


def agreement(beam: Outcome, certificates: Sequence[Certificate]) -> tuple[float, float] | None:
    """Share of decided boards on which the beam makes the fewest edits, and its standard error.

    Where no answer has two edits or fewer, an answer of three or none at all is right. None if
    nothing was decided.
    """
    right = [_agrees(beam, k, c) for k, c in enumerate(certificates) if c.decided]
    return share(np.array(right)) if right else None


def measured(
    bed: Bed,
    made: Mapping[str, Outcome],
    beam: Outcome,
    certificates: Sequence[Certificate],
    towers: Sequence[depth.Depth],
) -> dict[str, Value]:
    """Claim -> value and standard error, or None; see the ledger for what each says.

    Args:
        made: of `modes`.
        beam: the outcome that the certificates are of.
        towers: of `depth.study`.
    """
    other, after = made.get("typical"), made["beam"].after
    return {
        "P5-46": agreement(beam, certificates),
        "P5-47": None if other is None else more_typical(bed, made["beam"], other),
        "P5-48": share(has_predecessor(after)),
        "P5-49": depth.scales(towers),
    }


def more_typical(bed: Bed, beam: Outcome, other: Outcome) -> tuple[float, float] | None:
    """Nats of log q that `other`'s answers have above the beam's, mean and standard error.

    Over boards on which both reach the probe; None if there are fewer than two.
    """
    typical = _typical(bed)
    both = (beam.reached & other.reached).nonzero()[0]
    if len(both) < 2:
        return None
    gap = typical.log_density(other.after[both]) - typical.log_density(beam.after[both])
    return float(gap.mean()), _error(gap)


def _typical(bed: Bed) -> Typical:
    return fit_typical(bed.positions.boards)


def _agrees(beam: Outcome, k: int, c: Certificate) -> bool:
    answer = beam.answers[k]
    if c.n_edits is None:
        return not answer.reached or len(answer.edits) > 2
    return answer.reached and len(answer.edits) == c.n_edits


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
