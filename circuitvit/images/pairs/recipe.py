"""The recipe of pairs as plain JSON, and the tensors made from it.

What is drawn is written down as places in the image set, so no model is needed to make the pairs
again. A recipe has:

* `made`: the constructor of `Pairs`, `arguments`: what it was given, `seed`.
* `images`: fingerprint of the ImageSet; `clean` and `corrupt`: places of the images in it, the
  latter null where corrupt images are made from the clean ones.
* `corrupt_labels`: null where they are those of the corrupt images, or unknown.
* `right_for`: by whom the images were judged; null if they were not.
* `casts`: the dtypes that the images were taken to afterwards.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitvit.checks import is_whole
from circuitvit.errors import CircuitError, in_short, reason_of
from circuitvit.images.image_set import ImageSet
from circuitvit.images.pairs.corruption import MOST_NOISE, Patch, is_noise, mean_image, noisy
from circuitvit.images.tensor_checks import MOST_SEED

PairRecipe = Mapping[str, Any]
OF_TWO = ("by_class", "by_category")
OF_ONE = ("occluded", "noised", "against_mean")
DTYPES = {
    name: dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point
}
"""What images can be taken to, by name."""

_MOST_CASTS = 100
KEYS = (
    "made", "arguments", "seed", "images", "clean", "corrupt", "corrupt_labels", "right_for",
    "casts",
)  # fmt: skip


def written(
    made: str,
    images: ImageSet,
    clean: np.ndarray,
    corrupt: np.ndarray | None,
    *,
    arguments: Mapping[str, Any],
    seed: int,
    right_for: str | None,
    corrupt_labels: np.ndarray | None = None,
) -> PairRecipe:
    """A recipe in plain JSON values."""
    recipe = {
        "made": made,
        "arguments": dict(arguments),
        "seed": int(seed),
        "images": images.fingerprint(),
        "clean": clean.tolist(),
        "corrupt": None if corrupt is None else corrupt.tolist(),
        "corrupt_labels": None if corrupt_labels is None else corrupt_labels.tolist(),
        "right_for": right_for,
        "casts": [],
    }
    return json.loads(json.dumps(recipe, default=_plain))


def _plain(value: Any) -> Any:
    """A number of numpy's, which JSON doesn't know, or a mapping that is no dict."""
    return dict(value) if isinstance(value, Mapping) else value.item()


def cut(recipe: PairRecipe, places: list[int]) -> PairRecipe:
    """The recipe of some of the pairs."""
    lists = {
        name: [recipe[name][place] for place in places]
        for name in ("clean", "corrupt", "corrupt_labels")
        if recipe[name] is not None
    }
    return {**recipe, **lists}


def cast(recipe: PairRecipe, dtype: torch.dtype) -> PairRecipe:
    """The recipe of the pairs in another dtype."""
    return {**recipe, "casts": [*recipe["casts"], str(dtype).removeprefix("torch.")]}


def check_recipe(recipe: object, images: object) -> None:
    """Refuse what isn't a recipe, or not one for these images.

    Raises:
        CircuitError: as it says.
    """
    if not isinstance(images, ImageSet):
        raise CircuitError(
            f"images are a {type(images).__name__}, expected the ImageSet that the pairs were "
            "drawn from."
        )
    if recipe is None:
        raise CircuitError(
            "there is no recipe: the pairs were put together by hand, or the circuit was found by "
            "a version that kept none. Give the pairs themselves, or find the circuit again."
        )
    if not isinstance(recipe, Mapping) or not set(KEYS) <= set(recipe):
        raise CircuitError(
            "this is no recipe of pairs; take pairs.recipe or circuit.provenance.pairs as it is."
        )
    if recipe["made"] not in (*OF_TWO, *OF_ONE):
        raise CircuitError(
            f"the recipe says {in_short(recipe['made'])}, this version makes pairs by "
            f"{', '.join((*OF_TWO, *OF_ONE))}. Update circuitvit."
        )
    own = images.fingerprint()
    if recipe["images"] != own:
        raise CircuitError(
            f"the pairs were drawn from images with the fingerprint {in_short(recipe['images'])}, "
            f"these have {own}. Give the same images: the same files in the same order, equally "
            "sized and normalised."
        )
    if problems := [*_problems(recipe, len(images), len(images.class_names))]:
        raise CircuitError(
            f"this recipe of pairs was altered or damaged: {'; '.join(problems)}. Take "
            "pairs.recipe or circuit.provenance.pairs as it is."
        )


def _problems(recipe: PairRecipe, images: int, classes: int) -> Iterator[str]:
    """The fields of a recipe with a wrong type, one sentence each."""
    clean, corrupt, labels = (recipe[name] for name in ("clean", "corrupt", "corrupt_labels"))
    if not _are_places(clean, images):
        yield f"clean is {in_short(clean)}, expected places below {images}"
    count = len(clean) if isinstance(clean, list) else 0
    if recipe["made"] in OF_TWO:
        if not _are_places(corrupt, images, count):
            yield f"corrupt is {in_short(corrupt)}, expected {count} places below {images}"
    elif labels is not None and not _are_places(labels, classes, count):
        yield f"corrupt_labels is {in_short(labels)}, expected {count} classes below {classes}"
    yield from _setting_problems(recipe)


def _setting_problems(recipe: PairRecipe) -> Iterator[str]:
    seed, given, casts = (recipe[name] for name in ("seed", "arguments", "casts"))
    if not is_whole(seed) or not 0 <= seed < MOST_SEED:
        yield f"seed is {in_short(seed)}, expected a whole number ≥ 0"
    if not isinstance(given, Mapping):
        yield f"arguments is {in_short(given)}, expected values by name"
    elif recipe["made"] == "noised" and not is_noise(given.get("std")):
        yield f"std is {in_short(given.get('std'))}, expected a number > 0, at most {MOST_NOISE:zg}"
    if not isinstance(recipe["right_for"], str | None):
        yield f"right_for is {in_short(recipe['right_for'])}, expected a text or null"
    few = isinstance(casts, list) and len(casts) <= _MOST_CASTS
    if not few or not all(isinstance(name, str) and name in DTYPES for name in casts):
        yield f"casts is {in_short(casts)}, expected dtypes of floating point"


def _are_places(value: Any, below: int, count: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and (len(value) > 0 if count is None else len(value) == count)
        and all(is_whole(place) and 0 <= place < below for place in value)
    )


def tensors_of(recipe: PairRecipe, images: ImageSet) -> dict[str, Any]:
    """The fields of the pairs that a checked recipe makes.

    Raises:
        CircuitError: the recipe was altered.
    """
    try:
        clean = torch.tensor(recipe["clean"], dtype=torch.int64, device=images.images.device)
        fields: dict[str, Tensor | None] = {
            "clean": images.images[clean],
            "labels": images.labels[clean],
        }
        if recipe["made"] in OF_TWO:
            corrupt = torch.tensor(recipe["corrupt"], dtype=torch.int64, device=clean.device)
            return fields | {
                "corrupt": images.images[corrupt],
                "corrupt_labels": images.labels[corrupt],
            }
        known = recipe["corrupt_labels"]
        return fields | {
            "corrupt": _corrupted(recipe, images),
            "corrupt_labels": None if known is None else torch.tensor(known, device=clean.device),
        }
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as cause:
        if isinstance(cause, CircuitError):
            raise
        raise CircuitError(
            f"this recipe of pairs was altered or damaged: {reason_of(cause)}."
        ) from cause


def _corrupted(recipe: PairRecipe, images: ImageSet) -> Tensor:
    """Corrupt images that are made from the clean ones."""
    given, seed, places = recipe["arguments"], recipe["seed"], recipe["clean"]
    if recipe["made"] == "against_mean":
        return mean_image(images.images).repeat(len(places), 1, 1, 1)
    if recipe["made"] == "noised":
        made = [noisy(images.images[place], given["std"], seed, place) for place in places]
        return torch.stack(made)
    height, width = images.images.shape[2:]
    patch = Patch.checked(
        given["fill"], given["size"], given["place"], given["align"], height=height, width=width
    )
    corners = [patch.corner(height, width, seed, place) for place in places]
    at = zip(places, corners, strict=True)
    return torch.stack([patch.applied(images.images[place], corner) for place, corner in at])
