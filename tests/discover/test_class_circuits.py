"""Circuits of several classes in one call, against one call for each."""

import json
from functools import partial

import pytest
import torch
from random_models import random_images, random_vit, shape

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.files.records import CLASS_CIRCUITS, SEARCH
from circuitvit.images import ImageSet, Pairs

NAMES = ("cat", "dog", "a/b", "Cat")


def vit_and_images(count=160):
    """A model of all four classes, and images of which it gets one in four wrong."""
    vit = random_vit(shape(), dtype=torch.float32)
    images = random_images(vit, count)
    with torch.no_grad():
        vit.head.bias -= vit(images).mean(dim=0)
        predicted = vit(images).argmax(dim=-1)
    labels = torch.where(torch.arange(count) % 4 == 0, (predicted + 1) % 4, predicted)
    return vit, ImageSet(images, labels, NAMES)


VIT, IMAGES = vit_and_images()
FAST = {"find": "eap", "edges": 9, "count": 6}


def test_every_class_has_the_circuit_that_acdc_finds_for_it():
    circuits = cv.class_circuits(VIT, IMAGES, tau=0.05, count=6, seed=2)
    assert list(circuits) == list(NAMES)
    for name, circuit in circuits.items():
        pairs = Pairs.by_class(IMAGES, clean=name, count=6, seed=2)
        alone = cv.acdc(VIT, pairs, tau=0.05)
        assert circuit == alone
        assert circuit.provenance == alone.provenance
    assert len({circuit.edges for circuit in circuits.values()}) > 1


def test_classes_pairs_and_lists_of_them_can_be_asked_for():
    def named(classes):
        return list(cv.class_circuits(VIT, IMAGES, classes=classes, **FAST))

    assert named("dog") == named(1) == ["dog"]
    assert named(("cat", "dog")) == named((0, 1)) == ["cat → dog"]
    assert named(["cat", "dog"]) == ["cat", "dog"]
    assert named([("dog", "cat"), "Cat", ("cat", "dog")]) == ["dog → cat", "Cat", "cat → dog"]
    assert named(name for name in ("a/b",)) == ["a/b"]


def test_a_pair_of_classes_has_images_of_both():
    circuits = cv.class_circuits(VIT, IMAGES, classes=("cat", "dog"), **FAST)
    (pairs,) = circuits.pairs(IMAGES).values()
    assert set(pairs.labels.tolist()) == {0}
    assert set(pairs.corrupt_labels.tolist()) == {1}
    assert pairs.fingerprint() == circuits["cat → dog"].provenance.data


@pytest.mark.parametrize(
    "options",
    [
        {"find": "eap", "edges": 7},
        {"find": "eap-ig-inputs", "edges": 7, "metric": "kl"},
        {"find": "random", "edges": 5, "qkv": "joint"},
        {"find": "eap", "edges": 2, "level": "node"},
        {"find": "exact", "edges": 7, "ablation": "zero", "metric": "cross_entropy"},
    ],
)
def test_methods_of_eap_take_the_edges_that_score_best(options):
    circuit = cv.class_circuits(VIT, IMAGES, classes="dog", count=5, **options)["dog"]
    given = {"metric": "logit_difference", **options}
    count = given.pop("edges")
    method = given.pop("find")
    pairs = Pairs.by_class(IMAGES, clean="dog", count=5)
    alone = cv.eap(VIT, pairs, method=method, **given).top(count)
    assert circuit == alone
    assert circuit.provenance == alone.provenance


def test_a_method_of_ones_own_is_given_the_pairs():
    seen = {}

    def first_edges(vit, pairs):
        seen[len(seen)] = pairs.fingerprint()
        return cv.Circuit(vit.config, ["embed->logits"])

    circuits = cv.class_circuits(VIT, IMAGES, find=first_edges, count=4)
    for place, (name, circuit) in enumerate(circuits.items()):
        pairs = Pairs.by_class(IMAGES, clean=name, count=4) if name != "a/b" else None
        assert circuit.edges == ("embed->logits",)
        assert circuit.provenance.data == seen[place]
        assert pairs is None or circuit.provenance.pairs == pairs.recipe
    assert circuits.settings["find"] == "first_edges"


def test_without_a_count_a_class_gives_64_pairs_or_all_it_has():
    found, own = list[int](), [int((IMAGES.labels == label).sum()) for label in range(4)]

    def first_edge(vit, pairs):
        found.append(len(pairs))
        return cv.Circuit(vit.config, ["embed->logits"])

    circuits = cv.class_circuits(VIT, IMAGES, find=first_edge)
    assert found == [min(64, count) for count in own]
    assert circuits.settings["count"] == 64


