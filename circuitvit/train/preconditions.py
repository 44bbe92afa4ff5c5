"""Checks before a training starts, and what identifies a training when it is resumed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.history import check_history
from circuitvit.models.vit import ViT
from circuitvit.plain_weights import few
from circuitvit.preprocessing import Preprocessing, misfits
from circuitvit.train.adapter import AdaptedViT
from circuitvit.train.distillation import Teacher, teacher_problems
from circuitvit.train.drop_path import DroppedPaths
from circuitvit.train.optimizer import trained_parameters
from circuitvit.train.recipe import Recipe


def check_training(
    vit: ViT | CircuitViT,
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    teacher: Any,
    accelerator: Accelerator,
) -> None:
    """Refuse a training whose inputs don't fit each other or the machine.

    Raises:
        CircuitError: images, model, recipe, teacher or machine don't fit; every reason is named.
    """
    if not isinstance(vit, ViT | CircuitViT):
        own = isinstance(vit, AdaptedViT)
        raise CircuitError(
            f"expected a circuitvit.ViT or CircuitViT to train, got {type(vit).__name__}. "
            + (
                "Train the model that it started from again."
                if own
                else "circuitvit.load_vit(model) makes one."
            )
        )
    vit.check_weights()
    check_history(vit.history)
    for name, images in (("training images", training), ("validation images", validation)):
        vit.check_images(images.images, name=name)
    problems = [
        *_data_problems(vit, training, validation, recipe),
        *_image_problems(training, recipe),
        *_machine_problems(recipe, accelerator),
        *_block_problems(vit, recipe),
        *_frozen_problems(vit, recipe),
    ]
    if teacher is not None:
        problems += teacher_problems(teacher, training, vit.config.classes)
    if problems:
        raise CircuitError("this training can't start: " + "; ".join(problems) + ".")


def _data_problems(
    vit: ViT | CircuitViT, training: ImageSet, validation: ImageSet, recipe: Recipe
) -> Iterator[str]:
    if training.class_names != validation.class_names:
        yield "training and validation images have different classes"
    yield from _class_problems(vit, training)
    if recipe.batch > len(training):
        yield (
            f"a batch of {recipe.batch} is larger than the {len(training)} training images; "
            f"use a batch of {len(training)} or less"
        )


def _class_problems(vit: ViT | CircuitViT, training: ImageSet) -> Iterator[str]:
    """Why the head's classes aren't those of the images."""
    names, classes, preprocessing = training.class_names, vit.config.classes, vit.preprocessing
    known = None if preprocessing is None else preprocessing.class_names
    remedy = f"give it a new head first, cv.with_new_head(vit, classes={len(names)})"
    if isinstance(vit, CircuitViT):
        remedy = "give the model that it was compiled from a new head with cv.with_new_head"
    if len(names) != classes:
        yield f"the images are of {len(names)} classes and the model has {classes}; {remedy}"
    elif known is not None and sorted(known) == sorted(names):
        if tuple(known) != tuple(names):
            yield (
                f"the images' classes are in another order ({few(names)}) than the model's logits "
                f"({few(known)}); make the images with model=vit, which takes the model's order"
            )
    elif known is not None and len(known) == classes:
        yield (
            f"the images have other classes ({few(names)}) than the model ({few(known)}); "
            f"{remedy}; or, if these are other names of the same classes in the same order, assign "
            "dataclasses.replace(vit.preprocessing, class_names=…) to vit.preprocessing"
        )


def resulting_preprocessing(vit: ViT | CircuitViT, training: ImageSet) -> Preprocessing | None:
    """The trained model's preprocessing: that of its images, else the model's own.

    Its class names are the images'. Without a preprocessing there is nowhere to keep them.
    """
    given, own = training.preprocessing, vit.preprocessing
    unnamed = own is None or own.class_names is None
    if given is not None and given.class_names is None and unnamed:
        return given  # made by hand without names
    chosen = given or own
    return None if chosen is None else replace(chosen, class_names=training.class_names)


def _image_problems(training: ImageSet, recipe: Recipe) -> Iterator[str]:
    channels, classes = training.images.shape[1], len(training.class_names)
    bare = training.preprocessing and replace(training.preprocessing, class_names=None)
    for problem in misfits(bare, channels=channels, classes=classes):
        yield f"the training images' preprocessing is not theirs: {problem}"
    if not (recipe.augment and recipe.rand_augment):
        return
    if training.preprocessing is None:
        yield (
            "RandAugment needs pictures of 8 bits, and it is not known how the training images "
            "were normalised; give ImageSet(preprocessing=…), or make them with load_splits or "
            "ImageSet.from_arrays, or use rand_augment=0"
        )
    if channels not in (1, 3):
        yield f"RandAugment is of 1 or 3 channels, these images have {channels}; use rand_augment=0"


def _frozen_problems(vit: ViT | CircuitViT, recipe: Recipe) -> Iterator[str]:
    """Why no parameter would be trained; an adapter's own always are."""
    trained = trained_parameters(vit, recipe).values()
    if recipe.tune != "adapter" and not any(parameter.requires_grad for parameter in trained):
        what = "of its head" if recipe.tune == "head" else "of the model"
        yield (
            f"no parameter {what} is trained: requires_grad is False for all; call "
            "vit.requires_grad_(True) first"
        )


