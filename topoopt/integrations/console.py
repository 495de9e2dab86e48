"""What a trainer's console shows at the end of a training."""

from __future__ import annotations

from topoopt.verdict import Verdict


def tell_verdict(verdict: Verdict, record: str | None = None) -> None:
    """Print the verdict as trainers print their logs: past the progress bars; and how to see more."""
    from tqdm.auto import tqdm

    more = [] if record is None else [f"a page of it: topoopt report {record}"]
    tqdm.write("\n".join((f"topoopt: {verdict.state}", *verdict.lines, *more)))
