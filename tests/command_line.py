"""Runs the command line for the tests, in this process or as a user's shell starts it."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jaxtyping

from circuitvit.cli import main

COMMAND = Path(sys.executable).parent / "circuitvit"


def run_installed(*words, cwd=None):
    """The command as a user's shell starts it."""
    return subprocess.run(
        [COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "120", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )  # fmt: skip


def run(*words, cwd=None):
    """The same in this process, which saves the seconds that importing torch takes."""
    out, err = io.StringIO(), io.StringIO()
    old = sys.argv, dict(os.environ)
    sys.argv = ["circuitvit", *map(str, words)]
    os.environ |= {"COLUMNS": "120", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    jaxtyping.config.update("jaxtyping_disable", True)
    code = 0
    try:
        with (
            contextlib.chdir(cwd or "."), contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err), warnings.catch_warnings(),
        ):  # fmt: skip
            warnings.simplefilter("default")
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        sys.argv, environment = old
        os.environ.clear()
        os.environ.update(environment)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
