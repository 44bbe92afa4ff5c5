"""Chooses clean images, even over the classes, and corrupt partners for them.

Where a model must get images right, it classifies no more of them than are needed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.checks import is_whole
from circuitvit.errors import CircuitError, in_short, reason_of
from circuitvit.images.classes.labels import place_of, places_called
from circuitvit.images.image_set import ImageSet
from circuitvit.images.tensor_checks import MOST_SEED, balanced, ranks_of
from circuitvit.preprocessing import class_name
from circuitvit.torch_modes import default_modes

LogitsOf: TypeAlias = Callable[[Tensor], Tensor]
"""From images [image channel height width] to logits [image class]."""

IMAGES_AT_ONCE = 64
UNKNOWN, WRONG, RIGHT = -1, 0, 1


class Judge:
    """Knows of some images whether a model gets them right, and finds out about others.

    Args:
        images: the images and their classes.
        right_for: a callable from images to logits, which runs without gradients and in the mode
            that it is in, or a mask with one truth value an image. None counts all as right.

    Raises:
        CircuitError: it is neither, or the images are no ImageSet.
    """

    def __init__(self, images: ImageSet, right_for: object = None) -> None:
        if not isinstance(images, ImageSet):
            raise CircuitError(
                f"images are a {type(images).__name__}, expected an ImageSet(images, labels, "
                "class_names), such as load_splits(...).train."
            )
        self._images = images
        self._model: LogitsOf | None = None
        self._known = np.full(len(images), UNKNOWN, np.int8)
        self.name: str | None = None
        if right_for is None:
            self._known[:] = RIGHT
        elif isinstance(right_for, Tensor | np.ndarray):
            self._known[:] = _checked_mask(right_for, len(images))
            self.name = "a mask"
        elif callable(right_for):
            self._model = right_for  # pyright: ignore[reportAttributeAccessIssue]
            self.name = _name_of(right_for)
        else:
            raise CircuitError(
                f"right_for is a {type(right_for).__name__}, expected a model (a callable from "
                "images to logits), or a mask with one truth value an image."
            )

    @classmethod
    def of(cls, images: ImageSet, right_for: object) -> "Judge":
        """A judge of these images; a given one is reused with all that it has classified.

        Raises:
            CircuitError: `right_for` can't judge.
        """
        if isinstance(right_for, cls) and right_for._images is images:
            return right_for
        return cls(images, right_for)

    @property
    def is_asked(self) -> bool:
        """Whether anything was given to judge by."""
        return self.name is not None

    @property
    def wrong(self) -> np.ndarray:
        """Of every image, whether it is known to be wrong."""
        return self._known == WRONG

    def is_right(self, places: np.ndarray) -> np.ndarray:
        """Of some images, whether the model gets them right; those not yet known are run.

        Raises:
            CircuitError: the model doesn't give logits that fit.
        """
        unknown = np.unique(places[self._known[places] == UNKNOWN])
        for start in range(0, len(unknown), IMAGES_AT_ONCE):
            chunk = unknown[start : start + IMAGES_AT_ONCE]
            own = self._images.labels[chunk].cpu()
            self._known[chunk] = (self._logits(chunk).argmax(dim=-1) == own).numpy()
        return self._known[places] == RIGHT

    def runners_up(self, places: np.ndarray) -> np.ndarray | None:
        """The class beside the right one that the model holds likeliest; None without a model."""
        if self._model is None:
            return None
        found = list[np.ndarray]()
        for start in range(0, len(places), IMAGES_AT_ONCE):
            chunk = places[start : start + IMAGES_AT_ONCE]
            own = self._images.labels[chunk].cpu()
            others = self._logits(chunk).scatter(1, own[:, None], -torch.inf)
            found.append(others.argmax(dim=-1).numpy())
        return np.concatenate(found)

    def _logits(self, places: np.ndarray) -> Float[Tensor, "image class"]:
        assert self._model is not None
        batch = self._images.images[places]
        if isinstance(self._model, nn.Module):
            weights = next(self._model.parameters(), batch)
            batch = batch.to(weights.device, weights.dtype)
        try:
            with default_modes(gradients=False):
                logits = self._model(batch)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as cause:
            if isinstance(cause, CircuitError):
                raise
            raise CircuitError(
                f"right_for can't look at images of shape {tuple(batch.shape)}: "
                f"{reason_of(cause)}. Give a model that takes such images and returns logits, or "
                "load the images for it: load_splits(..., model=...)."
            ) from cause
        self._check(logits, len(places))
        return logits.cpu()

    def _check(self, logits: object, count: int) -> None:
        needed = max(int(self._images.labels.max()) + 1, 2)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
            kind = type(logits).__name__
            got = tuple(logits.shape) if isinstance(logits, Tensor) else kind
            raise CircuitError(
                f"right_for gave {got} for {count} images, expected logits [image class]. Give a "
                "function that returns them, such as lambda x: model(x).logits."
            )
        if logits.shape[1] < needed:
            raise CircuitError(
                f"right_for gave logits of {logits.shape[1]} classes, but the images' labels need "
                f"{needed}. Give a model of these classes, with the labels in its order."
            )
        if not bool(torch.isfinite(logits).all()):
            raise CircuitError("right_for gave logits that are NaN or infinite.")


def _checked_mask(mask: Tensor | np.ndarray, count: int) -> np.ndarray:
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if values.dtype != np.bool_ or values.shape != (count,):
        raise CircuitError(
            f"right_for is a mask of {mask.dtype} and shape {tuple(values.shape)}, expected "
            f"{count} truth values, one an image."
        )
    return values


def _name_of(model: object) -> str:
    """The model as a recipe records it: its fingerprint if it has one."""
    digest = getattr(model, "fingerprint", None)
    if callable(digest):
        return f"{type(model).__name__} {digest()}"
    return getattr(model, "__name__", type(model).__name__)


Members = dict[int, np.ndarray]
"""The places of the images that may still be drawn, by class."""
Pick = Callable[[np.random.Generator, int, Members], int]
"""Draws the class of a corrupt image, given that of the clean one."""

CLASSES_TOLD = 12
PAIRS = 64
"""How many pairs are drawn where their number is not said; all there are, where these are fewer."""


def places_by_class(
    images: ImageSet,
    *,
    clean: str | int | None,
    corrupt: str | int | None,
    count: int | None,
    seed: int,
    judge: Judge,
) -> tuple[np.ndarray, np.ndarray]:
    """The clean images and their partners of another class; arguments as of `Pairs.by_class`.

    Raises:
        CircuitError: as `Pairs.by_class`.
    """
    labels = images.labels.cpu().numpy()
    source = None if clean is None else class_index(images, clean, "clean")
    target = None if corrupt is None else class_index(images, corrupt, "corrupt")
    if source is not None and source == target:
        raise CircuitError(
            f"clean and corrupt are both the class {in_short(images.class_names[source])}, so the "
            "pairs would differ in nothing under study. Name two classes."
        )
    wanted = np.ones(len(labels), bool) if source is None else labels == source
    pool = np.flatnonzero(wanted if target is None else wanted & (labels != target))
    chosen = drawn(images, pool, count, seed, judge)
    if len(np.unique(labels)) < 2:
        raise CircuitError(
            "all images are of one class, so there is none to draw corrupt images from. Give "
            "images of at least two classes."
        )

    order = list[int]()  # of the classes that are left, which only become fewer

    def pick(draw: np.random.Generator, own: int, members: Members) -> int:
        if target is not None and target in members:
            return int(draw.choice([target]))
        if len(order) != len(members):
            order[:] = members
        others = len(order) - (own in members)
        if target is not None or not others:
            who = "another class" if target is None else f"class {images.class_names[target]!r}"
            raise CircuitError(_none_right(who))
        drawn_place = int(draw.choice(others))
        return order[drawn_place + (own in members and drawn_place >= bisect_left(order, own))]

    return chosen, _partners(labels, chosen, seed, judge, pick)


def places_by_category(
    images: ImageSet,
    categories: Mapping[str, str],
    *,
    clean: str | None,
    corrupt: str | None,
    count: int | None,
    seed: int,
    judge: Judge,
) -> tuple[np.ndarray, np.ndarray]:
    """The clean images and their partners of another category; as of `Pairs.by_category`.

    Raises:
        CircuitError: as `Pairs.by_category`.
    """
    labels = images.labels.cpu().numpy()
    classes: dict[str, list[int]] = {}
    categories = _plain_categories(categories)
    clean, corrupt = (
        class_name(kind) if isinstance(kind, str | int) else kind for kind in (clean, corrupt)
    )
    _check_categories(images, categories, clean, corrupt)
    for label in np.unique(labels):
        classes.setdefault(categories[images.class_names[label]], []).append(int(label))
    kind = {label: name for name, members in classes.items() for label in members}
    kinds = np.array([kind[int(label)] for label in labels])
    wanted = np.ones(len(labels), bool) if clean is None else kinds == clean
    pool = np.flatnonzero(wanted if corrupt is None else wanted & (kinds != corrupt))

    def pick(draw: np.random.Generator, own: int, members: Members) -> int:
        others = [c for c in classes if c != kind[own]] if corrupt is None else [corrupt]
        left = {c: [label for label in classes[c] if label in members] for c in others}
        left = {c: found for c, found in left.items() if found}
        if not left:
            who = "another category" if corrupt is None else f"category {in_short(corrupt)}"
            raise CircuitError(_none_right(who))
        category = list(left)[int(draw.integers(len(left)))]
        return int(draw.choice(left[category]))

    chosen = drawn(images, pool, count, seed, judge)
    return chosen, _partners(labels, chosen, seed, judge, pick)


def places_alone(
    images: ImageSet, *, clean: str | int | None, count: int | None, seed: int, judge: Judge
) -> np.ndarray:
    """Clean images of one class, or even over all, without partners.

    Raises:
        CircuitError: the class is unknown or has no images, or there are too few.
    """
    labels = images.labels.cpu().numpy()
    wanted = np.ones(len(labels), bool)
    if clean is not None:
        wanted = labels == class_index(images, clean, "clean")
    return drawn(images, np.flatnonzero(wanted), count, seed, judge)


def drawn(
    images: ImageSet, pool: np.ndarray, count: int | None, seed: int, judge: Judge
) -> np.ndarray:
    """Draw `count` right images of a pool without replacement, as evenly over classes as can be.

    The pool is put into an order that the seed alone decides; of each class, the first images that
    are right are taken. So how many the model is asked about at once changes nothing. Where no
    count is given, there are `PAIRS`, or all right images if these are fewer.

    Raises:
        CircuitError: there are not so many, or none.
    """
    wanted = (min(PAIRS, len(pool)) or PAIRS) if count is None else count
    for name, value in (("count", wanted), ("seed", seed)):
        if not is_whole(value) or value >= MOST_SEED:
            raise CircuitError(f"{name} is {in_short(value)}, expected a whole number below 2¹²⁸.")
    if not 1 <= wanted <= len(pool):
        raise CircuitError(_none_so_many(len(pool), count))
    labels = images.labels.cpu().numpy()
    order = pool[balanced(labels[pool], len(pool), seed)]
    turns = {label: turn for turn, label in enumerate(dict.fromkeys(labels[order].tolist()))}
    while True:
        left = order[~judge.wrong[order]]
        if count is None and len(left):
            wanted = min(wanted, len(left))
        chosen = left[_in_turns(labels[left], turns)][:wanted]
        if judge.is_right(chosen).all() and len(chosen) == wanted:
            return chosen
        if len(left) < wanted:
            raise CircuitError(_too_few(images, pool, judge, count))


def _in_turns(labels: np.ndarray, turns: Mapping[int, int]) -> np.ndarray:
    """The order in which classes take turns, each giving its images first to last."""
    own = np.array([turns[label] for label in labels.tolist()], np.int64)
    return np.lexsort((own, ranks_of(labels)))


def _partners(
    labels: np.ndarray, chosen: np.ndarray, seed: int, judge: Judge, pick: Pick
) -> np.ndarray:
    """A right image for each chosen one, of the class that `pick` draws."""
    draw = np.random.default_rng([seed, 2])
    classes, counts = np.unique(labels, return_counts=True)
    places = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    members = dict(zip(classes.tolist(), places, strict=True))
    found = np.full(len(chosen), -1)
    while (wanting := np.flatnonzero(found < 0)).size:
        for pair in wanting:
            label = pick(draw, int(labels[chosen[pair]]), members)
            found[pair] = draw.choice(members[label])
        wrong = ~judge.is_right(found[wanting])
        # Only those drawn here: what else the judge happens to know must not change the draws.
        tried = found[wanting[wrong]]
        for label in np.unique(labels[tried]).tolist():
            members[label] = np.setdiff1d(members[label], tried)
        members = {label: places for label, places in members.items() if places.size}
        found[wanting[wrong]] = -1
    return found


def class_index(images: ImageSet, asked: str | int, role: str) -> int:
    """The place of a class that is named or numbered.

    Raises:
        CircuitError: there is no such class, or no image of it.
    """
    names = images.class_names
    index = place_of(asked, names)
    if index is None:
        raise CircuitError(
            f"{role} is {in_short(asked)}, which is no class here. Give an index below "
            f"{len(names)} or one of these names: {_listed(names)}."
        )
    if len(same := places_called(asked, names)) > 1:
        raise CircuitError(
            f"{role} is {in_short(asked)}, as {len(same)} classes are called. Give an index: "
            f"{' or '.join(map(str, same))}."
        )
    if not (images.labels == index).any():
        raise CircuitError(
            f"{role} is {in_short(asked)}, but these images hold none of that class. Give more "
            "images, or another class."
        )
    return index


def _check_categories(
    images: ImageSet, categories: Mapping[str, str], clean: str | None, corrupt: str | None
) -> None:
    there = [images.class_names[label] for label in images.labels.unique().tolist()]
    known = list(dict.fromkeys(categories[name] for name in there if name in categories))
    problems = []
    if missing := [name for name in there if name not in categories]:
        problems.append(f"no category is given for {len(missing)} classes ({_listed(missing)})")
    for role, asked in (("clean", clean), ("corrupt", corrupt)):
        if asked is not None and asked not in known:
            problems.append(
                f"{role} is {in_short(asked)}, expected a category that has images "
                f"({_listed(known)})"
            )
    if clean is not None and clean == corrupt:
        problems.append(f"clean and corrupt are both {in_short(clean)}, name two categories")
    if not missing and len(known) < 2:
        problems.append(f"all images are of one category ({_listed(known)}), at least 2 are needed")
    if problems:
        raise CircuitError("these categories can't be paired: " + "; ".join(problems) + ".")


def _plain_categories(categories: object) -> dict[str, str]:
    """Categories of classes, both as names of classes are compared."""
    strange = f"categories are a {type(categories).__name__}"
    if isinstance(categories, Mapping):
        odd = [kind for kind in categories.values() if not isinstance(kind, str | int)]
        if not odd:
            return {class_name(name): class_name(kind) for name, kind in categories.items()}
        strange = f"a category is {in_short(odd[0])}"
    raise CircuitError(
        f"{strange}, expected a mapping from each class's name to that of its one category, such "
        "as {'beagle': 'dog', 'robin': 'bird'}."
    )


def _none_right(who: str) -> str:
    return (
        f"the model gets no image of {who} right, so there is none to draw as a corrupt image. "
        "Give more images, or leave out right_for."
    )


def _none_so_many(most: int, count: int | None) -> str:
    if count is None:
        return "there are no clean images to make pairs of. Give more images."
    advice = f"Ask for 1 to {most}, or give" if most else "Give"
    return f"{count} pairs were asked for, but there are {most} clean images. {advice} more images."


def _too_few(images: ImageSet, pool: np.ndarray, judge: Judge, count: int | None) -> str:
    right = judge.is_right(pool)
    labels = images.labels.cpu().numpy()[pool]
    found = {
        images.class_names[label]: int(right[labels == label].sum()) for label in np.unique(labels)
    }
    told = [f"{name}: {number}" for name, number in sorted(found.items(), key=lambda x: x[1])]
    most = int(right.sum())
    advice = f"Ask for at most {most}, give" if most else "Give"
    asked = "" if count is None else f"{count} pairs were asked for, but "
    return (
        f"{asked}of the {len(pool)} clean images the model gets only "
        f"{most} right ({_listed(told)}). {advice} more images, or leave out right_for."
    )


def _listed(names: Iterable[object]) -> str:
    told = [str(name) for name in names]
    rest = len(told) - CLASSES_TOLD
    return ", ".join(told[:CLASSES_TOLD]) + (f" and {rest} more" if rest > 0 else "")
