"""Pairs in batches and in files."""

import json

import pytest
import torch
from random_models import random_vit, shape
from safetensors.torch import save_file

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, Pairs


def made(count=10) -> Pairs:
    images = torch.arange(40.0).reshape(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    return Pairs.by_class(ImageSet(images, torch.arange(40) % 3, ("a", "b", "c")), count=count)


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (99, [10])])
def test_batches_hold_all_pairs_in_order(size, sizes):
    pairs = made()
    batches = pairs.batches(size)
    assert len(batches) == len(sizes)
    assert [len(batch) for batch in batches] == sizes
    assert all(type(batch) is Pairs for batch in batches)
    for name in ("clean", "corrupt", "labels", "corrupt_labels"):
        together = torch.cat([getattr(batch, name) for batch in batches])
        assert torch.equal(together, getattr(pairs, name))


def order(batches) -> list[float]:
    return [float(image[0, 0, 0]) for batch in batches for image in batch.clean]


def test_shuffled_batches_hold_each_pair_once_in_an_order_that_the_seed_draws():
    pairs = made()
    batches = pairs.batches(3, shuffle=True, seed=4)
    first, second = order(batches), order(batches)
    assert sorted(first) == sorted(second) == sorted(order(pairs.batches(3)))
    assert len({tuple(first), tuple(second), tuple(order(pairs.batches(3)))}) == 3
    again = pairs.batches(3, shuffle=True, seed=4)
    assert [order(again), order(again)] == [first, second]


def test_a_clean_image_stays_with_its_own_corrupt_one_in_a_batch():
    pairs = made()
    partner = dict(zip(pairs.clean[:, 0, 0, 0].tolist(), pairs.corrupt[:, 0, 0, 0].tolist()))  # noqa: B905
    for batch in pairs.batches(3, shuffle=True):
        for clean, corrupt in zip(batch.clean, batch.corrupt, strict=True):
            assert partner[float(clean[0, 0, 0])] == float(corrupt[0, 0, 0])


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    "asked", [{"size": 0}, {"size": 2.5}, {"size": True}, {"size": 2, "seed": -1}]
)
def test_batches_that_cannot_be_are_refused(asked):
    with pytest.raises(CircuitError, match=r"(size|seed) is .*expected a whole number ≥ "):
        made().batches(**asked)


# Alike (case 9)


def test_pairs_by_hand_that_are_alike_are_warned_of_once(as_users_call):
    clean = torch.rand(3, 1, 4, 4)
    with pytest.warns(UserWarning, match="^3 of 3 corrupt images equal their clean ones") as said:
        pairs = Pairs(clean=clean, corrupt=clean.clone())
    assert [one.filename for one in said] == [__file__]
    assert len(pairs.to(torch.float64).subset([0, 1])) == 2
    corrupt = clean.clone()
    corrupt[1] += 1
    with pytest.warns(UserWarning, match="^2 of 3 corrupt images equal"):
        Pairs(clean=clean, corrupt=corrupt)
    images = ImageSet(torch.zeros(4, 1, 4, 4), torch.arange(4) % 2, ("a", "b"))
    with pytest.warns(UserWarning, match="^2 of 2 corrupt images equal"):
        Pairs.by_class(images, count=2)


def test_discovery_on_pairs_that_are_all_alike_says_that_nothing_is_found(as_users_call):
    vit = random_vit(shape())
    clean = torch.rand(2, *(vit.config.channels, vit.config.image_size, vit.config.image_size))
    with pytest.warns(UserWarning, match="2 of 2 corrupt images equal"):
        pairs = Pairs(clean=clean.double(), corrupt=clean.double())
    with pytest.warns(UserWarning, match="2 of 2 corrupt .* every score is 0") as said:
        assert len(cv.acdc(vit, pairs, tau=0.1)) == 0
    assert [one.filename for one in said] == [__file__]
    cv.acdc(vit, pairs, tau=0.1, ablation="zero")  # which takes no corrupt images


# Moved (case 17)


