"""A process that has circuitvit imported and forks a child for each case of the attack.

A child runs one function under limits of time, memory and file size, may be killed before the n-th
change of a folder, and tells how it ended. What a test asks for goes through pipes as JSON.
"""

import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
GIB = 2**30
MOST_SECONDS, MOST_BYTES = 20.0, 2 * GIB
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "open")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        value: what its function returned.
        error: the name of the exception that it raised; "" if none.
        message: of the exception; for others than CircuitError its traceback.
        signal: what ended it; 0 if it ended itself.
        seconds: that it ran.
        processor: seconds of the processor's time that it took.
        grown: bytes at its peak above those that the server had at rest.
        stdout, stderr: what it printed.
        late: whether the watchdog ended it.
    """

    value: Any
    error: str
    message: str
    signal: int
    seconds: float
    processor: float
    grown: int
    stdout: str
    stderr: str
    late: bool

    @property
    def refused(self) -> bool:
        """Whether it raised CircuitError."""
        return self.error == "CircuitError"

    def trouble(self, seconds: float = MOST_SECONDS, grown: int = MOST_BYTES) -> str:
        """What is wrong with any end but a result or a CircuitError; "" if nothing."""
        if self.late or self.processor > seconds:  # a busy machine is not our fault
            return (
                f"took {self.processor:.1f} s of the processor's time, {self.seconds:.1f} s in all"
            )
        if self.signal:
            return f"ended by {signal.Signals(self.signal).name}: {self.stderr[-200:]}"
        if self.error and not self.refused:
            return f"raised {self.error}: " + " | ".join(self.message.strip().splitlines()[-5:])
        if self.grown > grown:
            return f"took {self.grown / 2**20:.0f} MiB more than at rest"
        if self.refused and "\n" in self.message.strip():
            return f"told it in several lines: {self.message[:200]!r}"
        return ""

    def line(self, code: int = 2, seconds: float = MOST_SECONDS) -> str:
        """What is wrong with a command's refusal: this code, and one clear line; "" if nothing."""
        if self.trouble(seconds):
            return self.trouble(seconds)
        if self.value != code:
            return f"ended with code {self.value}: {(self.stdout + self.stderr)[-300:]!r}"
        said = [line for line in self.stderr.splitlines() if line.strip()]
        told = [line for line in said if not line.startswith("circuitvit: warning:")]
        if code == 2 and told and told[0].startswith("Usage:"):  # what typer refuses by itself
            return "" if "Invalid value" in self.stderr else f"said {self.stderr[-300:]!r}"
        # A training that stops in its midst has told of its epochs before.
        told = [line for line in told if not line.startswith("epoch ")]
        if code == 2 and not (len(told) == 1 and told[0].startswith("circuitvit: ")):
            return f"said {self.stderr[-300:]!r}"
        return "showed a traceback" if "Traceback" in self.stderr + self.stdout else ""


