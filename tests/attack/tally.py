"""What is counted while the attack runs: tried and held, by kind, with the seed."""

import os
import random
import zlib

SEED = int(os.environ.get("CIRCUITVIT_ATTACK_SEED", "0"))
SHARE = float(os.environ.get("CIRCUITVIT_ATTACK_SHARE", "1"))
"""The share of the cases that are tried; for a quick look."""


def drawn(*names: object) -> random.Random:
    """A generator for a case, which its names and the seed alone determine."""
    return random.Random(zlib.crc32(repr((SEED, *names)).encode()))


class Tally:
    """The cases of one test.

    Attributes:
        counts: what the table at the end shows.
        fallen: the cases that didn't hold, each in words.
    """

    def __init__(self, kind: str) -> None:
        self.counts = {"kind": kind, "tried": 0, "held": 0, "seed": SEED}
        self.fallen: list[str] = []

    def case(self, name: str, trouble: str) -> None:
        """Count a case, which held if there is no trouble to tell of."""
        self.counts["tried"] += 1
        self.counts["held"] += not trouble
        if trouble:
            self.fallen.append(f"{name}: {trouble}")

    def settle(self) -> None:
        """Fail the test if a case didn't hold."""
        __tracebackhide__ = True
        if self.fallen:
            shown = "\n".join(self.fallen[:60])
            raise AssertionError(
                f"{len(self.fallen)} of {self.counts['tried']} cases of {self.counts['kind']} "
                f"didn't hold (CIRCUITVIT_ATTACK_SEED={SEED}):\n{shown}"
            )
