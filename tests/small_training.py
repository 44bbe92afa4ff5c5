"""What tests of trainings share: a small ViT, images that it can learn, and comparisons."""

import torch
from small_circuits import compiled, some_circuit

import circuitvit as cv
from circuitvit.images import ImageSet

SHAPE = {"image_size": 4, "patch_size": 2, "channels": 1, "classes": 4}
SIZE = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 16}


def make_vit(seed=0, **changes) -> cv.ViT:
    return cv.ViT(cv.ViTConfig(**(SHAPE | SIZE | changes)), seed=seed).double()


def blobs(count=48, seed=0, classes=4) -> ImageSet:
    """Noise, brighter in the quarter of the picture that is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = 0.3 * torch.randn(count, 1, 2, 2, 2, 2, generator=generator, dtype=torch.float64)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, label // 2, :, label % 2, :] += 1
    return ImageSet(images.reshape(count, 1, 4, 4), labels, tuple("abcd"[:classes]))


def same_weights(one: cv.ViT, other: cv.ViT) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def timeless(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def edge_model():
    vit = make_vit(register_tokens=2, mlp_constant=True, qk_norm=True).eval()
    images = blobs(9, seed=2).images
    return compiled(vit, some_circuit(vit, 3, 0.3, path=True), "mean", images)


def curves(folder):
    """By tag, the points (epoch, value) that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
