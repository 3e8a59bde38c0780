"""Figures of the real data in notebooks 23 and 24: counts beside the null.

Each returns the figure without writing it; the notebook adds the provenance and saves it. Figures
of notebook 23 on scenes (`lottery_pictures`) take `Tickets.study` too.

Public names: `pair_counts`, `ticket_counts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib import figures
from lib.monitoring import adversarial_pictures, measures
from lib.monitoring.case_pictures import NAMES
from lib.monitoring.lottery_pictures import draw_shares, stage_axis
from lib.monitoring.real_cases import DETECTORS, LAST, LAYERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lib.monitoring.real_pairs import Pair
    from lib.monitoring.real_tickets import Tickets


def pair_counts(pair: Pair) -> Figure:
    """Shares of interpretable units by category, layer and epoch, the arms side by side."""
    return adversarial_pictures.categories(pair, detectors=DETECTORS, layers=LAYERS)


def ticket_counts(found: Tickets) -> Figure:
    """By stage: accuracy; units without colour as rewound by both detectors, and the null's."""
    study = found.study
    fig, axes = figures.panels(1, 1 + len(DETECTORS), height=2.4)
    for order, rewind in enumerate(study.rewinds):
        label, arm = f"rewound to epoch {rewind}", f"rewound {rewind}"
        draw_shares(axes[0], study.right[rewind].double(), order=order, label=label)
        for axis, name in zip(axes[1:], DETECTORS, strict=True):
            units, null = (
                measures.counted(record.trace(name, LAST, arm), study.at.concepts).double()
                for record in (study.record, found.chance)
            )
            draw_shares(axis, units, order=order, label=label)
            axis.plot(range(len(null)), null.mean(1), color="black", linewidth=0.6)
    axes[0].set(ylabel="accuracy, test images", title="after training")
    for axis, name in zip(axes[1:], DETECTORS, strict=True):
        axis.set(title=NAMES[name], ylabel="share of rewound units,\nno colour")
    axes[0].plot([], [], color="black", linewidth=0.6, label="chance")
    for axis in axes:
        stage_axis(axis, study)
        axis.tick_params(axis="x", labelsize=5)
    figures.legend(fig, axes[0])
    return fig
