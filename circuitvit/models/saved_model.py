"""Saving, loading and fingerprints of models; the common base of `ViT` and `CircuitViT`.

The model card beside the weights, `README.md`, is read, kept and removed with them. Its front
matter holds the weights' fingerprint, so that no card stands beside other weights.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError, warn
from circuitvit.files import (
    finish_save,
    read_json,
    readable_path,
    unwritable_cache,
    write_json,
    write_text,
    writing_folder,
)
from circuitvit.files.tensor_files import AnotherKindError, read_tensors, told_in, write_tensors
from circuitvit.models.classifier import Classifier
from circuitvit.models.history import History, plain_history, read_history
from circuitvit.plain_weights import computed_weights, few, layers_in_the_way
from circuitvit.preprocessing import Preprocessing, fitting
from circuitvit.torch_modes import in_default_modes, ordinary

README = "README.md"
FINGERPRINT = "model_fingerprint"


def read_card(folder: Path) -> str | None:
    """The text of a folder's model card; None where there is none of circuitvit."""
    try:
        text = (folder / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if _fingerprint_in(text) else None


def fitting_card(here: str | None, card: str | None, fingerprint: Callable[[], str]) -> str | None:
    """The card that belongs to weights which are saved into a folder, if there is one.

    Args:
        here: the card in the folder.
        card: the card that came with the weights.
        fingerprint: gives that of the weights; called only where there is a card.
    """
    if here is None and card is None:
        return None
    own = fingerprint()
    return next((c for c in (here, card) if c is not None and _fingerprint_in(c) == own), None)


def _fingerprint_in(card: str) -> str | None:
    """The fingerprint in the front matter, which is between two lines `---`."""
    parts = re.split(r"^---\s*$", card, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return None
    found = re.search(
        rf"^{FINGERPRINT}:\s*['\"]?([0-9a-f]{{16}})['\"]?\s*$", parts[1], re.MULTILINE
    )
    return found[1] if found else None


CONFIG_KEY = "circuitvit.config"
SEEN_KEY = "circuitvit.preprocessing"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
PREPROCESSING, HISTORY = "preprocessing", "history"

NAMES_OF_HEAD = (
    "Mean and std stay. Assign dataclasses.replace(vit.preprocessing, class_names=…) to "
    "vit.preprocessing, with a name for each logit."
)

SavedModelType = TypeVar("SavedModelType", bound="SavedModel")


class SavedModel(
    nn.Module,
    Classifier,
    PyTorchModelHubMixin,
    library_name="circuitvit",
    tags=["vision-transformer", "image-classification"],
):
    """A module whose shape is plain JSON; subclasses define the JSON.

    Its repr is a summary; `print(model.blocks)` shows torch's tree of modules, and
    `torch.nn.Module.__repr__(model)` that of the whole model.

    Attributes:
        config: the shape of the ViT that it is or comes from.
        preprocessing: how pictures become what it looks at; None where that is not known.
        history: what was done to it, step by step; copied along by training, pruning and compiling.
        card: the text of the model card in the folder that it was loaded from, if there was one.
    """

    config: ViTConfig
    preprocessing: Preprocessing | None = None
    history: History = ()
    card: str | None = None

    def __repr__(self) -> str:
        if "config" not in vars(self):  # it is being made
            return f"{type(self).__name__}()"
        parts = [self.config.told(*self.units_kept()), f"{self._parameters_told()} parameters"]
        seen: Any = self.preprocessing  # an attribute, to which people assign what they like
        names = seen.class_names if isinstance(seen, Preprocessing) else None
        parts += [] if names is None else [f"{len(names):,} class names"]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _parameters_told(self) -> str:
        return f"{sum(parameter.numel() for parameter in self.parameters()):,}"

    def units_kept(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Heads, and neurons of the MLP, that are run in each block."""
        return self.config.heads, self.config.mlp_width

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the shape and the weights, in single precision."""
        return self.digest(json.dumps(self.shape_as_dict()))

    def shape_as_dict(self) -> dict[str, Any]:
        """Everything that decides its parameters and computation, except their values."""
        raise NotImplementedError

    @classmethod
    def of_shape(cls: type[SavedModelType], shape: Any) -> SavedModelType:
        """A model of what `shape_as_dict` gave.

        Raises:
            CircuitError: it is something else.
        """
        raise NotImplementedError

    def check_parts(self) -> None:
        """Refuse a model with parts that don't match its config: replaced, added or missing.

        Raises:
            CircuitError: as it says; every such part is named, with the remedy.
        """
        computed, others = computed_weights(self), layers_in_the_way(self)
        if computed is not None:
            raise CircuitError(
                f"this {type(self).__name__}'s weights are not plain parameters: {computed}. "
                "circuitvit.load_vit(model) gives a copy in which they are permanent."
            )
        if others is not None:
            raise CircuitError(f"in this {type(self).__name__}, {others}")
        hooked = [n or "the model" for n, part in self.named_modules() if has_hooks(part)]
        if hooked:
            warn(
                f"this {type(self).__name__} has forward hooks on {few(hooked)}, which run in its "
                "own forward pass only: circuits, surgery and files are made from its weights. "
                "Remove the hooks if they change what it computes."
            )
        parts, shapes = _plain(type(self), json.dumps(self.shape_as_dict()))
        problems = [*_other_parts(self, parts), *_other_weights(self, shapes)]
        if problems:
            raise CircuitError(
                f"this {type(self).__name__} is not the plain model of its config: "
                f"{'; '.join(problems)}."
            )

    def check_weights(self) -> None:
        """Refuse weights with which nothing can be computed.

        Raises:
            CircuitError: a part was replaced or added, weights are not plain parameters, or a
                parameter holds NaN or infinity.
        """
        self.check_parts()
        bad = [  # a finite sum has finite terms, and is cheaper to tell
            name
            for name, p in self.named_parameters()
            if not torch.isfinite(p.sum()) and not torch.isfinite(p).all()
        ]
        if bad:
            raise CircuitError(
                f"the weights hold NaN or infinity ({', '.join(bad[:5])}), so nothing computed "
                "with them means anything. Load or train the model again."
            )

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, **hub: Any
    ) -> str | None:
        """Write `model.safetensors` and `config.json` into a folder, both in one step.

        A model card stays beside the weights, here and on the hub, as long as it tells of them.
        Other files in the folder stay as they are.

        Args:
            save_directory: the folder; made if need be.
            push_to_hub: also upload it, with `repo_id=` and the other arguments of
                `huggingface_hub.PyTorchModelHubMixin.push_to_hub`.
            **hub: those arguments.

        Raises:
            CircuitError: a part of the model was replaced, its weights are masked, parametrized or
                quantised, `preprocessing` is something else, or the folder can't be written.
        """
        passed_on = {"config", "model_card_kwargs"}  # by the mixin's push_to_hub, when it saves
        if set(hub) - passed_on and not push_to_hub:
            raise CircuitError(f"got {sorted(hub)}, which mean nothing without push_to_hub=True.")
        self.check_parts()
        folder, config = Path(save_directory), self.shape_as_dict()
        seen = self.fitting_preprocessing()
        values = config | ({PREPROCESSING: seen.as_dict()} if seen else {})
        steps = plain_history(self.history)
        values |= {HISTORY: steps} if steps else {}
        given = (hub.pop("model_card_kwargs", None) or {}).get("card", self.card)
        metadata = {"format": "pt", CONFIG_KEY: json.dumps(config)}
        metadata[SEEN_KEY] = json.dumps(values.get(PREPROCESSING))
        here = read_card(folder)
        card = fitting_card(here, given, self.fingerprint)
        owned = [WEIGHTS, CONFIG, *([README] if here else [])]
        with writing_folder(folder, owned=owned) as beside:
            write_tensors(beside / WEIGHTS, self.state_dict(), metadata)
            write_json(beside / CONFIG, values)
            if card is not None and (here or not (folder / README).exists()):
                write_text(beside / README, card)
        return self.push_to_hub(**hub, model_card_kwargs={"card": card}) if push_to_hub else None

    def fitting_preprocessing(self) -> Preprocessing | None:
        """The part of `preprocessing` that fits this model; warns of the rest.

        Raises:
            CircuitError: it is something else.
        """
        fits, gone = fitting(self.preprocessing, classes=self.config.classes)
        for note in gone:
            warn(f"the model: {note}. {NAMES_OF_HEAD}")
        return fits

    @classmethod
    @in_default_modes
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls: type[SavedModelType],
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        **hub: Any,
    ) -> SavedModelType:
        """Load a model that `save_pretrained` wrote, in eval mode and in its own dtype.

        Args:
            folder: the folder, or the id of a repository on the Hugging Face hub.
            device: where the model goes.
            **hub: further arguments of `huggingface_hub.snapshot_download`.

        Raises:
            CircuitError: there is no such folder, or it doesn't hold a whole model of circuitvit.
        """
        source = readable_path(folder, "model")
        if not source.is_dir():
            source = _downloaded(str(folder), hub)
        finish_save(source)
        values = read_json(source / CONFIG, what="model config")
        shape = dict(values) if isinstance(values, dict) else values
        seen, steps = (
            shape.pop(name, None) if isinstance(shape, dict) else None
            for name in (PREPROCESSING, HISTORY)
        )
        with torch.device("meta"):  # draws nothing, and needs no memory
            model = cls.of_shape(shape)
        path = source / WEIGHTS
        try:
            weights, metadata = read_tensors(path, device=device)
            written, seen_then = told_in(metadata, CONFIG_KEY), told_in(metadata, SEEN_KEY)
        except AnotherKindError as cause:
            raise CircuitError(f"{path} can't be read: {cause}.") from cause
        except (OSError, SafetensorError, ValueError) as cause:
            raise CircuitError(
                f"{path} is missing or cut short ({cause}). Save the model again, or get the file "
                "again from where it came."
            ) from cause
        model.take_over(weights, source=str(source))
        other = written is not None and _unlike(model, written)
        known = None if seen is None else Preprocessing.from_dict(seen)
        model.preprocessing, gone = fitting(known, classes=model.config.classes)
        if other or (SEEN_KEY in metadata and not _same(model.preprocessing, seen_then, gone)):
            raise CircuitError(
                f"{source / CONFIG} is not the config that {path.name} was saved with: it was "
                "edited, damaged or taken from another model. Put back the file that was saved; to "
                "change class names or mean, load the model, assign vit.preprocessing and save it."
            )
        for note in gone:
            warn(f"{source}: {note}. {NAMES_OF_HEAD}")
        model.history = () if steps is None else read_history(steps, source / CONFIG)
        model.card = read_card(source)
        return model.eval()

    def take_over(
        self: SavedModelType, weights: dict[str, Tensor], *, source: str
    ) -> SavedModelType:
        """Take over a state dict whole, with its dtype and device; made on the meta device.

        Raises:
            CircuitError: a key is missing, surplus, or of another shape; every one is named.
        """
        own = self.state_dict()
        problems = [f"{name} is missing" for name in sorted(set(own) - set(weights))]
        problems += [f"{name} is surplus" for name in sorted(set(weights) - set(own))]
        problems += [
            f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
            for name in sorted(set(own) & set(weights))
            if own[name].shape != weights[name].shape
        ]
        problems += [
            f"{name} is of {weights[name].dtype}, expected floating point"
            for name in sorted(set(own) & set(weights))
            if own[name].is_floating_point() != weights[name].is_floating_point()
        ]
        if problems:
            raise CircuitError(
                f"the weights from {source} don't fit this model: " + "; ".join(problems) + "."
            )
        with torch.inference_mode(False):
            self.load_state_dict({n: ordinary(w) for n, w in weights.items()}, assign=True)
            return self.requires_grad_(True)

    def _apply(self: SavedModelType, fn: Any, recurse: bool = True) -> SavedModelType:
        """Convert or move the weights; inside `torch.inference_mode`, too, they can be trained."""
        if not torch.is_inference_mode_enabled():
            return super()._apply(fn, recurse)
        with torch.inference_mode(False), torch.no_grad():
            return super()._apply(fn, recurse)

    def digest(self, shape: str) -> str:
        """16 hexadecimal digits that name a shape and the weights, in single precision."""
        digest = hashlib.sha256(shape.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()[:16]


def without_hooks(model: SavedModelType) -> SavedModelType:
    """A model of one's own copying, in eval mode, now without forward hooks."""
    for part in model.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return model


def has_hooks(part: nn.Module) -> bool:
    """Whether forward hooks are on a module itself."""
    return bool(part._forward_hooks or part._forward_pre_hooks)


@lru_cache(maxsize=64)
def _plain(
    kind: type[SavedModel], shape: str
) -> tuple[dict[str, type[nn.Module]], dict[str, tuple[int, ...]]]:
    """The classes of a plain model's modules, and the shapes of its weights, by name."""
    with torch.device("meta"):  # draws nothing, and needs no memory
        model = kind.of_shape(json.loads(shape))
    parts: dict[str, type[nn.Module]] = {n: type(part) for n, part in model.named_modules()}
    return parts, {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _other_parts(model: SavedModel, expected: dict[str, type[nn.Module]]) -> list[str]:
    """Modules of another class than the plain model's."""
    return [
        f"{name} is a {type(part).__name__}, expected a {expected[name].__name__}; put back the "
        "plain layer"
        for name, part in model.named_modules()
        if name in expected and type(part) is not expected[name]
    ][:3]


def _other_weights(model: SavedModel, wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """Weights that the plain model has not, or of another shape."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    head = any(name.startswith("head.") for name in own.keys() & wanted.keys()
               if own[name] != wanted[name])  # fmt: skip
    found = {
        "missing": [name for name in wanted if name not in own],
        "surplus": [name for name in own if name not in wanted],
        "of another shape": [n for n in own.keys() & wanted.keys() if own[n] != wanted[n]],
    }
    told = [f"{few(sorted(names))}: {what}" for what, names in found.items() if names]
    if head:
        told.append("cv.with_new_head(vit, classes) makes a head for other classes")
    return told


def _unlike(model: SavedModel, shape: Any) -> bool:
    with torch.device("meta"):
        return type(model).of_shape(shape).shape_as_dict() != model.shape_as_dict()


def _same(seen: Preprocessing | None, saved: Any, gone: Sequence[str]) -> bool:
    """Whether preprocessing is what was saved, but for class names that were left out by name."""
    then = None if saved is None else Preprocessing.from_dict(saved)
    if gone and then is not None:
        then = replace(then, class_names=None)
    return seen == then


def _downloaded(name: str, hub: dict[str, Any]) -> Path:
    try:
        return Path(snapshot_download(name, **hub))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as cause:
        unwritable = unwritable_cache(cause)
        if unwritable is not None:
            raise CircuitError(f"{name} can't be fetched: {unwritable}.") from cause
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise CircuitError(
            f"no model at {name}: there is no such folder, and it can't be had from the hub "
            f"({reason}). Check the path; a model folder holds model.safetensors and config.json."
        ) from cause