def test_only_right_images_are_used_if_asked_for():
    circuits = cv.class_circuits(VIT, IMAGES, right_for=VIT, **FAST)
    for pairs in circuits.pairs(IMAGES).values():
        assert torch.equal(VIT(pairs.clean).argmax(dim=-1), pairs.labels)
        assert torch.equal(VIT(pairs.corrupt).argmax(dim=-1), pairs.corrupt_labels)
    name, circuit = "dog", cv.class_circuits(VIT, IMAGES, classes="dog", right_for=VIT, **FAST)
    assert circuit[name].provenance.pairs == circuits[name].provenance.pairs


def test_mean_ablation_takes_its_reference():
    reference = IMAGES.images[:20]
    found = cv.class_circuits(
        VIT, IMAGES, classes="cat", tau=0.05, count=4, ablation="mean", reference=reference
    )
    pairs = Pairs.by_class(IMAGES, clean="cat", count=4)
    assert found["cat"] == cv.acdc(VIT, pairs, tau=0.05, ablation="mean", reference=reference)


# What they have in common, and their folder


def test_circuits_by_class_tell_what_they_have_in_common():
    circuits = cv.class_circuits(VIT, IMAGES, **FAST)
    assert circuits.overlap() == cv.Overlap.of(dict(circuits))
    everywhere = set.intersection(*(set(circuit.edges) for circuit in circuits.values()))
    assert set(circuits.shared().edges) == everywhere
    assert set(circuits.shared(0.25).edges) == set().union(*circuits.values())
    assert "<table>" in circuits._repr_html_()
    assert repr(circuits) == "ClassCircuits(4 circuits of 9 to 9 edges)"


def test_circuits_by_class_come_back_from_their_folder(tmp_path):
    circuits = cv.class_circuits(VIT, IMAGES, **FAST)
    circuits.save(tmp_path / "found")
    again = cv.ClassCircuits.load(tmp_path / "found")
    assert dict(again) == dict(circuits)
    assert list(again) == list(circuits)
    assert [c.provenance for c in again.values()] == [c.provenance for c in circuits.values()]
    assert dict(again.settings) == dict(circuits.settings)
    names = {str(p.relative_to(tmp_path / "found")) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "classes.json", "overlap.json", "overlap.md", "overlap.html", "cat/circuit.json",
        "dog/circuit.json", "a-b/circuit.json", "Cat-2/circuit.json",
    }  # fmt: skip


def test_a_folder_is_written_anew(tmp_path):
    cv.class_circuits(VIT, IMAGES, **FAST).save(tmp_path)
    cv.class_circuits(VIT, IMAGES, classes=("cat", "dog"), **FAST).save(tmp_path)
    assert list(cv.ClassCircuits.load(tmp_path)) == ["cat → dog"]