@pytest.mark.parametrize(
    ("given", "named", "expected"),
    [
        ((torch.bfloat16,), {}, torch.bfloat16),
        (("cpu", torch.float64), {}, torch.float64),
        ((torch.device("cpu"),), {}, torch.float32),
        ((None, torch.float64), {}, torch.float64),
        (("cpu",), {"dtype": torch.float16, "non_blocking": True}, torch.float16),
        ((), {"device": None, "dtype": torch.float64}, torch.float64),
        ((torch.ones(1).double(),), {}, torch.float64),
        ((), {}, torch.float32),
    ],
)
def test_pairs_are_moved_with_the_arguments_of_torch(given, named, expected):
    moved = made().to(*given, **named)
    assert moved.clean.dtype == moved.corrupt.dtype == expected
    assert moved.labels.dtype == torch.int64
    images = ImageSet(torch.arange(40.0).reshape(-1, 1, 1, 1).repeat(1, 1, 4, 4),
                      torch.arange(40) % 3, ("a", "b", "c"))  # fmt: skip
    assert Pairs.remake(moved.recipe, images).fingerprint() == moved.fingerprint()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.int8,), "can't be taken to torch.int8: images are of floating point"),
        (("nowhere",), r"can't be taken to \('nowhere'\), expected a device such as 'cuda'"),
        ((0.5,), r"can't be taken to \(0.5\), expected a device"),
    ],
)
def test_pairs_that_cannot_be_moved_so_are_told(given, message):
    with pytest.raises(CircuitError, match=message):
        made().to(*given)


# Files


@pytest.mark.parametrize(
    "pairs",
    [
        made(),
        made().to(dtype=torch.bfloat16).subset([3, 1]),
        Pairs(clean=torch.ones(2, 1, 4, 4)),
        Pairs(clean=torch.ones(2, 1, 4, 4, dtype=torch.float64), labels=torch.tensor([1, 0])),
    ],
    ids=["all", "cut and cast", "clean alone", "with labels"],
)
def test_pairs_come_back_from_their_file(tmp_path, pairs):
    path = pairs.save(tmp_path / "deep" / "pairs.safetensors")
    again = Pairs.load(path)
    assert again.fingerprint() == pairs.fingerprint()
    assert again.recipe == pairs.recipe
    assert type(again) is Pairs
    assert [p.name for p in path.parent.iterdir()] == ["pairs.safetensors"]


def test_pairs_that_share_memory_can_be_saved(tmp_path):
    images = torch.arange(64.0).reshape(4, 1, 4, 4)
    pairs = Pairs(clean=images[:2], corrupt=images[1:3].transpose(2, 3))
    again = Pairs.load(pairs.save(tmp_path / "pairs.safetensors"))
    assert again.fingerprint() == pairs.fingerprint()


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CircuitError, match="no pairs at .*there is no such file"):
        Pairs.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.99])
def test_a_file_cut_short_is_told(tmp_path, keep):
    path = made().save(tmp_path / "pairs.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CircuitError, match="not a whole file of pairs.*make the pairs again"):
        Pairs.load(path)


def test_an_altered_file_is_told(tmp_path):
    path = made().save(tmp_path / "pairs.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CircuitError, match="altered after it was saved"):
        Pairs.load(path)


def test_other_files_are_told(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"clean": torch.ones(2)}, path)
    with pytest.raises(CircuitError, match="holds no pairs: it lacks the mark"):
        Pairs.load(path)
    save_file(
        {"clean": torch.ones(2)}, path, metadata={"circuitvit.pairs": json.dumps({"schema": 9})}
    )
    with pytest.raises(CircuitError, match="pairs schema 9, this version reads 1"):
        Pairs.load(path)
    path.write_text("hello")
    with pytest.raises(CircuitError, match="not a whole file of pairs"):
        Pairs.load(path)
    with pytest.raises(CircuitError, match="is a folder, expected a file of pairs"):
        Pairs.load(tmp_path)


def test_a_folder_in_the_way_is_told(tmp_path):
    with pytest.raises(CircuitError, match="Name a file, not a folder"):
        made().save(tmp_path)
