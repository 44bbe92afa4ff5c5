"""Loads local folders of circuitvit, transformers or timm, recognised by config.json.

What a folder claims is checked before a library believes it: no code of a folder is run, no file
outside of it is read, and nothing is allocated that its weights are too few for.
"""

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.config import MOST_BLOCKS
from circuitvit.errors import CircuitError, in_short, printable, reason_of
from circuitvit.files import finish_save, read_json
from circuitvit.files.tensor_files import recognized
from circuitvit.models.vit import ViT
from circuitvit.plain_weights import adapters_among
from circuitvit.preprocessing import natural_key
from circuitvit.pretrained.checkpoints import NO_MODEL, read_checkpoint
from circuitvit.pretrained.fitting import filled_with, fitted, of_another_model
from circuitvit.pretrained.libraries import timm, torchvision, transformers
from circuitvit.pretrained.libraries.reading import imported, quiet_transformers
from circuitvit.pretrained.libraries.recognition import check_readable
from circuitvit.pretrained.opened import Checkpoint, Opened, refuse_choice, unwrapped
from circuitvit.pretrained.safe_loading import ENDINGS

_LABELS = ("id2label", "label2id", "label_names", "label_descriptions", "labels")
"""Fields whose values name classes."""
_MOST_LABELS = 2**18
_MOST_NUMBER = 2**31
_MOST_SHARDS = 10_000
_DEEPEST = 16
_SPARE = 2**24
"""So many parameters may be missing from the weights: the names of all that are get said then."""
_TEXTS = ("model_type", "architecture", "_name_or_path")


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config that no library should read.

    Raises:
        CircuitError: a field has the wrong type or an absurd number, or asks for foreign code.
    """
    problems = [f"{name} is {in_short(config[name], most=60)}, expected a text" for name in _TEXTS
                if not isinstance(config.get(name) or "", str)]  # fmt: skip
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        problems.append(f"architectures is {in_short(named, most=60)}, expected a list of names")
    architecture = str(config.get("architecture") or "")
    if any(mark in architecture for mark in ":/\\"):
        problems.append(
            f"architecture is {in_short(architecture, most=60)}, which is a place and no name; "
            "circuitvit reads nothing outside of the folder"
        )
    problems = problems or [*_absurd(config, "", 0)]
    if problems:
        shown = "; ".join(problems[:5])
        raise CircuitError(
            f"{folder / 'config.json'} is not the config of a model that can be read: {shown}. "
            "Take the folder from its source again."
        )


def _absurd(values: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
    """Fields with numbers that no model has, or that name a kernel to be fetched and run."""
    for name, value in values.items():
        place = printable(f"{where}{name}")
        if name in _LABELS:
            if isinstance(value, dict | list) and len(value) > _MOST_LABELS:
                yield f"{place} has {len(value):,} entries, expected at most {_MOST_LABELS:,}"
        elif isinstance(value, Mapping):
            if depth >= _DEEPEST:
                yield f"{place} is nested too deeply"
            else:
                yield from _absurd(value, f"{where}{name}.", depth + 1)
        elif name.endswith("_implementation") and "/" in str(value):
            yield (
                f"{place} is {in_short(value, most=60)}, a kernel from the hub; circuitvit runs no "
                "code that a model's folder names"
            )
        else:
            yield from _absurd_numbers(name, place, value)


def _absurd_numbers(name: str, place: str, value: Any) -> Iterator[str]:
    most = _MOST_NUMBER
    if "layers" in name or "depth" in name:
        most = MOST_BLOCKS
    elif name in ("num_labels", "num_classes"):
        most = _MOST_LABELS
    numbers: Iterable[Any] = value if isinstance(value, list) else (value,)
    if isinstance(value, list) and len(value) > _MOST_LABELS:
        yield f"{place} has {len(value):,} entries, expected at most {_MOST_LABELS:,}"
    elif any(isinstance(n, int) and abs(n) > most for n in numbers):
        yield f"{place} is {in_short(value, most=60)}, expected at most {most:,}"
    elif any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        yield f"{place} is {in_short(value, most=60)}, expected finite numbers"


def asks_for_code(config: Mapping[str, Any]) -> str:
    """A sentence about the code that a config asks for; empty if it asks for none."""
    if not config.get("auto_map"):
        return ""
    return (
        f" The folder asks for Python code of its own ({in_short(config['auto_map'], most=120)}), "
        "and circuitvit runs no code from a model's folder. Load the model where you trust that "
        "code, and give the module."
    )


def check_shards(folder: Path) -> None:
    """Refuse an index of weights in several files that leads out of the folder.

    Raises:
        CircuitError: it is no index, or names something else than files of the folder.
    """
    for path in sorted(folder.glob("*.index.json")):
        index = read_json(path, what="index of weights")
        shards = index.get("weight_map") if isinstance(index, Mapping) else None
        if not isinstance(shards, Mapping) or not all(map(_is_text, shards.values())):
            raise CircuitError(
                f"{path} is not an index of weights: weight_map is "
                f"{in_short(shards, most=60)}, expected a file's name for each tensor. Take the "
                "folder from its source again."
            )
        names = {str(name) for name in shards.values()}
        if len(names) > _MOST_SHARDS:
            raise CircuitError(
                f"{path} names {len(names):,} files, expected at most {_MOST_SHARDS:,}."
            )
        outside = sorted(name for name in names if not _is_inside(folder, name))
        if outside:
            raise CircuitError(
                f"{path} names {in_short(outside[0], most=100)}, which is no file inside of "
                f"{folder}: nothing outside of a model's folder is read. Put the file there."
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name is a file's in a folder; the hub's cache has links into its own repository."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0") or len(name) > 255:
        return False
    home = folder.resolve()
    homes = [home, *([home.parents[1]] if home.parent.name == "snapshots" else [])]
    try:
        place = (home / name).resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle
        return False
    return any(place.is_relative_to(one) for one in homes)


def check_size(config: Path, make: Callable[[], nn.Module], files: Iterable[Path]) -> None:
    """Refuse a config of a model that is far larger than the weights beside it.

    Args:
        config: the file.
        make: what makes the model.
        files: of weights; a parameter takes a byte or more.

    Raises:
        CircuitError: it is far larger, or can't be made.
    """
    try:
        with torch.device("meta"):  # needs no memory
            module = make()
        count = sum(parameter.numel() for parameter in module.parameters())
    except Exception as cause:  # a library raises what it likes
        raise CircuitError(f"no model can be made of {config}: {reason_of(cause)}.") from cause
    held = sum(file.stat().st_size for file in files)
    if count > held + _SPARE:
        raise CircuitError(
            f"{config} is of a model with {count:,} parameters, but its weights take {held:,} "
            "bytes, which is too few for it. One of the files is of another model or cut short; "
            "take the folder from its source again."
        )


def from_folder(
    folder: Path, checkpoint: Checkpoint | None, *, weights: str | None = None
) -> Opened:
    """The model in a folder, with its own weights or those of another file.

    Args:
        folder: which circuitvit, transformers or timm wrote.
        checkpoint: another file of weights.
        weights: "ema" or "model" where the folder's own file has both.

    Raises:
        CircuitError: the folder is none of a model, or its weights don't fit.
    """
    finish_save(folder)
    if not (folder / "config.json").is_file():
        raise CircuitError(_no_model(folder))
    if (folder / "adapter_config.json").is_file() and not _has_whole_weights(folder):
        raise CircuitError(_adapter_of_peft(folder))
    config = read_json(folder / "config.json", what="model config", finite=False)
    with torch.random.fork_rng(devices=[]):  # making a model draws weights first
        if isinstance(config, Mapping) and ("architecture" in config or "model_type" in config):
            check_config(folder, config)
        wrapped = isinstance(config, Mapping) and config.get("model_type") == "timm_wrapper"
        if isinstance(config, Mapping) and "architecture" in config and not wrapped:
            return _timm(folder, config, checkpoint, weights)
        refuse_choice(weights if checkpoint is None else None, folder)
        if isinstance(config, Mapping) and "model_type" in config:
            return _transformers(folder, config, checkpoint)
    found = Opened(ViT.from_pretrained(folder), str(folder))
    return found if checkpoint is None else fitted(found, checkpoint)


def _no_model(folder: Path) -> str:
    weights = sorted(path.name for path in folder.iterdir() if _holds_weights(path))
    if (folder / "adapter_config.json").is_file():
        return _adapter_of_peft(folder)
    if "adapter.safetensors" in weights:
        return f"{folder / 'adapter.safetensors'} {NO_MODEL}"
    text = (
        f"no model in the folder {str(folder)!r}: there is no config.json. A model's folder holds "
        "config.json and model.safetensors, as save_pretrained of circuitvit and transformers and "
        "timm's save_for_hf write them."
    )
    configs = [*folder.glob("*/config.json"), *folder.glob("*/adapter_config.json")]
    below = sorted({path.parent.name for path in configs}, key=natural_key)
    if below:
        shown = [str(folder / name) for name in below[-4:]]
        return f"{text} There are folders of models in it: give one, such as {', '.join(shown)}."
    return text + (f" It holds {', '.join(weights[:4])}: give the file itself." if weights else "")


def _holds_weights(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def _has_whole_weights(folder: Path) -> bool:
    return any(_holds_weights(p) and not p.name.startswith("adapter") for p in folder.iterdir())


def _adapter_of_peft(folder: Path) -> str:
    told = read_json(folder / "adapter_config.json", what="adapter config", finite=False)
    base = told.get("base_model_name_or_path") if isinstance(told, Mapping) else None
    kind = (told.get("peft_type") if isinstance(told, Mapping) else None) or "of unknown type"
    return (
        f"{folder} holds an adapter of peft ({kind}), which is no model without the one it "
        "adapts"
        + (f" ({base})" if base else "")
        + ". Load both with peft, merge them with model = model.merge_and_unload(), and give that "
        "model, or save it and give its folder."
    )


def _check_files(folder: Path) -> None:
    """Refuse files of weights that are something else, such as pointers of git-lfs."""
    for path in sorted(filter(_holds_weights, folder.iterdir())):
        if not path.is_file():
            raise CircuitError(f"{path} is no file, expected a file of weights.")
        form, what = recognized(path)
        if form == "other":
            raise CircuitError(f"{path} is {what}.")


def _timm(
    folder: Path, config: Mapping[str, Any], checkpoint: Checkpoint | None, choice: str | None
) -> Opened:
    """A model of timm, with weights that we read: its own way drops a head that doesn't fit."""
    path = _timm_weights(folder) if checkpoint is None else checkpoint.path
    weights = read_checkpoint(path, choice)
    tensors, notes = weights.tensors, ()
    options = {} if checkpoint is None else timm_options(tensors)
    module = _timm_made(folder, config, **options)
    check_readable(module)
    size = image_size_in(tensors.get("pos_embed"), module)
    if size is not None:
        told = timm.read(module).image_size
        notes = (f"images are {size} pixels, as the weights' positions are, not {told}",)
        module = _timm_made(folder, config, img_size=size, **options)
    name = str(folder) if checkpoint is None else f"{folder} with {path}"
    return filled_with(Opened(module, name, None, notes), weights)


