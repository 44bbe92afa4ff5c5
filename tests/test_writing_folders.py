"""Several files at once: old or new, whatever happens, and nothing of other people's is touched."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from circuitvit import CircuitError
from circuitvit.files import (
    check_folder_writable,
    check_writable,
    held,
    inside,
    locks,
    replacing,
    settle,
    write_json,
    write_text,
    writing_folder,
)
from circuitvit.files.folders import COMMIT
from circuitvit.files.locks import ENDING

OLD = {"config.json": "old", "weights": "old", "gone.txt": "old"}
NEW = {"config.json": "new", "weights": "new", "more/new.txt": "new"}
FOREIGN = {"notes.ipynb": "mine", ".git/HEAD": "mine", "more/mine.txt": "mine"}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def held_by(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def save(folder: Path, files: dict[str, str]) -> None:
    with writing_folder(folder, owned=("*.txt",)) as beside:
        put(beside, files)


KILLED = """
import sys, os
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_writing_folders import NEW, save
left = {count}
def hook(event, _):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(hook)
save(Path({folder!r}), NEW)
"""


def kill_after(count: int, folder: Path) -> bool:
    """Save new files, killed before the operation of this number; whether it came to that."""
    code = KILLED.format(tests=str(Path(__file__).parent), count=count, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def test_files_appear_and_are_exchanged_all_at_once(tmp_path):
    folder = tmp_path / "a" / "model"
    save(folder, OLD)
    assert held_by(folder) == OLD
    before = folder.stat().st_ino
    save(folder, NEW)
    assert held_by(folder) == NEW
    assert sorted(os.listdir(tmp_path / "a")) == ["model"]
    if sys.platform == "linux":
        assert folder.stat().st_ino != before  # another folder: no reader ever saw half


@pytest.mark.parametrize("where", ["beside other files", "through a link", "working directory"])
def test_what_is_not_ours_stays_where_it_is(tmp_path, monkeypatch, where):
    folder = target = tmp_path / "model"
    save(folder, OLD)
    if where == "beside other files":
        put(folder, FOREIGN)
    elif where == "through a link":
        target = tmp_path / "link"
        target.symlink_to(folder, target_is_directory=True)
    else:
        monkeypatch.chdir(folder)
        target = Path(".")
    before = folder.stat().st_ino
    save(target, NEW)
    expected = NEW | (FOREIGN if where == "beside other files" else {})
    assert held_by(folder) == expected
    assert folder.stat().st_ino == before
    assert not [path for path in tmp_path.rglob("*") if ENDING in path.name or COMMIT in path.name]


def test_a_kill_leaves_the_old_or_the_new_files_and_the_next_save_no_litter(tmp_path):
    """Counts the operations of one save, then kills it before some of them."""
    for foreign in ({}, FOREIGN):
        for count in (1, 3, 5, 8, 11, 14) if foreign else (1, 3, 4, 5):
            folder = tmp_path / f"{len(foreign)}-{count}" / "model"
            save(folder, OLD)
            put(folder, foreign)
            kill_after(count, folder)
            settle(folder)
            found = {name: text for name, text in held_by(folder).items() if ENDING not in name}
            assert found in (OLD | foreign, NEW | foreign), (len(foreign), count)
            save(folder, NEW)
            assert held_by(folder) == NEW | foreign
            assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_is_one_clear_line_and_changes_nothing(tmp_path, failure):
    save(tmp_path / "model", OLD)
    for raised in (
        OSError(failure, os.strerror(failure)),
        RuntimeError(f"I/O error: {os.strerror(failure)} (os error {failure})"),
    ):
        with (
            pytest.raises(CircuitError, match=f"cannot write .*model: {os.strerror(failure)}"),
            writing_folder(tmp_path / "model") as beside,
        ):
            (beside / "config.json").write_text("new")
            raise raised
        assert held_by(tmp_path / "model") == OLD
    write_text(tmp_path / "t.txt", "old")
    with pytest.raises(CircuitError, match="cannot write .*t.txt"), replacing(tmp_path / "t.txt"):
        raise OSError(failure, os.strerror(failure))
    assert (tmp_path / "t.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["model", "t.txt"]


def test_an_error_of_the_work_itself_is_not_renamed(tmp_path):
    with pytest.raises(KeyError), writing_folder(tmp_path / "model"):
        raise KeyError("x")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "t.txt"):
        Path("/no/such/file").read_text()
    assert os.listdir(tmp_path) == []


def test_the_limit_of_a_files_size_is_one_clear_line(tmp_path):
    code = (
        "import resource, sys\n"
        "from circuitvit.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try: write_text({str(tmp_path / 't.txt')!r}, 'x' * 5000)\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("CircuitError cannot write")
    assert "File too large" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_folder_of_that_name_inside_is_refused(tmp_path):
    put(tmp_path / "model", {"weights/mine.txt": "mine"})
    with pytest.raises(CircuitError, match="weights: it is a folder"):
        save(tmp_path / "model", NEW)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CircuitError, match="it is a file"):
        save(tmp_path / "file", NEW)
    assert held_by(tmp_path) == {"model/weights/mine.txt": "mine", "file": "x"}


def test_a_plan_that_leads_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    folder = tmp_path / "model"
    for plan in (
        {"put": [], "remove": ["../precious"]},
        {"put": ["../precious"], "remove": []},
        {"put": [str(tmp_path / "precious")], "remove": []},
        {"put": 3},
        [],
    ):
        (folder / COMMIT).mkdir(parents=True, exist_ok=True)
        write_json(folder / COMMIT / "plan.json", plan)
        with pytest.raises(CircuitError, match="interrupted when it was all but done"):
            settle(folder)
    assert (tmp_path / "precious").read_text() == "mine"


def test_one_process_at_a_time(tmp_path):
    with held(tmp_path / "x" / "it", "a training"):
        with (
            pytest.raises(CircuitError, match=r"a training is at work on .*it in another process"),
            held(tmp_path / "x" / "it", "a training"),
        ):
            pass
        with held(tmp_path / "x" / "other", "a training"):
            pass
        got = threading.Event()

        def wait() -> None:
            with held(tmp_path / "x" / "it", "a training", wait=True):
                got.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.2)
    thread.join(10)
    assert got.is_set()
    assert os.listdir(tmp_path / "x") == []


def test_names_from_files_stay_inside(tmp_path):
    (tmp_path / "outside").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    assert inside(folder, "a/b.json") == folder / "a/b.json"
    for name in ("../x", "/abs/x", "a/../../x", "link/x", "", ".", "a\0b", "x" * 300, 3, None):
        with pytest.raises(CircuitError, match="only names inside the folder"):
            inside(folder, name)


def test_outputs_are_checked_without_leaving_anything(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.json")
    check_folder_writable(tmp_path / "a" / "b")
    check_folder_writable(tmp_path)
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "x", "a\0b", "x" * 300, "/proc/x/y", "\ud800"):
        with pytest.raises(CircuitError, match="cannot write"):
            check_writable(path)
    for path in (tmp_path / "file", tmp_path / "file" / "x", "/proc/x/y"):
        with pytest.raises(CircuitError, match="cannot write"):
            check_folder_writable(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("how", ["no fcntl", "no locks on this disk"])
def test_where_nothing_can_be_locked_work_goes_on(tmp_path, monkeypatch, how):
    if how == "no fcntl":
        monkeypatch.setattr(locks, "fcntl", None)
    else:

        def refused(handle, operation):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", refused)
    with held(tmp_path / "it", "a training"), held(tmp_path / "it", "a training"):
        save(tmp_path / "model", OLD)
        save(tmp_path / "model", NEW)
        write_text(tmp_path / "t.txt", "x")
    assert held_by(tmp_path / "model") == NEW
    assert sorted(os.listdir(tmp_path)) == ["model", "t.txt"]
