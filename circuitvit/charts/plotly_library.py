"""plotly.js, which a page holds itself or shares with the other pages of its folder."""

import os
from pathlib import Path
from typing import Any, Literal, TypeAlias

from circuitvit.errors import CircuitError, in_short
from circuitvit.files import write_text, writing_folder

PLOTLY_FILE = "plotly.min.js"

PlotlyJS: TypeAlias = bool | Literal["directory"]
"""True is in the page (5 MB), `"directory"` beside it, one for all pages of a folder."""


def check_plotlyjs(plotlyjs: Any) -> None:
    """Refuse what would leave a page that shows nothing offline.

    Raises:
        CircuitError: it is neither True nor `"directory"`.
    """
    if plotlyjs is not True and plotlyjs != "directory":
        raise CircuitError(
            f"plotlyjs is {in_short(plotlyjs)}, expected True (plotly.js in the page) or "
            "'directory' (beside it, one file for all pages of a folder)."
        )


def write_page(path: str | os.PathLike[str], text: str, plotlyjs: PlotlyJS) -> Path:
    """Write a page and, if it is to lie beside it, plotly.js; both or neither.

    Raises:
        CircuitError: they can't be written.
    """
    if plotlyjs != "directory":
        return write_text(path, text)
    from plotly.offline import get_plotlyjs  # plotly takes longer to import than all the rest

    with writing_folder(Path(path).parent) as beside:
        write_text(beside / PLOTLY_FILE, get_plotlyjs())
        write_text(beside / Path(path).name, text)
    return Path(path)
