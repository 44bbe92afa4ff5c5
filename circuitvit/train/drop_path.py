"""Stochastic depth (Huang et al. 2016): some images skip some attentions and MLPs of a ViT.

It is done by hooks inside a `with`; the model itself is not changed.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.train.recipe import Purpose, Recipe, seed_of


class DroppedPaths:
    """Lets a ViT in train mode skip attentions and MLPs, inside a `with`.

    As in timm, the probability p of being dropped grows linearly from 0 in the first block to
    `Recipe.drop_path` in the last, and what a path writes is divided by 1 − p. The attention's
    output bias is part of its path.

    Args:
        vit: a ViT; any model, if the recipe drops nothing.
        recipe: has the probability.

    Attributes:
        paths: each attention and MLP that can be dropped, with its p.
        factors: of the images of the next forward pass, [path image].
    """

    def __init__(self, vit: Any, recipe: Recipe) -> None:
        self.recipe = recipe
        rates = torch.linspace(0, recipe.drop_path, len(vit.blocks)).tolist()
        self.paths: list[tuple[nn.Module, float]] = [
            (module, rate)
            for block, rate in zip(vit.blocks, rates, strict=True)
            if rate
            for module in (block.attention, block.mlp)
            if isinstance(module, nn.Module)
        ]
        self.factors: Float[Tensor, "path image"] | None = None

    def drawn(self, epoch: int, step: int) -> Float[Tensor, "path image"]:
        """A factor for each path and image of a global batch: 0 or 1 / (1 − p)."""
        seed = seed_of(self.recipe.seed, epoch, step, Purpose.DROPPED_PATHS)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(len(self.paths), self.recipe.batch, generator=generator)
        rates = torch.tensor([rate for _, rate in self.paths]).view(-1, 1)
        return (uniform >= rates) / (1 - rates)

    def __enter__(self) -> "DroppedPaths":
        self._handles = [
            module.register_forward_hook(partial(self._drop, path))
            for path, (module, _) in enumerate(self.paths)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _drop(self, path: int, module: nn.Module, _: Any, write: Tensor) -> Tensor:
        if not module.training or self.factors is None:
            return write
        return write * self.factors[path].to(write).view(-1, 1, 1)
