import json

import numpy as np
import pytest
import torch
from evaluated_models import IMAGES, LABELS, Told, told, untimed
from random_models import random_images, random_vit, shape
from torch import nn

import circuitvit as cv
from circuitvit.measure import accuracy, latency, macs, parameters


@pytest.fixture(scope="module")
def evaluation():
    vit = random_vit(shape(), dtype=torch.float32)
    small = cv.prune_heads(vit, {0: [0, 1], 1: [0]})
    images = random_images(vit, 60)
    labels = torch.arange(60) % 4
    models = {"dense": vit, "small <b>|": small}
    names = ["cat", "dog", "<i>emu|", "fox"]
    found = cv.evaluate(models, images, labels, class_names=names, batches=(1, 4), rounds=3)
    return found, models, images, labels


def test_figures_are_those_of_the_measuring_functions(evaluation):
    found, models, images, labels = evaluation
    for name, model in models.items():
        row = found.report[name]
        assert row.accuracy == found[name].accuracy == accuracy(model, images, labels)
        assert (row.parameters, row.macs) == (parameters(model), macs(model, (1, 4, 4)))
        assert found.gflops(name) == pytest.approx(2 * row.macs / 1e9)
        ms = found.report["dense"].latency[4].median_ms * row.latency[4].ratio
        assert found.cost(name) == ms
        assert found.images_per_second(name) == pytest.approx(4 / ms * 1000)
        assert found.efficiency(name) == pytest.approx(row.accuracy.top1 / ms)
    assert set(latency(models, images, baseline="dense", batch=4, rounds=3)) == {*models, "null"}
    assert found.batch == 4
    assert found.report.baseline == "dense"


def dominated(points, place):
    mine = points[place]
    return any(
        (a >= mine[0] and c < mine[1]) or (a > mine[0] and c <= mine[1])
        for other, (a, c) in enumerate(points)
        if other != place
    )


def test_the_pareto_set_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(5):
        rights, works = rng.integers(10, 20, 7), rng.integers(1, 6, 7)
        models = {
            f"m{i}": told(int(right), work=int(work))
            for i, (right, work) in enumerate(zip(rights, works, strict=True))
        }
        found = untimed(models)
        expected = {
            f"m{i}"
            for i in range(7)
            if not dominated(list(zip(rights, works, strict=True)), i)
        }  # fmt: skip
        assert set(found.pareto()) == expected
        assert list(found.pareto()) == sorted(found.pareto(), key=found.cost)
        assert all(bool(found.dominators(name)) != (name in expected) for name in models)
        assert {one.model for one in found.advice().recommendations} <= expected


def test_of_two_with_the_same_figures_neither_dominates():
    found = untimed({"a": told(30), "b": told(30, offset=5), "c": told(29)})
    assert found.pareto() == ("a", "b")
    assert found.dominators("c") == ("a", "b")


def test_differences_are_paired_over_images():
    found = untimed({"a": told(30), "b": told(26), "c": told(26, offset=20)})
    nested, apart = found.difference("a", "b"), found.difference("a", "c")
    assert nested.value == apart.value == pytest.approx(0.1)
    assert nested.low > 0  # all that b gets right, a does
    assert apart.low < 0 < apart.high
    swapped = found.difference("c", "a")
    assert (swapped.low, swapped.high) == pytest.approx((-apart.high, -apart.low))


def test_advice_names_a_model_for_each_aim_with_its_reasons():
    models = {"big": told(38, work=8), "middle": told(37, work=4), "tiny": told(20)}
    advice = untimed(models | {"bad": told(19, work=9)}).advice(give=0.05)
    aims = {one.aim: one.model for one in advice.recommendations}
    assert aims == {"Accuracy first": "middle", "Balanced": "middle", "GFLOPs first": "tiny"}
    assert "big has the highest, 95.0%" in advice["Accuracy first"].reasons[0]
    assert "middle is not told apart" in " ".join(advice["Accuracy first"].reasons)
    assert "gives up 2.5 points" in advice["Balanced"].reasons[0]
    assert "50% of its GFLOPs" in advice["Balanced"].reasons[0]
    assert "loses 45 points" in " ".join(advice["GFLOPs first"].reasons)
    assert len(advice.left_out) == 1
    assert advice.left_out[0].startswith("bad is left out: tiny is at least as good")
    assert "Accuracy first: middle." in str(advice)


