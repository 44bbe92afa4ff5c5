"""Two processes that write to one place at once: neither's work is lost or mixed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack.saves import NEW, OLD
from attack.tally import SHARE
from attack.workers import Workers

KIND = "two writers"
ROUNDS = 6
pytestmark = pytest.mark.attack


@pytest.fixture(scope="module")
def second() -> Iterator[Workers]:
    server = Workers()
    yield server
    server.close()


def at_once(workers: Workers, second: Workers, one: tuple, other: tuple, **limits):
    """Two cases at the same time; how they ended."""
    workers.start(*one, **limits)
    second.start(*other, **limits)
    return workers.end(), second.end()


def rounds() -> range:
    return range(max(1, round(ROUNDS * SHARE)))


def train(folder: str, seed: int) -> str:
    """A training, and a digest of its weights."""
    from attack import specimens as own

    import circuitvit as cv

    recipe = cv.Recipe(**(own.RECIPE | {"epochs": 30}), seed=seed)
    result = cv.train(own.vit(), own.images(), own.images(), recipe, folder=folder, progress=False)
    return json.dumps(own.plain(result.vit))


def find_classes(folder: str, classes: list[int]) -> None:
    from attack import specimens as own

    own.class_circuits(0, resume=folder, classes=classes)


def search(path: str) -> str:
    from attack import specimens as own

    return json.dumps(own.searched(Path(path)).edges)


def save_often(path: str, seed: int) -> None:
    from attack import specimens as own

    model = own.vit(seed)
    for _ in range(20):
        model.save_pretrained(path)


def test_two_trainings_in_one_folder(workers, second, tmp_path, tally):
    for number in rounds():
        folder = str(tmp_path / f"{number}")
        ends = at_once(
            workers, second, ("test_two_writers:train", folder, 1), ("test_two_writers:train", folder, 2)
        )  # fmt: skip
        trouble = ends[0].trouble() or ends[1].trouble()
        if not trouble and not any(end.refused for end in ends):
            trouble = "both ended well, and the folder holds one"
        tally.case(f"trainings, round {number}", trouble)
    tally.settle()


def test_the_same_training_twice(workers, second, tmp_path, tally):
    for number in rounds():
        folder = str(tmp_path / f"{number}")
        case = ("test_two_writers:train", folder, 1)
        ends = at_once(workers, second, case, case)
        values = {end.value for end in ends if not end.refused}
        trouble = ends[0].trouble() or ends[1].trouble()
        tally.case(
            f"the same, round {number}", trouble or ("" if len(values) == 1 else "other weights")
        )
    tally.settle()


def test_two_runs_of_class_circuits(workers, second, tmp_path, tally):
    for number in rounds():
        folder = tmp_path / f"{number}"
        ends = at_once(
            workers, second,
            ("test_two_writers:find_classes", str(folder), [0, 1, 2, 3]),
            ("test_two_writers:find_classes", str(folder), [4, 5, 6, 7]),
        )  # fmt: skip
        trouble = ends[0].trouble() or ends[1].trouble()
        index = json.loads((folder / "classes.json").read_text())["circuits"]
        wanted = sum(4 for end in ends if not end.refused)
        there = [place for place in index.values() if (folder / place).is_file()]
        lost = f"{len(there)} of {wanted} circuits are in the index"
        tally.case(
            f"class circuits, round {number}", trouble or (lost if len(there) != wanted else "")
        )
    tally.settle()


def test_two_saves_of_models(workers, second, tmp_path, tally):
    path = tmp_path / "model"
    known = []
    for seed in (OLD, NEW):
        assert not workers.run("saves:save", "model", seed, str(path), "").error
        known.append(workers.run("saves:held", "model", str(path)).value)
    for number in rounds():
        ends = at_once(
            workers, second,
            ("test_two_writers:save_often", str(path), OLD), ("test_two_writers:save_often", str(path), NEW),
        )  # fmt: skip
        held = workers.run("saves:held", "model", str(path)).value
        trouble = ends[0].trouble() or ends[1].trouble()
        litter = [file.name for file in tmp_path.rglob(".*")]
        trouble = (
            trouble or (f"torn: {held[:100]}" if held not in known else "") or ", ".join(litter)
        )
        tally.case(f"saves, round {number}", trouble)
    tally.settle()


def test_two_searches_with_one_record(workers, second, tmp_path, tally):
    alone = workers.run("test_two_writers:search", str(tmp_path / "alone.json")).value
    for number in rounds():
        case = ("test_two_writers:search", str(tmp_path / f"{number}.json"))
        ends = at_once(workers, second, case, case)
        values = {end.value for end in ends if not end.refused}
        trouble = ends[0].trouble() or ends[1].trouble()
        tally.case(
            f"searches, round {number}", trouble or ("" if values == {alone} else "another circuit")
        )
    tally.settle()
