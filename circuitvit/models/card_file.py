"""The model card beside saved weights, `README.md`: read, kept and thrown away with them.

Its front matter names the weights that it tells of by their fingerprint, so that no card stands
beside others. What a card says is composed in `card`.
"""

import re
from collections.abc import Callable
from pathlib import Path

README = "README.md"
FINGERPRINT = "model_fingerprint"


def read_card(folder: Path) -> str | None:
    """The text of a folder's model card; None where there is none of circuitvit."""
    try:
        text = (folder / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if _fingerprint_in(text) else None


def fitting_card(here: str | None, card: str | None, fingerprint: Callable[[], str]) -> str | None:
    """The card that belongs to weights which are saved into a folder, if there is one.

    Args:
        here: the card in the folder.
        card: the card that came with the weights.
        fingerprint: gives that of the weights; called only where there is a card.
    """
    if here is None and card is None:
        return None
    own = fingerprint()
    return next((c for c in (here, card) if c is not None and _fingerprint_in(c) == own), None)


def _fingerprint_in(card: str) -> str | None:
    """The fingerprint in the front matter, which stands between two lines `---`."""
    parts = re.split(r"^---\s*$", card, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return None
    found = re.search(
        rf"^{FINGERPRINT}:\s*['\"]?([0-9a-f]{{16}})['\"]?\s*$", parts[1], re.MULTILINE
    )
    return found[1] if found else None
