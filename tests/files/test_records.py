"""What saves itself loads itself, and no other file is taken for it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from public_things import MAKERS, made, same
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.files import write_json
from circuitvit.files.records import KINDS, recognised, record_kind

HOUSE = Path(__file__).parents[2]
SAVED = [
    "scores", "scores of neurons", "scores by position", "circuit", "circuit of no edges",
    "class circuits", "overlap", "curve", "curve of a circuit", "completeness", "minimality",
    "across ablations", "report", "report without times", "evaluation", "evaluation without times",
    "costs", "savings", "savings without times",
]  # fmt: skip
ONE_OF_EACH = ["scores", "circuit", "class circuits", "overlap", "curve", "completeness",
               "minimality", "across ablations", "report", "evaluation", "costs", "savings"]  # fmt: skip
OTHERS = {"pairs": "saved whole, in test_paired_images", "pairs with a recipe": "likewise",
          "adapter": "saved whole, in test_adapter",
          "figure": "a picture, in test_saved_figure"}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where each was saved, and the JSON file itself."""
    folder = tmp_path_factory.mktemp("saved")
    places = {name: made(name).save(folder / f"{name}.json") for name in SAVED}
    inside = {"overlap": "overlap", "class circuits": "classes", "savings": "savings"}

    def json_in(name):
        if not places[name].is_dir():
            return places[name]
        return places[name] / f"{inside.get(name.removesuffix(' without times'), 'report')}.json"

    return {name: (places[name], json_in(name)) for name in SAVED}


def load(name, path):
    return type(made(name)).load(path)


def test_everything_that_saves_itself_is_tried():
    saves = {name for name in MAKERS if hasattr(made(name), "save")}
    assert saves == {*SAVED, *OTHERS}
    assert all(hasattr(made(name), "load") for name in saves - {"figure"})


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_loads_with_the_same_values(name, files, tmp_path):
    place, file = files[name]
    again, thing = load(name, place), made(name)
    assert same(again, thing)
    assert same(load(name, file), thing)
    twice = again.save(tmp_path / "again")
    pairs = [(place, twice)] if twice.is_file() else [
        (path, twice / path.relative_to(place)) for path in place.rglob("*.*")
    ]  # fmt: skip
    for one, other in pairs:
        if one.suffix != ".html":  # plotly gives each figure a random id
            assert one.read_text() == other.read_text()


@pytest.mark.parametrize("name", SAVED)
def test_what_was_loaded_draws_and_shows_itself_as_before(name, files):
    again, thing = load(name, files[name][0]), made(name)
    assert repr(again) == repr(thing) or name.startswith("evaluation")
    for shows in ("_repr_html_", "table", "markdown", "as_dict", "needless", "ranked"):
        if hasattr(thing, shows):
            assert getattr(again, shows)() == getattr(thing, shows)(), shows
    if hasattr(thing, "figure"):
        assert again.figure().to_dict() == thing.figure().to_dict()


def test_a_loaded_evaluation_compares_its_models_as_before(files):
    again, found = cv.Evaluation.load(files["evaluation"][0]), made("evaluation")
    one, other = found.names
    assert again.pareto() == found.pareto()
    assert str(again.advice()) == str(found.advice())
    assert again.difference(one, other) == found.difference(one, other)
    assert again.difference(one, other).low < again.difference(one, other).high
    assert [again.cost(name) for name in again.names] == [found.cost(name) for name in found.names]
    assert "right" not in found.as_dict()["rows"][0]


def test_loaded_scores_choose_the_same_circuits(files):
    again, scores = cv.EdgeScores.load(files["scores"][0]), made("scores")
    assert again.top(9) == scores.top(9)
    assert again.top(9).provenance == scores.top(9).provenance
    assert again.greedy(9) == scores.greedy(9)
    by_position = cv.EdgeScores.load(files["scores by position"][0])
    assert (by_position.positions, by_position.qkv) == ("class/patch", "joint")
    neurons = cv.EdgeScores.load(files["scores of neurons"][0])
    assert neurons.weakest_neurons(3) == made("scores of neurons").weakest_neurons(3)