def test_advice_says_that_a_lead_is_no_chance_and_when_nothing_is_to_be_chosen():
    clear = untimed({"a": told(38), "b": told(10)}).advice()
    assert "more than chance explains" in " ".join(clear["Accuracy first"].reasons)
    alone = untimed({"a": told(38)}).advice()
    assert "the only model" in alone["Accuracy first"].reasons[0]
    assert "costs less" in alone["Balanced"].reasons[0]
    assert alone.left_out == ()


def test_advice_speaks_of_calibration_and_of_models_that_do_nothing():
    models = {
        "bold": told(20, sure=9.0),
        "shy": told(40, work=2, sure=0.5),
        "blind": told(9, work=3),
    }
    found = untimed(models)
    reasons = {one.model: " ".join(one.reasons) for one in found.advice().recommendations}
    assert "over-confident: 100.0% sure" in reasons["bold"]
    two = torch.cat([told(10).logits[:20] * 3, told(40).logits[20:] * 0.1])
    mixed = untimed({"mixed": Told(two)}).advice()
    assert "for some images and under" in " ".join(mixed["Balanced"].reasons)
    assert "under-confident" in reasons["shy"]
    assert "by a temperature" in reasons["shy"]
    fit = untimed({"fit": told(40, sure=9.0)}).advice()
    assert "can be read as probabilities" in " ".join(fit["Balanced"].reasons)
    blind = untimed({"blind": told(10)}).advice()
    assert "most frequent class (25.0%)" in " ".join(blind["Balanced"].reasons)


def cells_in(line):
    return line.replace(r"\|", "").count("|") - 1


def test_it_is_saved_as_json_markdown_and_a_page(evaluation, tmp_path):
    found = evaluation[0]
    folder = found.save(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == [
        "figure.html",
        "report.json",
        "report.md",
    ]
    body = json.loads((folder / "report.json").read_text())
    row = body["rows"][1]
    assert row["name"] == "small <b>|"
    assert row["f1"] == found["small <b>|"].f1
    assert row["accuracy"]["top1"] == found.top1("small <b>|")
    assert row["confidence_gap"] == found["small <b>|"].gap
    assert row["images_per_second"]["4"] == found.images_per_second("small <b>|")
    assert body["pareto"] == list(found.pareto())
    assert body["class_names"][0] == "cat"
    text = (folder / "report.md").read_text()
    assert "- **Accuracy first: " in text
    assert r"small &lt;b&gt;\|" in text
    assert r"&lt;i&gt;emu\|" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len([line for line in tables if set(line) <= set("|- ")]) == 3
    for line, before in zip(tables[1:], tables, strict=False):
        if f"\n\n{line}\n" not in text:  # a header follows an empty line
            assert cells_in(line) == cells_in(before)
    assert "&lt;b&gt;" in found._repr_html_()
    assert "<b>" not in found._repr_html_()


def test_the_figure_has_six_panels_with_the_figures_in_them(evaluation):
    found = evaluation[0]
    figure = found.figure()
    titles = [note.text for note in figure.layout.annotations]
    assert len(titles) == 6
    bars = figure.data[0]
    assert list(bars.x) == [found.top1(name) for name in found.names]
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [list(row) for row in heat.z] == [list(found[name].per_class) for name in found.names]
    legend = [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]
    assert len(legend) == 2
    assert legend[1].startswith("small &lt;b&gt;|, ECE ")
    assert "<b>" not in figure.to_json().replace("\\u003cb\\u003e", "<b>")


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (12, 25), (13, 20)])
def test_the_figure_can_be_drawn_for_few_and_many(count, classes):
    models = {
        f"a rather long name of a model, number {i}": told(40 - i, 40, classes)
        for i in range(count)
    }
    found = cv.evaluate(models, IMAGES, torch.arange(40) % classes, batches=())
    figure = found.figure()
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    assert np.shape(heat.z) == (count, classes)
    assert len(set(figure.layout.yaxis.ticktext)) == count
    assert all("…" in text for text in figure.layout.yaxis.ticktext)
    assert "Advice" in found.markdown()


