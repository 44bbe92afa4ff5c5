"""How much of the model's behaviour a circuit keeps."""

from torch import Tensor

from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.images import Pairs
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.intervene.metrics import Metric
from circuitvit.measure.circuits.losses import outcome_of
from circuitvit.measure.circuits.result import measured_task
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes


@in_default_modes
def faithfulness(
    vit: ViT,
    circuit: Circuit,
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    ablation: Ablation | None = None,
    reference: Tensor | None = None,
) -> float:
    """f(C) = (m(C) − m(∅)) / (m(full) − m(∅)), from means over the pairs; 1 is the full model.

    The same number as `faithfulness_curve(vit, [circuit], pairs)`, `completeness` and `minimality`
    give, whose results also say under which conditions and how sure it is.

    Args:
        vit: the model.
        circuit: found on it.
        pairs: best ones that discovery has not seen.
        metric: m; a name or a callable, see `circuitvit.intervene.metrics`; by default that of
            discovery, for circuits made by hand `logit_difference`.
        ablation: what removed edges carry; by default that of discovery, for circuits made by
            hand `patch`.
        reference: images for `mean`.

    Raises:
        CircuitError: the 95% interval of m(full) − m(∅) over the pairs holds 0, or it is less than
            1.5 standard errors, so that the ratio means nothing; or the input doesn't fit.
    """
    check_vit(vit)
    check_circuit(vit, circuit)
    task = measured_task(
        vit, pairs, [circuit.provenance], metric=metric, ablation=ablation, reference=reference
    )
    outcome = outcome_of(task, [circuit], count=1, what="Circuit")
    return float(outcome.faithfulness()[0]) + 0.0  # −0 becomes 0
