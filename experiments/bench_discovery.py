"""Claim: ACDC costs hundredths of a dense forward an edge, EAP about two passes, both exactly.

Command   python experiments/bench_discovery.py cifar deit_s vit_b [--shared ../shared]
Hardware  2 CPU cores, 24 GiB
Minutes   cifar 2, deit_s 3 with --tau 0.0013, vit_b 70 on one core with --tau 0.0004 (more
          without --tau: it is then bisected)
Expected  experiments/results/bench_discovery.json; experiments/results/README.md's table comes from it

A dense forward is timm's own module on all pairs at once, in inference mode, on the same threads,
timed in turns with ours, median of 7 or more; a forward-backward has gradients of the parameters.
EAP is the median of 7 calls, of 3 on the large models.
Memory is the peak of the resident set above what it is once the model and the pairs are loaded,
in a process of its own; that of the large searches is taken in this process, which has run EAP. `cifar` is the trained model of `shared/models`, or the demo's where
that is absent; the others have random weights, scaled so that logits vary, and τ is bisected on two
pairs until 3–10% of the edges stay.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

import circuitvit as cv

cv.ViT  # noqa: B018 - the first touch of a torch-backed name makes timm importable
import timm
from safetensors.torch import load_file

from circuitvit.discover.acdc.acdc import searched, undecided
from circuitvit.discover.acdc.resume import ResumeFile
from circuitvit.discover.acdc.settings import SearchSettings
from circuitvit.files import read_json, write_json
from circuitvit.graph.edge_graph import edge_names_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import oracles

RESULTS = ROOT / "experiments" / "results" / "bench_discovery.json"
ROUNDS = 7
CIFAR = {
    "img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 8, "mlp_ratio": 2,
    "num_classes": 10,
}  # fmt: skip
SHAPES = {
    "deit_s": ({"embed_dim": 384, "depth": 12, "num_heads": 6, "num_classes": 1000}, 16),
    "vit_b": ({"embed_dim": 768, "depth": 12, "num_heads": 12, "num_classes": 1000}, 8),
}


def trained(shared):
    """The CIFAR-10 model and 32 pairs of test images, normalised as it was trained.

    Where it is absent, the dense model of `make demo`, on digits.
    """
    if not (shared / "models").is_dir():
        vit = cv.ViT.from_pretrained(ROOT / "runs" / "demo" / "dense")
        return vit, cv.Pairs.by_class(cv.load_splits("digits").validation, count=32)
    module = timm.models.VisionTransformer(**CIFAR)
    module.load_state_dict(load_file(shared / "models" / "cifar10_timm_vit.safetensors"))
    images = cv.load_splits(str(shared / "data" / "cifar10_test.parquet"), limit=200).test
    pairs = cv.Pairs.by_class(images, count=32)
    mean = torch.tensor((0.4914, 0.4822, 0.4465)).view(3, 1, 1)
    deviation = torch.tensor((0.247, 0.2435, 0.2616)).view(3, 1, 1)
    clean, corrupt = (((x / 2 + 0.5) - mean) / deviation for x in (pairs.clean, pairs.corrupt))
    return module.eval(), cv.Pairs(
        clean=clean, corrupt=corrupt, labels=pairs.labels, corrupt_labels=pairs.corrupt_labels
    )


def random_weights(name):
    """A timm model with random weights that attend and differ, and pairs of noise."""
    options, count = SHAPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.models.VisionTransformer(**options).eval()
        with torch.no_grad():
            for parameter_name, parameter in module.named_parameters():
                if (
                    parameter.ndim > 1
                    and "pos" not in parameter_name
                    and "token" not in parameter_name
                ):
                    fan_in = parameter[0].numel()
                    parameter.normal_(0, 1.5 * fan_in**-0.5)
                elif parameter_name.endswith("bias"):
                    parameter.normal_(0, 0.1)
                elif "norm" in parameter_name:
                    parameter.normal_(1, 0.2)
                else:
                    parameter.normal_(0, 0.5)
            clean, corrupt = torch.randn(2, count, 3, 224, 224)
            module.head.weight.mul_(2 / module(clean[:4]).std())
        labels = torch.randint(1000, (count,))
    return module, cv.Pairs(
        clean=clean, corrupt=corrupt, labels=labels, corrupt_labels=(labels + 1) % 1000
    )


def loaded(name, shared):
    if name == "cifar":
        return trained(shared)
    return random_weights(name)


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def dense(module, pairs):
    with torch.inference_mode():
        return timed(lambda: module(pairs.clean))[0]


def forward_backward(module, pairs):
    def work():
        logits = module(pairs.clean)
        rows = torch.arange(len(logits))
        (logits[rows, pairs.corrupt_labels] - logits[rows, pairs.labels]).sum().backward()

    seconds, _ = timed(work)
    module.zero_grad()
    return seconds


def memory(field):
    """MiB of this process: `VmRSS` now, or `VmHWM`, the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def _peak(name, shared, what, tau, threads, queue):
    torch.set_num_threads(threads)
    module, pairs = loaded(name, shared)
    with torch.inference_mode():
        module(pairs.clean[:1])
    vit = cv.load_vit(module)
    forget_peak()
    before = memory("VmRSS")
    if what == "forward_backward":
        forward_backward(module, pairs)
    elif what == "acdc":
        cv.acdc(vit, pairs, tau=tau)
    else:
        cv.eap(vit, pairs, method=what)
    queue.put(memory("VmHWM") - before)