def test_class_names_come_from_the_models_that_know_them():
    vit = random_vit(shape(), dtype=torch.float32)
    vit.preprocessing = cv.Preprocessing(mean=(0.5,), std=(0.5,), class_names=("a", "b", "c", "d"))
    images = random_images(vit, 4)
    assert cv.evaluate({"v": vit}, images, LABELS[:4], batches=()).class_names == (
        "a",
        "b",
        "c",
        "d",
    )
    assert untimed({"t": told(3)}).class_names == ("0", "1", "2", "3")


def test_bad_input_is_refused_with_the_remedy(as_users_call):
    vit, five = random_vit(shape()), random_vit(shape(classes=5))
    big = random_vit(shape(image_size=8))
    images, labels = random_images(vit, 3), torch.tensor([0, 1, 2])
    for models, options, message in (
        ({}, {}, "no models to measure"),
        ({"a": vit}, {"baseline": "b"}, "the baseline 'b' is not among the models"),
        ({"a": vit, "null": vit}, {}, "called 'null'"),
        ({"a": vit, "five": five}, {}, "different numbers of classes apart: a 4, five 5"),
        ({"a": vit, "big": big}, {}, "big is of images of 1 × 8 × 8, these are 1 × 4 × 4"),
        ({"a": vit, "x": nn.Identity()}, {}, "x gives a Tensor, expected logits"),
        ({"a": vit, "x": nn.Linear(9, 2).double()}, {}, "x can't be given these images"),
        ({"a": "model"}, {}, "a is a str, expected a module"),
        ({"a": vit}, {"batches": 8}, "batches is 8 and rounds 15, expected whole"),
        ({"a": vit}, {"batches": (0, 1)}, "expected whole numbers ≥ 1"),
        ({"a": vit}, {"batches": (1,), "rounds": 2}, "rounds ≥ 3"),
        ({"a": vit}, {"class_names": ["a"]}, "got 1 class names"),
        ({"a": vit}, {"class_names": "abcd"}, "got 4 class names"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            cv.evaluate(models, images, labels, **{"batches": (), **options})
    with pytest.raises(cv.CircuitError, match="big is of images.*five 5"):
        cv.evaluate({"a": vit, "five": five, "big": big}, images, labels)
    for given, message in (
        (labels + 2, "labels are out of range: they go from 2 to 4"),
        (labels[:2], "3 images and 2"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            cv.evaluate({"a": vit}, images, given)
    with pytest.raises(cv.CircuitError, match="a: the logits hold NaN"):
        cv.evaluate({"a": vit}, images / 0, labels)
    with pytest.raises(cv.CircuitError, match="no images"):
        cv.evaluate({"a": vit}, images[:0], labels[:0])
    found = untimed({"a": told(3)})
    with pytest.raises(cv.CircuitError, match="give is 2"):
        found.advice(give=2)
    with pytest.raises(cv.CircuitError, match="batch size 3 was not timed"):
        found.images_per_second("a", 3)


def test_class_names_of_models_that_disagree_are_told():
    vits = {name: random_vit(shape()) for name in ("one", "other")}
    images, labels = random_images(vits["one"], 8), torch.arange(8) % 4

    def named(name, names):
        vits[name].preprocessing = cv.Preprocessing(class_names=tuple(names))

    named("one", "abcd")
    assert cv.evaluate(vits, images, labels, batches=()).class_names == tuple("abcd")
    named("other", "wxyz")
    with pytest.warns(UserWarning, match="one and other call the classes otherwise"):
        assert cv.evaluate(vits, images, labels, batches=()).class_names == tuple("abcd")
    assert cv.evaluate(vits, images, labels, batches=(), class_names=["k", "l", "m", "n"])
    named("other", "dabc")
    with pytest.raises(cv.CircuitError, match="one and other have the same classes in another"):
        cv.evaluate(vits, images, labels, batches=())
    named("other", "abcde")
    with pytest.warns(UserWarning, match="other knows 5 class names for 4 classes"):
        cv.evaluate(vits, images, labels, batches=())
