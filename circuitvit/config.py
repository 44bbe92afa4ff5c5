"""The shape of a ViT: heads, head width and MLP width may differ block by block.

Knows no torch, so that a saved circuit can be read and drawn anywhere.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from circuitvit.errors import CircuitError, in_short

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
Pooling = Literal["class", "mean", "mean_all", "class_mean", "class_distillation"]
MEANS = ("mean", "mean_all")
"""The poolings after which a LayerNorm may come."""
MOST_BLOCKS = 1000
MOST_HEADS = 2**16
"""In all blocks; a ViT-22B has 2,304."""
MOST = 2**20
"""No width, side or count is larger, nor is the number of tokens; a ViT-22B's MLPs have 24,576."""
MOST_PARAMETERS = 2**42


@dataclass(frozen=True, init=False)
class ViTConfig:
    """Everything that decides a ViT's parameters and computation, except their values.

    Per-block fields take one value for all blocks or a sequence with one value a block, and are
    stored as tuples. `depth` is needed only where no field gives a sequence (default 12).

    Attributes:
        image_size: side of the square input image, in pixels.
        patch_size: side of a square patch, in pixels; divides `image_size`.
        channels: channels of the input image.
        classes: number of logits.
        width: width of the residual stream.
        heads: attention heads of each block; 0 means that the block has no attention.
        head_width: width of a head's q, k, v and z in each block.
        mlp_width: hidden neurons of each block's MLP; 0 means that the block has no MLP.
        class_token: whether a learned class token comes first.
        register_tokens: learned tokens after the class token; a distillation token is the first.
        embed_norm: whether a LayerNorm comes after patches, tokens and positions (CLIP's pre-norm).
        pooling: what the head reads: the class token; the mean of the patch tokens (`mean`) or of
            all tokens (`mean_all`); the class token beside the mean of the patch tokens
            (`class_mean`, Dinov2) or beside the first register (`class_distillation`, DeiT).
        fc_norm: with the mean of tokens, whether the final LayerNorm comes after the mean.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether queries and keys go through a LayerNorm of their own.
        output_bias: whether each block's attention has its bias b_O (kept by an empty attention).
        attention_constant: whether a constant [token width] is added after each attention.
        mlp_constant: whether a constant [token width] is added after each MLP.
        layer_norm_eps: ε of every LayerNorm.
        activation: the MLP's activation: erf GELU, tanh GELU or QuickGELU.
    """

    image_size: int
    patch_size: int
    channels: int
    classes: int
    width: int
    heads: tuple[int, ...]
    head_width: tuple[int, ...]
    mlp_width: tuple[int, ...]
    class_token: bool
    register_tokens: int
    embed_norm: bool
    pooling: Pooling
    fc_norm: bool
    qkv_bias: bool
    qk_norm: bool
    output_bias: tuple[bool, ...]
    attention_constant: tuple[bool, ...]
    mlp_constant: tuple[bool, ...]
    layer_norm_eps: float
    activation: Activation

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        channels: int = 3,
        classes: int = 1000,
        width: int = 768,
        depth: int | None = None,
        heads: int | Sequence[int] = 12,
        head_width: int | Sequence[int] | None = None,
        mlp_width: int | Sequence[int] | None = None,
        class_token: bool = True,
        register_tokens: int = 0,
        embed_norm: bool = False,
        pooling: Pooling = "class",
        fc_norm: bool = False,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        output_bias: bool | Sequence[bool] = True,
        attention_constant: bool | Sequence[bool] = False,
        mlp_constant: bool | Sequence[bool] = False,
        layer_norm_eps: float = 1e-6,
        activation: Activation = "gelu",
    ) -> None:
        per_block = {
            "heads": heads,
            "head_width": head_width,
            "mlp_width": 4 * width if mlp_width is None else mlp_width,
            "output_bias": output_bias,
            "attention_constant": attention_constant,
            "mlp_constant": mlp_constant,
        }
        depth = _depth(depth, per_block)
        if head_width is None:
            per_block["head_width"] = _guessed_head_width(width, heads)
        values = {
            "image_size": image_size,
            "patch_size": patch_size,
            "channels": channels,
            "classes": classes,
            "width": width,
            "class_token": class_token,
            "register_tokens": register_tokens,
            "embed_norm": embed_norm,
            "pooling": pooling,
            "fc_norm": fc_norm,
            "qkv_bias": qkv_bias,
            "qk_norm": qk_norm,
            "layer_norm_eps": layer_norm_eps,
            "activation": activation,
        }
        for name, value in per_block.items():
            # `depth` was checked, so no more than MOST_BLOCKS are made.
            each = list(value) if _is_sequence(value) else [value] * depth
            values[name] = tuple(_plain(item) for item in each)
        for name, value in values.items():
            object.__setattr__(self, name, value if name in per_block else _plain(value))
        problems = list(_problems(self)) or list(_size_problems(self))
        if problems:
            raise CircuitError("a ViTConfig cannot be made: " + "; ".join(problems) + ".")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.heads)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the first patch: class token and registers."""
        return int(self.class_token) + self.register_tokens

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    def told(self, heads: Sequence[int], mlp_width: Sequence[int]) -> str:
        """The shape in words, with these heads and neurons in each block."""
        side, patch = self.image_size, self.patch_size
        return (
            f"{self.depth} blocks, {_by_block(heads)} heads, width {self.width:,}, "
            f"MLP {_by_block(mlp_width)}, images {self.channels}×{side}×{side} in patches of "
            f"{patch}×{patch}, {self.classes:,} classes"
        )

    @property
    def tokens(self) -> int:
        """Number of tokens of an image: prefix and patches."""
        return self.prefix_tokens + self.patches

    @property
    def pooled(self) -> int:
        """The number of vectors [width] that the head reads, concatenated."""
        return 2 if self.pooling in ("class_mean", "class_distillation") else 1

    @property
    def pools_from(self) -> int:
        """The first of the tokens whose mean pooling takes."""
        return 0 if self.pooling == "mean_all" else self.prefix_tokens

    def identity(self) -> str:
        """The shape as fingerprints have it: fields that came later count where they are used."""
        return repr(self).replace("embed_norm=False, ", "")

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Any) -> "ViTConfig":
        """Make a config from what `as_dict` gave.

        Raises:
            CircuitError: a field is unknown, missing or of the wrong kind.
        """
        if not isinstance(values, Mapping):
            raise CircuitError(
                f"this is not the config of a ViT of circuitvit: it holds {type(values).__name__}, "
                "expected named fields."
            )
        known = {field.name for field in fields(cls)}
        unknown = sorted(map(str, set(values) - known))
        missing = sorted({"heads", "mlp_width", "width"} - set(values))
        if unknown or missing:
            raise CircuitError(
                f"this is not the config of a ViT of circuitvit: unknown fields "
                f"{in_short(unknown)}, missing fields {missing}. It belongs to another "
                "library or a newer version."
            )
        try:
            return cls(**values)
        except TypeError as cause:
            raise CircuitError(
                f"this is not the config of a ViT of circuitvit: {cause}."
            ) from cause


def _is_sequence(value: object) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping)


def _plain(value: Any) -> Any:
    """Python's own number for numpy's; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def _guessed_head_width(width: Any, heads: Any) -> int:
    """Width over heads; where these are not even numbers, any: they are refused later."""
    listed = [_plain(item) for item in (heads if _is_sequence(heads) else [heads])]
    if not all(_is_count(item, least=1) for item in (*listed, _plain(width))) or not listed:
        return 1
    if len(set(listed)) > 1:
        raise CircuitError(
            f"heads differ by block ({in_short(tuple(heads))}), so their width can't be guessed: "
            "give head_width too."
        )
    count = listed[0]
    if width % count:
        raise CircuitError(
            f"{in_short(count)} heads do not divide width {in_short(width)}: give head_width too."
        )
    return int(width) // count


