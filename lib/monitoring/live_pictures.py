"""A plot that is drawn anew, in its place in a notebook, whenever a monitor looks.

::

    plot = LivePlot("clip", ["layer3", "layer4"])
    monitor = ConceptMonitor(model, ["layer3", "layer4"], ..., on_look=plot)

Public names: `LivePlot`, `so_far`.

Source: ours; document 2, figure 4, is drawn after the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from lib import figures, widgets
from lib.monitoring.case_pictures import draw_bars
from lib.monitoring.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Shown(Protocol):
    """A picture that is on the page and can be exchanged: IPython's `DisplayHandle`."""

    def update(self, picture: object, /) -> object:
        """Put another picture in its place."""


def so_far(record: Record, detector: str, layers: Sequence[str], xlabel: str) -> Figure:
    """Shares of interpretable units by the category of their word; a bar for each look."""
    fig, axes = figures.panels(1, len(layers), height=2.0, sharey=True)
    for axis, layer in zip(axes, layers, strict=True):
        trace = record.trace(detector, layer)
        draw_bars(axis, trace, record.space.concepts)
        axis.set(title=f"{layer}, {trace.label.shape[1]} units", xlabel=xlabel, ylim=(0, 1))
    axes[0].set_ylabel("share of units")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=6, columnspacing=1.0)
    return fig


class LivePlot:
    """Give it to a monitor as `on_look`."""

    def __init__(self, detector: str, layers: Sequence[str], *, xlabel: str = "steps") -> None:
        """A plot that is not on the page yet.

        Args:
            detector: name of the detector whose words are counted; its concepts have categories.
            layers: one panel each.
            xlabel: what the monitor's steps are.
        """
        self.detector, self.layers, self.xlabel = detector, tuple(layers), xlabel
        self._shown: Shown | None = None

    def __call__(self, record: Record) -> None:
        """Draw what was seen so far, in the place of the last drawing."""
        import matplotlib.pyplot as plt
        from IPython.display import Image, display

        figure = so_far(record, self.detector, self.layers, self.xlabel)
        epochs = record.trace(self.detector, self.layers[0]).epochs
        when = f"{self.xlabel} {epochs[0]} to {epochs[-1]}"
        alt = f"shares of interpretable units by category at {when}"
        picture = Image(data=widgets.png(figure), metadata={"alt": alt})
        plt.close(figure)
        if self._shown is None:
            self._shown = display(picture, display_id=True)
        else:
            self._shown.update(picture)
