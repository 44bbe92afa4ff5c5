"""A ViT for other classes: the same body under a head that has learnt nothing yet."""

import copy
from dataclasses import replace

import torch
from torch import nn

from circuitvit.preprocessing import Preprocessing
from circuitvit.torch_modes import in_default_modes
from circuitvit.vit import ViT


@in_default_modes
def with_new_head(vit: ViT, classes: int, *, seed: int) -> ViT:
    """A copy of a ViT with a new head, drawn as that of a new ViT.

    Args:
        vit: it is left as it is.
        classes: how many the head tells apart.
        seed: draws its weights.
    """
    config = replace(vit.config, classes=classes)
    drawn = torch.empty(classes, config.pooled * config.width)
    nn.init.trunc_normal_(drawn, std=0.02, generator=torch.Generator().manual_seed(seed))
    head = {"head.weight": drawn, "head.bias": torch.zeros(classes)}
    weights = vit.state_dict() | {name: value.to(vit.positions) for name, value in head.items()}
    made = copy.deepcopy(ViT.from_weights(config, weights, source="this model"))
    seen: Preprocessing | None = vit.preprocessing
    made.preprocessing = None if seen is None else replace(seen, class_names=None)
    return made.train(vit.training)
