"""ImageNet's class names: WordNet ids of folders, human-readable names of models.

The 58 animal classes of Tiny-ImageNet are its classes from n01443537 to n02509815 without trilobite
(n01768244) and brain coral (n01917289). Names are the first word of ImageNet's own, as in
torchvision's and timm's class names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from circuitvit.torchvision_ops import register_missing_ops


@dataclass(frozen=True)
class Animal:
    """One class of animals.

    Attributes:
        wnid: WordNet id, the class name in Tiny-ImageNet's files.
        name: what people call it.
        category: coarse group, several classes each where there are several.
    """

    wnid: str
    name: str
    category: str


def categories() -> dict[str, str]:
    """The coarse category of each animal class, by its human-readable name."""
    return {animal.name: animal.category for animal in ANIMALS}


ANIMALS: tuple[Animal, ...] = (
    Animal("n01443537", "goldfish", "fish"),
    Animal("n01629819", "European fire salamander", "amphibians"),
    Animal("n01641577", "bullfrog", "amphibians"),
    Animal("n01644900", "tailed frog", "amphibians"),
    Animal("n01698640", "American alligator", "reptiles"),
    Animal("n01742172", "boa constrictor", "reptiles"),
    Animal("n01770393", "scorpion", "arachnids and centipede"),
    Animal("n01774384", "black widow", "arachnids and centipede"),
    Animal("n01774750", "tarantula", "arachnids and centipede"),
    Animal("n01784675", "centipede", "arachnids and centipede"),
    Animal("n01855672", "goose", "birds"),
    Animal("n01882714", "koala", "koala"),
    Animal("n01910747", "jellyfish", "soft-bodied sea animals and snails"),
    Animal("n01944390", "snail", "soft-bodied sea animals and snails"),
    Animal("n01945685", "slug", "soft-bodied sea animals and snails"),
    Animal("n01950731", "sea slug", "soft-bodied sea animals and snails"),
    Animal("n01983481", "American lobster", "crustaceans"),
    Animal("n01984695", "spiny lobster", "crustaceans"),
    Animal("n02002724", "black stork", "water birds and sea mammals"),
    Animal("n02056570", "king penguin", "water birds and sea mammals"),
    Animal("n02058221", "albatross", "water birds and sea mammals"),
    Animal("n02074367", "dugong", "water birds and sea mammals"),
    Animal("n02085620", "Chihuahua", "dogs"),
    Animal("n02094433", "Yorkshire terrier", "dogs"),
    Animal("n02099601", "golden retriever", "dogs"),
    Animal("n02099712", "Labrador retriever", "dogs"),
    Animal("n02106662", "German shepherd", "dogs"),
    Animal("n02113799", "standard poodle", "dogs"),
    Animal("n02123045", "tabby", "cats"),
    Animal("n02123394", "Persian cat", "cats"),
    Animal("n02124075", "Egyptian cat", "cats"),
    Animal("n02125311", "cougar", "cats"),
    Animal("n02129165", "lion", "cats"),
    Animal("n02132136", "brown bear", "bears"),
    Animal("n02165456", "ladybug", "insects"),
    Animal("n02190166", "fly", "insects"),
    Animal("n02206856", "bee", "insects"),
    Animal("n02226429", "grasshopper", "insects"),
    Animal("n02231487", "walking stick", "insects"),
    Animal("n02233338", "cockroach", "insects"),
    Animal("n02236044", "mantis", "insects"),
    Animal("n02268443", "dragonfly", "insects"),
    Animal("n02279972", "monarch", "insects"),
    Animal("n02281406", "sulphur butterfly", "insects"),
    Animal("n02321529", "sea cucumber", "soft-bodied sea animals and snails"),
    Animal("n02364673", "guinea pig", "rodents"),
    Animal("n02395406", "hog", "hoofed animals"),
    Animal("n02403003", "ox", "hoofed animals"),
    Animal("n02410509", "bison", "hoofed animals"),
    Animal("n02415577", "bighorn", "hoofed animals"),
    Animal("n02423022", "gazelle", "hoofed animals"),
    Animal("n02437312", "Arabian camel", "hoofed animals"),
    Animal("n02480495", "orangutan", "apes and monkeys"),
    Animal("n02480855", "gorilla", "apes and monkeys"),
    Animal("n02481823", "chimpanzee", "apes and monkeys"),
    Animal("n02486410", "baboon", "apes and monkeys"),
    Animal("n02504458", "African elephant", "elephant and panda"),
    Animal("n02509815", "lesser panda", "elephant and panda"),
)
"""In the order of their wnids, which is WordNet's."""


_WNID = re.compile(r"n\d{8}")


def is_wnid(name: str) -> bool:
    """Whether a class is called by a WordNet id, such as `n01440764`."""
    return _WNID.fullmatch(name) is not None


def described(wnid: str) -> str | None:
    """The synonyms of a WordNet id, `tench, Tinca tinca`; None where they are not known.

    timm has them for all of ImageNet; without it only Tiny-ImageNet's animals are known.
    """
    info = _info()
    if info is not None:
        try:
            return info.label_name_to_description(wnid)
        except KeyError:
            return None
    return next((animal.name for animal in ANIMALS if animal.wnid == wnid), None)


def place_in_imagenet(wnid: str) -> int | None:
    """The class among the 1000 of ImageNet-1k; None where it is none of them or not known."""
    return _places().get(wnid)


def knows_all() -> bool:
    """Whether all of ImageNet's names are there, not the animals' alone."""
    return _info() is not None


@cache
def _info() -> Any:
    register_missing_ops()
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    return ImageNetInfo()


@cache
def _places() -> dict[str, int]:
    info = _info()
    names: Sequence[str] = () if info is None else info.label_names()
    return {wnid: place for place, wnid in enumerate(names)}
