"""Stochastic depth (Huang et al. 2016): some images skip some attentions and MLPs of a ViT.

It is done by hooks inside a `with`; the model itself is not changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitvit.models.vit import ViT
from circuitvit.train.recipe import Purpose, Recipe, seed_of


class DroppedPaths:
    """Which attentions and MLPs each image of the next forward pass skips.

    As in timm, the probability p of being dropped grows linearly from 0 in the first block to
    `Recipe.drop_path` in the last, and what a path writes is divided by 1 − p. The attention's
    output bias is part of its path.
    """

    def __init__(self, vit: ViT, recipe: Recipe) -> None:
        self.recipe = recipe
        rates = torch.linspace(0, recipe.drop_path, len(vit.blocks)).tolist()
        self.paths: list[tuple[nn.Module, float]] = [
            (module, rate)
            for block, rate in zip(vit.blocks, rates, strict=True)
            for module in (block.attention, block.mlp)
            if isinstance(module, nn.Module) and rate
        ]
        self.factors: Float[Tensor, "path image"] | None = None

    def drawn(self, epoch: int, step: int) -> Float[Tensor, "path image"]:
        """A factor for each path and image of a global batch: 0 or 1 / (1 − p)."""
        recipe = self.recipe
        seed = seed_of(recipe.seed, epoch, step, Purpose.DROPPED_PATHS)
        chances = torch.rand(
            len(self.paths), recipe.batch, generator=torch.Generator().manual_seed(seed)
        )
        rates = torch.tensor([rate for _, rate in self.paths]).view(-1, 1)
        return (chances >= rates) / (1 - rates)

    def choose(self, factors: Float[Tensor, "path batch"], rows: Int[Tensor, " image"]) -> None:
        """Set the images of the next forward pass, by their place in the batch."""
        self.factors = factors[:, rows]


@contextmanager
def dropped_paths(vit: Any, recipe: Recipe) -> Iterator[DroppedPaths | None]:
    """Let a ViT drop paths in train mode; None where the recipe has no `drop_path`."""
    if not recipe.drop_path:
        yield None
        return
    dropped = DroppedPaths(vit, recipe)

    def hook_of(path: int) -> Any:
        def dropping(module: nn.Module, _: Any, write: Tensor) -> Tensor:
            if not module.training or dropped.factors is None:
                return write
            return write * dropped.factors[path].to(write).view(-1, 1, 1)

        return dropping

    handles = [
        module.register_forward_hook(hook_of(path))
        for path, (module, _) in enumerate(dropped.paths)
    ]
    try:
        yield dropped
    finally:
        for handle in handles:
            handle.remove()
