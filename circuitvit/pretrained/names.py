"""Models by name: `timm:NAME`, `hf:REPOSITORY` and `torchvision:NAME`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from circuitvit.errors import CircuitError, reason_of
from circuitvit.files import unwritable_cache
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.checkpoints import read_checkpoint
from circuitvit.pretrained.fitting import filled_with
from circuitvit.pretrained.folders import from_folder, image_size_in, timm_options
from circuitvit.pretrained.libraries import timm as timm_model
from circuitvit.pretrained.libraries.reading import closest, distinct, imported
from circuitvit.pretrained.libraries.recognition import check_readable
from circuitvit.pretrained.opened import Checkpoint, Opened

LIBRARIES = ("timm", "hf", "torchvision")
WEIGHTS = ("*.safetensors",)
OLDER_WEIGHTS = ("pytorch_model*.bin",)


def from_name(text: str, checkpoint: Checkpoint | None) -> Opened:
    """The model of that name, with the weights that its library fetches, or with a file's.

    Raises:
        CircuitError: the name is unknown, or the weights can't be fetched.
    """
    library, _, name = text.partition(":")
    if not name:
        raise CircuitError(f"{text!r} names no model. Give {library}:NAME.")
    if library == "hf":
        return _hub(text, name, checkpoint)
    made = _timm if library == "timm" else _torchvision
    with torch.random.fork_rng(devices=[]):  # making a model draws weights first
        return made(text, name, checkpoint)


def _hub(text: str, name: str, checkpoint: Checkpoint | None) -> Opened:
    found = from_folder(_fetched(name, also=OLDER_WEIGHTS), checkpoint)
    owner, _, model = name.partition("/")
    known = owner == "timm" and checkpoint is None
    seen = _imagenet(found.model, model.partition(".")[2]) if known else found.preprocessing
    return replace(found, name=text, preprocessing=seen)


def _fetched(
    repository: str, *, patterns: Sequence[str] = WEIGHTS, also: Sequence[str] = ()
) -> Path:
    """The folder of a repository, from the hub or its cache: JSON and weights."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    try:
        options: Any = {"repo_id": name, "revision": revision or None}
        folder = Path(snapshot_download(allow_patterns=["*.json", *patterns], **options))
        if also and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(allow_patterns=["*.json", *also], **options))
    except Exception as cause:  # the hub, the network and the disk each raise their own
        unwritable = unwritable_cache(cause)
        if unwritable is not None:
            raise CircuitError(f"{repository} can't be fetched: {unwritable}.") from cause
        raise CircuitError(
            f"{repository} can't be had from the Hugging Face hub, nor is it in its cache "
            f"({reason_of(cause)}). Check the name and the network, or give a local folder or "
            "file."
        ) from cause
    return folder


def _timm(text: str, name: str, checkpoint: Checkpoint | None) -> Opened:
    timm = imported("timm")
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        every = [*known, *timm.list_pretrained()]
        raise CircuitError(
            f"timm {timm.__version__} knows no model {name!r}.{closest(name, every)} "
            "timm.list_models() has all; a repository on the hub is 'hf:OWNER/NAME'."
        )
    if checkpoint is not None:
        return _timm_with(timm, text, name, checkpoint)
    try:
        config = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        config = None
    if config is None or not config.has_weights:
        there = timm.list_pretrained(f"{name.partition('.')[0]}*")
        raise CircuitError(
            f"timm has no pretrained weights {name!r}."
            + (
                f" Of this model it has {', '.join(there)}."
                if there
                else " It has none of this model."
            )
            + " Or give checkpoint=."
        )
    with torch.device("meta"):  # before its weights are fetched
        check_readable(_created(timm, name))
    options: dict[str, Any] = {"pretrained": True}
    if config.hf_hub_id:
        options["pretrained_cfg_overlay"] = {"file": str(_timm_file(name, config))}
    module = _created(timm, name, **options)
    return Opened(module, text, _imagenet(module, config.tag))


def _imagenet(module: nn.Module, tag: str | None) -> Preprocessing | None:
    """The preprocessing of a timm module, with ImageNet's class names.

    timm's weights don't have any. Only for its own pretrained weights that were last trained on
    ImageNet-1k, as their tag says; each class is called by the first of its WordNet lemmas, as
    torchvision does ('tench'), and those that are two ('crane') by their number too.
    """
    seen = timm_model.preprocessing_of(module) if timm_model.knows(module) else None
    if seen is None or seen.class_names is not None or "in1k" not in (tag or ""):
        return seen
    info = imported("timm.data").ImageNetInfo()
    names = distinct(text.partition(",")[0] for text in info.label_descriptions())
    return replace(seen, class_names=names) if module.num_classes == len(names) else seen


