"""Corrupt images made from clean ones, against slow references."""

import math

import numpy as np
import pytest
import torch

from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, Pairs
from circuitvit.images.pairs.corruption import blurred, inpainted

CORNERS = [(2, 3), (0, 0), (0, 4), (5, 0), (5, 6), (3, 6), (1, 1)]
SIZE = 4


def image(seed=0, dtype=torch.float64) -> torch.Tensor:
    """9×10 pixels."""
    return torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def image_set(count=40) -> ImageSet:
    images = torch.stack([image(seed, torch.float32) for seed in range(count)])
    return ImageSet(images, torch.arange(count) % 3, ("a", "b", "c"))


def inside(corner, size=SIZE) -> torch.Tensor:
    mask = torch.zeros(9, 10, dtype=torch.bool)
    mask[corner[0] : corner[0] + size, corner[1] : corner[1] + size] = True
    return mask


@pytest.mark.parametrize("corner", CORNERS)
def test_an_inpainted_pixel_is_the_mean_of_its_neighbours(corner):
    before = image()
    after = inpainted(before, corner, SIZE)
    mask = inside(corner)
    assert torch.equal(after[:, ~mask], before[:, ~mask])
    for row, column in mask.nonzero().tolist():
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        known = [after[:, r, c] for r, c in around if 0 <= r < 9 and 0 <= c < 10]
        torch.testing.assert_close(after[:, row, column], torch.stack(known).mean(0))


def test_a_plane_is_inpainted_exactly():
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(10.0), indexing="ij")
    plane = (0.3 * rows - 0.2 * columns + 1)[None].double()
    torch.testing.assert_close(inpainted(plane, (2, 3), SIZE), plane)


@pytest.mark.parametrize("corner", CORNERS)
def test_a_blurred_pixel_is_a_gaussian_mean(corner):
    before = image()
    after = blurred(before, corner, SIZE)
    mask = inside(corner)
    assert torch.equal(after[:, ~mask], before[:, ~mask])
    sigma, reach = SIZE / 4, math.ceil(3 * SIZE / 4)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(before.numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    for row, column in mask.nonzero().tolist():
        window = padded[:, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
        expected = np.einsum("chw,h,w->c", window, weights, weights)
        np.testing.assert_allclose(after[:, row, column].numpy(), expected, rtol=1e-9, atol=1e-9)


def changed(pairs: Pairs) -> torch.Tensor:
    return (pairs.clean != pairs.corrupt).any(dim=1)


@pytest.mark.parametrize("fill", ["inpaint", "blur"])
def test_one_square_patch_of_each_image_changes(fill):
    pairs = Pairs.occluded(image_set(), count=40, fill=fill, size=3)
    corners = set()
    for mask in changed(pairs):
        rows, columns = mask.nonzero().T.tolist()
        corner = (min(rows), min(columns))
        assert mask.equal(inside(corner, 3))
        corners.add(corner)
    assert len(corners) > 20
    assert pairs.corrupt_labels is None


def test_an_aligned_patch_covers_whole_tokens():
    images = image_set(200)
    pairs = Pairs.occluded(images, count=200, size=4, align=2)
    corners = {tuple(mask.nonzero().min(dim=0).values.tolist()) for mask in changed(pairs)}
    assert corners == {(row, column) for row in (0, 2, 4) for column in (0, 2, 4, 6)}


def test_a_patch_has_the_place_and_the_share_asked_for():
    pairs = Pairs.occluded(image_set(), count=5, size=0.45, place=(1, 6))
    assert all(mask.equal(inside((1, 6))) for mask in changed(pairs))
    whole = Pairs.occluded(image_set(), count=5, size=0.4, align=3, place=(3, 6))
    assert all(mask.equal(inside((3, 6), 3)) for mask in changed(whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_dtype_stays(dtype):
    images = ImageSet(image_set(6).images.to(dtype), torch.arange(6) % 3, ("a", "b", "c"))
    made = (
        Pairs.occluded(images, count=3, size=2),
        Pairs.noised(images, count=3),
        Pairs.against_mean(images, count=3),
    )
    assert all(pairs.corrupt.dtype == dtype for pairs in made)


def test_noise_has_the_deviation_asked_for_and_differs_from_image_to_image():
    pairs = Pairs.noised(image_set(), count=40, std=0.5)
    noise = (pairs.corrupt - pairs.clean).double()
    assert abs(float(noise.std()) - 0.5) < 0.02  # 7,200 values: five standard errors
    assert abs(float(noise.mean())) < 0.03
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(40)
    assert correlations.abs().max() < 0.45


def test_the_mean_image_is_that_of_all_images():
    images = image_set()
    pairs = Pairs.against_mean(images, count=4)
    expected = images.images.double().numpy().mean(axis=0)
    for corrupt in pairs.corrupt:
        np.testing.assert_allclose(corrupt.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("make", [Pairs.occluded, Pairs.noised])
def test_another_seed_corrupts_otherwise(make):
    images = image_set(10)
    draws = [make(images, count=10, seed=seed) for seed in (0, 0, 1)]
    assert draws[0].fingerprint() == draws[1].fingerprint() != draws[2].fingerprint()


def test_the_callers_images_stay_as_they_are():
    images = image_set()
    before = images.fingerprint()
    Pairs.occluded(images, count=5)
    Pairs.occluded(images, count=5, fill="blur")
    Pairs.noised(images, count=5)
    assert images.fingerprint() == before


def test_a_patch_that_changes_nothing_is_told():
    flat = ImageSet(torch.ones(6, 1, 8, 8), torch.arange(6) % 3, ("a", "b", "c"))
    with pytest.warns(UserWarning, match="4 of 4 corrupt images equal their clean ones"):
        pairs = Pairs.occluded(flat, count=4)
    pairs.subset([0]).to(torch.float64)  # told once


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({"size": 9}, ["size is 9, expected 1 to 8 pixels of an image of 9×10"]),
        ({"size": 1.5}, ["size is 1.5", "share of its side above 0 and below 1"]),
        ({"size": 0}, ["size is 0"]),
        ({"size": True}, ["size is True"]),
        ({"fill": "black"}, ["fill is 'black', expected one of ('inpaint', 'blur')"]),
        ({"size": 4, "place": (6, 0)}, ["place is (6, 0)", "4 pixels lies in 9×10"]),
        ({"size": 4, "place": "middle"}, ["place is 'middle'", "(row, column)"]),
        ({"size": 4, "align": 3}, ["size is 4, expected a multiple of align=3"]),
        ({"size": 4, "align": 2, "place": (1, 2)}, ["both multiples of align=2"]),
        ({"align": 16}, ["align is 16, expected the patch size of a model below 9"]),
        ({"fill": "x", "size": 20, "align": 0}, ["fill is 'x'", "size is 20", "align is 0"]),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(asked, messages):
    with pytest.raises(CircuitError) as caught:
        Pairs.occluded(image_set(4), count=2, **asked)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.usefixtures("as_users_call")
def test_the_deviation_of_noise_may_be_a_number_of_numpy_or_torch():
    expected = Pairs.noised(image_set(4), count=2, std=0.5).fingerprint()
    for std in (np.float32(0.5), torch.tensor(0.5)):
        assert Pairs.noised(image_set(4), count=2, std=std).fingerprint() == expected


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    "std", [0, -1.0, float("nan"), float("inf"), None, "1", True, [1], torch.ones(2)]
)
def test_noise_without_a_deviation_is_refused(std):
    with pytest.raises(CircuitError, match="std is .*expected a number > 0"):
        Pairs.noised(image_set(4), count=2, std=std)