class Workers:
    """The server, as a test sees it: `run` gives a child's outcome."""

    def __init__(self) -> None:
        told = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "120"}
        told |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | told,
        )  # fmt: skip

    def run(self, what: str, *args: Any, **limits: Any) -> Outcome:
        """Run `module:function` of tests/attack in a child of its own.

        Args:
            what: the function.
            args: its arguments, JSON values.
            limits: see `_child` and `_watch`.
        """
        self.start(what, *args, **limits)
        return self.end()

    def start(self, what: str, *args: Any, **limits: Any) -> None:
        """The same without waiting; `end` gives the outcome."""
        assert self._process.stdin is not None
        print(json.dumps([what, args, limits]), file=self._process.stdin, flush=True)

    def end(self) -> Outcome:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server of the attack is gone"
        return Outcome(**json.loads(line))

    def command(self, *words: Any, **limits: Any) -> Outcome:
        """Run a command line of circuitvit; the value is its exit code."""
        return self.run("workers:command", *map(str, words), **limits)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def command(*words: str) -> int:
    """The command line in this process, as `circuitvit` itself calls it; its exit code."""
    from circuitvit.cli import main

    sys.argv = ["circuitvit", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def command_without_images(*words: str) -> int:
    """A command line that must find what is wrong before it loads images, let alone works."""
    import circuitvit as cv
    from circuitvit import demo

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("images were loaded before the output was checked")

    cv.load_splits = demo.load_splits = refuse
    return command(*words)


def state_of(folder: str) -> list[tuple]:
    """Every name below a folder with what tells that it changed."""
    found, folders = [], [folder]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    seen = entry.stat(follow_symlinks=False)
                    kind = entry.is_dir(follow_symlinks=False)
                    size, when = (0, 0) if kind else (seen.st_size, seen.st_mtime_ns)
                    found.append((entry.path, seen.st_ino, size, when))
                    folders += [entry.path] if kind else []
    return sorted(found)


class Pauses:
    """Counts the states that a folder goes through, and kills this process in the n-th.

    The states are seen at every operation on files that Python tells of, whenever a function of
    circuitvit begins or ends, and at every line of its files that write; so nothing needs to be
    known of how it writes.
    """

    def __init__(self, folder: str, kill_at: int | None) -> None:
        self.folder, self.kill_at, self.count = folder, kill_at, 0
        self.last, self.busy = state_of(folder), False
        sys.addaudithook(self._heard)
        sys.settrace(self._traced)

    def _heard(self, event: str, args: tuple) -> None:
        if event in WRITES and not self.busy:
            self._look()

    def _traced(self, frame: Any, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if "/circuitvit/" not in name:
            return None
        frame.f_trace_lines = "/circuitvit/files" in name  # elsewhere its calls and ends will do
        self._look()
        return self._end

    def _end(self, frame: Any, event: str, _: object) -> Any:
        self._look()
        return self._end

    def _look(self) -> None:
        self.busy = True
        now = state_of(self.folder)
        self.busy = False
        if now == self.last:
            return
        self.last, self.count = now, self.count + 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _child(
    what: str, args: list, *, file_size: int | None = None, watched: str | None = None,
    kill_at: int | None = None, cwd: str | None = None, **_: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run the function under its limits, in the child.

    Args:
        file_size: RLIMIT_FSIZE.
        watched: a folder whose states are counted; their number is the value then.
        kill_at: in which of them the child is killed.
        cwd: its working directory.
    """
    module, _, name = what.partition(":")
    function = getattr(import_module(f"attack.{module}"), name)
    if cwd is not None:
        os.chdir(cwd)
    vast = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (vast + 6 * GIB, vast + 6 * GIB))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    pauses = None if watched is None else Pauses(watched, kill_at)
    try:
        value = function(*args)
        return {"value": value if pauses is None else pauses.count, "error": "", "message": ""}
    except BaseException as cause:
        sys.settrace(None)
        known = type(cause).__name__
        told = str(cause) if known == "CircuitError" else traceback.format_exc()
        return {"value": None, "error": known, "message": told}


def _own_memory() -> int:
    """Bytes that this process holds beside the files that it maps: what a child starts with."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _run(what: str, args: list, limits: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for a case and watch it to its end, in the server."""
    pipes = {name: os.pipe() for name in ("stdin", "stdout", "stderr", "result")}
    os.write(pipes["stdin"][1], limits.get("stdin", "").encode())
    rest = _own_memory()
    sys.stdout.flush()
    began = time.perf_counter()
    process = os.fork()
    if process == 0:
        os.setsid()
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(pipes[name][0 if name == "stdin" else 1], number)
        result = os.dup(pipes["result"][1])
        for ends in pipes.values():
            os.closerange(ends[0], ends[0] + 1)
            os.closerange(ends[1], ends[1] + 1)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        told = json.dumps(_child(what, args, **limits), default=str).encode()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with open(result, "wb") as file:
            file.write(told)
        os._exit(0)
    os.close(pipes["stdin"][0])
    os.close(pipes["stdin"][1])
    readers = {name: pipes[name][0] for name in ("stdout", "stderr", "result")}
    for name in readers:
        os.close(pipes[name][1])
    return _watch(process, readers, began, rest, **limits)


def _watch(
    process: int, readers: dict[str, int], began: float, rest: int, *, seconds: float = 120.0,
    kill_after: float | None = None, **_: Any,
) -> dict[str, Any]:  # fmt: skip
    """Read what a child says until it ends.

    Args:
        seconds: after which the watchdog ends it.
        kill_after: seconds after which it is killed on purpose.
    """
    end = os.pidfd_open(process)
    said = {name: io.BytesIO() for name in readers}
    names, late, killed = {fd: name for name, fd in readers.items()}, False, False
    until = began + (seconds if kill_after is None else kill_after)
    while True:
        left = None if killed else max(0.0, until - time.perf_counter())
        ready, _, _ = select.select([end, *names], [], [], left)
        for fd in [fd for fd in ready if fd in names]:
            data = os.read(fd, 1 << 16)
            said[names[fd]].write(data)
            if not data:
                del names[fd]
        if ready == [end]:
            break
        if not ready:
            killed, late = True, kill_after is None
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    took = time.perf_counter() - began
    _, status, used = os.wait4(process, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)  # children of its own
    os.close(end)
    for fd in readers.values():
        os.close(fd)
    nothing = {"value": None, "error": "", "message": ""}
    try:
        told = json.loads(said["result"].getvalue() or b"null") or nothing
    except ValueError:  # killed amid telling
        told = nothing
    return {
        **told,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "seconds": took,
        "processor": used.ru_utime + used.ru_stime,
        "grown": max(0, used.ru_maxrss * 1024 - rest),
        "stdout": said["stdout"].getvalue().decode(errors="replace"),
        "stderr": said["stderr"].getvalue().decode(errors="replace"),
        "late": late,
    }


def serve() -> None:
    """Warm up, then answer until standard input ends."""
    import warnings

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the server's own libraries print
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    warnings.simplefilter("ignore")
    import_module("attack.specimens").warm_up()
    warnings.simplefilter("default")
    for line in sys.stdin:
        what, args, limits = json.loads(line)
        print(json.dumps(_run(what, args, limits)), file=answers, flush=True)
    answers.close()


if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # not this folder, whose modules are `attack.…`
    serve()
