"""Few new weights on a trained ViT: a new head, or bottleneck adapters (Houlsby et al. 2019).

With an adapter, each attention and each MLP writes w + up(GELU(down(w))) instead of w. `up` starts
at zero, so the model starts as the backbone. Unlike in the paper, LayerNorms aren't trained; the
head is, and belongs to the adapter.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import skip_init

from circuitvit.checks import whole
from circuitvit.config import MOST
from circuitvit.errors import CircuitError
from circuitvit.files import readable_path
from circuitvit.files.records import another_kind
from circuitvit.files.restoring import UnfitError, restored, warn_of_surplus
from circuitvit.files.tensor_files import read_tensors, told_in, write_tensors
from circuitvit.intervene.input_checks import check_vit
from circuitvit.models.classifier import Classifier
from circuitvit.models.history import after
from circuitvit.models.vit import ViT
from circuitvit.preprocessing import Preprocessing, misfits
from circuitvit.torch_modes import HALF, in_default_modes

ADAPTER_FILE = "adapter.safetensors"
SCHEMA = 1
_KEY = "circuitvit.adapter"
_TRAINED = {"adapter", "head"}


class Bottleneck(nn.Module):
    """A linear layer to few numbers a token, GELU, and one back; its weights are uninitialised."""

    def __init__(self, width: int, narrow: int, like: Tensor) -> None:
        super().__init__()
        options: Any = {"device": like.device, "dtype": like.dtype}
        self.down: Any = skip_init(nn.Linear, width, narrow, **options)
        self.up: Any = skip_init(nn.Linear, narrow, width, **options)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights of `down`; set those of `up`, and all biases, to zero."""
        with torch.no_grad():
            drawn = torch.empty(self.down.weight.shape, dtype=torch.float64)
            nn.init.xavier_uniform_(drawn, generator=generator)
            self.down.weight.copy_(drawn)
        for values in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(values)

    def forward(self, write: Float[Tensor, "*image width"]) -> Float[Tensor, "*image width"]:
        """The adapter's addition to the write of an attention or MLP."""
        return self.up(F.gelu(self.down(write)))


