"""What learns, and the optimizer that moves it."""

from torch import nn
from torch.optim import AdamW

from circuitvit.train.recipe import Recipe

UNDECAYED = ("position", "token", "constant", "table", "pattern")
"""Words in the names of parameters that weight decay leaves alone."""

TAUGHT = {"head": {"head"}, "adapter": {"head", "adapter"}}
"""For each way to tune a part only, the modules whose parameters learn."""


def learning(model: nn.Module, recipe: Recipe) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    named = dict(model.named_parameters())
    if recipe.tune == "all":
        return named
    taught = TAUGHT[recipe.tune]
    return {n: p for n, p in named.items() if taught & {*n.split(".")[:-1]}}


def adamw(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW that decays weights, but no norm, bias, position, token, constant or table."""
    decayed, kept = [], []
    for name, parameter in learning(model, recipe).items():
        free = parameter.ndim < 2 or any(word in name for word in UNDECAYED)
        (kept if free else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.learning_rate)
