"""What a compiled model's history says: the circuit, the budget, what was kept."""

from typing import Any

from torch import Tensor

from circuitvit.compiler.validating import Options
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import edge_count
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.history import History, after
from circuitvit.models.vit import ViT


def compiled_history(
    vit: ViT,
    compiled: ViT | CircuitViT,
    circuit: Circuit,
    *,
    level: str,
    ablation: str,
    reference: Tensor | None,
    options: Options,
) -> History:
    """The history of the model that was compiled, with the compilation as its last step."""
    origin, (heads, neurons) = circuit.provenance, compiled.units_kept()
    details: dict[str, Any] = {
        "found_by": origin.method,
        "selection": origin.selection,
        "search": {
            name: getattr(origin, name)
            for name in ("level", "tau", "metric", "ablation", "steps", "images", "seed", "model")
            if getattr(origin, name) is not None
        },
        "edges": f"{len(circuit):,} of {edge_count(circuit.config, circuit.qkv):,}",
        "level": level,
        "ablation": ablation,
        "reference_images": None if reference is None else len(reference),
        "budget": {name: share for name, share in options.targets.items() if share is not None},
        "neurons": _neurons(options),
        "heads_kept": f"{sum(heads):,} of {sum(vit.config.heads):,}",
        "neurons_kept": f"{sum(neurons):,} of {sum(vit.config.mlp_width):,}",
        "new_random_weights": {"seed": options.seed} if options.fresh else None,
    }
    return after(vit.history, "compiled", details, vit.fingerprint())


def _neurons(options: Options) -> dict[str, Any]:
    """By what neurons were cut, if they were."""
    scores, ratio = options.neurons, options.keep_ratio
    if scores is None or ratio is None:
        return {}
    shares = ratio if isinstance(ratio, float | int) else [f"m{b} {r}" for b, r in ratio.items()]
    return {
        "scored_by": scores.provenance.method,
        "keep_ratio": shares,
        "multiple": options.multiple,
    }
