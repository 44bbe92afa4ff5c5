"""How much of the model's behaviour a circuit keeps."""

from torch import Tensor

from circuitvit.checks import check_circuit, check_vit
from circuitvit.circuit import Ablation, Circuit
from circuitvit.images import Pairs
from circuitvit.measure.examination import Examination
from circuitvit.metrics import Metric
from circuitvit.torch_modes import in_default_modes
from circuitvit.vit import ViT


@in_default_modes
def faithfulness(
    vit: ViT,
    circuit: Circuit,
    pairs: Pairs,
    *,
    metric: Metric = "kl",
    ablation: Ablation = "patch",
    reference: Tensor | None = None,
) -> float:
    """f(C) = (m(C) − m(∅)) / (m(full) − m(∅)), from means over the pairs; 1 is the full model.

    Args:
        vit: the model.
        circuit: found on it.
        pairs: best ones that discovery has not seen.
        metric: m; a name or a callable, see `circuitvit.metrics`.
        ablation: what removed edges carry.
        reference: images for `mean`.

    Raises:
        CircuitError: removing everything hardly changes the metric, so the ratio means nothing.
    """
    check_vit(vit)
    check_circuit(vit, circuit)
    examination = Examination.checked(
        vit, pairs, metric=metric, ablation=ablation, reference=reference
    )
    return float(examination.outcome([circuit], count=1, what="Circuit").faithfulness()[0])
