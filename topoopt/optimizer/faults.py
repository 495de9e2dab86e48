"""Faults: each distinct cause is logged once and counted; a part that keeps failing is switched off; none reaches the training."""

from __future__ import annotations

import logging
from collections import Counter

import torch

logger = logging.getLogger("topoopt")
MEMORY = 2
"""Times that a part may run out of memory before it is switched off."""
ROW = 5
"""Failures of a part in a row, by one cause, before it is switched off."""


class Faults:
    """Counts what went wrong in measuring, steering and reporting, and ends retrying what keeps failing."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged: set[tuple[str, str]] = set()
        self._row: dict[str, tuple[str, int]] = {}
        self._memory: Counter[str] = Counter()
        self._off: dict[str, str] = {}

    def note(self, where: str, error: BaseException) -> str:
        """Count a fault, log each distinct cause once with its traceback, and return its reason for the record."""
        reason = f"{type(error).__name__}: {error}"
        cause = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
        self.counts[where] += 1
        if (where, cause) not in self._logged:
            self._logged.add((where, cause))
            logger.warning(
                "topoopt: %s failed (%s); training goes on, further faults of this kind are only counted",
                where,
                reason,
                exc_info=error,
            )
        last, times = self._row.get(where, ("", 0))
        self._row[where] = (cause, times + 1 if cause == last else 1)
        self._memory[where] += isinstance(error, torch.OutOfMemoryError | MemoryError)
        if where not in self._off and (self._memory[where] >= MEMORY or self._row[where][1] >= ROW):
            how = "ran out of memory twice" if self._memory[where] >= MEMORY else f"failed {ROW} times in a row"
            self._off[where] = f"switched off: it {how} ({cause})"
            logger.warning("topoopt: %s is %s", where, self._off[where])
        return reason

    def went_well(self, where: str) -> None:
        """End a row of failures."""
        self._row.pop(where, None)

    def off(self, where: str) -> str:
        """Why a part is switched off; "" while it is not."""
        return self._off.get(where, "")

    def totals(self) -> dict[str, int]:
        """Fault counts by place, as `fault/<place>`."""
        return {f"fault/{where}": count for where, count in self.counts.items()}