class Counting:
    """Finds the same circuit for all, and counts; fails at the class it is told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls, self.fail_at = 0, fail_at

    def __repr__(self) -> str:
        return "Counting()"  # whenever it fails, what it finds is the same

    def __call__(self, vit, pairs):
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        return cv.eap(vit, pairs).top(5)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    whole = cv.class_circuits(VIT, IMAGES, find=Counting(), count=5)
    killed = Counting(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        cv.class_circuits(VIT, IMAGES, find=killed, count=5, resume=tmp_path)
    assert list(cv.ClassCircuits.load(tmp_path)) == ["cat", "dog"]
    resumed = Counting()
    found = cv.class_circuits(VIT, IMAGES, find=resumed, count=5, resume=tmp_path)
    assert resumed.calls == 2
    assert dict(found) == dict(whole)
    assert [c.provenance for c in found.values()] == [c.provenance for c in whole.values()]


def own_metric(logits, pairs):
    return -logits[:, 0]


def best(vit, pairs, count=3):
    return cv.eap(vit, pairs).top(count)


def test_callables_of_one_name_are_not_mistaken_for_one_another(tmp_path):
    options = {"classes": "cat", "count": 4, "resume": tmp_path}
    for find in (lambda vit, pairs: best(vit, pairs), lambda vit, pairs: best(vit, pairs, 5)):
        with pytest.raises(CircuitError, match=r"find is .*<lambda>.*leave resume out"):
            cv.class_circuits(VIT, IMAGES, find=find, **options)
    with pytest.raises(CircuitError, match=r"metric is .*<lambda>, which resume can't tell"):
        cv.class_circuits(VIT, IMAGES, metric=lambda logits, pairs: -logits[:, 1], **options)
    assert not list(tmp_path.iterdir())
    found = cv.class_circuits(VIT, IMAGES, find=best, **options)
    assert found.settings["find"] == "test_class_circuits.best"
    assert dict(cv.class_circuits(VIT, IMAGES, find=best, **options)) == dict(found)
    with pytest.raises(CircuitError, match=r"best' there, 'partial\(.*best, count=5\)' here"):
        cv.class_circuits(VIT, IMAGES, find=partial(best, count=5), **options)
    options["resume"] = tmp_path / "metrics"
    cv.class_circuits(VIT, IMAGES, metric=own_metric, find="eap", edges=3, **options)
    with pytest.raises(CircuitError, match=r"metric 'test_class_circuits.own_metric' there"):
        cv.class_circuits(VIT, IMAGES, metric="probability", find="eap", edges=3, **options)


def test_more_classes_can_be_added_to_a_folder(tmp_path):
    cv.class_circuits(VIT, IMAGES, classes="cat", resume=tmp_path, **FAST)
    found = cv.class_circuits(VIT, IMAGES, classes=[("cat", "dog")], resume=tmp_path, **FAST)
    assert list(found) == ["cat → dog"]
    assert list(cv.ClassCircuits.load(tmp_path)) == ["cat", "cat → dog"]


def test_a_killed_acdc_goes_on_from_its_notes(tmp_path):
    options = {"classes": "dog", "tau": 0.05, "count": 5}
    found = cv.class_circuits(VIT, IMAGES, resume=tmp_path / "a", **options)
    assert not (tmp_path / "a" / "dog" / "search.json").exists()
    pairs = Pairs.by_class(IMAGES, clean="dog", count=5)
    notes = tmp_path / "b" / "dog" / "search.json"
    cv.acdc(VIT, pairs, tau=0.05, resume=notes)
    body = SEARCH.read(notes)
    SEARCH.write(notes, {**body, "measured": body["measured"][:10]})
    again = cv.class_circuits(VIT, IMAGES, resume=tmp_path / "b", **options)
    assert again["dog"] == found["dog"]
    assert not notes.exists()


def test_circuits_found_on_other_pairs_or_weights_are_found_again(tmp_path):
    first = cv.class_circuits(VIT, IMAGES, classes="cat", resume=tmp_path, **FAST)
    cv.class_circuits(VIT, IMAGES, classes="dog", **FAST)["dog"].save(
        tmp_path / "cat" / "circuit.json"
    )
    again = cv.class_circuits(VIT, IMAGES, classes="cat", resume=tmp_path, **FAST)
    assert again["cat"] == first["cat"]
    assert again["cat"].provenance == first["cat"].provenance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 7}, "count 6 there, 7 here"),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"edges": 10}, "edges 9 there, 10 here"),
        ({"right_for": VIT}, "right_for None there, 'ViT"),
        ({"find": "eap-ig-inputs", "metric": "kl"}, "find 'eap' there.*metric 'logit_difference'"),
    ],
)
def test_a_folder_of_other_settings_is_refused(tmp_path, changes, message):
    cv.class_circuits(VIT, IMAGES, classes="cat", resume=tmp_path, **FAST)
    with pytest.raises(CircuitError, match=f"found with other settings.*{message}"):
        cv.class_circuits(VIT, IMAGES, classes="cat", resume=tmp_path, **{**FAST, **changes})


def test_folders_that_hold_no_circuits_are_told(tmp_path):
    with pytest.raises(CircuitError, match="no list of circuits by class"):
        cv.ClassCircuits.load(tmp_path)
    (tmp_path / "classes.json").write_text("[]")
    with pytest.raises(CircuitError, match="is not a list of circuits by class"):
        cv.ClassCircuits.load(tmp_path)
    body = {"format": "circuitvit.class_circuits", "schema": 1, "settings": {}, "circuits": {}}
    (tmp_path / "classes.json").write_text(json.dumps(body))
    with pytest.raises(CircuitError, match="holds no circuits yet"):
        cv.ClassCircuits.load(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({**body, "circuits": [3]}))
    with pytest.raises(CircuitError, match="damaged or altered"):
        cv.ClassCircuits.load(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({**body, "circuits": {"cat": "c.json"}}))
    with pytest.raises(CircuitError, match="no circuit at"):
        cv.ClassCircuits.load(tmp_path)


# What is refused


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({"classes": ["cat", "dog", 0]}, ["0: 'cat' is asked for twice"]),
        ({"classes": ["zebra", "cat"]}, ["'zebra'", "no class here", "cat, dog, a/b, Cat"]),
        ({"classes": ("cat", "cat")}, ["both the class 'cat'"]),
        ({"classes": ("cat", "dog", "a/b")}, ["a tuple of 3 is no pair", "Give a list"]),
        ({"classes": []}, ["no class is asked for"]),
        ({"classes": 2.5}, ["the class is 2.5, which is no class"]),
        ({"classes": ["x", "y"]}, ["'x'", "'y'"]),
        ({"count": 500}, ["'cat': 500 pairs were asked for", "'Cat': 500 pairs"]),
        ({"classes": "cat", "right_for": torch.zeros(160) > 1}, ["gets only 0 right (cat: 0)"]),
        ({"find": "moon"}, ["find is 'moon', expected 'acdc'"]),
        ({"edges": None}, ["edges is None", "how many of the edges that 'eap' scores best"]),
        ({"find": "acdc"}, ["edges is for methods of eap"]),
        ({"ablation": "mean"}, ["needs reference images"]),
        ({"find": lambda vit, pairs: 3}, ["edges is for methods of eap"]),
        ({"find": cv.acdc, "metric": "kl", "edges": None}, ["a callable as find decides"]),
        ({"find": lambda vit, pairs: 3, "edges": None}, ["expected a circuitvit.Circuit, got int"]),
    ],
)
def test_what_cannot_be_found_is_refused(asked, messages):
    with pytest.raises(CircuitError) as caught:
        cv.class_circuits(VIT, IMAGES, **{**FAST, **asked})
    for message in messages:
        assert message in str(caught.value)


def test_a_class_without_images_is_named_and_can_be_left_out():
    images = IMAGES.subset(IMAGES.labels != 1)
    with pytest.raises(CircuitError) as caught:
        cv.class_circuits(VIT, images, **FAST)
    assert "'dog': the class is 'dog', but these images hold none of that" in str(caught.value)
    assert "'a/b'" not in str(caught.value)
    assert list(cv.class_circuits(VIT, images, classes=["cat", "a/b"], **FAST)) == ["cat", "a/b"]


@pytest.mark.usefixtures("as_users_call")
def test_the_model_and_the_images_are_checked():
    with pytest.raises(CircuitError, match=r"expected a circuitvit.ViT, got Linear"):
        cv.class_circuits(torch.nn.Linear(2, 2), IMAGES, **FAST)
    with pytest.raises(CircuitError, match="images are a Tensor, expected an ImageSet"):
        cv.class_circuits(VIT, IMAGES.images, **FAST)


def test_two_classes_of_one_name_are_told_apart():
    images = ImageSet(IMAGES.images, IMAGES.labels, ("crane", "dog", "crane", "cat"))
    circuits = cv.class_circuits(VIT, images, **FAST)
    assert list(circuits) == ["crane (0)", "dog", "crane (2)", "cat"]
    pairs = circuits.pairs(images)
    assert set(pairs["crane (2)"].labels.tolist()) == {2}


@pytest.mark.parametrize("place", ["*", "thesis.tex", "*/circuit.json", "../thesis.tex"])
def test_a_hostile_index_costs_no_ones_files(tmp_path, place):
    (tmp_path / "c").mkdir()
    for name in ("c/thesis.tex", "thesis.tex", "c/circuit.json"):
        (tmp_path / name).write_text("mine")
    CLASS_CIRCUITS.write(
        tmp_path / "c" / "classes.json", {"settings": {}, "circuits": {"a": place}}
    )
    circuit = cv.Circuit(VIT.config, ["embed->logits"])
    cv.ClassCircuits({"b": circuit}).save(tmp_path / "c")
    assert cv.ClassCircuits.load(tmp_path / "c")["b"] == circuit
    for name in ("c/thesis.tex", "thesis.tex", "c/circuit.json"):
        assert (tmp_path / name).read_text() == "mine"


def test_seeds_of_128_bits_survive_saving(tmp_path):
    seed = 2**127 + 1
    pairs = Pairs.by_class(IMAGES, clean="dog", count=4, seed=seed)
    pairs.save(tmp_path / "pairs")
    assert cv.Pairs.load(tmp_path / "pairs").recipe == pairs.recipe
    circuit = cv.eap(VIT, pairs, method="random", seed=seed % 2**63).top(5)
    circuit.save(tmp_path / "c.json")
    assert cv.Circuit.load(tmp_path / "c.json").provenance == circuit.provenance
