"""What may be taken of memory, under limits of other kinds."""

import sys

import psutil
import pytest
import torch

from circuitvit import memory
from circuitvit.memory import address_space_left, free_memory

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system of our own, whose files are written as given."""
    monkeypatch.setattr(memory, "SYSTEM", tmp_path)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_groups_it_is_what_the_machine_has(system):
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


def test_a_control_group_of_version_2_counts_and_so_do_those_around_it(system, tmp_path):
    system(proc__self__cgroup="0::/jobs/mine\n")
    top = tmp_path / "sys" / "fs" / "cgroup"
    put(top / "jobs" / "mine", memory__max="max\n", memory__current="1\n", memory__stat="")
    put(
        top / "jobs", memory__max="1000\n", memory__current="700\n",
        memory__stat="anon 500\ninactive_file 200\n",
    )  # fmt: skip
    assert free_memory(CPU) == 500


def test_a_control_group_of_version_1_counts(system, tmp_path):
    system(proc__self__cgroup="5:cpu:/other\n4:memory:/mine\n")
    put(
        tmp_path / "sys" / "fs" / "cgroup" / "memory" / "mine",
        memory__limit_in_bytes="1000\n", memory__usage_in_bytes="900\n",
        memory__stat="total_inactive_file 50\n",
    )  # fmt: skip
    assert free_memory(CPU) == 150


def test_a_group_that_has_used_more_than_its_limit_leaves_nothing(system, tmp_path):
    system(proc__self__cgroup="0::/\n")
    put(
        tmp_path / "sys" / "fs" / "cgroup",
        memory__max="10", memory__current="11", memory__stat="",
    )  # fmt: skip
    assert free_memory(CPU) == 0


def test_files_that_say_something_else_are_no_limit(system, tmp_path):
    system(proc__self__cgroup="0::/\n")
    put(tmp_path / "sys" / "fs" / "cgroup", memory__max="plenty", memory__current="?")
    assert free_memory(CPU) > 0


def test_the_address_space_counts_less_what_is_in_use(monkeypatch):
    resource = pytest.importorskip("resource")
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda what: (used + GIB, used + GIB))
    assert address_space_left(CPU) == pytest.approx(GIB, abs=GIB / 4)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1, 1))
    assert address_space_left(CPU) == 0
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda what: unlimited)
    assert address_space_left(CPU) == sys.maxsize