def _timm_made(folder: Path, config: Mapping[str, Any], **options: Any) -> nn.Module:
    library = imported("timm")
    try:
        with torch.device("meta"):  # draws nothing, and needs no memory
            return library.create_model(f"local-dir:{folder}", pretrained=False, **options)
    except Exception as cause:
        raise CircuitError(
            f"timm can't make {config['architecture']!r} as {folder / 'config.json'} says: "
            f"{reason_of(cause)}."
        ) from cause


def _timm_weights(folder: Path) -> Path:
    """The file that timm would take.

    Raises:
        CircuitError: there is none, or it can't be told which.
    """
    for name in ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"):
        if (folder / name).is_file():
            return folder / name
    others = sorted(filter(_holds_weights, folder.iterdir()))
    if len(others) != 1:
        raise CircuitError(
            f"timm can't load the model in {folder}: it holds no model.safetensors"
            + (f", but {', '.join(path.name for path in others)}" if others else "")
            + ". Name the file of weights with checkpoint=."
        )
    return others[0]


def timm_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The classes and channels that weights of timm are for, as arguments of `create_model`."""
    head, patch = tensors.get("head.weight"), tensors.get("patch_embed.proj.weight")
    options: dict[str, Any] = {} if head is None else {"num_classes": len(head)}
    return options | ({"in_chans": patch.shape[1]} if patch is not None and patch.ndim == 4 else {})


def _transformers(folder: Path, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> Opened:
    cls, settings = _class_of(folder, config)
    if checkpoint is not None:
        return _transformers_with(folder, cls, settings, checkpoint)
    _check_files(folder)
    check_shards(folder)
    if config.get("quantization_config"):
        raise CircuitError(
            f"{folder} holds a quantised model (quantization_config in its config.json). Load it "
            "with transformers, call model.dequantize(), and give that, or give the model as it "
            "was before."
        )
    with quiet_transformers():
        weights = [path for path in folder.iterdir() if _holds_weights(path)]
        check_size(folder / "config.json", lambda: cls(copy.deepcopy(settings)), weights)
    try:
        with quiet_transformers():
            module, told = cls.from_pretrained(
                str(folder),
                config=settings,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to name them all
                dtype="auto",
                trust_remote_code=False,
                weights_only=True,
            )
    except Exception as cause:
        raise CircuitError(
            f"transformers can't load {cls.__name__} from {folder}: {reason_of(cause)}."
        ) from cause
    found = unwrapped(module, str(folder))
    return replace(found, unused=_check_loading(folder, module, found.model, told))


def _class_of(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class that the folder's weights belong to, and its config.

    Raises:
        CircuitError: it is unknown, or no image classifier.
    """
    library = imported("transformers")
    named = [str(name) for name in config.get("architectures") or ()]
    wrong = [name for name in named if "ForImageClassification" not in name]
    if wrong:
        raise CircuitError(
            f"{folder} holds a {wrong[0]}, which has no classifier. Load it with the "
            "…ForImageClassification class of its kind, train the head, and save that."
        )
    try:
        settings = library.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as cause:
        raise CircuitError(
            f"transformers {library.__version__} can't read {folder / 'config.json'}, of a model "
            f"of type {config['model_type']!r}: {reason_of(cause)}.{asks_for_code(config)}"
        ) from cause
    mapping = library.AutoModelForImageClassification._model_mapping
    mapped = mapping.get(type(settings), ())
    if not mapped:
        raise CircuitError(
            f"transformers {library.__version__} has no image classifier of type "
            f"{config['model_type']!r}, as {folder} has it."
        )
    choices = mapped if isinstance(mapped, tuple) else (mapped,)
    return next((c for c in choices if c.__name__ in named), choices[0]), settings