def peak(name, shared, what, tau=None):
    """MiB above the loaded model, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(
        target=_peak, args=(name, shared, what, tau, torch.get_num_threads(), queue)
    )
    process.start()
    value = queue.get()
    process.join()
    return round(value)


def eap_figures(module, vit, pairs):
    works = {
        "forward": lambda: dense(module, pairs),
        "forward_backward": lambda: forward_backward(module, pairs),
        "eap": lambda: timed(lambda: cv.eap(vit, pairs))[0],
        "eap_ig_5_steps": lambda: timed(
            lambda: cv.eap(vit, pairs, method="eap-ig-inputs", steps=5)
        )[0],
    }
    seconds = {key: [] for key in works}
    for work in works.values():
        work()
    rounds = ROUNDS if vit.config.tokens < 100 else 3
    for _ in range(rounds):
        for key, work in works.items():
            times = ROUNDS // rounds + 1 if key == "forward" else 1
            seconds[key] += [work() for _ in range(times)]
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    both = medians["forward"] + medians["forward_backward"]
    return {
        "seconds": {key: round(value, 4) for key, value in medians.items()},
        "eap_over_forward_plus_forward_backward": round(medians["eap"] / both, 3),
        "eap_ig_over_forward_backward": round(
            medians["eap_ig_5_steps"] / medians["forward_backward"], 3
        ),
    }


def bisected(vit, pairs, low=1e-5, high=1.0):
    """A τ at which 3–6% of the edges stay, on two pairs."""
    few = pairs.subset(slice(0, 2))
    total = len(edge_names_of(vit.config))
    for _ in range(12):
        tau = (low * high) ** 0.5
        share = len(cv.acdc(vit, few, tau=tau)) / total
        typer.echo(f"  τ={tau:z.3g}: {share:z.1%} of the edges stay on two pairs")
        if 0.03 <= share <= 0.06:
            return tau
        low, high = (tau, high) if share > 0.06 else (low, tau)
    raise SystemExit("no τ keeps 3–6% of the edges")


def acdc_figures(module, vit, pairs, tau, samples, repeats, record=None):
    """One search, timed in turns with dense forwards, and checked against whole hooked runs."""
    settings = SearchSettings.checked(vit, pairs)
    dense(module, pairs)
    forwards, seconds = [], []
    forget_peak()
    before = memory("VmRSS")
    for _ in range(repeats):
        forwards += [dense(module, pairs) for _ in range(ROUNDS)]
        decisions = undecided(settings, tau)
        file = None if record is None else ResumeFile(record, settings.record(tau))
        taken, circuit = timed(
            lambda decisions=decisions, file=file: searched(settings, decisions, file)
        )
        seconds.append(taken)
        forwards += [dense(module, pairs) for _ in range(ROUNDS)]
    forward, taken = statistics.median(forwards), statistics.median(seconds)
    edges, most = len(edge_names_of(vit.config)), memory("VmHWM")
    oracle_seconds, error = against_oracle(vit, pairs, decisions, samples)
    return {
        "tau": tau,
        "pairs": len(pairs),
        "edges": edges,
        "kept": len(circuit),
        "share_kept": round(len(circuit) / edges, 4),
        "evaluations": circuit.provenance.evaluations,
        "ties": len(circuit.provenance.ties),
        "divergence": circuit.provenance.divergence,
        "seconds": round(taken, 2),
        "edges_a_second": round(edges / taken, 1),
        "dense_forward_seconds": round(forward, 4),
        "dense_forwards_an_edge": round(taken / edges / forward, 4),
        "peak_mib": round(most - before),
        "hooked_run_seconds": round(oracle_seconds, 3),
        "hooked_runs_an_edge": round(taken / edges / oracle_seconds, 5),
        "hooked_runs_timed": samples,
        "largest_difference_of_D_from_hooked_runs": error,
    }


def against_oracle(vit, pairs, decisions, samples):
    """Seconds of a whole hooked run of one edge, and how far D differs from it."""
    ablated = oracles.ablated_values(vit, pairs, "patch")
    with torch.no_grad():
        full = vit(pairs.clean)
    names, measured = edge_names_of(vit.config), decisions.measured
    asked = [index for index, value in enumerate(measured) if value is not None]
    chosen = [asked[(2 * i + 1) * len(asked) // (2 * samples)] for i in range(samples)]
    seconds, errors = [], []
    for index in chosen:
        gone = {n for n in names[:index] if n not in decisions.rises}
        kept = set(names) - gone - {names[index]}
        taken, logits = timed(
            lambda kept=kept: oracles.circuit_logits(vit, kept, pairs.clean, ablated)
        )
        seconds.append(taken)
        loss = float(oracles.loss("kl", logits, pairs, full).double().mean())
        errors.append(abs(loss - measured[index]))
    return statistics.median(seconds), max(errors)


def measured_eap(name, shared):
    module, pairs = loaded(name, shared)
    figures = eap_figures(module, cv.load_vit(module), pairs)
    for what in ("forward_backward", "eap", "eap-ig-inputs"):
        figures[f"peak_mib_{what}"] = peak(name, shared, what)
    return {"threads": torch.get_num_threads(), **figures}


def measured_acdc(name, shared, tau, record):
    module, pairs = loaded(name, shared)
    vit = cv.load_vit(module)
    if name == "cifar":
        taus, samples, repeats = (0.01, 0.001), 20, 3
    else:
        taus, samples, repeats = (tau or bisected(vit, pairs),), 1, 1
    rows = []
    for each in taus:
        row = acdc_figures(module, vit, pairs, each, samples, repeats, record)
        if name == "cifar":
            row["peak_mib"] = peak(name, shared, "acdc", each)
        rows.append({"threads": torch.get_num_threads(), **row})
    return rows


def table(body):
    """The rows of README's table."""
    lines = [
        "| ViT | pairs | edges | τ, kept | ACDC | dense forwards an edge | hooked runs an edge | "
        "ACDC peak | EAP | EAP-IG, 5 steps | EAP peak |",
        "| --- " * 11 + "|",
    ]
    for name, found in body.items():
        for row in found["acdc"] if isinstance(found, dict) else ():
            eap = found["eap"]
            peaks = eap["peak_mib_eap"] / eap["peak_mib_forward_backward"]
            lines.append(
                f"| {name} | {row['pairs']} | {row['edges']:,} | {row['tau']:zg}, "
                f"{row['share_kept']:z.1%} | {row['seconds']:z.1f} s | "
                f"{row['dense_forwards_an_edge']:z.4f} | {row['hooked_runs_an_edge']:z.5f} | "
                f"{row['peak_mib']:,} MiB | {eap['eap_over_forward_plus_forward_backward']:z.2f} × | "
                f"{eap['eap_ig_over_forward_backward']:z.2f} × | {peaks:z.2f} × |"
            )
    return "\n".join(lines)


def main(
    names: Annotated[list[str], typer.Argument()],
    shared: Path = ROOT.parent / "shared",
    threads: int = 2,
    tau: float | None = None,
    only: str = "both",
    record: Path | None = None,
):
    """Measure EAP and ACDC (or `--only eap`, `--only acdc`) on some of cifar, deit_s and vit_b.

    `--record` is a new file in which a search notes how far it is, to be looked at.
    """
    torch.set_num_threads(threads)
    for name in names:
        found = {"torch": torch.__version__}
        if only in ("both", "eap"):
            found["eap"] = measured_eap(name, shared)
        if only in ("both", "acdc"):
            found["acdc"] = measured_acdc(name, shared, tau, record)
        typer.echo(json.dumps(found, indent=1))
        body = read_json(RESULTS, what="results") if RESULTS.exists() else {}
        command = "python experiments/bench_discovery.py cifar deit_s vit_b"
        body = {"command": command, **body, name: {**body.get(name, {}), **found}}
        write_json(RESULTS, body)
        if all("eap" in found and "acdc" in found for found in body.values() if found != command):
            typer.echo(table(body))


if __name__ == "__main__":
    typer.run(main)
