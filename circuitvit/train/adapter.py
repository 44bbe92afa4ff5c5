"""Bottleneck adapters (Houlsby et al. 2019): few new weights in a backbone that stays as it is.

After each attention and each MLP, before its write is added to the stream, an adapter adds
up(GELU(down(write))). `up` starts at zero, so the model starts as the backbone. Unlike in the
paper, LayerNorms don't learn; the head does, and belongs to the adapter.
"""

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import skip_init

from circuitvit.config import MOST
from circuitvit.errors import CircuitError
from circuitvit.files import readable_path
from circuitvit.files.records import another_kind
from circuitvit.files.restoring import UnfitError, restored, warn_of_surplus
from circuitvit.files.tensor_files import read_tensors, told_in, write_tensors
from circuitvit.models.classifier import Classifier
from circuitvit.models.vit import ViT
from circuitvit.precision import HALF
from circuitvit.preprocessing import Preprocessing
from circuitvit.torch_modes import in_default_modes

ADAPTER_FILE = "adapter.safetensors"
SCHEMA = 1
_KEY = "circuitvit.adapter"
_LEARNT = {"adapter", "head"}


class Bottleneck(nn.Module):
    """Down to few numbers a token, GELU, and up again; its weights are empty until they are set."""

    def __init__(self, width: int, narrow: int, like: Tensor) -> None:
        super().__init__()
        self.down, self.up = _empty(width, narrow, like), _empty(narrow, width, like)

    def start(self, generator: torch.Generator) -> None:
        """Draw `down`, and let `up` write nothing."""
        with torch.no_grad():
            drawn = torch.empty(self.down.weight.shape, dtype=torch.float64)
            nn.init.xavier_uniform_(drawn, generator=generator)
            self.down.weight.copy_(drawn)
        for values in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(values)

    def forward(self, write: Float[Tensor, "*image width"]) -> Float[Tensor, "*image width"]:
        """What is added to what the attention or MLP writes."""
        return self.up(F.gelu(self.down(write)))


def _empty(inputs: int, outputs: int, like: Tensor) -> nn.Linear:
    """A linear layer for which nothing is drawn."""
    made = skip_init(nn.Linear, inputs, outputs, device=like.device, dtype=like.dtype)
    assert isinstance(made, nn.Linear)
    return made


class _Adapted(nn.Module):
    """An attention or MLP with its adapter; a block calls it as it would call the sub-layer."""

    def __init__(self, sublayer: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.sublayer, self.adapter = sublayer, adapter

    def forward(self, *inputs: Any) -> Float[Tensor, "image token width"]:
        write = self.sublayer(*inputs)
        return write + self.adapter(write)


class AdaptedViT(nn.Module, Classifier):
    """A copy of a ViT with an adapter in it: from images to logits. It can't be folded into a ViT.

    Args:
        vit: the backbone; it is left as it is.
        width: of the adapter, numbers a token.
        class_names: of the images that it was trained on.
        seed: draws the adapter's first weights.

    Attributes:
        backbone: the copy, its attentions and MLPs each with an adapter.
        config: of the backbone.
        preprocessing: how pictures become what it looks at; None where that is not known.
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
                    bottleneck.start(generator)
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
            "model.adapter.save(path); Adapter.load(path).apply(backbone) makes the model again."
        )

    @property
    def adapter(self) -> "Adapter":
        """The adapter on its own: a copy of what isn't the backbone's, on the CPU."""
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.backbone.state_dict().items()
            if _LEARNT & {*name.split(".")}
        }
        return Adapter(
            self.width, self.fingerprint_of_body, self.class_names, self.preprocessing, weights
        )


@dataclass(frozen=True, eq=False)
class Adapter:
    """What adapter tuning learnt, without the backbone.

    Attributes:
        width: numbers a token between `down` and `up`.
        backbone: fingerprint of the ViT that it was trained in, but for its head.
        class_names: of the images that it was trained on, in the logits' order.
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
        """How many numbers it has."""
        return sum(value.numel() for value in self.weights.values())

    @in_default_modes
    def apply(self, vit: ViT) -> AdaptedViT:
        """Put the adapter into a copy of its backbone, in eval mode.

        Args:
            vit: the model that the training started from, with unrounded weights; cast to half
                precision afterwards. Its head doesn't matter. It is left as it is.

        Raises:
            CircuitError: it is no ViT or another one, or the adapter's weights were altered.
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
        head = self._head(vit)
        bare = ViT.from_weights(
            replace(vit.config, classes=len(head["head.bias"])),
            vit.state_dict() | head,
            source="this backbone and adapter",
        )
        adapted = AdaptedViT(bare, self.width, class_names=self.class_names)
        self._fill(adapted)
        own = vit.preprocessing and replace(vit.preprocessing, class_names=self.class_names)
        adapted.preprocessing = self.preprocessing or own
        return adapted.eval()

    def _head(self, vit: ViT) -> dict[str, Tensor]:
        names = ("head.weight", "head.bias")
        if not all(name in self.weights for name in names):
            raise CircuitError(f"this adapter has no {' and '.join(names)}. {_AGAIN}")
        return {name: self.weights[name].to(vit.positions) for name in names}

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
                told = restored(_Record, record, surplus=surplus)
                names = told.class_names
                if not 1 <= told.width <= MOST or not names or len(set(names)) < len(names):
                    raise UnfitError(
                        f"width is not in 1 to {MOST:,}, or class_names are none or not distinct"
                    )
                head = weights.get("head.bias")
                if head is not None and head.shape != (len(names),):
                    raise UnfitError(f"{len(names)} class_names for a head of {len(head)}")
                warn_of_surplus(source, surplus)
                return cls(told.width, told.backbone, names, told.preprocessing, weights)
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
    """What the metadata of an adapter's file says."""

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
    """16 hexadecimal digits that name a ViT's shape and weights, but for its head."""
    config = replace(vit.config, classes=1)
    head = {"head.weight": torch.zeros(1, config.pooled * config.width),
            "head.bias": torch.zeros(1)}  # fmt: skip
    return ViT.from_weights(config, vit.state_dict() | head, source="this model").fingerprint()