def _check_loading(
    folder: Path, module: Any, inner: nn.Module, told: Mapping[str, Any]
) -> tuple[str, ...]:
    """The keys that were left out.

    Raises:
        CircuitError: parameters had no weights, or weights of another model no parameter.
    """
    surplus = sorted(str(name) for name in told.get("unexpected_keys") or ())
    problem = adapters_among(surplus)
    if problem is not None:
        raise CircuitError(f"in {folder}, {problem}")
    left = [
        name.removeprefix("timm_model.")
        for name in surplus
        if not re.search(transformers.UNUSED, name)
    ]
    missing = sorted(str(name) for name in told.get("missing_keys") or ())
    problems = [f"{n} is missing" for n in missing if not re.search(transformers.UNUSED, n)]
    mismatched: Any = told.get("mismatched_keys") or ()
    whole = not problems and not mismatched
    fatal = of_another_model(inner, left) if whole else left
    problems += [f"{name} is surplus" for name in fatal]
    problems += [
        f"{name} has shape {tuple(got)}, expected {tuple(expected)}"
        for name, got, expected in sorted(mismatched)
    ]
    if problems:
        kind = type(module).__name__
        raise CircuitError(f"the weights in {folder} don't fit {kind}: {'; '.join(problems)}.")
    return tuple(surplus)


