"""Claim: exact nodes, minimality and completeness take a tenth of one masked run after the other.

Command   python experiments/bench_measures.py [nodes completeness curve minimality]
Hardware  2 CPU cores
Minutes   25
Expected  experiments/results/bench_measures.json: each 10 times as fast (completeness of 16 pairs: 6), a curve 4

The trained CIFAR-10 model of `shared/models` and ACDC's circuit at τ=0.01. Before is
`circuitvit.intervene.ablated_run.run_embedded`, every reader with a copy of the stream of its own, circuit by
circuit; after is `circuitvit.intervene.circuit_runs`. Both in one process on one thread, one after the other; time is
the processor's. The difference is the largest of any value of the result, intervals included.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated
from unittest import mock

import acdc_memory_limit
import torch
import typer

import circuitvit as cv
from circuitvit.files import read_json, write_json
from circuitvit.intervene import circuit_runs
from circuitvit.intervene.ablated_run import EdgeMask, run_embedded
from circuitvit.intervene.run_plan import RunPlan
from circuitvit.measure.circuits import losses

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "bench_measures.json"
TAU, IMAGES_AT_ONCE = 0.01, 64


class PlainPlan(RunPlan):
    """The masks of some circuits."""

    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.masks = []

    def add(self, edges, qkv="split"):
        """Note the circuit that keeps these edges."""
        self.masks.append(EdgeMask.of(self.config, edges, qkv))


class PlainRuns:
    """Circuits run one after the other, with nothing shared but the model's own logits."""

    runs = 0

    def __init__(self, vit, plan, clean, ablated):
        self._vit, self._plan = vit, plan
        self._embedded, self._ablated = vit.embed(clean), ablated.values(vit)

    def logits(self):
        """The logits of each circuit."""
        full = None
        for mask in self._plan.masks:
            whole = all(bool(rows.all()) for rows in (*mask.attention, *mask.mlp, mask.logits))
            if not whole or full is None:
                run = run_embedded(self._vit, self._embedded, mask, self._ablated)
                PlainRuns.runs += 1
                full = run.logits if whole else full
            yield full if whole else run.logits


def plainly(work):
    """What some work gives with masked runs one after the other."""
    PlainRuns.runs = 0
    with ExitStack() as stack:
        for module in (losses, circuit_runs):
            stack.enter_context(mock.patch.object(module, "RunPlan", PlainPlan))
            stack.enter_context(mock.patch.object(module, "Runs", PlainRuns))
            stack.enter_context(
                mock.patch.object(module, "images_in_chunk", return_value=IMAGES_AT_ONCE)
            )
        return work()


def timed(work):
    """Seconds of the processor, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def numbers(value):
    """All numbers in a result, in order."""
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list | tuple):
        return [n for item in value for n in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def row(work):
    """One measurement before and after."""
    slow, before = timed(lambda: plainly(work))
    runs = PlainRuns.runs
    fast, after = timed(work)
    before, after = numbers(before), numbers(after)
    return {
        "seconds_before": round(slow, 2),
        "seconds_after": round(fast, 2),
        "times_as_fast": round(slow / fast, 1),
        "masked_runs": runs,
        "ms_a_run_before": round(1e3 * slow / runs, 1),
        "ms_a_run_after": round(1e3 * fast / runs, 1),
        "largest_difference": max(abs(a - b) for a, b in zip(before, after, strict=True)),
    }


def questions(vit, pairs, ablation):
    """The work by name."""
    given = {"ablation": ablation, "reference": pairs.clean if ablation == "mean" else None}
    circuit = cv.acdc(vit, pairs, tau=TAU, **given)
    scores = cv.eap(vit, pairs, metric="logit_difference", **given)
    yield "nodes", lambda: dict(cv.eap(vit, pairs, method="exact", level="node", **given))
    yield "completeness", lambda: cv.completeness(vit, circuit, pairs, **given).as_dict()
    yield "curve", lambda: cv.faithfulness_curve(vit, scores, pairs, **given).as_dict()
    yield "minimality", lambda: cv.minimality(vit, circuit, pairs, **given).as_dict()


def main(
    names: Annotated[list[str] | None, typer.Argument()] = None,
    shared: Path = ROOT.parent / "shared",
    ablation: Annotated[list[str] | None, typer.Option()] = None,
    count: Annotated[int, typer.Option("--pairs")] = 64,
):
    """Measure; rows of earlier calls are kept."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the circuit is judged on the pairs of its discovery
    vit, pairs = acdc_memory_limit.trained(shared, count)
    with torch.no_grad():
        vit(pairs.clean)
    body = read_json(RESULTS, what="results") if RESULTS.exists() else {"rows": {}}
    for how in ablation or ["patch", "mean"]:
        for name, work in questions(vit, pairs, how):
            if not names or name in names:
                found = {"pairs": count, **row(work)}
                body["rows"][f"{name}, {how}"] = found
                typer.echo(f"{name}, {how}: {found}")
                write_json(RESULTS, {**body, "tau": TAU, "torch": torch.__version__})


if __name__ == "__main__":
    sys.exit(typer.run(main))