def _timm_file(name: str, config: Any) -> Path:
    """The file of weights, fetched in one try, from the hub or its cache."""
    repository = config.hf_hub_id
    if repository.endswith("/"):  # timm's own repositories are named after the model
        tag = f".{config.tag}" if config.tag else ""
        repository = f"{repository}{name.partition('.')[0]}{tag}"
    wanted = config.hf_hub_filename
    patterns = (wanted,) if wanted else WEIGHTS
    folder = _fetched(repository, patterns=patterns, also=() if wanted else OLDER_WEIGHTS)
    names = (wanted,) if wanted else ("model.safetensors", "pytorch_model.bin")
    found = [folder / each for each in names if each and (folder / each).is_file()]
    if not found:
        raise CircuitError(f"the repository {repository} holds no weights that timm reads.")
    return found[0]


def _created(timm: Any, name: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except Exception as cause:
        raise CircuitError(f"timm can't make {name!r}: {reason_of(cause)}.") from cause


def _timm_with(timm: Any, text: str, name: str, file: Checkpoint) -> Opened:
    """An architecture of timm with the weights of a file, and as many classes as it has."""
    weights = read_checkpoint(file.path, file.weights)
    tensors = weights.tensors
    options = timm_options(tensors)
    with torch.device("meta"):
        module = _created(timm, name, **options)
    check_readable(module)
    size = image_size_in(tensors.get("pos_embed"), module)
    if size is not None:
        with torch.device("meta"):
            module = _created(timm, name, img_size=size, **options)
    return filled_with(Opened(module, f"{text} with {file.path}"), weights)


def _torchvision(text: str, name: str, checkpoint: Checkpoint | None) -> Opened:
    models = imported("torchvision").models
    architecture, _, tag = name.partition(".")
    known = models.list_models()
    if architecture not in known:
        raise CircuitError(
            f"torchvision knows no model {architecture!r}.{closest(architecture, known)} Its ViTs "
            f"are {', '.join(n for n in known if n.startswith('vit_'))}."
        )
    if checkpoint is not None:
        return _torchvision_with(models, text, architecture, checkpoint)
    every = models.get_model_weights(architecture)
    if tag and tag not in every.__members__:
        raise CircuitError(
            f"torchvision has no weights {tag!r} of {architecture}, but "
            f"{', '.join(every.__members__)}."
        )
    with torch.device("meta"):  # before its weights are fetched
        check_readable(models.get_model(architecture, weights=None))
    weights = every[tag] if tag else every.DEFAULT
    try:
        module = models.get_model(architecture, weights=weights)
    except Exception as cause:
        unwritable = unwritable_cache(cause)
        if unwritable is not None:
            raise CircuitError(f"the weights of {text} can't be fetched: {unwritable}.") from cause
        raise CircuitError(
            f"the weights of {text} can't be fetched ({reason_of(cause)}). Check the network, or "
            "give checkpoint=."
        ) from cause
    return Opened(module, text, preprocessing_of_weights(weights))


def preprocessing_of_weights(weights: Any) -> Preprocessing:
    """The preprocessing and classes of torchvision for these weights."""
    does = weights.transforms()
    return Preprocessing(
        mean=tuple(does.mean),
        std=tuple(does.std),
        interpolation=does.interpolation.value,
        crop=min(1.0, does.crop_size[0] / does.resize_size[0]),
        class_names=distinct(weights.meta["categories"]),
    )


def _torchvision_with(models: Any, text: str, name: str, file: Checkpoint) -> Opened:
    weights = read_checkpoint(file.path, file.weights)
    tensors = weights.tensors
    head = next((tensors[n] for n in ("heads.head.weight", "heads.weight") if n in tensors), None)
    options: dict[str, Any] = {} if head is None else {"num_classes": len(head)}
    with torch.device("meta"):
        module = models.get_model(name, weights=None, **options)
    check_readable(module)
    size = image_size_in(tensors.get("encoder.pos_embedding"), module)
    if size is not None:
        with torch.device("meta"):
            module = models.get_model(name, weights=None, image_size=size, **options)
    return filled_with(Opened(module, f"{text} with {file.path}"), weights)
