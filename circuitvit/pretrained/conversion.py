"""A model of another library as a `ViT`: the same steps whatever the library.

Its tensors by role (`reading`) become a state dict of ours (`assembly`); every tensor must have
been used, and the logits must be those of the source: with its own parameters, and with others
drawn at random, since with some (LayerScale of 1e-5, a head of zeros) logits hardly depend on the
blocks.

Roles are our own names, with what a `ViT` has in another form beside them: `distillation_token`,
`positions` that may leave out prefix tokens, `attention.q`, `.k` and `.v` apart,
`attention.out.bias`, LayerScale as `scale1` and `scale2` (Touvron et al. 2021, "Going deeper with
Image Transformers"), and DeiT's second head `head_distillation` (Touvron et al. 2021).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.models.vit import PARTS, ViT
from circuitvit.pretrained.libraries.reading import Library, LibraryReading, replaced_layers
from circuitvit.pretrained.libraries.recognition import refuse_model
from circuitvit.torch_modes import HALF, default_modes


def assembled(
    reading: LibraryReading,
) -> tuple[ViTConfig, dict[str, Tensor], tuple[str, ...], list[str]]:
    """The config, our state dict, what was folded, and the roles that were not used.

    Raises:
        CircuitError: a layer is missing, or there are other positions than tokens.
    """
    _check_whole(reading)
    old = dict(reading.parts)
    work = _Assembly(old, {}, [], old["patch.weight"].shape[0])
    depth = len(reading.heads)
    prefix = work.tokens()
    patches = (reading.image_size // old["patch.weight"].shape[-1]) ** 2
    work.positions(prefix, patches)
    for name in ("patch", *(["embed_norm"] if "embed_norm.weight" in old else [])):
        work.move(name)
    for block in range(depth):
        work.block(f"blocks.{block}.")
    work.note_scales(depth)
    work.move("final_norm")
    work.heads()
    work.note_missing()
    return _config(reading, work.new), work.new, tuple(work.folded), sorted(old)


def _check_whole(reading: LibraryReading) -> None:
    """Refuse a reading without the weight of a layer, before anything is made of it."""
    parts = reading.parts
    needed = ["patch.weight", "head.weight"]
    for block in range(len(reading.heads)):
        at = f"blocks.{block}."
        split = any(f"{at}attention.{part}.weight" in parts for part in PARTS)
        inner = PARTS if split else ("qkv",)
        needed += [f"{at}attention.{name}.weight" for name in (*inner, "out")]
        needed += [f"{at}mlp.fc1.weight", f"{at}mlp.fc2.weight"]
    missing = [name for name in needed if name not in parts]
    if missing:
        there = sorted(n for n in parts if n.startswith(missing[0].rpartition(".")[0]))
        shown = f" In the first one's place there is {', '.join(there[:4])}." if there else ""
        raise CircuitError(
            f"this {reading.source} has no {', '.join(missing[:4])}{', …' * (len(missing) > 4)}, "
            "as circuitvit calls what its library's plain model has there: the layer was taken "
            f"out or replaced.{shown} Put the plain layer back, or merge what replaced it into "
            "the layer's weights first."
        )


class _Assembly:
    """Tensors on their way from the old names to the new ones."""

    def __init__(
        self, old: dict[str, Tensor], new: dict[str, Tensor], folded: list[str], width: int
    ) -> None:
        self.old, self.new, self.folded, self.width = old, new, folded, width
        self.like = old["patch.weight"]
        self.missing: list[str] = []
        self.scaled = 0

    def move(self, name: str) -> None:
        """Weight and bias of a layer; a bias, or a LayerNorm's weight, may be missing."""
        weight = self.old.pop(f"{name}.weight", None)
        if weight is None:
            weight = self.like.new_ones(self.width)
            self.missing.append(f"{name}.weight")
        bias = self.old.pop(f"{name}.bias", None)
        if bias is None:
            bias = weight.new_zeros(len(weight))
            self.missing.append(f"{name}.bias")
        self.new[f"{name}.weight"], self.new[f"{name}.bias"] = weight, bias

    def tokens(self) -> int:
        """Class token, then distillation token and registers; how many they are."""
        given = self.old.pop("class_token", None)
        if given is not None:
            self.new["class_token"] = given.reshape(self.width)
        names = ("distillation_token", "register_tokens")
        registers = [self.old.pop(n).reshape(-1, self.width) for n in names if n in self.old]
        registers = [rows for rows in registers if len(rows)]
        if registers:
            self.new["register_tokens"] = torch.cat(registers)
        return int(given is not None) + sum(map(len, registers))

    def positions(self, prefix: int, patches: int) -> None:
        """A row for every token; those for which the source has none get zeros."""
        given = self.old.pop("positions", None)
        if given is None:
            self.new["positions"] = self.like.new_zeros(prefix + patches, self.width)
            self.folded.append(f"zero positions for all {prefix + patches} tokens (it has none)")
            return
        rows = given.reshape(-1, self.width)
        covered = len(rows) - patches
        if not 0 <= covered <= prefix:
            raise CircuitError(
                f"there are {len(rows)} positions for {patches} patches and {prefix} tokens before "
                "them. Give a model whose positions fit its image size."
            )
        zeros = rows.new_zeros(prefix - covered, self.width)
        self.new["positions"] = torch.cat([rows[:covered], zeros, rows[covered:]])
        if len(zeros):
            self.folded.append(
                f"zero positions for {_count(len(zeros), 'prefix token')}, which have none in it"
            )

    def block(self, at: str) -> None:
        """One block, its LayerScale folded into what it writes."""
        for name in ("ln1", "ln2", "mlp.fc1"):
            self.move(at + name)
        self.qkv(f"{at}attention.")
        for norm in ("attention.q_norm", "attention.k_norm"):
            if f"{at}{norm}.weight" in self.old:
                self.move(at + norm)
        first, second = (self.old.pop(f"{at}scale{number}", None) for number in (1, 2))
        self.scaled += first is not None or second is not None
        out = self.old.pop(f"{at}attention.out.weight")
        self.new[f"{at}attention.out.weight"] = _scaled(out, first)
        bias = self.old.pop(f"{at}attention.out.bias", None)
        if bias is not None:
            self.new[f"{at}output_bias"] = _scaled(bias, first)
        self.move(f"{at}mlp.fc2")
        for name in (f"{at}mlp.fc2.weight", f"{at}mlp.fc2.bias"):
            self.new[name] = _scaled(self.new[name], second)

    def qkv(self, at: str) -> None:
        """One projection for queries, keys and values; where only some have a bias, zeros."""
        if f"{at}q.weight" in self.old:
            rows = [self.old.pop(f"{at}{part}.weight") for part in PARTS]
            biases = [self.old.pop(f"{at}{part}.bias", None) for part in PARTS]
            self.old[f"{at}qkv.weight"] = torch.cat(rows)
            if any(bias is not None for bias in biases):
                pairs = zip(rows, biases, strict=True)
                filled = [r.new_zeros(len(r)) if b is None else b for r, b in pairs]
                self.old[f"{at}qkv.bias"] = torch.cat(filled)
        self.new[f"{at}qkv.weight"] = self.old.pop(f"{at}qkv.weight")
        if f"{at}qkv.bias" in self.old:
            self.new[f"{at}qkv.bias"] = self.old.pop(f"{at}qkv.bias")

    def heads(self) -> None:
        """The classifier; two averaged ones are halved and concatenated."""
        self.move("head")
        if "head_distillation.weight" not in self.old:
            return
        second = self.old.pop("head_distillation.weight")
        bias = self.old.pop("head_distillation.bias", second.new_zeros(len(second)))
        self.new["head.weight"] = torch.cat([self.new["head.weight"], second], dim=1) / 2
        self.new["head.bias"] = (self.new["head.bias"] + bias) / 2
        self.folded.append("two heads averaged into one, on the class and distillation tokens")

    def note_scales(self, depth: int) -> None:
        """Say that LayerScale was folded."""
        if self.scaled:
            of_all = "" if self.scaled == depth else f", of {depth}"
            blocks = _count(self.scaled, "block") + of_all
            self.folded.append(f"LayerScale into W_O, b_O, W2, b2 ({blocks})")

    def note_missing(self) -> None:
        """Say which biases and LayerNorm weights the source lacks."""
        if self.missing:
            shown = ", ".join(self.missing[:4]) + (", …" if len(self.missing) > 4 else "")
            self.folded.append(
                f"neutral values for {_count(len(self.missing), 'parameter')} it has not: {shown}"
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """Rows times LayerScale's factors."""
    if scale is None:
        return tensor
    return tensor * (scale[:, None] if tensor.ndim == 2 else scale)


def _config(reading: LibraryReading, new: dict[str, Tensor]) -> ViTConfig:
    """The shape, most of it read from the tensors; adds qkv biases that only some blocks have."""
    blocks = [f"blocks.{index}." for index in range(len(reading.heads))]
    rows = [len(new[f"{at}attention.qkv.weight"]) for at in blocks]
    biased = [f"{at}attention.qkv.bias" in new for at in blocks]
    if any(biased):
        for at in blocks:
            weight = new[f"{at}attention.qkv.weight"]
            new.setdefault(f"{at}attention.qkv.bias", weight.new_zeros(len(weight)))
    width, channels, _, patch = new["patch.weight"].shape
    return ViTConfig(
        image_size=reading.image_size,
        patch_size=patch,
        channels=channels,
        classes=len(new["head.weight"]),
        width=width,
        heads=reading.heads,
        head_width=tuple(n // 3 // heads for n, heads in zip(rows, reading.heads, strict=True)),
        mlp_width=tuple(len(new[f"{at}mlp.fc1.weight"]) for at in blocks),
        class_token="class_token" in new,
        register_tokens=len(new.get("register_tokens", ())),
        embed_norm="embed_norm.weight" in new,
        pooling=reading.pooling,
        fc_norm=reading.fc_norm,
        qkv_bias=any(biased) or not blocks,
        qk_norm=any(f"{at}attention.q_norm.weight" in new for at in blocks),
        output_bias=tuple(f"{at}output_bias" in new for at in blocks),
        layer_norm_eps=reading.layer_norm_eps,
        activation=reading.activation,
    )


SHARE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference to the source's logits, by dtype, in units of the largest logit."""
SHARE_IN_HALF = 1e-1
SMALLEST = 0.1
"""Logits below this are compared as if the largest were this."""


@dataclass(frozen=True)
class Examination:
    """A loaded model and its conversion's notes; `load_vit` returns its `vit`.

    Attributes:
        source: what was loaded, in a few words.
        vit: the model, in eval mode.
        folded: what was done beyond renaming, such as `LayerScale into W_O, b_O, W2, b2 (12
            blocks)`, and what had to be assumed.
        guessed: sentences about what was assumed without knowing; `load_vit` warns of them.
        unused: keys of the source that take no part in classification.
        difference: largest difference to the source's logits on 2 seeded normal images, ≥ 0, in
            units of its largest logit; None where there is no other library to compare with.
    """

    source: str
    vit: ViT
    folded: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    difference: float | None = field(default=None, compare=False)


@torch.no_grad()
def convert(module: nn.Module, library: Library, *, image_size: int | None = None) -> Examination:
    """A `ViT` of a library's module, whose logits were compared with the module's.

    Args:
        module: our own copy, whose parameters are drawn anew here.
        library: the reader of its library.
        image_size: side in pixels to resample positions to.

    Raises:
        CircuitError: the model has parts that a `ViT` has not (every one is named), a tensor was
            not used, or the logits differ.
    """
    source = module.eval()
    problems = library.problems(source)
    problems += [*_weight_problems(source), *replaced_layers(source, library.RENAMES)]
    refuse_model(source, problems)
    resampled = ()
    if image_size is not None:
        resampled = _resize(source, library, image_size)
    reading = library.read(source)
    vit, folded = _made(reading)
    vit.check_weights()
    difference = compare(vit, reading.logits, source=reading.source)
    vit.preprocessing = library.preprocessing_of(source)
    _redraw(source)
    if image_size is not None:
        library.resize(source, image_size)  # whose positions are others now
    again = library.read(source)
    compare(_made(again)[0], again.logits, source=f"{reading.source}, its parameters redrawn,")
    folded = (*resampled, *reading.folded, *folded)
    return Examination(reading.source, vit, folded, reading.guessed, reading.unused, difference)


def _made(reading: LibraryReading) -> tuple[ViT, tuple[str, ...]]:
    """The model of a reading, and what was folded.

    Raises:
        CircuitError: a tensor was not used.
    """
    config, weights, folded, left = assembled(reading)
    if left:
        raise CircuitError(
            f"this {reading.source} has parameters that no one reads here: {left}. "
            "It is not the plain model of its library; take out what was added."
        )
    return ViT.from_weights(config, weights, source=reading.source).eval(), folded


@torch.no_grad()
def _redraw(source: nn.Module) -> None:
    """Give a module parameters, in place, with which its logits depend on every part.

    In single precision at least, which tells more apart than half.
    """
    dtype = next(source.parameters()).dtype
    source.to(dtype if dtype in SHARE else torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in source.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and "bias" not in name:  # a norm's weight, LayerScale
            values = 1 + 0.3 * values
        elif "weight" in name and parameter.ndim > 1:
            values = values / parameter[0].numel() ** 0.5
        parameter.copy_(values)


def _weight_problems(source: nn.Module) -> list[str]:
    kinds = {parameter.dtype for parameter in source.parameters()}
    dtypes = sorted(map(str, kinds))
    strange = sorted(str(kind) for kind in kinds if kind not in (*SHARE, *HALF))
    several = f"its weights are of several dtypes ({', '.join(dtypes)}); convert it with .float()"
    found = {
        "its weights are on the meta device, so there is nothing to read": any(
            parameter.is_meta for parameter in source.parameters()
        ),
        several: len(dtypes) > 1,
        f"its weights are {', '.join(strange)}, in which nothing is computed; convert it with "
        ".float()": bool(strange),
    }
    return [text for text, is_so in found.items() if is_so]


def _resize(source: nn.Module, library: Library, image_size: int) -> tuple[str, ...]:
    before = library.read(source)
    patch = before.parts["patch.weight"].shape[-1]
    check_image_size(image_size, patch)
    if image_size == before.image_size:
        return ()
    library.resize(source, image_size)
    return (f"positions resampled from {before.image_size} to {image_size} pixels",)


def check_image_size(image_size: Any, patch: int) -> None:
    """Refuse a side that patches don't fill.

    Raises:
        CircuitError: it is no whole number > 0, or no multiple of the patch size.
    """
    is_count = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not is_count or image_size < 1 or image_size % patch:
        below = patch * max(1, (image_size if is_count else patch) // patch)
        raise CircuitError(
            f"image_size is {image_size!r}, expected a multiple of the patch size {patch}, such as "
            f"{below} or {below + patch}."
        )


@torch.no_grad()
def compare(vit: ViT, logits: Callable[[Tensor], Tensor], *, source: str) -> float:
    """The largest difference of two models' logits, in units of the largest.

    Raises:
        CircuitError: it is too large.
    """
    with default_modes(gradients=False):
        return _compared(vit, logits, source)


def _compared(vit: ViT, logits: Callable[[Tensor], Tensor], source: str) -> float:
    config, positions = vit.config, vit.positions
    shape = (2, config.channels, config.image_size, config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = images.to(positions)
    expected, got = logits(images).double(), vit(images).double()
    if expected.shape != got.shape:
        raise CircuitError(
            f"{source} gives an output of shape {tuple(expected.shape)}, expected [image, class] = "
            f"{tuple(got.shape)}. Give a classifier."
        )
    largest = max(float(expected.abs().max()), SMALLEST)
    difference = float((expected - got).abs().max()) / largest
    if not difference <= SHARE.get(positions.dtype, SHARE_IN_HALF):
        raise CircuitError(
            f"the converted model's logits differ from the source's by {difference:z.2g} of the "
            f"largest ({largest:z.2g}): the forward pass of this {source} is not the one of its "
            "library's plain model."
        )
    return difference
