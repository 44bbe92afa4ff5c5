"""The model card beside saved weights, `README.md`: read, kept and thrown away with them.

Its front matter names the weights that it tells of by their fingerprint, so that no card stands
beside others. What a card says is composed in `card`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from circuitvit.files import write_text

README = "README.md"
FINGERPRINT = "model_fingerprint"


def read_card(folder: Path) -> str | None:
    """The text of a folder's model card; None where there is none of circuitvit."""
    try:
        text = (folder / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if _fingerprint_in(text) else None


def settle_card(folder: Path, card: str | None, fingerprint: Callable[[], str]) -> str | None:
    """Let a folder into which weights were saved have a card of these weights, or none.

    Args:
        folder: where the weights are. A README that is no card of circuitvit is left alone.
        card: the card that came with the weights, written if it still tells of them.
        fingerprint: gives that of the weights; called only where there is a card.

    Returns:
        The text of the card that belongs to these weights, whether or not it was here already.
    """
    here = read_card(folder)
    if here is None and card is None:
        return None
    own = fingerprint()
    if here is not None and _fingerprint_in(here) == own:
        return here
    fits = card if card is not None and _fingerprint_in(card) == own else None
    if here is not None:
        (folder / README).unlink()
    if fits is not None and not (folder / README).exists():
        write_text(folder / README, fits)
    return fits


def _fingerprint_in(card: str) -> str | None:
    """The fingerprint in the front matter, which stands between two lines `---`."""
    parts = re.split(r"^---\s*$", card, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return None
    found = re.search(
        rf"^{FINGERPRINT}:\s*['\"]?([0-9a-f]{{16}})['\"]?\s*$", parts[1], re.MULTILINE
    )
    return found[1] if found else None
