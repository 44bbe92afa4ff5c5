import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from public_things import made
from random_models import SHAPES, image_shape, random_images, random_vit, shape
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn

import circuitvit as cv
from circuitvit.measure import (
    Accuracy,
    AcrossAblations,
    Estimate,
    Report,
    Saving,
    accuracy,
    latency,
    macs,
    parameters,
)
from circuitvit.measure.bootstrap import KnownEstimate, Spread
from circuitvit.measure.circuits.across_ablations import Comparison
from circuitvit.measure.circuits.minimality import EdgeCost
from circuitvit.measure.models.cost import counted_macs, vit_macs, vit_parameters
from circuitvit.measure.models.latency import bootstrap_interval
from circuitvit.measure.models.report import Row, changed


def test_accuracy_equals_scikit_learns():
    vit = random_vit(shape(classes=7))
    images = random_images(vit, 300)
    labels = torch.randint(7, (300,), generator=torch.Generator().manual_seed(0))
    logits = vit(images).detach().numpy()
    found = accuracy(vit, images, labels)
    assert found.top1 == accuracy_score(labels, logits.argmax(1))
    assert found.top5 == top_k_accuracy_score(labels, logits, k=5, labels=range(7))
    shares = torch.tensor(logits).softmax(-1).numpy()
    assert found.loss == pytest.approx(log_loss(labels, shares, labels=range(7)))
    assert found.images == 300


def test_top5_of_five_classes_or_fewer_is_not_reported():
    vit = random_vit(shape())
    assert accuracy(vit, random_images(vit, 4), torch.tensor([0, 1, 2, 3])).top5 is None


@pytest.mark.parametrize("name", SHAPES)
def test_macs_equal_torchs_counter(name):
    vit = random_vit(shape(name))
    assert vit_macs(vit.config) == counted_macs(vit, image_shape(vit.config))
    assert macs(vit, image_shape(vit.config)) == vit_macs(vit.config)


def test_macs_of_deit_ti_are_the_published_ones():
    config = cv.ViTConfig(width=192, heads=3, depth=12)
    assert vit_macs(config) == pytest.approx(1.26e9, rel=0.01)  # 1.3 G with attention products


def test_parameters_count_the_constants_too():
    vit = random_vit(shape("constants, quick"))
    assert parameters(vit) == sum(t.numel() for t in vit.state_dict().values())
    without = cv.ViT(shape("constants, quick", attention_constant=False))
    assert parameters(vit) - parameters(without) == 2 * vit.positions.numel()


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_of_a_shape_are_those_of_a_model_of_it(name):
    assert vit_parameters(shape(name)) == parameters(random_vit(shape(name)))


