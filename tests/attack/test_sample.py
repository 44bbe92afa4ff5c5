"""A little of the attack, which runs with all other tests: the same functions with few cases."""

import pytest
from attack import test_bombs as bombs
from attack import test_full_disk as full_disk
from attack import test_kills_between_writes as kills
from attack import test_links_and_paths as paths
from attack import test_mutations as mutations
from attack import test_payloads as payloads
from attack.tally import Tally

KIND = "sample"


@pytest.fixture(scope="module")
def made(workers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    assert not (end := workers.run("saves:prepare", str(folder))).error, end.message
    return folder


@pytest.mark.parametrize("kind", ["model", "circuit", "adapter", "pairs", "report", "pictures"])
def test_damaged_files(kind, workers, specimens, tmp_path, tally: Tally):
    mutations.attack(kind, range(5), workers, specimens, tmp_path, tally)
    tally.settle()


@pytest.mark.parametrize("kind", ["model", "report"])
def test_kills(kind, workers, made, tmp_path, tally):
    kills.attack(kind, "among others' files", workers, made, tmp_path, tally, step=6)
    tally.settle()


@pytest.mark.parametrize("kind", ["model", "circuit"])
def test_small_files(kind, workers, made, tmp_path, tally):
    full_disk.attack_save(kind, (0, 100), workers, made, tmp_path, tally)
    tally.settle()


@pytest.mark.parametrize(
    "name", ["npz that claims 10¹⁵ bytes", "circuit of 10⁸ heads", "circuit 10⁶ deep"]
)
def test_bombs(name, workers, tmp_path, tally):
    bombs.attack(name, workers, tmp_path, tally)
    tally.settle()


def test_paths(workers, specimens, tmp_path, tally):
    commands = paths.COMMANDS[:2]
    paths.attack_commands(commands, workers, specimens, tmp_path, tally)
    tally.settle()


def test_payloads(workers, tmp_path, tally):
    mark, folder = tmp_path / "mark", tmp_path / "payloads"
    made = workers.run("payloads:make", str(folder), str(mark))
    names = [name for name in made.value if name.startswith(("os.system", "folder, auto"))]
    payloads.attack(names[::3], folder, mark, workers, tally)
    tally.settle()
