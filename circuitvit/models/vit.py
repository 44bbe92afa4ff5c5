"""The ViT: one class for trained, loaded, pruned and compiled models.

Read it from top to bottom: MLP, Attention, Block, ViT. Heads, head width and MLP width are those of
`ViTConfig`, block by block, so a pruned model is an ordinary one with a ragged shape. Hooks, edges
and training live elsewhere.

Axis words, here and in all shapes of the package: image, channel, height, width (of the residual
stream; of a picture next to height), token, part (q, k, v), head, head_width, neuron, class,
writer, reader.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.models.saved_model import SavedModel

PARTS = ("q", "k", "v")


def activate(name: str, x: Tensor) -> Tensor:
    """The MLP's activation, by its name in the config."""
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def added(stream: Tensor, write: Tensor) -> Tensor:
    """The sum of both; adds in place, as nobody else holds `write`.

    Autocast writes in half precision to a stream in single; then the sum needs memory of its own.
    """
    return write.add_(stream) if write.dtype == stream.dtype else stream + write


def pooled(
    config: ViTConfig, tokens: Float[Tensor, "image _token width"]
) -> Float[Tensor, "image _pooled"]:
    """Pools tokens for the head; the first tokens suffice where it reads no others."""
    if config.pooling == "class":
        return tokens[:, 0]
    if config.pooling == "class_distillation":
        return tokens[:, :2].flatten(1)
    mean = tokens[:, config.pools_from :].mean(dim=1)
    return torch.cat([tokens[:, 0], mean], dim=1) if config.pooling == "class_mean" else mean


