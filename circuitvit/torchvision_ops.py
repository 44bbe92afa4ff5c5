"""Lets torchvision be imported beside a CPU-only torch.

torchvision's wheel is built against the CUDA flavour of torch. Beside a CPU-only torch its
compiled operators don't load, and `import torchvision` dies with `operator torchvision::nms does
not exist`. Declaring the two missing schemas first is enough for transforms, models and timm;
calling `nms` itself still fails. What imports torchvision (timm and transformers do) must come
after.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@lru_cache(maxsize=1)
def register_missing_ops() -> tuple[torch.library.Library, ...]:
    """Declare `torchvision::nms` and `qnms` where torchvision's compiled operators can't load."""
    if torch.version.cuda is not None or _compiled_ops_load():
        return ()
    library = torch.library.Library("torchvision", "DEF")
    library.define(f"nms{_SCHEMA}")
    library.define(f"qnms{_SCHEMA}")
    return (library,)


def _compiled_ops_load() -> bool:
    """Whether torchvision's operators are there, trying to load them as torchvision would."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for path in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(path)
        except OSError:
            return False
    return _has_op("nms")


def _has_op(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)
