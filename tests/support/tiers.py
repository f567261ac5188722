"""The tiers of the tests, and the skips that CI must not pass over."""

from __future__ import annotations

import re

TIERS = ("unit", "process", "faults", "slow")
# What a machine has or has not. Everything else that a test needs belongs into requirements.txt.
UNAVOIDABLE = re.compile(r"needs (root|Linux|a GPU|network namespaces|a mount namespace)\b|set FASHION_MNIST")


def tier_to_add(markers: set[str], folder: str) -> str | None:
    """The tier of a test with these markers in a folder of this name; None if it names its own."""
    if folder == "faults":
        return "faults"
    if markers.isdisjoint(TIERS):
        return "unit"
    return None


def is_avoidable(reason: str) -> bool:
    """Whether another set-up of the same machine would have run the skipped test."""
    return UNAVOIDABLE.match(reason) is None
