import torch

from circuitvit.torchvision_ops import register_missing_ops


def test_the_operators_are_declared_and_torchvision_works():
    register_missing_ops()
    assert hasattr(torch.ops.torchvision, "nms")
    from torchvision.transforms import v2

    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert v2.RandAugment()(image).shape == image.shape
    mixed, labels = v2.MixUp(num_classes=4)(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert mixed.shape == (2, 3, 8, 8)
    assert labels.shape == (2, 4)


def test_it_is_done_once():
    assert register_missing_ops() is register_missing_ops()
