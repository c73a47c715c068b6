"""A figure becomes a file, in the form that the file's name ends in.

matplotlib is optional and slow to import: it is loaded when it is asked for.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup import atonce
from epcgroup.errors import BadInput, MissingCapability, to_install

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 110


def blank(width: float, height: float) -> Figure:
    """An empty figure of that many inches; needs no display. MissingCapability without matplotlib."""
    _require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check(output: Path) -> None:
    """Whether a picture can be written there, before what it shows has taken its time.

    Raises BadInput naming the file, MissingCapability without matplotlib.
    """
    _require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    forms = FigureCanvasAgg.get_supported_filetypes()
    if output.suffix and output.suffix[1:].lower() not in forms:
        raise BadInput(f"{output}: no name of a picture; it may end in {', '.join(sorted(forms))}")
    atonce.check(output)


def write(figure: Figure, output: Path) -> None:
    """Write a picture, in the form that its name ends in (PNG without). Raises BadInput."""
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=output.suffix[1:].lower() or "png", dpi=_DOTS_PER_INCH)
    except ValueError as error:
        raise BadInput(f"{output}: cannot write the picture: {error}") from None
    atonce.write(output, picture.getvalue())


def _require() -> None:
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise MissingCapability(f"a picture needs matplotlib: {to_install('plot')}") from None
