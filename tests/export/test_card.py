import copy
import dataclasses
import re
import shlex

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from random_models import random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.measure import macs, parameters

COMMAND = shlex.join(["circuitvit", "compile", "my model", "c.json", "small"])


@pytest.fixture(scope="module")
def made():
    """A dense model, its circuit, the compiled model, and what was measured of both."""
    dense = random_vit(shape(depth=3), dtype=torch.float32)
    pairs = random_pairs(dense, 4)
    circuit = cv.acdc(dense, pairs, tau=0.02, ablation="zero")
    small = cv.compile(dense, circuit)
    assert parameters(small) < parameters(dense)
    images = random_images(dense, 50)
    labels = dense(images).argmax(-1)
    models = {"dense": dense, "third": copy.deepcopy(dense), "compiled": small}
    report = cv.measure(models, images, labels, batches=(1, 4), rounds=3)
    return dense, circuit, small, report


def written(folder, made, **options):
    dense, circuit, small, report = made
    options = {"dense": dense, "circuit": circuit, "ablation": "zero", "report": report, **options}
    path = cv.write_card(folder, small, **options)
    assert path == folder / "README.md"
    return path.read_text()


def test_the_front_matter_is_what_the_hub_reads(made, tmp_path):
    written(tmp_path, made)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name) == (None, "circuitvit")
    assert data.pipeline_tag == "image-classification"
    assert {"vision-transformer", "circuit-discovery"} <= set(data.tags)
    assert data.to_dict()["model_fingerprint"] == made[2].fingerprint()


def test_the_card_says_what_the_model_is_next_to_the_dense_one(made, tmp_path):
    dense, _, small, _ = made
    text = written(tmp_path / "small", made)
    assert "\n# small\n" in text
    assert "images of 1 × 4 × 4 (patches of 2 × 2) and 4 classes" in text
    assert f"| parameters | {parameters(small):,} | {parameters(dense):,} |" in text
    sizes = f"{macs(small, (1, 4, 4)):,} | {macs(dense, (1, 4, 4)):,}"
    assert f"| MACs for one image | {sizes} |" in text
    for block in range(3):
        heads, neurons = small.config.heads[block], small.config.mlp_width[block]
        assert f"| {block} | {heads} of 2 | {neurons} of 6 |" in text
    assert "What was removed writes nothing" in text
    assert "its mean over reference images" in written(tmp_path, made, ablation="mean")


def test_a_card_of_an_edge_circuit_says_so_and_counts_what_is_run(made, tmp_path):
    dense, circuit, _, _ = made
    small = cv.compile(dense, circuit, level="edge")
    small.save_pretrained(tmp_path)
    path = cv.write_card(
        tmp_path, small, dense=dense, circuit=circuit, ablation="zero", license="apache-2.0"
    )
    text = path.read_text()
    assert "it holds the very edges that a circuit keeps" in text
    assert "cv.CircuitViT.from_pretrained" in text
    assert "license: apache-2.0" in text
    heads = sum(len(call.heads) for block in small.plan.blocks for call in block.calls)
    assert f"| attention heads | {heads} | {sum(dense.config.heads)} |" in text
    assert cv.CircuitViT.from_pretrained(tmp_path).card == text


def test_the_card_says_which_circuit_it_comes_from(made, tmp_path):
    dense, circuit, _, _ = made
    text, origin = written(tmp_path, made), circuit.provenance
    total = cv.edge_graph(dense.config).number_of_edges()
    for row in (
        f"edges | {len(circuit):,} of {total:,}", "found by | acdc", "threshold τ | 0.02",
        "metric | kl", "ablation in the search | zero", "ablation as compiled | zero",
        "image pairs | 4", f"fingerprint of the dense model | {dense.fingerprint()}",
        f"found on the weights | {origin.model}", f"fingerprint of the image pairs | {origin.data}",
    ):  # fmt: skip
        assert f"| {row} |" in text, row
    assert "other weights" not in text
    assert "reference images |" not in text


def test_the_card_says_what_was_measured_where_and_how_the_model_was_made(made, tmp_path):
    *_, report = made
    text = written(tmp_path, made, data="digits, test split", command=COMMAND)
    row, machine = report["compiled"], report.machine
    assert "On these images: digits, test split." in text
    assert "50 images; latency as a ratio to `dense`" in text
    assert f"| {row.accuracy.top1:.2%} | {row.accuracy.loss:.3f} |" in text
    for timed in row.latency.values():
        interval = f"{timed.ratio:.2f} ({timed.ratio_low:.2f}–{timed.ratio_high:.2f})"
        assert f"| {interval} |" in text
        assert f"{timed.median_ms:.3g}" in text
    assert "dense against itself" in text
    assert f"device {machine['device']}, threads {machine['threads']}" in text
    assert "third" not in text
    assert f"\n    {COMMAND}\n" in text


