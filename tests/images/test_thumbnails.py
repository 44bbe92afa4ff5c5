"""What a notebook shows of image sets, pairs and scores: small, bounded, escaped."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import random_vit, shape

import circuitvit as cv
from circuitvit.images import ImageSet, Pairs
from circuitvit.images.thumbnails import SIDE, thumbnail
from circuitvit.preprocessing import Preprocessing

MOST = 200_000


def pictures(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def noise(count: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, side, side, generator=generator)


def test_an_image_set_shows_its_classes_as_their_pictures_were():
    pixels = torch.arange(3 * 3 * 4 * 4, dtype=torch.float32).reshape(3, 3, 4, 4) / 143
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    seen = Preprocessing(mean=mean, std=std)
    normal = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    text = ImageSet(normal, torch.tensor([2, 0, 2]), ("<b>", "none", "dog"), seen)._repr_html_()
    assert "ImageSet(3 images 3×4×4, 3 classes)" in text
    assert re.findall(r"<br>([^<]*)</span>", text) == ["&lt;b&gt;: 1", "dog: 2"]
    assert "<b>" not in text
    for picture, place in zip(pictures(text), [1, 0], strict=True):
        expected = (pixels[place] * 255).round().byte().movedim(0, 2).numpy()
        assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


def test_pairs_show_the_first_with_their_classes():
    clean, corrupt = noise(9, 1, 8), noise(9, 1, 8) + 1
    labels = torch.arange(9)
    text = Pairs(clean=clean, corrupt=corrupt, labels=labels)._repr_html_()
    assert "Pairs(9 images 1×8×8, with corrupt, labels); the first 6, with their classes" in text
    captions = re.findall(r"<br>([^<]*)</span>", text)
    assert captions == [*(f"clean {label}" for label in range(6)), *["corrupt"] * 6]
    assert len(pictures(text)) == 12
    assert {picture.mode for picture in pictures(text)} == {"L"}
    alone = Pairs(clean=clean[:2])._repr_html_()
    assert len(pictures(alone)) == 2
    assert "; the first" not in alone


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_they_stay_small_whatever_the_images(channels):
    images = noise(40, channels, 300).half().float()
    labels = torch.arange(40) % 40
    names = tuple(f"{place} {'x' * 500}" for place in range(40))
    shown = ImageSet(images, labels, names)._repr_html_()
    assert len(pictures(shown)) == 12
    assert "; the first of 12 classes" in shown
    pairs = Pairs(clean=images, corrupt=images.flip(0), labels=labels)._repr_html_()
    for text in (shown, pairs):
        assert len(text) < MOST
        assert {picture.size for picture in pictures(text)} == {(SIDE, SIDE)}


def test_images_that_are_no_squares_keep_their_proportions():
    (picture,) = pictures(thumbnail(torch.rand(3, 96, 192), "wide"))
    assert picture.size == (48, 24)


def test_scores_show_the_largest_with_their_signs():
    config = random_vit(shape()).config
    names = cv.Circuit.full(config).edges
    values = {name: (-1) ** place * place / 7 for place, name in enumerate(names)}
    scores = cv.EdgeScores(config, values, qkv="split", provenance=cv.Provenance(method="<eap>"))
    text = scores._repr_html_()
    assert f"EdgeScores({len(names)} edges, &lt;eap&gt;): the 12 largest by size of" in text
    rows = re.findall(r"<td>([^<]*)</td><td>([^<]*)</td>", text)
    last = len(names) - 1
    assert len(rows) == 12
    assert rows[0] == (names[last].replace(">", "&gt;"), f"{values[names[last]]:+.3g}")
    assert [abs(float(score)) for _, score in rows] == sorted(
        (abs(float(score)) for _, score in rows), reverse=True
    )
    assert len(text) < MOST
