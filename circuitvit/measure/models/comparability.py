"""Checks whether models can be compared on the same images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.errors import CircuitError, warn
from circuitvit.measure.models.accuracy import NO_IMAGES, as_computed
from circuitvit.torch_modes import evaluating


def checked_fit(models: Mapping[str, nn.Module], images: Tensor) -> int:
    """The number of classes of all models.

    Raises:
        CircuitError: there are no images, a model can't be given them, gives no logits, or the
            models are of different classes; all such are named.
    """
    if images.ndim != 4:
        raise CircuitError(
            f"images have shape {tuple(images.shape)}, expected [image channel height width]."
        )
    if not len(images):
        raise CircuitError(NO_IMAGES)
    found = {name: _classes(model, images[:1]) for name, model in models.items()}
    wrong = [f"{name} {answer}" for name, answer in found.items() if isinstance(answer, str)]
    counts = {name: answer for name, answer in found.items() if isinstance(answer, int)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        wrong.append(f"the models tell different numbers of classes apart: {told}")
    if wrong:
        raise CircuitError(
            f"{'; '.join(wrong)}. Models that are evaluated together look at the same images of "
            "the same classes: evaluate the others apart."
        )
    return next(iter(counts.values()))


def _classes(model: object, image: Tensor) -> int | str:
    """The number of classes of a model, or what is wrong with it."""
    if not isinstance(model, nn.Module):
        return f"is a {type(model).__name__}, expected a module"
    config: Any = getattr(model, "config", None)
    wanted = (getattr(config, "channels", None), getattr(config, "image_size", None))
    given = tuple(image.shape[1:])
    if None not in wanted and given != (wanted[0], wanted[1], wanted[1]):
        theirs = f"{wanted[0]} × {wanted[1]} × {wanted[1]}"
        return f"is of images of {theirs}, these are {' × '.join(map(str, given))}"
    try:
        with evaluating(model), torch.inference_mode():
            logits = model(as_computed(image, model))
    except (CircuitError, RuntimeError, ValueError, TypeError) as cause:
        first = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        return f"can't be given these images ({first.rstrip('.')})"
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        return (
            f"gives a {type(logits).__name__}, expected logits [image class] (cv.load_vit reads "
            "models of other libraries so)"
        )
    return logits.shape[1]


def checked_class_names(
    given: Sequence[str] | None, models: Mapping[str, nn.Module], classes: int
) -> tuple[str, ...]:
    """The names of the classes: those given, else those that a model knows, else numbers.

    It warns where models know other names than the first, or not as many as they have classes.

    Raises:
        CircuitError: there are not as many names as classes, or models know the same classes in
            another order.
    """
    if given is None:
        known = {}
        for model, names in _names_known(models).items():
            if len(names) == classes:
                known[model] = names
            else:
                warn(f"{model} knows {len(names)} class names for {classes} classes; not used.")
        _check_agreement(known)
        return next(iter(known.values()), tuple(map(str, range(classes))))
    if isinstance(given, str) or len(given) != classes:
        raise CircuitError(
            f"got {len(given)} class names ({str(given)[:60]}), the models tell {classes} classes "
            "apart. Give one a class, in the order of the logits."
        )
    return tuple(map(str, given))


def _names_known(models: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """The class names of each model that knows some."""
    found = {}
    for name, model in models.items():
        known = getattr(getattr(model, "preprocessing", None), "class_names", None)
        if known:
            found[name] = tuple(map(str, known))
    return found


def _check_agreement(known: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse models of the same classes in other orders; warn of other names."""
    first = next(iter(known), "")
    for name, names in known.items():
        if names == known[first]:
            continue
        if sorted(names) == sorted(known[first]):
            raise CircuitError(
                f"{first} and {name} have the same classes in another order, so the labels can't "
                "be right for both. Evaluate each on images made with model=… of its own."
            )
        warn(
            f"{first} and {name} call the classes otherwise ({', '.join(known[first][:3])}, …; "
            f"{', '.join(names[:3])}, …), and the labels are taken to be those of both. Give "
            "class_names= if they are the same classes."
        )


def checked_batches(batches: object, rounds: object) -> tuple[int, ...]:
    """The batch sizes to time, each once, the smallest first.

    Raises:
        CircuitError: they are no whole numbers ≥ 1, or there are too few rounds.
    """
    several = isinstance(batches, Iterable) and not isinstance(batches, str)
    given: list[object] = list(batches) if isinstance(batches, Iterable) else []
    sizes = [size for size in given if isinstance(size, int) and size >= 1]
    wrong = not several or len(sizes) < len(given)
    if wrong or (sizes and (not isinstance(rounds, int) or rounds < 3)):
        raise CircuitError(
            f"batches is {batches!r} and rounds {rounds!r}, expected whole numbers ≥ 1, such as "
            "(1, 8, 64), and rounds ≥ 3. Give batches=() to leave time out."
        )
    return tuple(sorted(set(sizes)))
