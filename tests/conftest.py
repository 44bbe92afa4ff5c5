"""What all tests share: random models whose every parameter matters, and pairs for them."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from other_processor import OtherProcessor
from random_models import ODD_ADDRESSES

import circuitvit as cv

cv.ViT  # noqa: B018 - the first touch of a torch-backed name makes timm importable

REQUIRE_ALL = os.environ.get("CIRCUITVIT_REQUIRE_ALL") == "1"
"""Set by .ci/run: there, a test that is skipped for lack of a program is a failure."""


# Small tensors are faster on one thread, and a busy machine doesn't make threads wait for one
# another. OMP_NUM_THREADS, where it is set, has the last word.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=ODD_ADDRESSES)
def another_processor() -> Iterator[None]:
    """With CIRCUITVIT_ODD_ADDRESSES=1, products round by shape and address."""
    with OtherProcessor():
        yield


CHROMIUM = [
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright."""
    executable = shutil.which("chromium")
    if executable is None:
        absent = pytest.fail if os.environ.get("CIRCUITVIT_REQUIRE_ALL") == "1" else pytest.skip
        absent("there is no chromium on this machine to open pages with")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=executable, args=CHROMIUM)


@pytest.fixture
def as_users_call() -> Iterator[None]:
    """Without the tests' own shape checker, which would refuse bad input before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a test was skipped for lack of a program that must be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if REQUIRE_ALL and reporter else []
    wanting = [r for r in skipped if any(word in str(r.longrepr) for word in ("timm", "hromium"))]
    if wanting:
        reporter.write_line(f"{len(wanting)} skipped tests must run here: {wanting[0].longrepr}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
