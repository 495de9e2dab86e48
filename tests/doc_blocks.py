"""The Python blocks of a Markdown page, and a session that runs them in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

FENCE = re.compile(r"(?:<!-- needs: (?P<needs>[\w., ]+) -->\n)?```python\n(?P<code>.*?)```", flags=re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block; `needs` are modules of extras that it imports, from a comment above it."""

    page: Path
    line: int
    code: str
    needs: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """Those that are not installed."""
        return [name for name in self.needs if not _found(name)]

    def run(self, names: dict[str, object]) -> None:
        """Run it; a traceback shows the page's own lines."""
        exec(compile("\n" * self.line + self.code, str(self.page), "exec", dont_inherit=True), names)


def blocks(page: Path) -> list[Block]:
    """All Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("code")),
            match["code"],
            tuple(name.strip() for name in (match["needs"] or "").split(",") if name.strip()),
        )
        for match in FENCE.finditer(text)
    ]


class Session:
    """A page that is followed from its top: each block sees what those above it have made."""

    def __init__(self, page: Path) -> None:
        self._names: dict[str, object] = {"__name__": "docs"}
        self._left = blocks(page)

    def run_to(self, block: Block) -> None:
        """Run what stands above `block` and has not run yet, and then `block` itself; skips it by name where it cannot run."""
        while self._left and self._left[0].line < block.line:
            above = self._left.pop(0)
            if not above.missing:
                above.run(self._names)
        self._left.pop(0)
        if block.missing:
            pytest.skip(f"not installed: {', '.join(block.missing)}")
        block.run(self._names)


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
