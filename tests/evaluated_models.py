"""Models with known logits, and their evaluation without timings."""

import torch
from torch import nn

import circuitvit as cv


class Told(nn.Module):
    """Gives the logits it was made with, whatever the images; a first pass is one image."""

    def __init__(self, logits, work=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 16 * work))
        self.logits = logits

    def forward(self, images):
        x = images.flatten(1) @ self.weight
        return self.logits[: len(images)] + 0 * x.sum()


def told(right, images=40, classes=4, work=1, sure=3.0, offset=0):
    """A model that gets so many of the images right, from `offset` on; and the labels."""
    labels = torch.arange(images) % classes
    shown = labels.clone()
    wrong = torch.tensor([(place - offset) % images >= right for place in range(images)])
    shown[wrong] = (shown[wrong] + 1) % classes
    return Told(sure * torch.nn.functional.one_hot(shown, classes).float(), work)


LABELS = torch.arange(40) % 4
IMAGES = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def untimed(models, **options):
    return cv.evaluate(models, IMAGES, LABELS, batches=(), **options)
