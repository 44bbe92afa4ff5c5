"""Names by which callables are known again; what has none is refused with resume."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.discover.acdc.resume import checked_name, lasting_name
from circuitvit.errors import CircuitError


def named(logits, pairs, place=0):
    return -logits[:, place]


@dataclass(frozen=True)
class Told:
    place: int

    def __call__(self, logits, pairs):
        return -logits[:, self.place]

    def method(self, logits, pairs):
        return self(logits, pairs)

    @staticmethod
    def fixed(logits, pairs):
        return -logits[:, 0]


class Silent(Told):
    __repr__ = object.__repr__


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("kl", "kl"),
        (named, "test_callable_names.named"),
        (partial(named, place=2), "partial(test_callable_names.named, place=2)"),
        (partial(named, (1, "a"), None), "partial(test_callable_names.named, (1, 'a'), None)"),
        (partial(partial(named, place=2), named), "partial(test_callable_names.named, "
         "test_callable_names.named, place=2)"),
        (Told(3), "test_callable_names.Told(place=3)"),
        (Told(3).method, "test_callable_names.Told(place=3).method"),
        (Told.fixed, "test_callable_names.Told.fixed"),
        (cv.acdc, "circuitvit.discover.acdc.acdc.acdc"),
    ],
)  # fmt: skip
def test_what_can_be_known_again_has_a_name_of_its_own(value, name):
    assert lasting_name(value) == checked_name(value, "find") == name


def test_what_cannot_be_known_again_is_refused():
    def local(logits, pairs):
        return logits

    for value in (
        local, lambda logits, pairs: logits, partial(local), partial(named, torch.ones(2)),
        partial(named, [local]), Silent(3), Silent(3).method, torch.nn.Linear(2, 2),
    ):  # fmt: skip
        assert lasting_name(value) is None
        with pytest.raises(CircuitError, match=r"^metric is .*which resume can't tell from others"):
            checked_name(value, "metric")


def test_acdc_takes_no_other_metrics_notes_for_its_own(tmp_path):
    vit = random_vit(shape())
    pairs, file = random_pairs(vit, 4), tmp_path / "notes.json"
    for place in (0, 1):
        with pytest.raises(CircuitError, match=r"metric is .*<lambda>, which resume can't tell"):
            cv.acdc(vit, pairs, metric=lambda x, _, place=place: -x[:, place], resume=file)
    assert not file.exists()
    alone = cv.acdc(vit, pairs, tau=0.1, metric=partial(named, place=1))
    assert cv.acdc(vit, pairs, tau=0.1, metric=partial(named, place=1), resume=file) == alone
    with pytest.raises(CircuitError, match=r"metric 'partial\(.*place=1\)' there, .*place=2\)'"):
        cv.acdc(vit, pairs, tau=0.1, metric=partial(named, place=2), resume=file)
