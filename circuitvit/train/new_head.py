"""A ViT for other classes: the same body under a head that has learnt nothing yet."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from circuitvit.checks import whole
from circuitvit.errors import CircuitError
from circuitvit.intervene.input_checks import check_vit
from circuitvit.models.history import after
from circuitvit.models.vit import ViT
from circuitvit.preprocessing import Preprocessing, misfits
from circuitvit.torch_modes import in_default_modes


@in_default_modes
def with_new_head(
    vit: ViT, classes: int, *, class_names: Sequence[str] | None = None, seed: int = 0
) -> ViT:
    """A copy of a ViT with a new head, drawn as that of a new ViT.

    Args:
        vit: it is left as it is.
        classes: how many the head tells apart, ≥ 1.
        class_names: of these classes, in order; `train` takes those of the images.
        seed: draws its weights.

    Raises:
        CircuitError: it is no ViT, there are no classes or not as many names, or the model has no
            preprocessing to keep names in.
    """
    check_vit(vit)
    count, seed = whole(classes, "classes"), whole(seed, "seed")
    if count < 1:
        raise CircuitError(f"classes is {count}, expected ≥ 1.")
    seen = _renamed(vit, count, class_names)
    config = replace(vit.config, classes=count)
    drawn = torch.empty(count, config.pooled * config.width)
    nn.init.trunc_normal_(drawn, std=0.02, generator=torch.Generator().manual_seed(seed))
    head = {"head.weight": drawn, "head.bias": torch.zeros(count)}
    weights = vit.state_dict() | {name: value.to(vit.positions) for name, value in head.items()}
    made = copy.deepcopy(ViT.from_weights(config, weights, source="this model"))
    made.preprocessing = seen
    made.history = after(vit.history, "given a new head", {"classes": count, "seed": seed}, None)
    return made.train(vit.training)


def _renamed(vit: ViT, classes: int, names: Sequence[str] | None) -> Preprocessing | None:
    """The model's preprocessing with the new classes' names, or with none."""
    seen = vit.preprocessing
    if seen is None and names is not None:
        raise CircuitError(
            "class_names are kept in vit.preprocessing, and this model has none. Assign "
            "cv.Preprocessing(mean=…, std=…) to it first."
        )
    renamed = None if seen is None else replace(seen, class_names=names)
    if problems := misfits(renamed, channels=vit.config.channels, classes=classes):
        raise CircuitError(f"the new head can't be made: {'; '.join(problems)}.")
    return renamed