class _Adapted(nn.Module):
    """An attention or MLP with its adapter, called by a block like the sub-layer itself."""

    def __init__(self, sublayer: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.sublayer, self.adapter = sublayer, adapter

    def forward(self, *inputs: Any) -> Float[Tensor, "image token width"]:
        write = self.sublayer(*inputs)
        return write + self.adapter(write)


class AdaptedViT(nn.Module, Classifier):
    """A copy of a ViT with an adapter in it: from images to logits. It can't be folded into a ViT.

    Args:
        vit: the backbone; it is not changed.
        width: of the adapter's bottleneck.
        class_names: of the training images.
        seed: draws the adapter's initial weights.

    Attributes:
        backbone: the copy, its attentions and MLPs each with an adapter.
        config: of the backbone.
        preprocessing: of its images; None where that is not known.
    """

    def __init__(
        self, vit: ViT, width: int, *, class_names: tuple[str, ...], seed: int = 0
    ) -> None:
        super().__init__()
        self.width, self.class_names = width, class_names
        self.fingerprint_of_body = body_fingerprint(vit)
        self.backbone, self.preprocessing = copy.deepcopy(vit), vit.preprocessing
        self.config = vit.config
        generator = torch.Generator().manual_seed(seed)
        for block in self.backbone.blocks:
            for name in ("attention", "mlp"):
                sublayer = getattr(block, name)
                if sublayer is not None:
                    bottleneck = Bottleneck(vit.config.width, width, vit.positions)
                    bottleneck.initialise(generator)
                    setattr(block, name, _Adapted(sublayer, bottleneck))
        self.train(vit.training)

    def forward(self, images: Tensor) -> Float[Tensor, "image class"]:
        """Logits of a batch of images [image channel height width].

        Raises:
            CircuitError: the images have another shape or dtype than the model.
        """
        return self.backbone(images)

    def check_images(self, images: Tensor, *, name: str = "images") -> None:
        """Refuse images that the model can't take.

        Raises:
            CircuitError: they have another shape or dtype than the model.
        """
        self.backbone.check_images(images, name=name)

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: `adapter` is what is saved, and the backbone is where it came from.

        Raises:
            CircuitError: always.
        """
        raise CircuitError(
            "an adapted model is no plain ViT and isn't saved as one. Save its adapter with "
            "model.adapter.save(path); Adapter.load(path).apply(backbone) is the model again."
        )

    @property
    def adapter(self) -> "Adapter":
        """The adapter on its own: a copy of the adapters' and the head's weights, on the CPU."""
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.backbone.state_dict().items()
            if _TRAINED & {*name.split(".")}
        }
        return Adapter(
            self.width, self.fingerprint_of_body, self.class_names, self.preprocessing, weights
        )


@dataclass(frozen=True, eq=False)
class Adapter:
    """The weights that adapter tuning trained, without the backbone.

    Attributes:
        width: of the bottleneck, numbers a token between `down` and `up`.
        backbone: fingerprint of the ViT that it was trained in, without its head.
        class_names: of the training images, in the logits' order.
        preprocessing: of these images; None where that is not known.
        weights: of the adapters and the head, by their names in the backbone.
    """

    width: int
    backbone: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    weights: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        """The number of its parameters, with the head's."""
        return sum(value.numel() for value in self.weights.values())

    @in_default_modes
    def apply(self, vit: ViT) -> AdaptedViT:
        """Put the adapter into a copy of its backbone, in eval mode.

        Args:
            vit: the model that the training started from, with unrounded weights; cast to half
                precision afterwards. Its head doesn't matter. It is not changed.

        Raises:
            CircuitError: it isn't a ViT or it is another one, or weights of the adapter are
                missing, surplus or of another shape.
        """
        if not isinstance(vit, ViT):
            raise CircuitError(
                f"an adapter goes into a circuitvit.ViT, got {type(vit).__name__}. Give the model "
                "that the training started from; circuitvit.load_vit loads it."
            )
        found = body_fingerprint(vit)
        if found != self.backbone:
            dtype, rounded = vit.positions.dtype, ""
            if dtype in HALF:
                rounded = f" Its weights are {dtype}: load it in float32, apply, then cast."
            raise CircuitError(
                f"this adapter was trained in a backbone of fingerprint {self.backbone}, got one "
                f"of {found}: other weights or another shape.{rounded} Give the model that the "
                "training started from (its head doesn't matter), or train an adapter for this one."
            )
        names = ("head.weight", "head.bias")
        if not all(name in self.weights for name in names):
            raise CircuitError(f"this adapter has no {' and '.join(names)}. {_AGAIN}")
        head = (self.weights[name].to(vit.positions) for name in names)
        bare = _with_head(vit, *head, source="this backbone and adapter")
        adapted = AdaptedViT(bare, self.width, class_names=self.class_names)
        self._fill(adapted)
        own = vit.preprocessing and replace(vit.preprocessing, class_names=self.class_names)
        adapted.preprocessing = self.preprocessing or own
        return adapted.eval()

    def _fill(self, adapted: AdaptedViT) -> None:
        own = adapted.adapter.weights
        problems = [f"{name} is missing" for name in own if name not in self.weights]
        problems += [f"{name} is surplus" for name in self.weights if name not in own]
        problems += [
            f"{name} has shape {tuple(self.weights[name].shape)}, expected {tuple(value.shape)}"
            for name, value in own.items()
            if name in self.weights and self.weights[name].shape != value.shape
        ]
        if problems:
            raise CircuitError(f"this adapter is not whole: {'; '.join(problems)}. {_AGAIN}")
        adapted.backbone.load_state_dict(dict(self.weights), strict=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one safetensors file in one step, and return the file's path.

        Args:
            path: the file if it ends in `.safetensors`, else a folder, for `adapter.safetensors`.

        Raises:
            CircuitError: it can't be written; a file that was there is left as it was.
        """
        record = {
            "schema": SCHEMA,
            "width": self.width,
            "backbone": self.backbone,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.as_dict() if self.preprocessing else None,
        }
        metadata = {"format": "pt", _KEY: json.dumps(record)}
        return write_tensors(_file(path), self.weights, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Adapter":
        """Read what `save` wrote.

        Args:
            path: the file, or the folder it is in.

        Raises:
            CircuitError: there is none, it was cut short, or it is something else.
        """
        source = _file(path)
        try:
            weights, metadata = read_tensors(source)
            record = told_in(metadata, _KEY)
            schema = record["schema"]
            if schema == SCHEMA:
                surplus = list[str]()
                file = restored(_Record, record, surplus=surplus)
                names = file.class_names
                if not 1 <= file.width <= MOST or not names or len(set(names)) < len(names):
                    raise UnfitError(
                        f"width is not in 1 to {MOST:,}, or class_names are none or not distinct"
                    )
                head = weights.get("head.bias")
                if head is not None and head.shape != (len(names),):
                    raise UnfitError(f"{len(names)} class_names for a head of {len(head)}")
                warn_of_surplus(source, surplus)
                return cls(file.width, file.backbone, names, file.preprocessing, weights)
        except FileNotFoundError as cause:
            raise CircuitError(f"no adapter at {source}: there is no such file.") from cause
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as cause:
            raise CircuitError(
                f"{source} is not a whole adapter of circuitvit ({cause})."
                f"{another_kind(source, than='Adapter.load')} {_AGAIN}"
            ) from cause
        raise CircuitError(
            f"{source} is of schema {schema!r}, this circuitvit reads {SCHEMA}. Use the "
            "circuitvit that wrote it, or a newer one."
        )


@dataclass(frozen=True)
class _Record:
    """The metadata of an adapter's file."""

    schema: int
    width: int
    backbone: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None


_AGAIN = "Save it again with Training.adapter.save(path)."


def _file(path: str | os.PathLike[str]) -> Path:
    given = readable_path(path, "adapter")
    return given if given.suffix == ".safetensors" else given / ADAPTER_FILE


def body_fingerprint(vit: ViT) -> str:
    """16 hexadecimal digits of a ViT's shape and weights, without its head."""
    weight = torch.zeros(1, vit.config.pooled * vit.config.width)
    return _with_head(vit, weight, torch.zeros(1), source="this model").fingerprint()


def _with_head(vit: ViT, weight: Tensor, bias: Tensor, *, source: str) -> ViT:
    """The model with another head; its other weights are shared, not copied."""
    config = replace(vit.config, classes=len(bias))
    weights = vit.state_dict() | {"head.weight": weight, "head.bias": bias}
    return ViT.from_weights(config, weights, source=source)


@in_default_modes
def with_new_head(
    vit: ViT, classes: int, *, class_names: Sequence[str] | None = None, seed: int = 0
) -> ViT:
    """A copy of a ViT with a new, randomly initialised head for other classes.

    Args:
        vit: it is not changed.
        classes: number of classes, ≥ 1.
        class_names: their names in order; `train` takes those of its images.
        seed: draws the head's weights, from the distribution of a new ViT's.

    Raises:
        CircuitError: it isn't a ViT, there are no classes or not as many names, or the model has no
            preprocessing, in which class names are kept.
    """
    check_vit(vit)
    count, seed = whole(classes, "classes"), whole(seed, "seed")
    if count < 1:
        raise CircuitError(f"classes is {count}, expected ≥ 1.")
    preprocessing = _with_class_names(vit, count, class_names)
    drawn = torch.empty(count, vit.config.pooled * vit.config.width)
    nn.init.trunc_normal_(drawn, std=0.02, generator=torch.Generator().manual_seed(seed))
    head = (values.to(vit.positions) for values in (drawn, torch.zeros(count)))
    made = copy.deepcopy(_with_head(vit, *head, source="this model"))
    made.preprocessing = preprocessing
    made.history = after(vit.history, "given a new head", {"classes": count, "seed": seed}, None)
    return made.train(vit.training)


def _with_class_names(vit: ViT, classes: int, names: Sequence[str] | None) -> Preprocessing | None:
    """The model's preprocessing with the new classes' names, or with none."""
    before = vit.preprocessing
    if before is None and names is not None:
        raise CircuitError(
            "class_names are kept in vit.preprocessing, and this model has none. Assign "
            "cv.Preprocessing(mean=…, std=…) to it first."
        )
    changed = None if before is None else replace(before, class_names=names)
    if problems := misfits(changed, channels=vit.config.channels, classes=classes):
        raise CircuitError(f"the new head can't be made: {'; '.join(problems)}.")
    return changed
