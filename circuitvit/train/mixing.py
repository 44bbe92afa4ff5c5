"""MixUp and CutMix: an image and a partner of its batch become one, and so do their labels."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.train.recipe import Recipe
from circuitvit.train.seeds import Purpose, seed_of


@dataclass(frozen=True, eq=False)
class Mix:
    """How one global batch is mixed.

    Attributes:
        partner: for each image of the global batch, another one's place in it.
        share: of the image's own label, 0–1; the partner's label has the rest.
        box: top, bottom, left and right of what CutMix takes from the partner; None is MixUp.
    """

    partner: Int[Tensor, " image"]
    share: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def drawn(cls, recipe: Recipe, epoch: int, step: int, side: int) -> "Mix | None":
        """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a step, each as often.

        One share is drawn for the whole batch, λ ~ Beta(α, α), as timm does. None where the recipe
        asks for neither.
        """
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(recipe, kind)]
        if not (kinds and recipe.augment):
            return None
        numbers = np.random.default_rng(seed_of(recipe.seed, epoch, step, Purpose.MIX))
        partner = torch.from_numpy(numbers.permutation(recipe.batch))
        kind = kinds[int(numbers.integers(len(kinds)))]
        share = float(numbers.beta(*[getattr(recipe, kind)] * 2))
        if kind == "mixup":
            return cls(partner, share)
        # The box has the partner's share of the area, its middle lies anywhere; the part of it
        # that lies outside is cut off, so the share is that of the pixels that are left.
        half = side * (1 - share) ** 0.5 / 2
        middle = numbers.integers(0, side, 2)
        low, high = (np.clip(np.round(middle + end * half), 0, side).astype(int) for end in (-1, 1))
        box = (int(low[0]), int(high[0]), int(low[1]), int(high[1]))
        area = (box[1] - box[0]) * (box[3] - box[2])
        return cls(partner, 1 - area / side**2, box)

    def images(
        self,
        own: Float[Tensor, "image channel height width"],
        others: Float[Tensor, "image channel height width"],
    ) -> Float[Tensor, "image channel height width"]:
        """The images, each mixed with its partner, given in the same order."""
        if self.box is None:
            return self.share * own + (1 - self.share) * others
        top, bottom, left, right = self.box
        mixed = own.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed

    def targets(
        self, own: Int[Tensor, " image"], others: Int[Tensor, " image"], like: Tensor, classes: int
    ) -> Float[Tensor, "image class"]:
        """Probabilities of the classes, of the dtype of `like`."""
        first, second = (F.one_hot(labels, classes).to(like.dtype) for labels in (own, others))
        return self.share * first + (1 - self.share) * second