def test_what_was_not_measured_is_said_to_be_so(made, tmp_path):
    text = written(tmp_path, made, report=None)
    assert "Accuracy and latency were not measured." in text
    assert "top-1" not in text
    assert "The command that made it is not known." in text
    report = dataclasses.replace(made[3], null={})
    text = written(tmp_path, made, report=report)
    assert "Latency was not measured." in text
    assert "top-1" in text


def test_a_circuit_of_other_weights_is_told(made, tmp_path):
    other = random_vit(shape(depth=3), seed=9, dtype=torch.float32)
    text = written(tmp_path, made, dense=other, report=None)
    assert "The circuit was found on **other weights** than those that were compiled." in text


def test_text_from_a_circuits_file_stays_in_its_cell(made, tmp_path):
    origin = cv.Provenance(method="<b>|\n# mine", tau=0.5)
    circuit = cv.Circuit(made[0].config, made[1].edges, provenance=origin)
    text = written(tmp_path, made, circuit=circuit)
    assert "| found by | &lt;b&gt;\\| \\# mine |" in text
    assert "metric |" not in text


def test_a_report_about_other_models_and_bad_input_are_refused(made, tmp_path, as_users_call):
    small = made[2]
    for options, message in (
        ({"row": "small"}, r"no row 'small', only \['dense', 'third', 'compiled'\]"),
        ({"row": "third"}, "the report's row 'third' is about another model"),
        ({"dense": small}, "the report's row 'dense' is about another model"),
        ({"ablation": "patch"}, "ablation is 'patch', expected one of"),
        ({"license": "mit\n---\n# <b>"}, "license is .*expected its name on the hub"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            written(tmp_path, made, **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(cv.CircuitError, match="cannot write"):
        written(tmp_path / "file", made)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_from_outside_is_markup_in_the_card(made, tmp_path):
    from rendered_markdown import elements_and_text

    outside = "<script>x</script> [a](javascript:b) `c` ![](http://d)"
    folder = tmp_path / "a<b>_c_"
    folder.mkdir()
    origin = cv.Provenance(method=outside, selection="a|b", versions={"<i>": outside})
    circuit = cv.Circuit(made[0].config, made[1].edges, provenance=origin)
    command = f"{outside}\n\n# {outside}\n---"
    text = written(folder, made, circuit=circuit, data=outside, command=command)
    body = text.split("---\n", 2)[2]
    elements, shown = elements_and_text(body)
    assert elements <= {"h2", "strong"}
    assert shown.count(outside) == 5
    assert "a<b>_c_" in shown


@pytest.mark.parametrize("level", ["unit", "edge"])
def test_the_cards_snippet_runs_in_the_saved_folder(made, tmp_path, level, monkeypatch, capsys):
    dense, circuit, _, _ = made
    small = cv.compile(dense, circuit, level=level)
    small.preprocessing = cv.Preprocessing(mean=0.3, std=0.2, crop=0.5, class_names=tuple("ab|<"))
    small.save_pretrained(tmp_path / "small")
    path = cv.write_card(tmp_path / "small", small, dense=dense, circuit=circuit, ablation="zero")
    text = path.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    picture = Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3))
    picture.save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("this folder, or its name on the hub", "small"), {})
    assert capsys.readouterr().out.rstrip() == repr(small.predict("picture.png"))
    assert "resizes the short side to 8 pixels (bicubic), cuts out the middle 4 × 4" in text
    assert "normalises them (mean 0.3; deviation 0.2). Classes: a, b, \\|, &lt;." in text


def test_the_card_says_that_normalisation_is_not_known_and_names_few_classes(made, tmp_path):
    assert "How its images were normalised is not known" in written(tmp_path, made)
    small = copy.deepcopy(made[2])
    small.history = ()
    text = cv.write_card(
        tmp_path, small, dense=made[0], circuit=made[1], ablation="zero"
    ).read_text()
    assert "What was done to it" not in text
    many = random_vit(shape(depth=3, classes=30), dtype=torch.float32)
    many.preprocessing = cv.Preprocessing(class_names=tuple(f"c{n}" for n in range(30)))
    circuit = cv.Circuit(many.config, made[1].edges)
    text = cv.write_card(tmp_path, many, dense=many, circuit=circuit, ablation="zero").read_text()
    assert "c18, c19 and 10 more." in text