def _block_problems(vit: ViT | CircuitViT, recipe: Recipe) -> Iterator[str]:
    kind = type(vit).__name__
    if recipe.drop_path and not isinstance(vit, ViT):
        yield f"drop_path is of a ViT's blocks, this is a {kind}; use drop_path=0"
    elif recipe.drop_path and isinstance(vit, ViT) and not DroppedPaths(vit, recipe).paths:
        yield (
            f"drop_path={recipe.drop_path} would drop nothing: its probability falls to 0 in the "
            f"first of {len(vit.blocks)} block(s), and none after it has an attention or MLP; use "
            "drop_path=0"
        )
    if recipe.tune == "adapter" and not isinstance(vit, ViT):
        yield f'adapters need the blocks of a ViT, this is a {kind}; use tune="head"'


def _machine_problems(recipe: Recipe, accelerator: Accelerator) -> Iterator[str]:
    processes = accelerator.num_processes
    if recipe.batch % processes:
        yield (
            f"a batch of {recipe.batch} can't be shared by {processes} processes alike; use a "
            "multiple"
        )
    elif recipe.accumulate > recipe.batch // processes:
        yield (
            f"{recipe.batch // processes} images, a process's share of a batch, can't be split "
            f"into {recipe.accumulate} micro-batches; use accumulate="
            f"{recipe.batch // processes} or less"
        )
    launched = accelerator.mixed_precision
    if launched == "fp16":
        yield "start accelerate without --mixed_precision fp16 and set it in the recipe alone"
    elif launched not in ("no", recipe.mixed_precision):
        yield (
            f"accelerate was launched with {launched} and the recipe has "
            f"{recipe.mixed_precision}; use the same in both"
        )
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        yield (
            "fp16 needs a GPU: its small gradients are scaled up against underflow there, and a "
            'CPU computes it more slowly than single precision; use mixed_precision="bf16" or "no"'
        )


def run_of(
    vit: ViT | CircuitViT,
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    teacher: Teacher | None,
) -> dict[str, Any]:
    """The identity of a training, as JSON values: data, initial weights, recipe, teacher."""
    run = {
        "training images": training.fingerprint(),
        "validation images": validation.fingerprint(),
        "initial weights": vit.fingerprint(),
        "class names": _digest(training.class_names),
        **_preprocessing_entries(training.preprocessing),
    }
    if teacher is not None:
        run["teacher"] = teacher.fingerprint()
        run |= {f"teacher.{name}": value for name, value in teacher.config().items()}
    run |= {f"recipe.{name}": value for name, value in recipe.as_dict().items()}
    return run | {f"config.{name}": value for name, value in vit.config.as_dict().items()}


def _preprocessing_entries(preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Noise and RandAugment depend on it, and the trained model keeps it."""
    if preprocessing is None:
        return {"preprocessing": None}
    values = preprocessing.as_dict()
    names = values.pop("class_names")
    return {"preprocessing": values, "preprocessing's class names": names and _digest(names)}


def _digest(names: Sequence[str]) -> str:
    """16 hexadecimal digits of a SHA-256 over a list of names."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]
