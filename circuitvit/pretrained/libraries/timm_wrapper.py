"""What transformers' wrapper for timm (`TimmWrapper…`) says of images and classes.

The model inside knows neither: its `pretrained_cfg` is that of the architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.libraries import timm
from circuitvit.pretrained.libraries.processors import processor_of
from circuitvit.pretrained.libraries.transformers import class_names, home_of


@dataclass(frozen=True)
class Said:
    """What a wrapper says.

    Attributes:
        preprocessing: of its images; None where even timm knows nothing of the architecture.
        folded: what was taken, and left out.
        guessed: sentences about what of it is a guess.
    """

    preprocessing: Preprocessing | None
    folded: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def said_by(wrapper: Any) -> Said:
    """The wrapper's preprocessing and class names.

    An image processor beside it comes first, as in transformers; then `pretrained_cfg` of its
    config; then timm's defaults for the architecture, which are a guess.
    """
    names = _names(wrapper.config)
    processor = processor_of(home_of(wrapper))
    if processor.seen is not None:
        seen = replace(processor.seen, class_names=names)
        return Said(seen, processor.notes, processor.guessed)
    known = getattr(wrapper.config, "pretrained_cfg", None)
    if isinstance(known, Mapping) and known:
        seen = timm.preprocessing_from(known)
        odd = tuple(timm.odd_fields({**known, "label_names": None} if names else known))
        guessed = (f"{'; '.join(odd)}. {timm.LOOK}",) if odd else ()
        assert seen is not None
        return Said(replace(seen, class_names=names), (*processor.notes, *odd), guessed)
    seen = timm.preprocessing_of(wrapper.timm_model)
    if seen is None:
        return Said(None, processor.notes)
    note = (
        "how its images were normalised is not known: there is neither a pretrained_cfg nor an "
        "image processor; timm's values for the architecture are taken"
    )
    guessed = (f"{note}. {timm.LOOK}",) if names is not None else ()
    return Said(replace(seen, class_names=names), (*processor.notes, note), guessed)


def _names(config: Any) -> tuple[str, ...] | None:
    """Class names, of the config or, where that only counts, of its `pretrained_cfg`.

    Of `label_names` that are a dict transformers takes the keys for the names.
    """
    labels, known = getattr(config, "label_names", None), getattr(config, "pretrained_cfg", None)
    if isinstance(labels, Mapping) and labels:
        return timm.names_in({"label_names": labels})
    inside = timm.names_in(known) if isinstance(known, Mapping) else None
    return class_names(config) or inside
