"""Faults: each is logged once with its cause and counted; none ever reaches the training loop."""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger("topoopt")


class Faults:
    """Counts what went wrong in measuring, steering and reporting, and logs each kind of it once."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged: set[tuple[str, str]] = set()

    def note(self, where: str, error: BaseException) -> str:
        """Count a fault, log it with its traceback the first time, and return its reason for the record."""
        reason = f"{type(error).__name__}: {error}"
        self.counts[where] += 1
        kind = (where, type(error).__name__)
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning(
                "topoopt: %s failed (%s); training goes on, further faults of this kind are only counted",
                where,
                reason,
                exc_info=error,
            )
        return reason

    def totals(self) -> dict[str, int]:
        """Fault counts by place, as `fault/<place>`."""
        return {f"fault/{where}": count for where, count in self.counts.items()}
