import json
from dataclasses import replace

import pytest
from command_line import run, run_installed
from PIL import Image
from random_models import random_vit, shape

import circuitvit as cv
from circuitvit.measure.models.cost import parameters, vit_macs


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A small model trained on a few digits, as a user would make it."""
    folder = tmp_path_factory.mktemp("workplace")
    done = run(
        "train", "model", "--width", 16, "--depth", 2, "--heads", 2, "--mlp-width", 16,
        "--epochs", 30, "--limit", 200, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Wrote model. Test accuracy" in done.stdout
    cv.Circuit(cv.load_vit(folder / "model").config, []).save(folder / "bare.json")
    for index in range(20):
        path = folder / "two" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), index).save(path)
    return folder


def test_the_help_lists_the_commands_and_each_explains_itself():
    done = run_installed("--help")
    assert done.returncode == 0
    for command in ("demo", "train", "discover", "compile", "evaluate", "draw", "export"):
        assert command in done.stdout
        own = run(command, "--help")
        assert own.returncode == 0
        assert own.stdout.count("\n") > 8, command


def test_from_a_trained_model_to_a_circuit_a_page_and_a_smaller_model(workplace):
    done = run_installed(
        "discover", "model", "c.json", "--tau", 0.0005, "--pairs", 16, cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    circuit = cv.Circuit.load(workplace / "c.json")
    assert circuit.provenance.tau == 0.0005
    assert f"Wrote c.json: {circuit!r}" in done.stdout

    done = run_installed("draw", "c.json", "page.html", "--title", "Mine", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "<title>Mine" in (workplace / "page.html").read_text()

    for ablation in ("zero", "mean"):
        done = run("compile", "model", "c.json", "small", "--ablation", ablation, cwd=workplace)
        assert done.returncode == 0, done.stderr
        assert "fewer MACs" in done.stdout
        small = cv.load_vit(workplace / "small")
        assert len(small.config.heads) == 2
        card = (workplace / "small" / "README.md").read_text()
        assert small.card == card
        assert f"\n    circuitvit compile model c.json small --ablation {ablation}\n" in card
        assert "On these images: digits, test split." in card
        assert "| threshold τ | 0.0005 |" in card

    done = run("evaluate", "model", "small", "--out", "report", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "model" in done.stdout
    assert "against itself" in done.stdout
    rows = json.loads((workplace / "report" / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["model", "small"]


def test_a_circuit_found_under_mean_is_compiled_under_mean_unless_asked_otherwise(workplace):
    vit = cv.load_vit(workplace / "model")
    edges = ["embed->a0.h0.v", "a0.h0->m1", "m1->logits", "embed->logits"]
    for found, options, constants in (
        ("mean", (), True),
        ("mean", ("--ablation", "zero"), False),
        ("zero", (), False),
    ):
        provenance = cv.Provenance(method="acdc", ablation=found)
        cv.Circuit(vit.config, edges, provenance=provenance).save(workplace / "found.json")
        done = run("compile", "model", "found.json", "out", "--no-card", *options, cwd=workplace)
        assert done.returncode == 0, done.stderr
        config = cv.load_vit(workplace / "out").config
        assert any((*config.attention_constant, *config.mlp_constant)) is constants
        told = "found under 'mean' and is compiled under 'zero'"
        assert done.stderr.count(told) == (found == "mean" and bool(options))


def test_an_edge_circuit_is_compiled_evaluated_and_exported(workplace):
    words = ["compile", "model", "c.json", "edge", "--level", "edge"]
    done = run(*words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "block 0: MACs" in done.stdout
    assert "fewer MACs" in done.stdout
    assert "the very edges that a circuit keeps" in (workplace / "edge" / "README.md").read_text()
    done = run("evaluate", "model", "edge", cwd=workplace)
    assert done.returncode == 0, done.stderr
    done = run("export", "edge", "edge.pt2", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "edge.pt2").stat().st_size > 0


def test_a_budget_drops_units_until_it_is_met_and_fresh_weights_can_be_asked_for(workplace):
    words = ["--method", "eap", "--edges", 40, "--pairs", 16]
    assert run("discover", "model", "b.json", *words, cwd=workplace).returncode == 0
    macs = {}
    for name, words in (
        ("whole", []),
        ("less", ["--target-macs", 0.7]),
        ("fresh", ["--target-parameters", 0.8, "--fresh", "--seed", 3]),
        ("quick", ["--target-latency", 0.9]),
    ):
        done = run("compile", "model", "b.json", name, *words, cwd=workplace)
        assert done.returncode == 0, done.stderr
        vit = cv.load_vit(workplace / name)
        macs[name] = vit_macs(vit.config)
        if name == "fresh":
            assert vit.fingerprint() == cv.ViT(vit.config, seed=3).fingerprint()
            assert parameters(vit) <= 0.8 * parameters(cv.load_vit(workplace / "model"))
    assert macs["less"] <= 0.7 * vit_macs(cv.load_vit(workplace / "model").config)
    assert macs["less"] < macs["whole"]
    assert "what is left" in done.stdout
    costs = cv.Costs.load(workplace / "quick" / "costs.json")
    left = json.loads((workplace / "quick" / "savings.json").read_text())["left"]["latency_ms"]
    assert left == pytest.approx(costs.predict(cv.load_vit(workplace / "quick").config))
    assert left <= costs.predict(cv.load_vit(workplace / "whole").config)


@pytest.mark.parametrize(
    "words", [["x.pt2"], ["x", "--to", "onnx", "--dtype", "float16", "--opset", "18"]]
)
def test_a_model_is_exported(words, workplace, tmp_path):
    done = run("export", workplace / "model", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Wrote {words[0]}: read back, its logits are those of ")
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == [words[0]]


def test_a_model_is_exported_in_int8_from_bytes_with_its_figures_beside(workplace, tmp_path):
    words = ["m.onnx", "--preprocess", "--quantize", "40", "--limit", "60"]
    done = run("export", workplace / "model", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "INT8" in done.stdout
    assert "calibrated on 40 training images." in done.stdout
    model = cv.OnnxModel(tmp_path / "m.onnx")
    assert model.metadata["output"] == "probabilities"
    assert json.loads(model.metadata["quantized"])["calibration_images"] == 40


def test_circuits_of_more_classes_join_those_in_the_folder(workplace):
    names = ["3", "5", "3 → 8", "8 → 3"]
    pairs = ["--clean", "3", "--corrupt", "8", "--clean", "8", "--corrupt", "3"]
    for words in (["--only", "3"], ["--only", "5", *pairs]):
        words = [*words, "--tau", 0.5, "--pairs", 4]
        done = run("class-circuits", "model", "joined", *words, cwd=workplace)
        assert done.returncode == 0, done.stderr
    assert "Wrote joined: 4 circuits" in done.stdout
    assert list(cv.ClassCircuits.load(workplace / "joined")) == names
    overlap = json.loads((workplace / "joined" / "overlap.json").read_text())
    assert overlap["names"] == names
    assert sorted(path.parent.name for path in workplace.glob("joined/*/circuit.json")) == [
        "3", "3-to-8", "5", "8-to-3"
    ]  # fmt: skip


def test_without_pairs_there_are_64_or_all_there_are(workplace):
    words = ["--method", "eap", "--edges", 9]
    for limit, count in ((100, 64), (40, 40)):
        done = run("discover", "model", f"{limit}.json", *words, "--limit", limit, cwd=workplace)
        assert done.returncode == 0, done.stderr
        assert cv.Circuit.load(workplace / f"{limit}.json").provenance.images == count


def test_class_names_with_commas_can_be_named(workplace):
    names = ("tench, Tinca tinca", "crane", "0")
    for place in range(30):
        path = workplace / "fish" / names[place % 3] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 5 * place).save(path)
    shape = {"image_size": 8, "patch_size": 4, "channels": 1, "width": 8, "mlp_width": 8}
    vit = cv.ViT(cv.ViTConfig(**shape, classes=2, depth=1, heads=2), seed=0)
    vit.preprocessing = cv.Preprocessing()
    vit.save_pretrained(workplace / "fishes")
    words = ["--data", "fish", "--classes", names[0], "--classes", names[1], "--pairs", 4]
    words += ["--clean", names[0], "--corrupt", "1"]
    done = run("class-circuits", "fishes", "f", *words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert list(cv.ClassCircuits.load(workplace / "f")) == [f"{names[0]} → crane"]


def test_scores_choose_as_many_edges_as_asked(workplace):
    done = run(
        "discover", "model", "e.json", "--method", "eap-ig-inputs", "--metric", "kl",
        "--edges", 12, "--pairs", 16, cwd=workplace,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    circuit = cv.Circuit.load(workplace / "e.json")
    assert len(circuit) == 12
    assert circuit.provenance.method == "eap-ig-inputs"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["draw", "missing.json", "x.html"], "no circuit at missing.json"),
        (["discover", "missing", "x.json"], "no model at missing"),
        (["discover", "model", "x.json", "--tau", "0"], "tau is 0.0, expected a number > 0"),
        (["discover", "model", "x.json", "--method", "magic"], "method is 'magic'"),
        (["discover", "model", "x.json", "--method", "eap", "--metric", "kl"], "eap-ig-inputs"),
        (["discover", "model", "x.json", "--data", "/nowhere"], "/nowhere"),
        (["discover", "model", "x.json", "--pairs", "99999"], "99999"),
        (["discover", "model", "x.json", "--edges", "30"], "--edges is for scores"),
        (["discover", "model", "x.json", "--method", "eap", "--tau", "1"], "--tau is for acdc"),
        (
            ["discover", "model", "x.json", "--data", "two"],
            "'a', 'b' are not among the model's '0'",
        ),
        (
            ["discover", "model", "x.json", "--classes", "3", "--classes", "x"],
            "'x' are not there; the data have '0'",
        ),
        (
            ["discover", "model", "x.json", "--split", "train[:200%]"],
            "split of digits can't be made",
        ),
        (
            ["discover", "model", "x.json", "--split", "train", "--split", "test=train"],
            "each names its part",
        ),
        (["discover", "timm:vit_tiny_patch16", "x.json"], "timm"),
        (["discover", "nobody:vit", "x.json"], "no model at nobody:vit"),
        (["inspect", "model", "--mean", "0.5"], "--mean and --std"),
        (
            ["inspect", "model", "--mean", "a", "--std", "0.5"],
            "expected numbers with commas between",
        ),
        (["inspect", "model", "--mean", "0,1,2", "--std", "1"], "mean and std have 3 and 1 values"),
        (["inspect", "model", "--out", "./model"], "is the model's own folder"),
        (["inspect", "model", "--image-size", "9"], "multiple of the patch size 2"),
        (
            ["class-circuits", "model", "cc", "--clean", "3", "--corrupt", "3"],
            "clean and corrupt are both the class '3'",
        ),
        (
            ["class-circuits", "model", "cc", "--clean", "3", "--clean", "4", "--corrupt", "5"],
            "--clean is given 2 times and --corrupt 1 times",
        ),
        (["export", "edge", "as_timm", "--to", "timm"], "edge"),
        (["compile", "model", "model/config.json", "x"], "is not a circuit"),
        (
            ["compile", "model", "bare.json", "x", "--target-macs", "2"],
            "target_macs is 2.0, expected",
        ),
        (["evaluate", "missing"], "no model at missing"),
        (["compile", "model", "c.json", "./model"], "is the model's own folder"),
        (["compile", "model", "missing.json", "x"], "no circuit at missing.json"),
        (["export", "missing", "x.onnx"], "no model at missing"),
        (["export", "model", "x.tflite"], "ends in '.tflite', expected '.onnx' or '.pt2'"),
        (["export", "model", "x.onnx", "--to", "pt2"], "but to is 'pt2'"),
        (["export", "model", "model/config.json/x.pt2"], "cannot write model/config.json/x.pt2"),
        (["export", "model", "x.onnx", "--opset", "7"], "can't write this model with opset 7"),
        (["export", "model", "x.pt2", "--opset", "18"], "opset=18 applies to ONNX files only"),
        (["export", "model", "x.onnx", "--dtype", "bfloat16"], "no ViT in torch.bfloat16"),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(workplace, words, message):
    before = sorted(path.name for path in workplace.iterdir())
    done = run(*words, cwd=workplace)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("circuitvit: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in workplace.iterdir()) == before


def test_models_that_look_at_images_otherwise_are_not_measured_together(workplace):
    for name, change in (("named", {"class_names": "abcdefghij"}), ("bright", {"mean": (0.1,)})):
        vit = cv.load_vit(workplace / "model")
        names = tuple(change.pop("class_names", vit.preprocessing.class_names))
        vit.preprocessing = replace(vit.preprocessing, class_names=names, **change)
        vit.save_pretrained(workplace / name)
        done = run("evaluate", "model", name, cwd=workplace)
        assert done.returncode == 2
        assert f"model and {name} have different preprocessing" in done.stderr


def test_images_must_be_named_for_models_that_are_not_of_digits(workplace):
    config = cv.ViTConfig(image_size=16, patch_size=8, classes=10, width=8, depth=1, heads=1)
    cv.ViT(config, seed=0).save_pretrained(workplace / "photographs")
    done = run("discover", "photographs", "x.json", cwd=workplace)
    assert done.returncode == 2
    assert "images of 3 × 16 × 16, not the digits. Name its images with --data" in done.stderr
    done = run("evaluate", "model", "photographs", cwd=workplace)
    assert done.returncode == 2
    assert "can't be given the same images" in done.stderr


def test_an_unknown_option_exits_with_2():
    assert run("draw", "--colour", "red").returncode == 2
    assert run_installed("draw", "missing.json", "x.html").returncode == 2


def test_training_goes_on_where_it_stopped_and_refuses_another_recipe(workplace):
    words = ["train", "model", "--width", 16, "--depth", 2, "--heads", 2, "--mlp-width", 16]
    words += ["--limit", 200]
    again = run(*words, "--epochs", 30, cwd=workplace)
    assert again.returncode == 0, again.stderr
    other = run(*words, "--epochs", 31, cwd=workplace)
    assert other.returncode == 2
    assert "epochs" in other.stderr


def test_training_takes_a_teacher_logs_off_a_terminal_and_saves_the_best_epoch(workplace):
    words = ["train", "pupil", "--width", 16, "--depth", 2, "--heads", 2, "--mlp-width", 16]
    words += ["--limit", 100, "--epochs", 4, "--patience", 1, "--distill-from", "model"]
    words += ["--mixup", 0.2, "--rand-augment", 1, "--ema", 0.9, "--drop-path", 0.1]
    done = run(*words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "the best of" in done.stdout
    assert "epoch 1/4: loss" in done.stderr
    other = run(*words, "--cutmix", 1, cwd=workplace)
    assert other.returncode == 2
    assert "recipe.cutmix was 0.0 and is now 1.0" in other.stderr
    quiet = run(*words, "--no-log", cwd=workplace)
    assert quiet.stderr == ""


def test_a_negative_seed_is_a_usage_error_without_a_traceback(workplace):
    done = run("discover", "model", "x.json", "--seed", "-1", cwd=workplace)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_warnings_are_one_line_and_a_pathless_circuit_is_told(workplace):
    words = ["discover", "model", "none.json", "--method", "random", "--edges", 0, "--pairs", 4]
    done = run(*words, cwd=workplace)
    assert "No unit is on a path to the logits" in done.stdout
    done = run("compile", "model", "none.json", "bare", "--no-card", cwd=workplace)
    assert done.returncode == 0
    assert not (workplace / "bare" / "README.md").exists()
    assert done.stderr.startswith("circuitvit: warning: the circuit has no kept path")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["--no-card", "--fresh"])
def test_a_budget_ranks_on_the_images_that_are_given(tmp_path, how):
    vit = random_vit(shape(depth=3, image_size=8, classes=10), seed=2).float()
    vit.preprocessing = cv.Preprocessing()
    vit.save_pretrained(tmp_path / "model")
    cv.Circuit.full(vit.config).save(tmp_path / "c.json")
    words = ["compile", "model", "c.json", "out", how, "--target-macs", "0.5"]
    noise = "units ranked on noise images (--data names others)."
    for data, images in (
        ([], None),
        (["--data", "digits"], cv.load_splits("digits", model=vit).train.images),
    ):
        done = run(*words, *data, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (noise in done.stdout) is (images is None)
        expected = cv.compile(
            vit, cv.Circuit.full(vit.config), target_macs=0.5, reference=images,
            fresh=how == "--fresh",
        )  # fmt: skip
        assert cv.load_vit(tmp_path / "out").fingerprint() == expected.fingerprint()