def _transformers_with(folder: Path, cls: Any, settings: Any, file: Checkpoint) -> Opened:
    weights = read_checkpoint(file.path, file.weights)
    tensors = weights.tensors
    heads = ("classifier.weight", "cls_classifier.weight", "head.weight")
    head = next((tensors[name] for name in heads if name in tensors), None)
    if head is not None:
        settings.num_labels = len(head)
    check_size(folder / "config.json", lambda: cls(copy.deepcopy(settings)), [file.path])
    try:
        module = cls(settings)
    except Exception as cause:
        raise CircuitError(
            f"transformers can't make a {cls.__name__} of {folder / 'config.json'}: "
            f"{reason_of(cause)}."
        ) from cause
    return filled_with(unwrapped(module, f"{folder} with {file.path}"), weights)


def image_size_in(positions: Tensor | None, module: nn.Module) -> int | None:
    """The image size that a checkpoint's positions are for, where it is not the module's."""
    library: Any = timm if timm.knows(module) else torchvision
    if positions is None or not library.knows(module):
        return None
    own = library.read(module)
    patch = own.parts["patch.weight"].shape[-1]
    prefix = own.parts["positions"].shape[1] - (own.image_size // patch) ** 2
    side = math.isqrt(max(positions.shape[1] - prefix, 0))
    if not side or side**2 != positions.shape[1] - prefix or side * patch == own.image_size:
        return None
    return side * patch