class Slow(nn.Module):
    """Works several times as long as it must."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.randn(200, 200))

    def forward(self, images):
        x = images.flatten(1)[:, :1].expand(-1, 200)
        for _ in range(self.times):
            x = (x @ self.weight).tanh()
        return x[:, :4]


def test_latency_is_a_ratio_with_an_interval_beside_a_null_test():
    models = {"one": Slow(30), "three": Slow(90).train()}
    found = latency(models, torch.randn(2, 1, 4, 4), baseline="one", batch=8, rounds=7)
    assert set(found) == {"one", "three", "null"}
    assert found["one"].ratio == found["one"].ratio_low == found["one"].ratio_high == 1
    assert found["three"].ratio > 1.5
    assert found["three"].ratio_low <= found["three"].ratio <= found["three"].ratio_high
    assert 0.5 < found["null"].ratio < 2
    assert found["three"].first_ms > 0
    assert models["three"].training


def test_the_bootstrap_interval_covers_the_median():
    values = np.random.default_rng(0).normal(3.0, 1.0, 100)
    low, high = bootstrap_interval(values, seed=0)
    assert low < np.median(values) < high
    assert 0.05 < high - low < 0.8
    assert bootstrap_interval(values, seed=0) == (low, high)


def test_measure_puts_models_side_by_side(tmp_path):
    vit = random_vit(shape(), dtype=torch.float32)
    small = cv.prune_heads(vit, {0: [0, 1], 1: [0]})
    images = random_images(vit, 20)
    labels = vit(images).argmax(-1)
    report = cv.measure(
        {"dense": vit, "small <b>": small}, images, labels, batches=(1, 4), rounds=3
    )
    assert report["dense"].accuracy.top1 == 1
    assert report["small <b>"].accuracy == accuracy(small, images, labels)
    assert report["small <b>"].macs == vit_macs(small.config)
    saved = 1 - report["small <b>"].macs / report["dense"].macs
    realised = (1 - report["small <b>"].latency[4].ratio) / saved
    assert report.realised("small <b>", 4) == pytest.approx(realised)
    assert report.realised("dense", 4) is None
    folder = report.save(tmp_path / "out")
    body = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in body["rows"]] == ["dense", "small <b>"]
    assert body["rows"][1]["latency"]["4"]["batch"] == 4
    text = (folder / "report.md").read_text()
    assert "| dense | 100.00%" in text
    assert "dense against itself" in text
    assert "&lt;b&gt;" in report._repr_html_()
    assert "<b>" not in report._repr_html_()


def test_bad_input_is_refused_with_the_remedy(as_users_call):
    vit = random_vit(shape())
    images, labels = random_images(vit, 3), torch.tensor([0, 1, 2])
    for call, message in (
        (lambda: cv.measure({}, images, labels), "no models to measure"),
        (lambda: cv.measure({"a": vit}, images, labels, baseline="b"), "'b' is not among"),
        (lambda: cv.measure({"a": vit}, images[:0], labels[:0]), "no images"),
        (lambda: cv.measure({"a": vit}, images, labels[:2]), "3 images and 2 labels"),
        (
            lambda: cv.measure({"a": vit}, images, labels + 2),
            "from 2 to 4, the model has 4 classes",
        ),
        (lambda: cv.measure({"a": vit}, images.float(), labels), "dtype torch.float32"),
        (lambda: cv.measure({"a": vit}, images, labels, rounds=1), "rounds ≥ 3"),
        (lambda: cv.measure([vit], images, labels), "no models to measure"),
        (lambda: cv.measure({"a": vit}, images / 0, labels), "logits hold NaN"),
        (lambda: cv.measure({"a": vit}, images, labels.double()), "expected whole numbers"),
        (lambda: cv.measure({"a": vit}, images, labels[:, None]), "expected whole numbers"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            call()


def test_labels_may_be_lists_or_arrays_or_short_integers(as_users_call):
    vit = random_vit(shape())
    images = random_images(vit, 3)
    expected = accuracy(vit, images, torch.tensor([0, 1, 2]))
    for labels in ([0, 1, 2], np.array([0, 1, 2]), torch.tensor([0, 1, 2], dtype=torch.int32)):
        found = cv.measure({"a": vit}, images, labels, batches=())["a"].accuracy
        assert found == expected


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.frozen, self.head = nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.Linear(16, 4)
        self.drop = nn.Dropout(0.5)
        self.frozen.eval()

    def forward(self, images):
        return self.head(self.drop(self.frozen(self.norm(images))).flatten(1))


def test_measuring_leaves_modes_statistics_and_generators_alone():
    model = Whole()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    cv.measure({"a": model}, images, torch.tensor([0, 1, 2, 3, 0, 1]), batches=(2,), rounds=3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_without_parameters_can_be_measured():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 4)

    images = torch.zeros(2, 1, 4, 4)
    report = cv.measure({"a": Constant()}, images, torch.tensor([0, 1]), batches=())
    assert (report["a"].parameters, report["a"].macs) == (0, 0)


def test_a_model_in_bf16_stands_beside_one_in_single_precision():
    vit = random_vit(shape(), dtype=torch.float32)
    half = copy.deepcopy(vit).to(torch.bfloat16)
    images = random_images(vit, 200)
    labels = vit(images).argmax(-1)
    report = cv.measure({"single": vit, "bf16": half}, images, labels, batches=(2,), rounds=3)
    assert report["single"].accuracy.top1 == 1
    assert 0.95 < report["bf16"].accuracy.top1 <= 1
    assert report["bf16"].macs == report["single"].macs
    same = cv.measure({"bf16": half}, images.bfloat16(), labels, batches=(2,), rounds=3)
    assert same["bf16"].accuracy == report["bf16"].accuracy


def test_a_model_after_torch_compile_is_measured_as_what_it_computes(as_users_call):
    vit = random_vit(shape(), dtype=torch.float32).train()
    faster = torch.compile(vit, backend="eager")
    images = random_images(vit, 20)
    labels = vit(images).argmax(-1)
    report = cv.measure({"plain": vit, "faster": faster}, images, labels, batches=(2,), rounds=3)
    assert report["faster"].accuracy == report["plain"].accuracy
    assert report["faster"].macs == report["plain"].macs == vit_macs(vit.config)
    assert report["faster"].parameters == report["plain"].parameters
    assert vit.training
    assert faster.training


MINUS_ZERO = re.compile(r"[-−]0(\.0+)?(?![\d.])")


def test_nothing_is_shown_as_minus_zero():
    """Losses of −0.0, and small differences below zero: without a sign, as text and as figures."""
    tiny = Estimate(-1e-5, -2e-4, -0.0)
    assert str(tiny) == "0.000 (0.000 to 0.000)"
    assert str(Spread(-1e-5, -1e-4, -0.0)) == "0.000 (0.000 to 0.000)"
    assert str(Estimate(-0.0006, -1.0, 0.0)) == "-0.001 (-1.000 to 0.000)"
    assert changed(99_999, 100_000) == "100 k (+0%)"
    row = Row("a", Accuracy(1.0, None, -0.0, 4), 10, 10, {})
    report = Report((row, replace(row, name="b", macs=9)), "a", {}, {"device": "x"})
    assert "| 0.000 |" in report.markdown()
    conditions = made("curve").conditions
    known = KnownEstimate(-1e-5, -2e-4, -0.0)
    cost = EdgeCost(-0.0, known)
    found = cv.Minimality(conditions, known, {"embed->m0": cost, "m0->logits": cost})
    estimates = {"zero": tiny, "mean": tiny}
    gaps = AcrossAblations(conditions, {"c": Comparison(3, "zero", {"zero": 3}, estimates, tiny)})
    none = Saving("m0", -0.0, 0, 0)
    spent = cv.Savings((none,), Saving("dense", 1.0, 5, 5), none, 1)
    scores = cv.EdgeScores(made("config"), dict.fromkeys(made("scores"), -0.0), qkv="split",
                           provenance=made("provenance"))  # fmt: skip
    for shown in (found, gaps, report, spent):
        assert not MINUS_ZERO.search(shown.markdown()), shown.markdown()
        assert not MINUS_ZERO.search(shown._repr_html_())
    assert scores.above(-0.0).provenance.selection == "above 0 by |score|"
    texts = [
        str(t) for trace in scores.top(len(scores)).figure().data for t in trace.customdata or ()
    ]
    assert any("+0  " in text for text in texts)
    assert not any("-0  " in text for text in texts)


def test_models_in_half_and_single_stand_side_by_side_on_images_of_either():
    vit = random_vit(shape(), dtype=torch.float32)
    models = {"single": vit, "half": copy.deepcopy(vit).to(torch.bfloat16)}
    images, labels = random_images(vit, 8), torch.arange(8) % 4
    for given in (images, images.to(torch.bfloat16)):
        report = cv.measure(models, given, labels, batches=())
        losses = [report[name].accuracy.loss for name in models]
        assert losses[0] == pytest.approx(losses[1], rel=0.1)