class MLP(nn.Module):
    """Two linear layers with an activation between them; its bias is part of what it writes."""

    def __init__(self, config: ViTConfig, block: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = nn.Linear(config.width, config.mlp_width[block])
        self.fc2 = nn.Linear(config.mlp_width[block], config.width)

    def forward(self, x: Float[Tensor, "*image width"]) -> Float[Tensor, "*image width"]:
        """What the MLP writes, given the normalised stream."""
        return self.fc2(self.neurons(x))

    def neurons(self, x: Float[Tensor, "*image width"]) -> Float[Tensor, "*image neuron"]:
        """The neurons after the activation, given the normalised stream."""
        return activate(self.activation, self.fc1(x))


class Attention(nn.Module):
    """The heads of a block, without the output bias, which belongs to the block.

    `qkv` has its rows in the order (part head head_width), as in timm.
    """

    def __init__(self, config: ViTConfig, block: int) -> None:
        super().__init__()
        self.heads = config.heads[block]
        self.head_width = config.head_width[block]
        inner = self.heads * self.head_width
        self.qkv = nn.Linear(config.width, 3 * inner, bias=config.qkv_bias)
        self.q_norm = (
            nn.LayerNorm(self.head_width, config.layer_norm_eps) if config.qk_norm else None
        )
        self.k_norm = (
            nn.LayerNorm(self.head_width, config.layer_norm_eps) if config.qk_norm else None
        )
        self.out = nn.Linear(inner, config.width, bias=False)

    def forward(
        self, x: Float[Tensor, "image token width"], output_bias: Float[Tensor, " width"] | None
    ) -> Float[Tensor, "image token width"]:
        """What all heads write together, given the normalised stream, and the output bias."""
        return self.write(self.mix(x), output_bias)

    def mix(
        self, x: Float[Tensor, "image token width"]
    ) -> Float[Tensor, "image head token head_width"]:
        """z: the values of each head, mixed by its pattern, given the normalised stream."""
        q, k, v = rearrange(
            self.qkv(x),
            "image token (part head head_width) -> part image head token head_width",
            part=3,
            head=self.heads,
        )
        q, k = self.normalize("q", q), self.normalize("k", k)
        return F.scaled_dot_product_attention(q, k, v)

    def write(
        self,
        z: Float[Tensor, "image head token head_width"],
        output_bias: Float[Tensor, " width"] | None,
    ) -> Float[Tensor, "image token width"]:
        """What all heads write together, given z, and the output bias."""
        z = rearrange(z, "image head token head_width -> image token (head head_width)")
        return F.linear(z, self.out.weight, output_bias)

    def normalize(self, part: str, x: Float[Tensor, "*any head_width"]) -> Tensor:
        """The LayerNorm of queries and keys, where the model has one."""
        norm = {"q": self.q_norm, "k": self.k_norm}.get(part)
        return x if norm is None else norm(x)

    def projection(self, part: str) -> tuple[Float[Tensor, "head head_width width"], Tensor | None]:
        """Weight and bias [head head_width] that make the queries, keys or values; views."""
        index, shape = PARTS.index(part), (3, self.heads, self.head_width)
        bias = None if self.qkv.bias is None else self.qkv.bias.view(shape)[index]
        return self.qkv.weight.view(*shape, -1)[index], bias

    def output_weight(self) -> Float[Tensor, "head head_width width"]:
        """W_O of each head; a view."""
        return rearrange(
            self.out.weight, "width (head head_width) -> head head_width width", head=self.heads
        )


class Block(nn.Module):
    """LayerNorm and attention, then LayerNorm and MLP; either may be absent.

    What is added to the stream but belongs to no writer is held here: the attention's output bias
    b_O, which an absent attention keeps, and the constants [token width] of removed units.
    """

    def __init__(self, config: ViTConfig, block: int) -> None:
        super().__init__()
        attends, thinks = config.heads[block] > 0, config.mlp_width[block] > 0
        self.ln1 = nn.LayerNorm(config.width, config.layer_norm_eps) if attends else None
        self.attention = Attention(config, block) if attends else None
        self.output_bias = _zeros(config.width) if config.output_bias[block] else None
        self.attention_constant = _constant(config) if config.attention_constant[block] else None
        self.ln2 = nn.LayerNorm(config.width, config.layer_norm_eps) if thinks else None
        self.mlp = MLP(config, block) if thinks else None
        self.mlp_constant = _constant(config) if config.mlp_constant[block] else None

    def forward(self, x: Float[Tensor, "image token width"]) -> Float[Tensor, "image token width"]:
        """The stream after this block."""
        if self.attention is not None and self.ln1 is not None:
            x = added(x, self.attention(self.ln1(x), self.output_bias))
        elif self.output_bias is not None:
            x = x + self.output_bias
        if self.attention_constant is not None:
            x = x + self.attention_constant
        if self.mlp is not None and self.ln2 is not None:
            x = added(x, self.mlp(self.ln2(x)))
        if self.mlp_constant is not None:
            x = x + self.mlp_constant
        return x


class ViT(SavedModel):
    """A pre-LayerNorm Vision Transformer (Dosovitskiy et al. 2021) whose blocks may differ.

    Args:
        config: its shape.
        seed: draws the initial weights, leaving torch's own generator as it was; by default they
            come from torch's generator.
    """

    def __init__(self, config: ViTConfig, *, seed: int | None = None) -> None:
        super().__init__()
        self.config = config
        # Inference tensors could never be trained, nor a gradient taken through them.
        with (
            torch.inference_mode(False),
            torch.random.fork_rng(devices=[], enabled=seed is not None),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            self._build(config)

    def _build(self, config: ViTConfig) -> None:
        self.patch = nn.Conv2d(
            config.channels, config.width, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.class_token = _zeros(config.width) if config.class_token else None
        self.register_tokens = (
            _zeros(config.register_tokens, config.width) if config.register_tokens else None
        )
        self.positions = _constant(config)
        self.embed_norm = (
            nn.LayerNorm(config.width, config.layer_norm_eps) if config.embed_norm else None
        )
        self.blocks = nn.ModuleList(Block(config, block) for block in range(config.depth))
        self.final_norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.head = nn.Linear(config.pooled * config.width, config.classes)
        self._draw_weights()

    def _draw_weights(self) -> None:
        """Initial weights as in google-research/big_vision: they scale with the width."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                parts = 3 if module.out_features == 3 * module.in_features else 1
                for rows in module.weight.chunk(parts):  # queries, keys and values apart
                    nn.init.xavier_uniform_(rows)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        for parameter in (self.positions, self.class_token, self.register_tokens):
            if parameter is not None:
                nn.init.normal_(parameter, std=self.config.width**-0.5)

    def forward(self, images: Tensor) -> Float[Tensor, "image class"]:
        """Logits of a batch of images [image channel height width].

        Raises:
            CircuitError: the images have another shape or dtype than the model.
        """
        stream = self.embed(images)
        for block in self.blocks:
            stream = block(stream)
        return self.read_out(stream)

    def embed(self, images: Tensor) -> Float[Tensor, "image token width"]:
        """The write of `embed`: patches, class and register tokens, positions, LayerNorm if any."""
        self.check_images(images)
        patches = rearrange(self.patch(images), "image width y x -> image (y x) width")
        prefix = [t for t in (self.class_token, self.register_tokens) if t is not None]
        rows = [t.view(-1, self.config.width).expand(patches.shape[0], -1, -1) for t in prefix]
        tokens = torch.cat([*rows, patches], dim=1) if rows else patches
        tokens = tokens + self.positions
        return tokens if self.embed_norm is None else self.embed_norm(tokens)

    def read_out(self, stream: Float[Tensor, "image token width"]) -> Float[Tensor, "image class"]:
        """Logits of a stream: pooling, final LayerNorm, head."""
        config = self.config
        if config.fc_norm:
            return self.head(self.final_norm(pooled(config, stream)))
        read = stream[:, :1] if config.pooling == "class" else stream
        return self.head(pooled(config, self.final_norm(read)))

    def check_images(self, images: Tensor, *, name: str = "images") -> None:
        """Refuse images that the model can't take.

        Raises:
            CircuitError: they have another shape or dtype than the model.
        """
        config, dtype = self.config, self.positions.dtype
        shape = (config.channels, config.image_size, config.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise CircuitError(
                f"{name} have shape {tuple(images.shape)}, this model expects [image, "
                f"{shape[0]}, {shape[1]}, {shape[2]}]. Resize them, or add the image axis."
            )
        if images.dtype != dtype and not torch.is_autocast_enabled(images.device.type):
            raise CircuitError(
                f"{name} have dtype {images.dtype}, this model's weights {dtype}. "
                f"Use images.to({dtype}), or vit.to({images.dtype}) for the model."
            )

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the shape and the weights, in single precision."""
        return self.digest(self.config.identity())

    def shape_as_dict(self) -> dict[str, Any]:
        """The config's fields."""
        return self.config.as_dict()

    @classmethod
    def of_shape(cls, shape: Any) -> "ViT":
        """A ViT of a config's fields.

        Raises:
            CircuitError: a field is unknown, missing or of the wrong kind.
        """
        if isinstance(shape, dict) and "plan" in shape:
            raise CircuitError(
                "this is a circuit that was compiled with level='edge', not a ViT. Load it with "
                "circuitvit.CircuitViT.from_pretrained(folder)."
            )
        return cls(ViTConfig.from_dict(shape))

    @classmethod
    def from_weights(cls, config: ViTConfig, weights: dict[str, Tensor], *, source: str) -> "ViT":
        """A model of this shape that takes over a state dict whole, with its dtype and device.

        Raises:
            CircuitError: a key is missing, surplus, or of another shape; every one is named.
        """
        with torch.device("meta"):  # draws nothing, and needs no memory
            vit = cls(config)
        return vit.take_over(weights, source=source)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def _constant(config: ViTConfig) -> nn.Parameter:
    return _zeros(config.tokens, config.width)
