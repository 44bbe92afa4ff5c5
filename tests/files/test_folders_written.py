"""Several files at once: old or new, whatever happens, and nothing of other people's is touched."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from circuitvit import CircuitError
from circuitvit.files import (
    check_folder_writable,
    check_writable,
    finish_save,
    held,
    inside,
    locks,
    replacing,
    write_json,
    write_text,
    writing_folder,
)
from circuitvit.files.commits import COMMIT
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
from test_folders_written import NEW, save
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
            finish_save(folder)
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


def plant(folder: Path, plan: object) -> None:
    (folder / COMMIT / "files").mkdir(parents=True, exist_ok=True)
    write_json(folder / COMMIT / "plan.json", plan)


def test_a_planted_plan_is_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    number = [folder.stat().st_dev, folder.stat().st_ino]
    for plan in (
        {"folder": number, "put": [], "remove": ["../precious"]},
        {"folder": number, "put": ["../precious"], "remove": []},
        {"folder": number, "put": [str(tmp_path / "precious")], "remove": []},
        {"folder": number, "put": 3},
        [],
        {"put": [], "remove": ["thesis.tex"]},
        {"folder": [1, 2], "put": [], "remove": ["thesis.tex"]},
    ):
        plant(folder, plan)
        with pytest.raises(CircuitError, match="interrupted when it was all but done"):
            finish_save(folder)
    assert (folder / "thesis.tex").read_text() == "mine"
    (folder / COMMIT / "files" / "sub").symlink_to(tmp_path, target_is_directory=True)
    plant(folder, {"folder": number, "put": ["sub/precious"], "remove": []})
    with pytest.raises(CircuitError, match="no folder of its own"):
        finish_save(folder)
    shutil.rmtree(folder / COMMIT)
    (folder / COMMIT).symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(CircuitError, match="no folder of a save"):
        finish_save(folder)
    (folder / COMMIT).unlink()
    (folder / COMMIT).write_text("mine")
    with pytest.raises(CircuitError, match="no folder of a save"):
        save(folder, NEW)
    assert (folder / COMMIT).read_text() == "mine"
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("way", ["a file for a folder", "a link for a folder", "a link for a file"])
def test_what_is_in_the_way_is_refused_before_anything_changes(tmp_path, way):
    folder = tmp_path / "model"
    save(folder, OLD)
    put(folder, {"notes": "mine"})
    (tmp_path / "other").mkdir()
    (tmp_path / "blob").write_text("mine")
    if way == "a file for a folder":
        (folder / "more").write_text("mine")
    elif way == "a link for a folder":
        (folder / "more").symlink_to(tmp_path / "other", target_is_directory=True)
    else:
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(tmp_path / "blob")
    before = held_by(folder)
    if way == "a link for a file":  # as a snapshot of the hub has them: the link goes
        save(folder, NEW)
        assert held_by(folder) == NEW | {"notes": "mine"}
        assert not (folder / "config.json").is_symlink()
    else:
        for _ in range(2):
            with pytest.raises(CircuitError, match="no folder of its own"):
                save(folder, NEW)
        assert held_by(folder) == before
    assert (tmp_path / "blob").read_text() == "mine"
    assert os.listdir(tmp_path / "other") == []
    assert not (folder / COMMIT).exists()


def test_files_called_as_our_own_and_a_folder_called_as_our_own(tmp_path):
    put(tmp_path / "a", {"notes": "mine"})
    save(tmp_path / "a", {"plan.json": "p", "files": "f"})
    assert held_by(tmp_path / "a") == {"notes": "mine", "plan.json": "p", "files": "f"}
    put(tmp_path / "commit", {"notes": "mine"})
    save(tmp_path / "commit", NEW)
    assert held_by(tmp_path / "commit") == NEW | {"notes": "mine"}


def test_a_folder_of_another_group_keeps_its_group(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder to another group")
    save(tmp_path / "model", OLD)
    os.chown(tmp_path / "model", -1, 12345)
    os.chmod(tmp_path / "model", 0o2775)
    save(tmp_path / "model", NEW)
    found = (tmp_path / "model").stat()
    assert (found.st_gid, found.st_mode & 0o7777) == (12345, 0o2775)
    assert held_by(tmp_path / "model") == NEW


def test_names_that_begin_alike_do_not_share_a_lock(tmp_path):
    begin = "search_" + "ä" * 70
    with held(tmp_path / f"{begin}1", "a search"), held(tmp_path / f"{begin}2", "a search"):
        pass


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    with held(tmp_path / "it", "a training"):
        child = os.fork()
        if not child:
            time.sleep(20)
            os._exit(0)
    try:
        with held(tmp_path / "it", "a training"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_other_machines_hidden_folders_are_left_for_a_week(tmp_path):
    own, other = (tmp_path / f".x.{host}.circuitvit-tmp" for host in (locks._HERE, "00000000"))
    for place in (own, other):
        place.mkdir()
    write_text(tmp_path / "t.txt", "x")
    assert sorted(os.listdir(tmp_path)) == [other.name, "t.txt"]
    os.utime(other, (0, 0))
    write_text(tmp_path / "t.txt", "x")
    assert os.listdir(tmp_path) == ["t.txt"]


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
