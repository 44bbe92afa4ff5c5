"""Claim: under a memory limit, ACDC's time no longer explodes; it is not yet linear in the pairs.

Command   python experiments/acdc_memory_limit.py 256 512 [--shared ../shared] [--gib 6]
Hardware  2 CPU cores, 24 GiB
Minutes   10
Expected  experiments/results/acdc_memory_limit.json

The trained CIFAR-10 model of `shared/models` at τ=0.01, each number of pairs in a process of its
own whose address space is limited (`ulimit -v`, which counts the libraries' 2.3 GiB too), on one
thread. Time is the processor's, of that process, so that a busy machine matters less.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import hashlib
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Annotated

import bench_discovery
import timm
import torch
import typer
from safetensors.torch import load_file

import circuitvit as cv
from circuitvit.discover.acdc import chunks
from circuitvit.files import read_json, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "acdc_memory_limit.json"
TAU = 0.01


def trained(shared, count):
    """The CIFAR-10 model and some pairs of test images, normalised as it was trained."""
    module = timm.models.VisionTransformer(**bench_discovery.CIFAR)
    module.load_state_dict(load_file(shared / "models" / "cifar10_timm_vit.safetensors"))
    images = cv.load_splits(str(shared / "data" / "cifar10_test.parquet"), limit=3 * count).test
    pairs = cv.Pairs.by_class(images, count=count)
    mean = torch.tensor((0.4914, 0.4822, 0.4465)).view(3, 1, 1)
    deviation = torch.tensor((0.247, 0.2435, 0.2616)).view(3, 1, 1)
    clean, corrupt = (((x / 2 + 0.5) - mean) / deviation for x in (pairs.clean, pairs.corrupt))
    return cv.load_vit(module.eval()), cv.Pairs(
        clean=clean, corrupt=corrupt, labels=pairs.labels, corrupt_labels=pairs.corrupt_labels
    )


def row(vit, pairs, tau, gib=None, images=None):
    """One search under a limit of the address space; this process keeps the limit."""
    if gib is not None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30), resource.RLIM_INFINITY))
    sizes, make = list[int](), chunks.Chunks._run

    def made(self, some):
        sizes.append(len(some))
        return make(self, some)

    chunks.Chunks._run = made
    try:
        wall, start = time.perf_counter(), time.process_time()
        circuit = cv.acdc(vit, pairs, tau=tau, images_at_once=images)
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
    finally:
        chunks.Chunks._run = make
    return {
        "pairs": len(pairs),
        "seconds": round(seconds, 2),
        "wall_seconds": round(wall, 2),
        "ms_a_pair": round(1e3 * seconds / len(pairs), 1),
        "pairs_at_once": max(sizes),
        "runs": len(sizes),
        "edges": len(circuit),
        "digest": hashlib.sha256("\n".join(circuit.edges).encode()).hexdigest()[:16],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _row(shared, count, tau, gib, images, queue):
    torch.set_num_threads(1)
    vit, pairs = trained(shared, count)
    with torch.no_grad():
        vit(pairs.clean[:1])
    queue.put(row(vit, pairs, tau, gib, images))


def row_apart(shared, count, tau=TAU, gib=None, images=None):
    """One search in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_row, args=(shared, count, tau, gib, images, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{count} pairs ended with exit code {process.exitcode}.")
    return queue.get()


def table(rows):
    """The rows of README's table."""
    lines = ["| pairs | seconds | ms a pair | pairs at once | edges |", "| --- " * 5 + "|"]
    lines += [
        f"| {found['pairs']:,} | {found['seconds']:z.1f} | {found['ms_a_pair']:z.1f} | "
        f"{found['pairs_at_once']:,} | {found['edges']:,} |"
        for found in rows
    ]
    return "\n".join(lines)


def main(
    counts: Annotated[list[int], typer.Argument()],
    shared: Path = ROOT.parent / "shared",
    tau: float = TAU,
    gib: float = 6,
    images: int | None = None,
):
    """Search some numbers of pairs under a limit; `--gib 0` is without one."""
    body = read_json(RESULTS, what="results") if RESULTS.exists() else {"rows": {}}
    for count in counts:
        found = row_apart(shared, count, tau, gib or None, images)
        typer.echo(json.dumps(found))
        body["rows"][f"{count} pairs, {gib:zg} GiB"] = found
        write_json(RESULTS, {"tau": tau, "torch": torch.__version__, **body})
    typer.echo(table(body["rows"].values()))


if __name__ == "__main__":
    sys.exit(typer.run(main))
