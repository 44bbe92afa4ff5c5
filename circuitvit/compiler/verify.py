"""Pass: the compiled model against the masked run, on real images, always."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.graph.edge_graph import Qkv
from circuitvit.intervene.ablated_run import EdgeMask, RemovedNeurons, run_embedded
from circuitvit.intervene.writer_outputs import IMAGES_AT_ONCE
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import evaluating

IMAGES = 8
SHARE = {torch.float64: 1e-9, torch.float32: 1e-4}


@torch.no_grad()
def verify(
    vit: ViT,
    compiled: nn.Module,
    edges: Iterable[str],
    ablated: Float[Tensor, " writer #image #token #width"],
    *,
    reference: Tensor | None,
    qkv: Qkv = "split",
    neurons: Mapping[int, RemovedNeurons] | None = None,
) -> None:
    """Refuse a compiled model that differs from the run that keeps just these edges.

    The removed neurons of the MLPs that stay give theirs, too.

    Raises:
        CircuitError: the largest difference exceeds the tolerance.
    """
    images = sample_images(vit) if reference is None or not len(reference) else reference
    mask = EdgeMask.of(vit.config, edges, qkv)
    differences, largest = [], 1.0
    for chunk in images.to(vit.positions.device).split(IMAGES_AT_ONCE):
        expected = run_embedded(vit, vit.embed(chunk), mask, ablated, neurons=neurons).logits
        with evaluating(compiled):
            found = compiled(chunk)
        differences.append((found - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
    error = float(torch.stack(differences).amax())  # NaN, if there is one
    allowed = SHARE.get(images.dtype, 1e-1) * largest
    if not error <= allowed:
        raise CircuitError(
            f"the compiled model differs from the masked run by {error:z.2g}, allowed are "
            f"{allowed:z.2g}. It is not returned; please report this with the circuit's file."
        )


def sample_images(vit: ViT) -> Float[Tensor, "image channel height width"]:
    """8 seeded normal images of the model's shape, dtype and device."""
    config = vit.config
    shape = (IMAGES, config.channels, config.image_size, config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return images.to(vit.positions)
