"""Controls over results that are already computed.

`explore` links sliders and menus to a function that draws; where widgets do not run (papermill,
GitHub, a PDF) the picture of the default settings stands in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure


def explore(draw: Callable[..., Figure], **choices: Sequence[object]) -> ipywidgets.VBox:
    """Show the picture of the default settings, and controls that draw it anew below.

    Args:
        draw: returns a figure; called with one keyword a control. It must be quick: precompute.
        **choices: name -> the values to choose from, the first the default; numbers become a
            slider, words a menu.

    Returns:
        The box of controls; end a notebook cell with it. The default picture is an ordinary
        output above it, so that it shows where widgets do not run.

    Raises:
        ValueError: a control without values.
    """
    import ipywidgets
    import matplotlib.pyplot as plt
    from IPython.display import Image, display

    empty = [name for name, values in choices.items() if not values]
    if empty:
        raise ValueError(f"control {', '.join(empty)} has no values to choose from")
    controls = {name: _control(name, values) for name, values in choices.items()}
    picture = ipywidgets.Image(format="png")

    def redraw(_: object = None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        picture.value = png(figure)
        plt.close(figure)

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    names = ", ".join(f"{name} = {control.value}" for name, control in controls.items())
    static = Image(
        data=picture.value, metadata={"alt": f"default setting of the controls: {names}"}
    )
    display(static)
    return ipywidgets.VBox([*controls.values(), picture])


def _control(name: str, values: Sequence[object]) -> ipywidgets.Widget:
    import ipywidgets

    label = name.replace("_", " ")
    if all(isinstance(value, (int, float)) for value in values):
        return ipywidgets.SelectionSlider(
            options=list(values), description=label, continuous_update=False
        )
    return ipywidgets.Dropdown(options=list(values), description=label)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a small png file: 128 colours, as pictures in notebooks have."""
    import io

    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=80, metadata={"Software": None})
    Image.open(whole).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    return small.getvalue()
