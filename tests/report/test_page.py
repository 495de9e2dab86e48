"""The page: all of a record is in it, nothing of a record is markup in it, and it stays under its bound."""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
import math
import re
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measurements import make
from page_records import VERDICT, group, looks, measured, readings, record, trained

from topoopt.errors import ConfigError
from topoopt.report.html import LARGEST, page
from topoopt.report.page import left_out, trees
from topoopt.report.page.cards import card, differences, layers
from topoopt.report.page.layers import METRICS
from topoopt.report.page.runs import views
from topoopt.report.page.timeline import thin
from topoopt.report.page.values import number, setting, shown, spread
from topoopt.report.page.words import LOOKS
from topoopt.verdict import STATES, Verdict

HOSTILE = '</script><script>PWNED=1</script><!--<img src=x onerror="PWNED=1">\'\u2028{{ 7*7 }}${PWNED=1}'


class Parsed(HTMLParser):
    """Tags, attributes and text of a page as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def embedded(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="topoopt-data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def seen(text: str) -> str:
    """Words of the page outside its scripts, as they are read."""
    text = re.sub(r"<(script|style).*?</\1>", " ", text, flags=re.S)
    return " ".join(markup.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def poisoned(value: Any) -> Any:
    """The same value with every text in it hostile, keys and names included."""
    if isinstance(value, str) and type(value) is str:
        return HOSTILE
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: poisoned(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**{key: poisoned(one) for key, one in vars(value).items()})
    if isinstance(value, dict):
        return {f"{HOSTILE}{k}": poisoned(one) for k, one in enumerate(value.values())}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(one) for one in value)
    return value


def test_no_text_of_a_record_becomes_markup() -> None:
    whole = trained(problems=("line 3 could not be read",))
    clean = Parsed(page([whole]))
    one = poisoned(whole)
    one.path = type(whole.path)(HOSTILE.replace("/", "")) / "record.jsonl"
    text = page([one])
    parsed = Parsed(text)
    assert parsed.tags.count("script") == 3
    assert "img" not in parsed.tags
    assert set(parsed.tags) <= set(clean.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    links = [value for name, value in parsed.attributes if name in ("href", "src", "action")]
    assert all(link is not None and (link.startswith("#") or link == "data:,") for link in links)
    assert "\u2028" not in text.split('id="topoopt-data">')[1].split("</script>")[0]
    data = embedded(text)["runs"][0]
    assert all(layer.startswith("</script><script>PWNED=1</script><!--<img") for layer in data["heat"]["layers"])
    assert VERDICT.happened not in seen(text)


@pytest.mark.parametrize("field", ["n", "d", "twins", "vanishing", "silent", "proximity_step", "gain"])
def test_text_in_a_number_s_place_is_no_number_and_no_markup(field: str) -> None:
    m = measured(0, 0, 1)
    groups = {name: replace(one, **{field: HOSTILE}) for name, one in m.groups.items()} | {"sound": group(0, 0, 0)}
    text = page([record(measurements=[replace(m, groups=groups, lr=(HOSTILE,), lr_scale=HOSTILE)])])  # type: ignore[arg-type]
    assert "PWNED" not in text
    assert "–" in seen(text)


def test_the_policy_allows_the_page_s_own_scripts_and_nothing_else() -> None:
    text = page([trained()])
    found = re.search(r'Policy" content="([^"]*)"', text)
    policy = markup.unescape(found[1]) if found else ""
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    assert all(f"'sha256-{digest}'" in policy for digest in digests)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_numbers_are_embedded_as_they_are() -> None:
    one = trained(steps=5)
    run = embedded(page([one]))["runs"][0]
    measurements = one.runs[0].measurements
    assert run["timeline"]["step"] == [m.step for m in measurements]
    assert run["timeline"]["r"] == pytest.approx([m.proximity for m in measurements], rel=1e-4)
    assert run["timeline"]["lr"][1] == pytest.approx([m.lr[1] for m in measurements])
    assert run["heat"]["values"]["twins"] == [[0, 1, 2, 3, 4]] * 3
    assert run["heat"]["values"]["distortion"][0][4] == pytest.approx(math.log(25), rel=1e-3)
    last = run["details"][0][-1]
    diagram = measurements[-1].groups["layer.0.weight"].diagrams[1]
    np.testing.assert_allclose(sorted(last["degrees"][1]["bars"]), sorted(diagram.tolist()), rtol=1e-3)
    assert last["degrees"][0]["essential"] == 1
    assert last["degrees"][0]["bars"][0][1] is None
    assert last["betti"][0][0] == len(measurements[-1].groups["layer.0.weight"].diagrams[0])


def test_the_r_of_a_layer_stays_until_it_is_read_again() -> None:
    measurements = [measured(10 * k, k, 1) for k in range(4)]
    unread = {"layer.0.weight": replace(measurements[2].groups["layer.0.weight"], proximity=None)}
    measurements[2] = replace(measurements[2], groups=unread)
    text = page([record(measurements=measurements[:3])])
    assert embedded(text)["runs"][0]["heat"]["values"]["r"] == [[0.1, 0.2, 0.2]]
    assert "0.2 (10)" in seen(text)


def test_unknown_and_infinite_numbers_are_null() -> None:
    m = make(0, proximity=math.nan, edge=None, loss=math.inf)
    timeline = embedded(page([record(measurements=[m])]))["runs"][0]["timeline"]
    assert (timeline["r"], timeline["edge"], timeline["loss"]) == ([None], [None], [None])


def test_a_lower_bound_is_not_drawn_as_r() -> None:
    m = make(0, proximity=0.3, estimator="pairwise", r_spec=math.nan)
    assert embedded(page([record(measurements=[m])]))["runs"][0]["timeline"]["r"] == [None]


def test_a_large_record_is_thinned_out_to_the_bound_and_says_so() -> None:
    base = [measured(10 * k, k % 9, 40, bars=1500) for k in range(12)]
    many = [replace(base[k % 12], step=10 * k) for k in range(150)]
    text = page([record(measurements=many)])
    assert len(text.encode()) <= LARGEST
    assert "Thinned out on this page" in seen(text)
    assert "bars of a diagram" in seen(text)
    assert "the heat map shows" in seen(text)


def test_many_runs_of_long_texts_stay_under_the_bound() -> None:
    def long(k: int) -> Any:
        notes = tuple(f"{k} {i} " + "x" * 5000 for i in range(100))
        return trained(
            f"run{k}", measurements=[replace(measured(0, 0, 2), notes=notes)], config={"a" * 999: "b" * 99999}
        )

    text = page([long(k) for k in range(30)])
    assert len(text.encode()) <= LARGEST
    assert "the page shows the last 20 of 30 runs" in seen(text)


@pytest.mark.parametrize("state", STATES)
def test_a_verdict_is_a_colour_an_icon_and_a_word_with_its_three_lines(state: str) -> None:
    verdict = Verdict(state, "It <happened> & so.", "Try 0.1.", "Nothing is known.")
    text = page([trained(verdict=verdict)])
    assert LOOKS[state].word in seen(text)
    assert f'class="verdict {LOOKS[state].tone}"' in text
    assert re.search(r'<svg class="icon"[^>]*><path d="M', text)
    for k, line in enumerate(verdict.lines, 1):
        assert f'<p class="line-{k}">{markup.escape(line)}</p>' in text


def test_the_card_says_what_its_word_is_of() -> None:
    assert "Learning rate: Too high" in seen(page([trained()]))
    assert "b: Too high" in seen(page([trained("a"), trained("b")]))
    assert "Run: Collapsed" in seen(page([trained(verdict=replace(VERDICT, state="collapsed"))]))


def test_the_gauge_has_a_text_and_a_legend_and_is_left_out_without_a_reading() -> None:
    text = page([trained()])
    assert 'role="img" aria-label="r/e of this run, 1.4, on a scale from 0.01 to 10: above the band' in text
    assert "r/e of this run: 1.4 good rates: 0.12 to 0.67 1: the edge of stability" in seen(text)
    assert "more than r" not in seen(text)
    assert "more than r" in seen(page([trained(verdict=replace(VERDICT, ratio=0.3))]))
    for without in (replace(VERDICT, ratio=None), replace(VERDICT, band=None), replace(VERDICT, state="collapsed")):
        assert '<figure class="gauge">' not in page([trained(verdict=without)])


def test_looks_are_told_apart_by_word_and_by_icon() -> None:
    assert set(LOOKS) == set(STATES)
    assert len({look.word for look in LOOKS.values()}) == len(LOOKS)
    assert len({(look.icon, look.tone) for look in LOOKS.values()}) == len(LOOKS)


def test_a_state_that_is_not_known_is_shown_by_its_word() -> None:
    assert "wobbling" in seen(page([trained(verdict=replace(VERDICT, state="wobbling"))]))


def test_the_run_s_card_says_what_the_run_was() -> None:
    words = seen(page([trained()]))
    model, dates = ("Sequential", "parameters 8,314", "AdamW", "torch 2.13.0"), ("2026-02-03 10:11:12 UTC",)
    for fact in (*model, *dates, "1 % of 60 s wall time", "preserve"):
        assert fact in words
    assert "2026-02-03 10:12:12 UTC" in words  # started, 0.5 s of setting up and 60 s later


@pytest.mark.parametrize(
    "one",
    [
        record(),
        record(readings=readings([0.5, 0.7])),
        record(measurements=[make(3, groups={})]),
        record(problems=("line 1",)),
    ],
    ids=["empty", "readings", "no groups", "problems"],
)
def test_what_a_record_lacks_is_said(one: Any) -> None:
    words = seen(page([one]))
    assert "No verdict" in words
    assert "What was left out" in words


def test_no_record_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        page([])


def test_readings_without_a_measurement_are_on_the_timeline() -> None:
    run = embedded(page([record(readings=readings([0.5, math.nan, 0.7]))]))["runs"][0]
    assert run["timeline"]["r"] == [0.5, None, 0.7]
    assert run["heat"]["layers"] == []


def test_several_runs_are_told_apart_and_their_differences_listed() -> None:
    both = [trained("a", lr=0.1), trained("a", lr=0.2)]
    data = embedded(page(both))
    assert [run["name"] for run in data["runs"]] == ["a", "a (2)"]
    rows = dict(differences([card(view) for view in views(both)[0]]))
    assert rows["rate at the start"] == ["0.1", "0.2"]
    assert "optimizer" not in rows
    assert "run" not in rows


def test_a_policy_among_the_settings_is_its_name_with_what_is_set() -> None:
    policy = {"policy": "simplify", "target": None, "up": 1.3, "then": {"policy": "preserve", "keep": 0.0}}
    assert setting(policy) == "simplify (up 1.3, then preserve (keep 0))"
    assert setting(["a", "b"]) == "a, b"
    assert (setting(None), setting([]), setting(0.25)) == ("None", "none", "0.25")


def test_a_column_of_the_layers_of_which_nothing_is_known_is_left_out() -> None:
    one = trained(steps=2, layers=1)
    last = one.runs[0].measurements[-1]
    unknown = {name: replace(g, distortion_total=(math.nan, math.nan), silent=-1) for name, g in last.groups.items()}
    one.runs[0].measurements[-1] = replace(last, groups=unknown)
    head, rows = layers(views([one])[0][0], 10)
    assert not {"since the start", "silent"} & set(head)
    assert len(rows[0]) == len(head)


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.81e-5, "4.81e-5"), (0.00057, "5.7e-4"), (0.0125, "0.0125"), (1e6, "1e6"), (-0.0002, "-2e-4"), (0.0, "0")],
)
def test_numbers_are_written_as_the_page_s_script_writes_them(value: float, text: str) -> None:
    assert shown(value) == text


def test_changes_of_the_factor_are_marked_with_their_reason() -> None:
    marks = embedded(page([trained(steps=6)]))["runs"][0]["timeline"]["marks"]
    assert [one["step"] for one in marks] == [30, 40, 50]
    assert marks[0]["from"] == 1
    assert marks[0]["to"] == pytest.approx(0.8**3)
    assert all(len(f"{one['to']}") <= 6 for one in marks)
    assert "r would have passed 0.9" in marks[0]["why"]


def test_what_was_left_out_is_counted_by_kind() -> None:
    words = seen(page([trained(steps=4)]))
    assert "field: was not asked for 4 times" in words
    assert "the batch is small 4 times" in words
    assert "landmarks were used 12 times" in words
    assert "late homology 2 times" in words
    assert "homology of 0" in words


def test_the_merge_tree_is_embedded_near_its_root_and_its_branches_do_not_cross() -> None:
    tree = embedded(page([trained(steps=3)]))["runs"][0]["details"][1][-1]["tree"]
    group = trained(steps=3).runs[0].measurements[-1].groups["layer.1.weight"]
    assert [row[2] for row in tree["merges"]] == pytest.approx(group.linkage()[:, 2], rel=1e-3)
    assert sorted(tree["order"]) == list(range(len(tree["sizes"])))
    without = replace(measured(0, 0, 1).groups["layer.0.weight"], merge_tree=None)
    assert (
        embedded(page([record(measurements=[make(0, groups={"a": without})])]))["runs"][0]["details"][0][0]["tree"]
        is None
    )


@given(st.integers(2, 30), st.integers(0, 99), st.integers(1, 40))
def test_a_cut_tree_keeps_the_last_merges_and_its_leaves_lie_together(n: int, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    alive, merges = list(range(n)), []
    for k in range(n - 1):
        a, b = (alive.pop(rng.integers(len(alive))) for _ in range(2))
        merges.append((a, b, float(k)))
        alive.append(n + k)
    sizes, rest = trees.cut([1] * n, merges, most)
    assert sum(sizes) == n
    assert [distance for *_, distance in rest] == [float(k) for k in range(n - 1)][-most:]
    below = [{leaf} for leaf in range(len(sizes))]
    for a, b, _ in rest:
        below.append(below[a] | below[b])
    order = trees.leaf_order(sizes, rest)
    for leaves in below:  # a cluster's leaves are neighbours: no branch crosses another
        rows = sorted(order.index(leaf) for leaf in leaves)
        assert rows == list(range(rows[0], rows[0] + len(rows)))


def test_the_course_of_a_simplification_has_a_picture_and_a_run_without_has_none() -> None:
    text = page([trained("ramp", decisions=looks()), trained("plain")])
    ramp, plain = embedded(text)["runs"]
    assert ramp["course"]["dose"] == pytest.approx([1.03, 1.339, 1.7407])
    assert ramp["course"]["measures"] == {"effective rank": [12, 7, 3], "silent units": [0, 5, None]}
    assert ramp["course"]["ended"] == ["Step 100: effective rank fell to 3 (asked for: 6) at 1.74 e/K"]
    assert plain["course"] is None
    assert "Course of the simplification" in seen(text)
    assert "Course of the simplification" not in seen(page([trained("plain")]))


def test_reasons_that_differ_in_numbers_are_one_with_their_range() -> None:
    said = Counter({"9 of 1.5e-3": 2, "10 of 1.5e-3": 3, "layer.0: no": 1, "layer.2: no": 1, "no number": 4})
    assert left_out.alike(said) == {"9 to 10 of 1.5e-3": 5, "layer.0 to 2: no": 2, "no number": 4}


def test_every_metric_reads_a_group() -> None:
    group = measured(0, 1, 1).groups["layer.0.weight"]
    assert {metric.key: number(metric.of(group)) is not None for metric in METRICS} == dict.fromkeys(
        (metric.key for metric in METRICS), True
    )


@given(st.lists(st.floats(0, 10) | st.just(math.nan), max_size=300), st.integers(6, 50))
def test_thinning_keeps_both_ends_and_the_extremes(values: list[float], points: int) -> None:
    kept = thin(values, points)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(points, 0) + 2
    known = [v for v in values if not math.isnan(v)]
    if values:
        assert kept[0] == 0
        assert kept[-1] == len(values) - 1
    if known:
        assert max(known) in [values[k] for k in kept]
        assert min(known) in [values[k] for k in kept]


@given(st.integers(0, 500), st.integers(0, 40))
def test_a_spread_is_even_and_has_both_ends(count: int, most: int) -> None:
    picked = spread(count, most)
    assert len(picked) <= min(count, most) or count <= most
    assert picked == sorted(set(picked))
    if count and most > 1:
        assert {0, count - 1} <= set(picked)
        assert len(picked) == 1 or np.ptp(np.diff(picked)) <= 1
        assert (len(picked) == 1) == (count == 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "3", None, [1], 2**60])
def test_what_is_no_finite_number_is_none(value: Any) -> None:
    assert number(value) is None
