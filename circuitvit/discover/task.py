"""The task of a discovery: a `PatchingTask` and a level that its method knows."""

from typing import get_args

from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Level
from circuitvit.images import Pairs
from circuitvit.images.pairs.paired_images import warn_of_same
from circuitvit.intervene.metrics import Metric
from circuitvit.intervene.task import PatchingTask
from circuitvit.models.vit import ViT


def discovery_task(
    vit: ViT,
    pairs: Pairs,
    *,
    metric: Metric,
    ablation: Ablation,
    level: str,
    reference: Tensor | None,
    levels: tuple[str, ...] = get_args(Level),
) -> PatchingTask:
    """Check the arguments of a discovery; `levels` are those of its method.

    Under `patch` it warns of pairs whose images are the same.

    Raises:
        CircuitError: the model, pairs, metric, level or ablation don't fit together.
    """
    if level not in levels:
        raise CircuitError(f"level is {level!r}, expected one of {levels}.")
    task = PatchingTask.checked(vit, pairs, metric=metric, ablation=ablation, reference=reference)
    if task.ablation == "patch":  # pairs that are the same in part were warned of when made
        warn_of_same(task.given_pairs.clean, task.given_pairs.corrupt, least=len(task.pairs))
    return task
