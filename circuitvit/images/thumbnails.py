"""Small pictures of images, as a notebook shows them: a few, whatever their number and size."""

import base64
import io

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from circuitvit.escaping import escape

SIDE = 48
"""Pixels: no thumbnail is larger, so that each takes less than 10 kB."""


def stretched(
    images: Float[Tensor, "image channel height width"],
) -> Float[Tensor, "image channel height width"]:
    """Images of any range, as shares of the range from their least to their greatest value."""
    pixels = images.detach().float()
    low, high = pixels.min(), pixels.max()
    return (pixels - low) / (high - low).clamp_min(1e-12)


def thumbnail(image: Float[Tensor, "channel height width"], caption: str) -> str:
    """An image of values in 0–1, no larger than `SIDE`, with text below it, shown literally.

    One of other than 3 channels is drawn in grey, by their mean.
    """
    from PIL import Image

    pixels = image.detach().float().cpu()
    if len(pixels) != 3:
        pixels = pixels.mean(dim=0, keepdim=True)
    height, width = pixels.shape[1:]
    if max(height, width) > SIDE:
        size = [max(1, round(side * SIDE / max(height, width))) for side in (height, width)]
        pixels = interpolate(pixels[None], size=size, mode="area")[0]
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    drawn = Image.fromarray(values[0].numpy() if len(values) == 1 else values.movedim(0, 2).numpy())
    file = io.BytesIO()
    drawn.save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        '<span style="display:inline-block;margin:2px 6px 2px 0;text-align:center;font-size:11px">'
        f'<img alt="{escape(caption)}" style="height:64px;image-rendering:pixelated" '
        f'src="data:image/png;base64,{data}"><br>{escape(caption)}</span>'
    )


def thumbnails_html(heading: str, thumbnails: list[str]) -> str:
    """A heading, shown literally, and thumbnails below it."""
    return f"<div><p>{escape(heading)}</p>{''.join(thumbnails)}</div>"