def _depth(depth: int | None, per_block: Mapping[str, Any]) -> int:
    lengths = {name: len(v) for name, v in per_block.items() if _is_sequence(v)}
    if depth is not None:
        if not _is_count(_plain(depth), least=0):
            raise CircuitError(f"depth is {in_short(depth)}, expected a whole number ≥ 0.")
        lengths["depth"] = _plain(depth)
    most = max(lengths, key=lambda name: lengths[name], default="depth")
    if lengths and lengths[most] > MOST_BLOCKS:
        raise CircuitError(
            f"{most} tells of {in_short(lengths[most])} blocks, expected at most {MOST_BLOCKS:,}."
        )
    if len(set(lengths.values())) > 1:
        raise CircuitError(
            f"the fields disagree on the number of blocks: {lengths}. "
            "Give one value a block in each."
        )
    return next(iter(lengths.values()), 12)


PER_BLOCK = (
    "heads",
    "head_width",
    "mlp_width",
    "output_bias",
    "attention_constant",
    "mlp_constant",
)
_LEAST = {
    "image_size": 1,
    "patch_size": 1,
    "channels": 1,
    "classes": 1,
    "width": 1,
    "head_width": 1,
    "heads": 0,
    "mlp_width": 0,
    "register_tokens": 0,
}
_SWITCHES = (
    "class_token",
    "embed_norm",
    "fc_norm",
    "qkv_bias",
    "qk_norm",
    "output_bias",
    "attention_constant",
    "mlp_constant",
)