def test_scores_keep_the_sign_of_zero_and_every_bit(tmp_path, as_users_call):
    names = list(made("scores"))
    values = dict.fromkeys(names, -0.0) | {names[0]: 0.1 + 0.2, names[1]: 5e-324, names[2]: -1e308}
    scores = cv.EdgeScores(
        made("config"), values, qkv="split", provenance=cv.Provenance(tau=np.float32(0.1), seed=np.int64(3))
    )  # fmt: skip
    again = cv.EdgeScores.load(scores.save(tmp_path / "s.json"))
    assert [value.hex() for value in again.values()] == [value.hex() for value in scores.values()]
    assert again.provenance == scores.provenance


def test_a_saved_score_that_is_no_number_is_refused(files, tmp_path):
    text = files["scores"][1].read_text()
    first = text[text.index('"embed->logits": ') :].split("\n")[0]
    for value in ("NaN", "Infinity", '"1.5"', "true", "null"):
        path = tmp_path / "s.json"
        path.write_text(text.replace(first, f'"embed->logits": {value},'))
        with pytest.raises(
            cv.CircuitError,
            match="altered after it was saved|no number of JSON|expected a finite number",
        ):
            cv.EdgeScores.load(path)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_another_kind_of_file_is_told_with_what_reads_it(name, files):
    for other in ONE_OF_EACH:
        kind = record_kind(json.loads(files[other][1].read_text()))
        assert type(made(other)).__name__ == kind.reader.split(".")[0]
        if other != name:
            with pytest.raises(cv.CircuitError, match=f"[Ii]t is {kind.named}, which circuitvit.{kind.reader} reads"):  # fmt: skip
                load(name, files[other][1])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_files_of_models_pairs_and_others_are_told(name, files, tmp_path):
    made("pairs").save(tmp_path / "pairs")
    made("adapter").save(tmp_path / "adapter.safetensors")
    made("vit").save_pretrained(tmp_path / "vit")
    made("circuit vit").save_pretrained(tmp_path / "circuit")
    torch.save({}, tmp_path / "x.pt")
    (tmp_path / "page.html").write_text("<!DOCTYPE html><p>hello</p>")
    (tmp_path / "lfs.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00")
    (tmp_path / "empty").mkdir()
    told = {
        "pairs": "it is pairs of images, which circuitvit.Pairs.load reads",
        "adapter.safetensors": "it is an adapter, which circuitvit.Adapter.load reads",
        "vit/model.safetensors": "it is a file of weights, whose folder circuitvit.load_vit reads",
        "vit/config.json": "It is the config of a model, whose folder circuitvit.load_vit reads",
        "circuit/config.json": "It is the config of a model, whose folder circuitvit.load_vit",
        "x.pt": "it is a zip archive, such as PyTorch writes",
        "page.html": "it is a page of HTML or XML",
        "lfs.json": "it is a pointer of git-lfs",
    }
    for path, message in told.items():
        with pytest.raises(cv.CircuitError, match=message):
            load(name, tmp_path / path)
    with pytest.raises(cv.CircuitError, match=r"no .* at .*no such file|it is a folder"):
        load(name, tmp_path / "empty")
    with pytest.raises(
        cv.CircuitError, match=r"the folder of a model, which circuitvit.load_vit reads"
    ):
        load(name, tmp_path / "vit")


