"""Case study II on real data: lottery tickets of a ResNet-20 on CIFAR-10.

As `lottery_studies` on scenes, with its stages, arms and controls; probed with real images by
`real_cases`, whose words come from labels and masks. The figures and tables of notebook 23 take
`Tickets.study` as they take a study of scenes.

The document probes with another set, of which no image is labelled (CIFAR-100); ours are labelled
street scenes, clothing and textures, so that no image-text encoder is needed.

Public names: `Tickets`, `fetch_tickets`, `claims_of`, `stage_rows`, `said`, `note`.

Source: document 2, section 4.1; specification section 3.2 and 5.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from lib import training
from lib.monitoring import lottery_studies as studies
from lib.monitoring import lottery_tables as tables
from lib.monitoring import real_cases, ticket_arms
from lib.monitoring.lottery_studies import Study
from lib.monitoring.measures import Measured
from lib.monitoring.real_cases import AS_PUBLISHED, DETECTORS, LAST, NETWORK, Against, Setting, Task
from lib.monitoring.record import Record
from lib.training import Recipe
from lib.training.checkpoints import Checkpoints, Stage
from lib.training.loop import Progress
from lib.training.pruning import Masks, State

# claim here -> the same quantity of the study on scenes
CLAIMS = {
    "P2-80": "P2-30",
    "P2-81": "P2-31",
    "P2-82": "P2-33",
    "P2-83": "P2-34",
    "P2-84": "P2-35",
    "P2-85": "P2-36",
    "P2-86": "P2-37",
    "P2-87": "P2-39",
}
LATE = ("P2-81", "P2-84")  # not run where no arm rewinds to a late epoch


@dataclass(frozen=True)
class Tickets:
    """All arms of one seed, probed, and the same for the null."""

    study: Study
    chance: Record  # images in another order within their source
    task: Task
    at: Setting
    epochs: int  # of a stage


def fetch_tickets(
    sizes: Sequence[Mapping[str, object]],
    root: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
    against: Against = AS_PUBLISHED,
) -> list[Tickets]:
    """Train (or fetch), prune and probe the arms of each size; none for no sizes.

    Args:
        sizes: of a profile; quick has none, because the data are not embedded.
        root: DATA_ROOT.
        progress: wraps the range of all arms' stages.
        against: what to verify data against.

    Raises:
        MissingData: a data set is not below `root`.
    """
    return [
        _fetch(SimpleNamespace(**size), root, seed + k, device, progress, against)
        for k, size in enumerate(sizes)
    ]


def _fetch(
    size: SimpleNamespace,
    root: Path,
    seed: int,
    device: str,
    progress: Progress | None,
    against: Against,
) -> Tickets:
    of, (real,) = real_cases.load(size, root, against)
    stages = train(of, size, seed, device=device, progress=progress)
    right = {r: torch.stack([_right(of, s.trained) for s in arm]) for r, arm in stages.items()}
    at = real_cases.setting(real, seed)
    start = stages[size.rewinds[0]]
    rules = real_cases.rules_of(at, real_cases.network(of, start[0].trained), [LAST])

    def again(state: State) -> State:
        model, n = real_cases.network(of, state), size.n_batches
        return ticket_arms.reestimated(
            model, of.digest, lambda: of.train.x, real_cases.prepare_training, n, seed
        )

    spec = {"n_out": len(of.names)}
    controls = ticket_arms.controls_of(
        NETWORK, spec, start, size.rewinds[0], size.n_random, seed, again
    )
    pairs = [
        real_cases.judged(at, of, states, rules, layers=[LAST], arm=arm)
        for arm, states in (ticket_arms.arms_of(stages) | controls).items()
    ]
    record, chance = (
        functools.reduce(Record.joined, records) for records in zip(*pairs, strict=True)
    )
    study = Study(
        seed,
        tuple(size.rewinds),
        stages,
        right,
        at,  # type: ignore[arg-type]  # of a setting the space and the concepts are read
        rules,
        record,
        DETECTORS,
        LAST,
    )
    return Tickets(study, chance, of, at, size.recipe["epochs"])


def train(
    of: Task,
    size: SimpleNamespace,
    seed: int,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[int, list[Stage]]:
    """The stages of all arms through the cache."""
    recipe, spec = Recipe(**size.recipe), {"n_out": len(of.names)}

    def fetch(
        epochs: Sequence[int], own: int, start: State | None, masks: Masks | None
    ) -> Checkpoints:
        return real_cases.fetch_run(
            of, recipe, epochs, seed=own, start=start, masks=masks, device=device
        )

    return ticket_arms.train_arms(NETWORK, spec, recipe, size, seed, fetch, progress=progress)


def _right(of: Task, state: State) -> Tensor:
    logits = training.predict(
        real_cases.network(of, state), of.test.x, prepare=real_cases.prepare_training
    )
    return logits.argmax(1) == of.test.y


def claims_of(found: Sequence[Tickets], *, n_draws: int = 1000) -> dict[str, Measured]:
    """Claim -> value and spread over units or images of the first seed; None without."""
    if not found:
        return dict.fromkeys(CLAIMS, None)
    study = found[0].study
    measured = studies.claims_of_one(study, n_draws)
    named: dict[str, Measured] = {mine: measured[theirs] for mine, theirs in CLAIMS.items()}
    return named if len(study.rewinds) > 2 else named | dict.fromkeys(LATE, None)


def stage_rows(found: Tickets) -> list[dict[str, object]]:
    """The rows of `lottery_tables.stage_rows`, with the null's units."""
    rows = tables.stage_rows(found.study)
    for rewind in found.study.rewinds:
        null = found.chance.trace(DETECTORS[0], LAST, f"rewound {rewind}").interpretable
        for k, row in enumerate(rows):
            row[f"null, epoch {rewind}"] = int(null[k].sum())
    return rows


def said(found: Sequence[Tickets]) -> str:
    """What the networks and probing images are, a line each, or that there are none."""
    if not found:
        return "not at this profile: real data are not embedded; `full` reads them from DATA_ROOT"
    return "\n".join(real_cases.said(one.task, one.at) for one in found)


def note(found: Tickets) -> str:
    """What a figure's foot says: data, length, arms."""
    study = found.study
    arms = ", ".join(str(rewind) for rewind in study.rewinds)
    return (
        f"ResNet-20, {len(found.task.train):,} images of CIFAR-10, rewound to epochs {arms} of "
        f"{found.epochs}, seed {study.seed};\n{len(found.at):,} probing images of streets, "
        "clothing, textures; layer3"
    )
