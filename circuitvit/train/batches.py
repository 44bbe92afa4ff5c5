"""One epoch's batches: each process's share of each, changed and mixed as the recipe says."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.images import ImageSet
from circuitvit.train.augmentation import moved, random_moves
from circuitvit.train.image_augmentation import disturbed, retouched
from circuitvit.train.mixing import Mix
from circuitvit.train.recipe import Recipe
from circuitvit.train.seeds import seed_of


class Batch(NamedTuple):
    """What a model learns from at once; targets are classes [image], or probabilities, if mixed."""

    images: Float[Tensor, "image channel height width"]
    targets: Tensor


class EpochBatches:
    """The images in the order of one epoch.

    Args:
        images: to learn from.
        recipe: how they change.
        classes: of the model.
        epoch: from 0.
        device: where batches go.
    """

    def __init__(
        self, images: ImageSet, recipe: Recipe, classes: int, epoch: int, device: torch.device
    ) -> None:
        self.data, self.recipe, self.epoch = images, recipe, epoch
        self.classes, self.device = classes, device
        generator = torch.Generator().manual_seed(seed_of(recipe.seed, epoch))
        self.order = torch.randperm(len(images), generator=generator)
        self.side = images.images.shape[-1]
        self.moves = (
            random_moves(len(images), self.side, recipe, generator) if recipe.augment else None
        )

    def batch(self, step: int, rows: Int[Tensor, " image"]) -> Batch:
        """Some rows of the global batch of a step.

        A partner that another process holds is changed here again: draws tell the same.
        """
        mix = Mix.drawn(self.recipe, self.epoch, step, self.side)
        if mix is None:
            return Batch(self._images(step, rows), self._labels(step, rows))
        partners = mix.partner[rows]
        needed, where = torch.unique(torch.cat([rows, partners]), return_inverse=True)
        own, others = where.to(self.device).tensor_split(2)
        images = self._images(step, needed)
        targets = mix.targets(
            self._labels(step, rows), self._labels(step, partners), images, self.classes
        )
        return Batch(mix.images(images[own], images[others]), targets)

    def _places(self, step: int, rows: Int[Tensor, " image"]) -> Int[Tensor, " image"]:
        return step * self.recipe.batch + rows

    def _labels(self, step: int, rows: Int[Tensor, " image"]) -> Int[Tensor, " image"]:
        return self.data.labels[self.order[self._places(step, rows)]].to(self.device)

    def _images(
        self, step: int, rows: Int[Tensor, " image"]
    ) -> Float[Tensor, "image channel height width"]:
        places = self._places(step, rows)
        chosen = self.order[places]
        images = self.data.images[chosen]
        if self.moves is None:
            return images.to(self.device)
        changes = places, self.recipe, self.epoch, self.data.preprocessing
        images = retouched(images, *changes).to(self.device)
        return disturbed(moved(images, self.moves[chosen]), *changes)
