"""Weights of a file, put into a module of their library."""

import re
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from circuitvit.errors import CircuitError
from circuitvit.plain_weights import few
from circuitvit.pretrained.checkpoints import Weights, read_checkpoint, straight_heads
from circuitvit.pretrained.libraries import timm, torchvision, transformers
from circuitvit.pretrained.libraries.reading import PUT_BACK, Renames, renamed
from circuitvit.pretrained.opened import Checkpoint, Opened

_OF_A_MODEL = re.compile(
    r"^(patch|patch_embed|conv_proj|embeddings|class_token|distillation_token|register_tokens|"
    r"positions|pos_drop|embed_norm|blocks|layers?|encoder|final_norm|norm|fc_norm|attn_pool|"
    r"pre_logits|head|heads|classifier|head_distillation|vision_model)(\.|$)"
)
"""Roles that decide what a model computes: if they are surplus, the file's model is another."""
_DEEPER = re.compile(
    r"((?:^|\.)(?:blocks|layers?|encoder_layer_\d+)\.[\w.]*?"
    r"(?:qkv|proj|fc[12]|linear_[12]|query|key|value|dense|[qkvo]_proj|out_proj))"
    r"\.(?!weight$|bias$|dense\.|o_proj\.)[\w.]+$"
)
"""A tensor inside of what is a plain linear layer in each library."""


def fitted(found: Opened, checkpoint: Checkpoint) -> Opened:
    """The module with the weights of a file; its own memory, in the file's dtype.

    Raises:
        CircuitError: keys are missing, or shapes differ: every one is named.
    """
    weights = read_checkpoint(checkpoint.path, checkpoint.weights)
    name = f"{found.name} with {checkpoint.path}" if found.name else str(checkpoint.path)
    return filled_with(replace(found, name=name), weights)


def filled_with(found: Opened, weights: Weights) -> Opened:
    """The opened model with these weights in its module.

    Raises:
        CircuitError: keys are missing, or shapes differ: every one is named.
    """
    unused = _fit(found.model, weights)
    return replace(
        found,
        folded=(*found.folded, *weights.notes),
        guessed=(*weights.guessed, *found.guessed),
        unused=(*found.unused, *unused),
    )


def _fit(module: nn.Module, weights: Weights) -> tuple[str, ...]:
    """Put tensors into a module, whichever layout of its library they have.

    Returns:
        Keys of the file that take no part.

    Raises:
        CircuitError: keys are missing, shapes differ, or keys are surplus that belong to another
            model: every one is named.
    """
    tensors, own = weights.tensors, module.state_dict()
    renames, unused = _layout_of(module)
    left = [name for name in tensors if name not in own and re.search(unused, name)]
    roles = renamed((name for name in tensors if name not in left), renames)
    given = {role: (name, tensors[name]) for name, role in roles.items()}
    twice = [n for n, role in roles.items() if given[role][0] != n]
    plain = straight_heads(own)
    by_role = renamed(plain.values(), renames)
    wanted = {by_role[plain[name]]: name for name in own}
    idle = {role for role, name in wanted.items() if re.search(unused, name)}
    missing = sorted(set(wanted) - set(given) - idle)
    surplus = [given[role][0] for role in sorted(set(given) - set(wanted))]
    problems = [f"{wanted[role]} is missing" for role in missing]
    wrong = [
        f"{given[role][0]} has shape {tuple(given[role][1].shape)}, expected "
        f"{tuple(own[name].shape)}"
        for role, name in sorted(wanted.items())
        if role in given and given[role][1].shape != own[name].shape
    ]
    wrong += [
        f"{given[role][0]} is of {given[role][1].dtype}, expected floating point"
        for role, name in sorted(wanted.items())
        if role in given and own[name].is_floating_point() != given[role][1].is_floating_point()
    ]
    doubled = [f"{n} and {given[roles[n]][0]} are two names of one parameter" for n in twice]
    whole = not (missing or wrong or doubled)
    fatal = of_another_model(module, surplus) if whole else surplus
    problems += [f"{name} is surplus" for name in fatal] + doubled + wrong
    if problems:
        raise CircuitError(_misfit(module, weights, problems, missing=bool(missing)))
    state = {name: given[role][1] if role in given else own[name] for role, name in wanted.items()}
    module.load_state_dict(state, assign=True)
    return (*weights.beside, *sorted({*left, *surplus}))


def _misfit(module: nn.Module, weights: Weights, problems: list[str], *, missing: bool) -> str:
    text = f"the weights from {weights.path} don't fit this {type(module).__name__}: "
    beside = weights.beside
    if missing and beside:
        problems = [
            *problems,
            f"outside of the prefix it has {', '.join(beside[:4])}{', …' * (len(beside) > 4)}",
        ]
    return text + "; ".join(problems) + f".{replaced_in(weights.tensors)}"


def replaced_in(names: Iterable[str]) -> str:
    """A sentence about linear layers that are others in a file, with what to do; else none."""
    found = [m[1] for name in names if (m := _DEEPER.search(name)) is not None]
    layers = list(dict.fromkeys(found))
    return "" if not layers else f" Another layer is at {few(layers)}. {PUT_BACK}."


def of_another_model(module: nn.Module, surplus: Iterable[str]) -> list[str]:
    """The surplus keys of a model that computes differently from the module."""
    roles = renamed(surplus, _layout_of(module)[0] or timm.RENAMES)
    return [name for name, role in roles.items() if _OF_A_MODEL.match(role)]


def _layout_of(module: nn.Module) -> tuple[Renames, str]:
    """The renames of a library's file layouts, and the keys that aren't needed.

    timm has one layout: where its names differ (`norm`, `fc_norm`), models compute otherwise.
    """
    if torchvision.knows(module):
        return torchvision.RENAMES, "(?!)"
    if transformers.knows(module):
        return transformers.RENAMES, transformers.UNUSED
    return (), "(?!)"
