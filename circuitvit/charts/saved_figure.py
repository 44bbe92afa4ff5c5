"""A plotly figure that writes itself as a picture: SVG, PNG or PDF."""

import os
from numbers import Real
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from circuitvit.errors import CircuitError, in_short, reason_of
from circuitvit.files import replacing
from circuitvit.files.troubles import checked_path

FORMATS = {"svg": b"<svg", "png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-"}
"""What files of each begin with."""
WIDTH, HEIGHT = 1000, 600
"""Pixels, where neither the figure nor the caller says how large it is."""
MOST_SIDE, MOST_SCALE = 16_384, 16


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
            width: in pixels, 1 to 16,384; by default the figure's own, else 1000.
            height: likewise; else 600.
            scale: PNGs have so many pixels for each one; above 0, at most 16.

        Returns:
            The path.

        Raises:
            CircuitError: the ending is another, a size is out of range, kaleido or a browser is
                missing or fails (as with pictures that are too large), or the file can't be
                written.
        """
        target = checked_path(path)
        form = target.suffix.lower().removeprefix(".")
        if form not in FORMATS:
            raise CircuitError(
                f"a figure can't be saved as {in_short(os.fspath(path))}, expected a name that "
                "ends in .svg, .png or .pdf. Interactive pages are written by to_html."
            )
        own: Any = self.layout
        size = {
            "width": (own.width or WIDTH) if width is None else width,
            "height": (own.height or HEIGHT) if height is None else height,
        }
        _check_size(size, scale)
        options: dict[str, Any] = {name: int(pixels) for name, pixels in size.items()}
        options |= {"format": form, "scale": float(scale)}
        picture = _drawn(self.to_dict(), options)
        if not picture.startswith(FORMATS[form]):
            raise CircuitError(
                f"the browser gave no {form.upper()} for this figure of {size['width']} × "
                f"{size['height']} pixels at scale {scale:z.4g}; nothing was written. Ask for a "
                "smaller one."
            )
        with replacing(target) as fresh:
            fresh.write_bytes(picture)
        return target


def _check_size(size: dict[str, Any], scale: Any) -> None:
    wrong = [
        f"{name} is {in_short(value)}, expected whole pixels, 1 to {MOST_SIDE:,}"
        for name, value in size.items()
        if not _is_real(value) or not 1 <= value <= MOST_SIDE or value != int(value)
    ]
    if not _is_real(scale) or not 0 < scale <= MOST_SCALE:
        wrong.append(f"scale is {in_short(scale)}, expected a number above 0, at most {MOST_SCALE}")
    if wrong:
        raise CircuitError(f"the figure can't be saved: {'; '.join(wrong)}.")


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


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
