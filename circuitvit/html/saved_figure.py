"""A plotly figure that writes itself as a picture: SVG, PNG or PDF."""

import os
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from circuitvit.errors import CircuitError, in_short, reason_of
from circuitvit.files import replacing
from circuitvit.files.troubles import checked_path

FORMATS = ("svg", "png", "pdf")
WIDTH, HEIGHT = 1000, 600
"""Pixels, where neither the figure nor the caller says how large it is."""


class Figure(go.Figure):
    """Plotly's own figure, and `save`."""

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        width: int | None = None,
        height: int | None = None,
        scale: float = 2.0,
    ) -> Path:
        """Write the figure as a picture, by its ending: `.svg`, `.png` or `.pdf`.

        Chrome or Chromium draws it, by way of kaleido; nothing is taken from the network.

        Args:
            path: the file to write.
            width: in pixels; by default the figure's own, else 1000.
            height: likewise; else 600.
            scale: PNGs have so many pixels for each one.

        Returns:
            The path.

        Raises:
            CircuitError: the ending is another, kaleido or a browser is missing or fails, or the
                file can't be written.
        """
        target = checked_path(path)
        form = target.suffix.lower().removeprefix(".")
        if form not in FORMATS:
            raise CircuitError(
                f"a figure can't be saved as {in_short(os.fspath(path))}, expected a name that "
                "ends in .svg, .png or .pdf. Interactive pages are written by to_html."
            )
        options: dict[str, Any] = {"format": form, "scale": scale}
        own: Any = self.layout
        options["width"] = width or own.width or WIDTH
        options["height"] = height or own.height or HEIGHT
        picture = _drawn(self.to_dict(), options)
        with replacing(target) as fresh:
            fresh.write_bytes(picture)
        return target


def _drawn(figure: dict[str, Any], options: dict[str, Any]) -> bytes:
    """The picture of a figure, by kaleido and a browser.

    Raises:
        CircuitError: one of them is missing or fails.
    """
    try:
        import kaleido
        from kaleido.errors import ChromeNotFoundError
    except ImportError as cause:
        raise CircuitError(
            "saving figures as pictures needs kaleido, which is not installed. Install it with "
            "pip install 'circuitvit[figures]', beside Chrome or Chromium."
        ) from cause
    for trace in figure["data"]:
        if trace["type"] == "scattergl":  # else it needs WebGL, and an SVG would hold pixels
            trace["type"] = "scatter"
    try:
        # By default kaleido's page loads MathJax from the network.
        return kaleido.calc_fig_sync(figure, opts=options, kopts={"mathjax": False})
    except ChromeNotFoundError as cause:
        raise CircuitError(
            "saving figures as pictures needs Chrome or Chromium, and none is found. Install one, "
            "or say where it is by the environment variable BROWSER_PATH."
        ) from cause
    except (OSError, RuntimeError, TimeoutError, ValueError) as cause:
        raise CircuitError(
            f"the browser can't draw this figure: {reason_of(cause)}. Check that Chrome or "
            "Chromium starts here."
        ) from cause
