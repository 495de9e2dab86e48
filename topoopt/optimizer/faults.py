"""Faults: each distinct cause is logged once and counted; a part that keeps failing is switched off; none reaches the training."""

from __future__ import annotations

import logging
import re
import signal
from collections import Counter
from types import CodeType

import torch

logger = logging.getLogger("topoopt")
MEMORY = 2
"""Times that a part may run out of memory before it is switched off."""
ROW = 5
"""Failures of a part in a row, by one cause, before it is switched off."""
LONGEST = 1_000
"""Characters of an error's text that are kept."""
ALWAYS = ("measuring", "reading", "steering", "strict")
"""Parts that are not switched off here: what they consist of is, and steering has a breaker of its own."""
NUMBERS = re.compile(r"(0x[0-9a-f]+|\d[\d.]*(e[+-]?\d+)?)(, (0x[0-9a-f]+|\d[\d.]*))*", re.IGNORECASE)


class Faults:
    """Counts what went wrong in measuring, steering and reporting, and ends retrying what keeps failing."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged: set[tuple[str, str]] = set()
        self._row: dict[str, tuple[str, int]] = {}
        self._memory: Counter[str] = Counter()
        self._off: dict[str, str] = {}

    def note(self, where: str, error: BaseException, *, state: bool = False, said: bool = False) -> str:
        """Count a fault, log each distinct cause once with its traceback, and return its reason for the record.

        Causes that differ in numbers alone are one, and so are those of parts that differ in their name alone ("geometry
        of ..."). `state`: what is measured is at fault (weights that are NaN), not the part, which is not switched off for
        it; `said`: it has been logged already.

        Raises:
            BaseException: the error itself where a signal's handler raised it: it is meant for the training, which was
                interrupted here by chance.
        """
        if _is_of_a_handler(error):
            raise error
        kind, text = type(error).__name__, _text_of(error)
        cause = f"{kind}: {NUMBERS.sub('N', text.splitlines()[0][:80] if text.strip() else '')}"
        self.counts[where] += 1
        if self.first(where, cause) and not said:
            _log(
                f"{where} failed ({kind}: {text}); training goes on, further faults of this kind are only counted",
                error,
            )
        if not state:
            self._break(where, error, cause)
        return f"{kind}: {text}"

    def _break(self, where: str, error: BaseException, cause: str) -> None:
        last, times = self._row.get(where, ("", 0))
        self._row[where] = (cause, times + 1 if cause == last else 1)
        self._memory[where] += isinstance(error, torch.OutOfMemoryError | MemoryError)
        if where in self._off or where in ALWAYS or (self._memory[where] < MEMORY and self._row[where][1] < ROW):
            return
        how = "ran out of memory twice" if self._memory[where] >= MEMORY else f"failed {ROW} times in a row"
        self._off[where] = f"switched off: it {how} ({cause})"
        if self.first(where, f"off: {cause}"):
            _log(f"{where} is {self._off[where]}")

    def first(self, where: str, cause: str) -> bool:
        """Whether this is the first of its kind, and is to be said."""
        key = (where.split(" of ")[0], cause)
        new = key not in self._logged
        self._logged.add(key)
        return new

    def went_well(self, where: str) -> None:
        """End a row of failures."""
        self._row.pop(where, None)

    def off(self, where: str) -> str:
        """Why a part is switched off; "" while it is not."""
        return self._off.get(where, "")

    def totals(self) -> dict[str, int]:
        """Fault counts by place, as `fault/<place>`."""
        return {f"fault/{where}": count for where, count in self.counts.items()}


def _text_of(error: BaseException) -> str:
    """What an error says, at most so much of it; an error may fail at that too."""
    try:
        text = str(error)
    except Exception as worse:
        return f"(its text cannot be had: {type(worse).__name__})"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _log(text: str, error: BaseException | None = None) -> None:
    """Log a line; handlers are the user's, and may raise (a closed stderr does)."""
    try:
        logger.warning("topoopt: %s", text, exc_info=error)
    except Exception as worse:
        if _is_of_a_handler(worse):
            raise


def _is_of_a_handler(error: BaseException) -> bool:
    """Whether an error comes out of a handler that the program has set for a signal (a time limit, a pre-emption)."""
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None and handlers:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: object) -> CodeType | None:
    called = getattr(handler, "func", handler)  # of a partial
    own = getattr(called, "__code__", None) or getattr(vars(type(called)).get("__call__"), "__code__", None)
    return own if isinstance(own, CodeType) else None
