"""Does the search hold up in deeper networks? Towers of several depths on the same positions.

Each tower learns the value of the same positions; its guarded reader watches the first layers and
the last one, and the beam search edits held-out boards until that reader has the concept. Whether
the threat is then there, the rules say.

Public names: `Depth`, `study`, `rows`, `scales`.

Source: specification of document 5, section 7.2 (towers of 1, 3 and 6 blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib import probes
from lib.backprop.chess import networks, studies
from lib.backprop.chess.detection import Guard, sample
from lib.backprop.chess.outcomes import Outcome
from lib.backprop.chess.reading import Reader
from lib.backprop.chess.studies import CONCEPT, CONCEPTS, TAU, Bed
from lib.shares import gap, share

WEAK = 0.5  # S below which a failure is the probe's


@dataclass(frozen=True)
class Depth:
    """A tower, how well its reader knows the concept, and what the search made of it."""

    n_blocks: int
    n_weights: int
    score: float  # S on balanced held-out positions whose movers all own a queen
    made: Outcome

    @property
    def failure(self) -> str:
        """Why most answers are not confirmed, "" if most are."""
        if self.made.truth.mean() >= 0.5:
            return ""
        if self.score < WEAK:
            return "weak probe"
        return "not reached" if self.made.reached.mean() < 0.5 else "probe is not the concept"


def study(
    bed: Bed,
    *,
    blocks: Sequence[int],
    width: int,
    n_train: int,
    epochs: int,
    n_probe: int,
    n_edited: int,
    n_boards: int,
    seed: int,
) -> list[Depth]:
    """Train a tower of each depth and let the beam answer with its guarded reader.

    Args:
        bed: whose positions; its own network is not used.
        blocks: residual blocks of each tower, ascending.
        n_train, epochs: positions that the towers learn the value of, and passes over them.
        n_probe, n_edited: positions and edited boards that fit a reader.
        n_boards: held-out boards that each reader reads below .27.
    """
    recipe = replace(networks.RECIPE, epochs=epochs)
    train = bed.positions[np.arange(n_train)]
    found = []
    for n_blocks in blocks:
        towers = networks.fetch_tower(
            train, width=width, n_blocks=n_blocks, seed=seed, recipe=recipe
        )
        checkpoints = {"random": towers[0], f"epoch {epochs}": towers[-1]}
        own = replace(bed, name="own", checkpoints=checkpoints, checker=None)
        layers = ("stem", "blocks.block1.first", f"blocks.block{n_blocks}.second")
        guard = Guard(layers, n_edited=n_edited)
        probe = studies.reader(own, n_probe, guard, seed=seed)
        made = studies.answers(own, {"guarded": probe}, n_boards, {TAU: ("guarded",)})
        n_weights = sum(p.numel() for p in towers[-1].parameters())
        score = _score(own, probe, n_probe // 4, seed)
        found.append(Depth(n_blocks, n_weights, score, made["guarded", TAU]))
    return found


def _score(bed: Bed, probe: Reader, n: int, seed: int) -> float:
    held = sample(bed.held, CONCEPTS[CONCEPT], n, seed=seed)
    with torch.no_grad():
        logits = probe.logits(held.boards)
    return probes.detection_score(logits, torch.from_numpy(held.label).long()).item()


def rows(found: Sequence[Depth]) -> list[dict[str, object]]:
    """A row a tower."""
    return [
        {
            "blocks": d.n_blocks,
            "weights": f"{d.n_weights:,}",
            "S of the reader": round(d.score, 2),
            f"P >= {d.made.tau:g} and legal": round(share(d.made.reached & d.made.legal)[0], 2),
            "confirmed by the rules": round(share(d.made.truth)[0], 2),
            "edits (mean)": round(float(np.mean([len(a.edits) for a in d.made.answers])), 2),
            "boards read": round(d.made.evaluations),
            "fails by": d.failure,
        }
        for d in found
    ]


def scales(found: Sequence[Depth]) -> tuple[float, float] | None:
    """Confirmed answers of the deepest tower minus those of the shallowest, and the error.

    Each reader is asked for boards that it reads low itself, so the two shares are not paired.
    """
    if len(found) < 2:
        return None
    return gap(*(share(found[k].made.truth) for k in (-1, 0)))
