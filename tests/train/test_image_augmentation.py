"""Random changes of single pictures: what they keep, what they draw, and torchvision's own."""

import pytest
import torch
from small_training import blobs

import circuitvit as cv
from circuitvit.images.tensor_checks import as_bytes
from circuitvit.train import Recipe
from circuitvit.train.batches import crop_and_randaugment, noise_and_erase
from circuitvit.train.recipe import Purpose, seed_of

SEEN = cv.Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def pictures(count=6, side=16):
    """Bytes, and the same normalised."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (SEEN.mean, SEEN.std))
    return pixels, (pixels / 255 - mean) / std


def test_bytes_come_back_from_normalised_images_exactly():
    pixels, images = pictures()
    assert torch.equal(as_bytes(images, SEEN), pixels)


def test_each_picture_is_what_torchvision_makes_of_its_bytes_with_its_own_seed():
    from torchvision.transforms import InterpolationMode, v2

    pixels, images = pictures()
    recipe = Recipe(crop_scale=0.3, rand_augment=2, rand_augment_magnitude=12, seed=4)
    places = torch.tensor([7, 0, 3, 9, 100, 5])
    ours = as_bytes(crop_and_randaugment(images, places, recipe, 2, SEEN), SEEN)
    fill = [255 * mean for mean in SEEN.mean]
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(16, scale=(0.3, 1.0)),
            v2.RandAugment(2, 12, interpolation=InterpolationMode.BILINEAR, fill=fill),
        ]
    )
    for picture, own, place in zip(pixels, ours, places.tolist(), strict=True):
        torch.manual_seed(seed_of(4, 2, place, Purpose.CROP_AND_RANDAUGMENT))
        assert torch.equal(own, theirs(picture))
    assert not torch.equal(ours, pixels)


@pytest.mark.parametrize("change", [crop_and_randaugment, noise_and_erase])
def test_what_an_image_becomes_depends_on_seed_epoch_and_place_alone(change):
    _, images = pictures()
    recipe = Recipe(crop_scale=0.5, rand_augment=1, noise=0.1, erase=0.5)
    places = torch.arange(6)
    torch.manual_seed(1)
    whole = change(images, places, recipe, 0, SEEN)
    torch.manual_seed(2)
    assert torch.equal(change(images[3:4], places[3:4], recipe, 0, SEEN), whole[3:4])
    state = torch.get_rng_state()
    assert not torch.equal(change(images, places, recipe, 1, SEEN), whole)
    assert not torch.equal(change(images, places + 1, recipe, 0, SEEN), whole)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_has_its_deviation_in_units_of_pixels():
    images = torch.zeros(40, 3, 16, 16)
    noisy = noise_and_erase(images, torch.arange(40), Recipe(noise=0.1), 0, SEEN)
    for channel, std in enumerate(SEEN.std):
        assert noisy[:, channel].std().item() == pytest.approx(0.1 / std, rel=0.03)
        assert noisy[:, channel].mean().item() == pytest.approx(0, abs=0.02)
    plain = noise_and_erase(images, torch.arange(40), Recipe(noise=0.1), 0, None)
    assert plain.std().item() == pytest.approx(0.1, rel=0.03)


def test_erased_rectangles_have_the_mean_colour_in_the_share_of_images_asked_for():
    images = torch.ones(300, 3, 8, 8)
    erased = noise_and_erase(images, torch.arange(300), Recipe(erase=0.4), 0, SEEN)
    hit = [image for image in erased if (image == 0).any()]
    assert 90 < len(hit) < 150
    for image in hit:
        inside = (image == 0).all(dim=0)
        rows, columns = inside.any(dim=1), inside.any(dim=0)
        assert torch.equal(inside, rows[:, None] & columns[None])
        assert ((image == 0) | (image == 1)).all()


def test_images_without_preprocessing_are_cropped_as_they_are():
    _, images = pictures()
    cropped = crop_and_randaugment(images, torch.arange(6), Recipe(crop_scale=0.2), 0, None)
    assert cropped.shape == images.shape
    assert cropped.dtype == images.dtype
    assert not torch.equal(cropped, images)
    assert cropped.min() >= images.min() - 1e-5
    assert cropped.max() <= images.max() + 1e-5


def test_nothing_changes_unless_asked_for():
    _, images = pictures()
    arguments = images, torch.arange(6), Recipe(), 0, SEEN
    assert crop_and_randaugment(*arguments) is images
    assert noise_and_erase(*arguments) is images


def test_grey_pictures_are_augmented_too_and_a_model_trains_on_them():
    from small_training import make_vit

    known = cv.Preprocessing(mean=(0.5,), std=(0.5,))
    images = blobs()
    images = cv.ImageSet(images.images.clamp(-1, 1), images.labels, images.class_names, known)
    recipe = Recipe(
        epochs=2, batch=16, rand_augment=2, crop_scale=0.5, noise=0.05, erase=0.2, mixup=0.2,
        cutmix=1.0,
    )  # fmt: skip
    before = images.fingerprint()
    cv.train(make_vit(), images, images, recipe)
    assert images.fingerprint() == before


def test_randaugment_without_preprocessing_is_refused_with_the_remedy():
    from small_training import make_vit

    recipe = Recipe(epochs=1, batch=16, rand_augment=2)
    with pytest.raises(
        cv.CircuitError, match=r"RandAugment needs .* 8 bits.*ImageSet.from_arrays.*=0"
    ):
        cv.train(make_vit(), blobs(), blobs(), recipe)