def test_pairs_and_adapters_tell_other_files_too(files, tmp_path):
    pairs = made("pairs").save(tmp_path / "pairs.safetensors")
    adapter = made("adapter").save(tmp_path / "adapter.safetensors")
    circuit = shutil.copy(files["circuit"][1], tmp_path / "circuit.safetensors")
    for load, path, message in (
        (cv.Pairs.load, adapter, "an adapter, which circuitvit.Adapter.load reads"),
        (cv.Pairs.load, circuit, "a circuit, which circuitvit.Circuit.load reads"),
        (cv.Adapter.load, pairs, "pairs of images, which circuitvit.Pairs.load reads"),
        (cv.Adapter.load, circuit, "a circuit, which circuitvit.Circuit.load reads"),
    ):
        with pytest.raises(cv.CircuitError, match=f"It is {message}"):
            load(path)
    pairs.write_bytes(pairs.read_bytes()[:-8])
    with pytest.raises(cv.CircuitError, match="not a whole file of pairs.*cut short") as caught:
        cv.Pairs.load(pairs)
    assert "Pairs.load" not in str(caught.value)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_missing_cut_and_foreign_files_are_refused(name, files, tmp_path):
    file = files[name][1]
    text, path = file.read_text(), tmp_path / file.name
    schema = text.replace('"schema": 1', '"schema": 7', 1)
    damaged = {
        "is not a whole": text[: len(text) // 2],
        "is not a whole ": "",
        "lacks the mark": "{}",
        "lacks the mark ": "[1, 2]",
        "lacks the mark  ": '"text"',
        "marked 'circuitvit.novel', which this version doesn't know": (
            '{"format": "circuitvit.novel", "schema": 1}'
        ),
        "schema 7, this version reads 1. Update circuitvit, or": schema,
        "is not a whole  ": "[" * 100_000,
    }
    for message, content in damaged.items():
        path.write_text(content)
        with pytest.raises(cv.CircuitError, match=message.rstrip()):
            load(name, path)
    with pytest.raises(cv.CircuitError, match="there is no such file"):
        load(name, tmp_path / "missing.json")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as an editor on Windows saves it
    if name != "class circuits":  # whose circuits lie beside it
        assert same(load(name, path), made(name))


def holes(body):
    """The record with each of its parts, one at a time, gone, or another kind of value."""
    for key in body:
        if key not in ("format", "schema", "advice", "pareto", "cpr", "cmd", "random"):
            yield {k: v for k, v in body.items() if k != key}
            yield body | {key: {"x": []}}
    for key, value in body.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for inner in value[0]:
                rest = {k: v for k, v in value[0].items() if k != inner}
                yield body | {key: [rest, *value[1:]]}
                yield body | {key: [rest | {inner: {"x": []}}, *value[1:]]}


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH if name != "class circuits"])
def test_what_lacks_a_part_or_has_a_wrong_one_is_refused_or_loads_the_same(name, files, tmp_path):
    """Nothing is raised but `CircuitError`, and no part is made up."""
    file = files[name][1]
    refused = 0
    for body in holes(json.loads(file.read_text())):
        path = write_json(tmp_path / file.name, body)
        try:
            assert same(load(name, path), made(name))
        except cv.CircuitError:
            refused += 1
    assert refused >= 4


def test_fields_that_are_not_known_are_named_once(files, tmp_path):
    body = json.loads(files["curve"][1].read_text())
    body["lines"][0]["colour"] = "red"
    path = write_json(tmp_path / "c.json", body | {"note": "mine"})
    with pytest.warns(UserWarning, match=r"left out: lines\[0\].colour, note") as seen:
        assert cv.Curve.load(path) == made("curve")
    assert len(seen) == 1


def test_numbers_that_json_has_not_are_named_and_nothing_is_written(tmp_path):
    curve = made("curve")
    broken = type(curve)(curve.conditions, 3, float("nan"), 0.0, curve.lines, curve.controls)
    with pytest.raises(cv.CircuitError, match="can't hold full = nan"):
        broken.save(tmp_path / "c.json")
    with pytest.raises(cv.CircuitError, match=r"can't hold settings.path = PosixPath"):
        cv.ClassCircuits({"a": made("circuit")}, settings={"path": tmp_path}).save(tmp_path / "x")
    with pytest.raises(cv.CircuitError, match=r"can't hold names\[0\] = "):
        cv.Overlap.of({"\udcff": made("circuit")}).save(tmp_path / "o")
    assert not list(tmp_path.rglob("*.json")) or [p.name for p in tmp_path.rglob("*.json")] == [
        "circuit.json"
    ]
    write_json(tmp_path / "numbers.json", {"a": np.float32(0.5), "b": torch.tensor(2), "c": np.bool_(1)})  # fmt: skip
    assert json.loads((tmp_path / "numbers.json").read_text()) == {"a": 0.5, "b": 2, "c": True}


