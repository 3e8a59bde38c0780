"""Controls draw anew, and a still picture stands where they do not run."""

from __future__ import annotations

import IPython.core.formatters
import IPython.display
import ipywidgets
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from lib import widgets


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[IPython.display.Image]:
    """What was displayed in the cell."""
    found: list[IPython.display.Image] = []
    monkeypatch.setattr(IPython.display, "display", found.append)
    return found


def draw(k: int, layer: str) -> Figure:
    fig, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, k])
    axis.set_title(layer)
    return fig


def test_a_change_of_any_control_redraws_and_back_gives_the_first_picture(
    shown: list[IPython.display.Image],
):
    before = plt.get_fignums()
    box = widgets.explore(draw, k=(1, 2, 4), layer=("first", "second"))
    slider, menu, picture = box.children
    assert isinstance(slider, ipywidgets.SelectionSlider)
    assert isinstance(menu, ipywidgets.Dropdown)
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG")
    slider.value = 4
    second = bytes(picture.value)
    menu.value = "second"
    third = bytes(picture.value)
    assert len({first, second, third}) == 3
    slider.value, menu.value = 1, "first"
    assert picture.value == first
    assert plt.get_fignums() == before  # each figure was closed


def test_the_still_picture_is_that_of_the_defaults_with_its_description(
    shown: list[IPython.display.Image],
):
    box = widgets.explore(draw, k=(3, 2), layer=("second", "first"))
    (still,) = shown
    assert still.data == box.children[-1].value
    assert "image/png" in IPython.core.formatters.format_display_data(still)[0]
    assert still.metadata["alt"] == "default setting of the controls: k = 3, layer = second"
    box.children[0].value = 2
    assert still.data != box.children[-1].value


def test_a_control_without_values_is_refused(shown: list[IPython.display.Image]):
    with pytest.raises(ValueError, match="control layer has no values to choose from"):
        widgets.explore(draw, k=(1, 2), layer=())
    assert shown == []