def _problems(config: ViTConfig) -> Iterator[str]:
    """Every field that has a wrong value, then every choice and combination that is wrong."""
    for name in (*_LEAST, *_SWITCHES):
        value = getattr(config, name)
        each = value if name in PER_BLOCK else (value,)
        least = _LEAST.get(name)
        if name in _SWITCHES and not all(isinstance(item, bool) for item in each):
            yield f"{name} is {in_short(value)}, expected True or False"
        elif least is not None and not all(_is_count(item, least=least) for item in each):
            yield f"{name} is {in_short(value)}, expected whole numbers ≥ {least}"
        elif least is not None and any(item > MOST for item in each):
            yield f"{name} is {in_short(value)}, expected at most {MOST:,}"
    yield from _choice_problems(config)


def _size_problems(config: ViTConfig) -> Iterator[str]:
    """Problems of a shape whose fields are valid one by one but too large together."""
    if sum(config.heads) > MOST_HEADS:
        yield f"there are {sum(config.heads):,} heads in all, expected at most {MOST_HEADS:,}"
    if config.tokens > MOST:
        yield f"there are {config.tokens:,} tokens, expected at most {MOST:,}"
    count = config.width * (config.tokens + config.channels * config.patch_size**2)
    count += config.width * config.pooled * config.classes
    for heads, head_width, neurons in zip(
        config.heads, config.head_width, config.mlp_width, strict=True
    ):
        count += config.width * (4 * heads * head_width + 2 * neurons)
    if count > MOST_PARAMETERS:
        yield f"there are {count:,} parameters, expected at most {MOST_PARAMETERS:,}"


def _choice_problems(config: ViTConfig) -> Iterator[str]:
    sizes = (config.image_size, config.patch_size)
    if all(_is_count(size, least=1) for size in sizes) and sizes[0] % sizes[1]:
        yield f"patch_size {config.patch_size} does not divide image_size {config.image_size}"
    if config.pooling not in get_args(Pooling):
        yield f"pooling is {in_short(config.pooling)}, expected one of {get_args(Pooling)}"
    elif config.pooling not in MEANS and config.class_token is False:
        yield f"pooling is {config.pooling!r} but there is no class token; use pooling='mean'"
    if config.pooling == "class_distillation" and config.register_tokens == 0:
        yield "pooling is 'class_distillation' but there is no register token"
    if config.fc_norm is True and config.pooling not in MEANS:
        yield f"fc_norm goes with pooling in {MEANS} only"
    if config.activation not in get_args(Activation):
        yield f"activation is {in_short(config.activation)}, expected one of {get_args(Activation)}"
    eps = config.layer_norm_eps
    number = isinstance(eps, int | float) and not isinstance(eps, bool)
    if not number or not 0 < eps <= sys.float_info.max:
        yield f"layer_norm_eps is {in_short(eps)}, expected a finite number > 0"


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _by_block(values: Sequence[int]) -> str:
    """One number where all blocks have it, else one for each block."""
    return f"{values[0]:,}" if len(set(values)) == 1 else "/".join(map(str, values)) or "0"