def test_names_that_a_file_would_change_are_refused_before_the_work(as_users_call):
    vit = made("vit")
    images, labels = torch.zeros(2, 1, 4, 4).double(), torch.tensor([0, 1])
    for call in (cv.measure, cv.evaluate):
        with pytest.raises(cv.CircuitError, match=r"models are named 3, expected texts. Give {'3'"):
            call({3: vit}, images, labels)
    with pytest.raises(cv.CircuitError, match="circuits are named 0"):
        cv.across_ablations(vit, {0: made("circuit")}, made("pairs"))


# Files of before


def test_every_committed_result_file_loads_or_says_what_it_lacks():
    marked = {}
    for path in sorted(
        [*HOUSE.glob("graphs/**/*.json"), *HOUSE.glob("experiments/results/*.json")]
    ):
        kind = record_kind(json.loads(path.read_text()))
        marked[path] = None if kind is None else kind.reader.split(".")[0]
    assert {"Circuit", "ClassCircuits", "Evaluation", "Overlap", None} <= set(marked.values())
    for path, reader in marked.items():
        if reader is None:  # tables of an experiment, which are no results of the package
            with pytest.raises(cv.CircuitError, match="lacks the mark"):
                cv.Curve.load(path)
        else:
            loaded = getattr(cv, reader).load(path)
            assert loaded._repr_html_()


def test_reports_and_savings_of_before_they_were_marked_still_load(files, tmp_path):
    for name in ("report", "savings"):
        body = json.loads(files[name][1].read_text())
        del body["format"], body["schema"], body["checksum"]
        folder = tmp_path / name
        write_json(
            folder / files[name][1].name, body | ({"summary": {}} if name == "report" else {})
        )
        assert same(load(name, folder), made(name))
        assert recognised(folder / files[name][1].name).endswith(" reads")


def test_an_evaluation_without_single_images_is_refused_with_the_remedy(files, tmp_path):
    shutil.copytree(files["evaluation"][0], tmp_path / "old")
    write_json(tmp_path / "old" / "report.json", made("evaluation").as_dict())
    with pytest.raises(cv.CircuitError, match=r"dense, small <b>\| got right.*evaluate the models again"):  # fmt: skip
        cv.Evaluation.load(tmp_path / "old")


def test_the_reader_of_every_kind_is_there():
    assert len({kind.mark for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        owner, _, method = kind.reader.partition(".")
        if method == "load":
            assert callable(getattr(cv, owner).load)
    assert random_vit(shape()).config == cv.ViTConfig.from_dict(shape().as_dict())


def test_a_large_file_of_another_kind_is_told_by_its_first_bytes(tmp_path):
    import tracemalloc

    path = tmp_path / "model.pth"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(200_000_000)
    tracemalloc.start()
    with pytest.raises(cv.CircuitError):
        cv.Pairs.load(path)
    assert "zip archive" in recognised(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_path_of_another_type_is_refused(as_users_call):
    for load in (cv.EdgeScores.load, cv.Circuit.load, cv.Curve.load, cv.Evaluation.load):
        with pytest.raises(cv.CircuitError, match="path is a NoneType, expected the path of"):
            load(None)


def test_another_kind_of_record_is_recognised_behind_a_byte_order_mark(tmp_path):
    vit = random_vit(shape())
    path = cv.eap(vit, random_pairs(vit, 2)).top(3).save(tmp_path / "circuit.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(cv.CircuitError, match="a circuit, which circuitvit.Circuit.load reads"):
        cv.EdgeScores.load(path)


def test_a_folder_is_told_by_what_it_holds(tmp_path):
    vit = random_vit(shape())
    vit.save_pretrained(tmp_path / "model")
    cv.eap(vit, random_pairs(vit, 2)).top(3).save(tmp_path / "circuits" / "one.json")
    with pytest.raises(cv.CircuitError, match="the folder of a model, which circuitvit.load_vit"):
        cv.Circuit.load(tmp_path / "model")
    with pytest.raises(cv.CircuitError, match=r"Name a file in it, such as one.json \(a circuit\)"):
        cv.EdgeScores.load(tmp_path / "circuits")
    with pytest.raises(cv.CircuitError, match="is a folder, expected a file of pairs"):
        cv.Pairs.load(tmp_path / "model")
