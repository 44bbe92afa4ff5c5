"""A save that is killed between any two changes of its folder leaves the old or the new, whole."""

import shutil
from pathlib import Path

import pytest
from attack.saves import NEW, OLD, SAVES
from attack.tally import SHARE, Tally, drawn
from attack.workers import Workers

KIND = "kills between writes"
VARIANTS = ("fresh", "over an old one", "among others' files", "through a link", "as the cwd")
FOREIGN = {"notes.txt": "mine", ".git/HEAD": "ref: refs/heads/main", "nb.ipynb": "{}"}
MOST = 200
STEP = 3
"""Every third state; a seed says with which of them it begins."""
pytestmark = pytest.mark.attack


@pytest.fixture(scope="module")
def made(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert not (end := workers.run("saves:prepare", str(folder))).error, end.message
    return folder


class Room:
    """A folder in which something is saved again and again.

    Attributes:
        root: it, which is watched.
        path: where a kind is saved.
        cwd: the working directory of the saves.
    """

    def __init__(self, kind: str, variant: str, root: Path) -> None:
        save = SAVES[kind]
        self.root, self.variant, self.cwd, self.folder = root, variant, None, save.folder
        parent = root / "real" if variant == "through a link" and not save.folder else root
        parent.mkdir(parents=True)
        self.path = str(parent / save.name)
        self.place = Path(self.path) if save.folder else parent
        if variant == "as the cwd":
            self.cwd, self.path = str(self.place), "." if save.folder else save.name

    def furnish(self) -> None:
        """Links and files of others, around what was saved."""
        if self.variant == "through a link":
            link, target = self.root / "link", self.place
            link.symlink_to(target.name)
            self.path = str(link if self.folder else link / Path(self.path).name)
        if self.variant == "among others' files":
            for name, text in FOREIGN.items():
                (self.place / name).parent.mkdir(parents=True, exist_ok=True)
                (self.place / name).write_text(text)

    def others_lost(self) -> list[str]:
        """Files of others that are gone or altered."""
        if self.variant != "among others' files":
            return []
        files = {name: self.place / name for name in FOREIGN}
        return [n for n, f in files.items() if not f.is_file() or f.read_text() != FOREIGN[n]]


def attack(kind: str, variant: str, workers: Workers, made: Path, room: Path, tally: Tally, step=1):
    """Kill the save of a new one over an old one in each state that the folder goes through."""
    own = Room(kind, variant, room / "room")
    if own.cwd:
        Path(own.cwd).mkdir(exist_ok=True)
    expected = [""]  # nothing, for a fresh one
    if variant != "fresh":
        first = workers.run("saves:save", kind, OLD, own.path, str(made), cwd=own.cwd)
        assert not first.error, first.message
        own.furnish()
        expected = [workers.run("saves:held", kind, own.path, cwd=own.cwd).value]
    template = room / "template"
    own.root.rename(template)
    name = f"{kind}, {variant}"

    def renewed() -> None:
        shutil.rmtree(own.root, ignore_errors=True)
        shutil.copytree(template, own.root, symlinks=True)

    renewed()
    args = ("saves:look_and_save", kind, own.path, str(own.root), str(made))
    whole = workers.run(*args, cwd=own.cwd)
    if whole.error or whole.signal:
        tally.case(f"{name}, not killed", whole.trouble() or whole.message)
        return
    _, new, names = whole.value
    tally.case(f"{name}, not killed", others_or_litter(own, names, names))
    killed, first_kill = 0, 1 + drawn(kind, variant).randrange(step)
    for kill_at in range(first_kill, MOST, step):
        renewed()
        end = workers.run(
            "saves:save", kind, NEW, own.path, str(made), cwd=own.cwd, watched=str(own.root),
            kill_at=kill_at,
        )  # fmt: skip
        if not end.signal:
            break
        killed += 1
        lost = own.others_lost()
        after = workers.run(*args, cwd=own.cwd)
        if after.error or after.signal:
            trouble = f"saving again: {after.trouble() or after.message}"
        else:
            before, now, left = after.value
            nothing = variant == "fresh" and before.startswith(("CircuitError", "FileNotFound"))
            torn = before not in (*expected, new) and not nothing
            trouble = f"torn or refused: {before[:150]}" if torn else ""
            trouble = trouble or ("saving again gave something else" if now != new else "")
            trouble = trouble or others_or_litter(own, left, names)
        tally.case(f"{name}, kill {kill_at}", f"lost {lost}" if lost else trouble)
    assert killed or first_kill > 1, "the folder was never seen to change"


def others_or_litter(own: Room, left: list[str], names: list[str]) -> str:
    """What is wrong with the names in a room after a save that succeeded."""
    foreign = {str((own.place / n).relative_to(own.root)) for n in (*FOREIGN, ".git")}
    hidden = [n for n in left if n not in foreign and any(p[:1] == "." for p in n.split("/"))]
    gone, more = sorted(set(names) - set(left)), sorted(set(left) - set(names))
    lost = own.others_lost()
    told = {"litter": hidden or more, "gone": gone, "lost": lost}
    return ", ".join(f"{what} {which[:4]}" for what, which in told.items() if which)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", SAVES)
def test_a_killed_save_leaves_the_old_or_the_new(kind, variant, workers, made, tmp_path, tally):
    attack(kind, variant, workers, made, tmp_path, tally, step=max(1, round(STEP / SHARE)))
    tally.settle()
