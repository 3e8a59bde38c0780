"""The tables of notebook 23: stages, controls, retention; a row is a dictionary.

Public names: `stage_rows`, `control_rows`, `retention_rows`.
"""

from __future__ import annotations

import itertools

import torch

from lib.monitoring import lottery_studies as studies
from lib.monitoring import statistics
from lib.monitoring.case_pictures import NAMES
from lib.monitoring.lottery_studies import Study


def stage_rows(study: Study) -> list[dict[str, object]]:
    """A row a stage: weights left, accuracy of each arm, interpretable units after rewinding."""
    rows: list[dict[str, object]] = []
    for k, left in enumerate(study.left):
        row: dict[str, object] = {"stage": k, "weights left": left}
        for r in study.rewinds:
            row[f"accuracy, epoch {r}"] = float(study.right[r][k].double().mean())
        for r in study.rewinds:
            units = study.trace("rewound", r)
            plain = int(studies.shares_after_rewinding(study, "rewound", r)[k].sum())
            row[f"units, epoch {r}"] = f"{plain} + {int(units.interpretable[k].sum()) - plain}"
        rows.append(row)
    return rows


def control_rows(study: Study) -> list[dict[str, object]]:
    """Interpretable units at the last stage rewound to the start, and of what else has a mask."""
    rows: list[dict[str, object]] = []
    start, concepts = study.rewinds[0], study.at.concepts
    for prefix, norms in (("", "as they are"), ("re-estimated ", "estimated again")):
        for detector, (words, counted) in itertools.product(
            study.detectors, studies.COUNTS.items()
        ):
            own = study.trace("re-estimated" if prefix else "rewound", start, detector)
            learned = counted(own, concepts).sum(1)
            row: dict[str, object] = {"batch norms": norms, "read by": NAMES[detector]}
            row |= {"words": words, "no mask": int(learned[0]), "learned mask": int(learned[-1])}
            for control, name in (("random", "random masks"), ("other", "other weights")):
                found = counted(study.control(prefix + control, detector), concepts)
                counts = found.sum(1).double()
                row[name] = (float(counts.mean()), float(counts.std()))
            rows.append(row)
    return rows


def retention_rows(study: Study) -> list[dict[str, object]]:
    """Area under retention, the mean of R(x), by arm, state and what counts as kept.

    What is laxer keeps more units, so that its area is never smaller.
    """
    rows: list[dict[str, object]] = []
    for rewind in study.rewinds:
        row: dict[str, object] = {"rewound to epoch": rewind}
        for state in ("trained", "rewound"):
            statistic, m = studies.area(study, rewind, state)
            row[f"area, {state}"] = float(statistic(torch.arange(m)[None])[0])
        trace = study.trace("trained", rewind)
        space, concepts = study.at.space, study.at.concepts
        for said, kept in (
            ("same word at the last stage", statistics.retained(trace, when="last")),
            ("same category", statistics.retained(trace, by="category", concepts=concepts)),
            ("cosine above .9", statistics.retained(trace, by="cosine", space=space)),
        ):
            areas = statistics.retention(trace.h[0, :, 0], kept, studies.PERCENTS)
            row[f"area, {said}"] = float(areas.mean())
        row["accuracy at the last stage"] = float(study.right[rewind][-1].double().mean())
        rows.append(row)
    return rows
