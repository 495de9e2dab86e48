"""What `make bench-check` stands on: ratios and counts of topoopt's own rows beside the committed ones, and never seconds."""

from __future__ import annotations

from _results import Column, Results, Row


def compare(committed: Results, now: Results) -> list[str]:
    """What of topoopt's own is worse than committed by more than its column allows; cases not measured anew are left out."""
    worse, seen = [], 0
    for table in now.tables:
        known = {old.key: old for old in committed.tables}.get(table.key)
        before = {} if known is None else {(row.case, row.tool): row for row in known.rows}
        for row in table.rows:
            old = before.get((row.case, row.tool))
            if not row.ours or old is None or old.failed:
                continue
            seen += 1
            where = f"{committed.benchmark}, {table.title}, {row.case}, {row.tool}"
            if row.failed:
                worse.append(f"{where}: {row.failed}")
            worse += [f"{where}: {line}" for column in table.columns for line in _moved(column, old, row)]
    return worse if seen else [f"{committed.benchmark}: no row of topoopt's is among those committed"]


def _moved(column: Column, old: Row, new: Row) -> list[str]:
    if column.factor is None or column.name not in old.values or column.name not in new.values:
        return []
    was, now = old.values[column.name].median, new.values[column.name].median
    if column.better == "more":
        bound = was / column.factor - column.slack
        return [f"{column.name} {now:.4g}, committed {was:.4g}, at least {bound:.4g} allowed"] if now < bound else []
    bound = was * column.factor + column.slack
    return [f"{column.name} {now:.4g}, committed {was:.4g}, at most {bound:.4g} allowed"] if now > bound else []
