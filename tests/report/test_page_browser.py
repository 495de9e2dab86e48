"""The page in a browser: it draws, moves, stays at home, fits a small screen and can be read by everyone.

Needs Debian's chromium (or another) and playwright to drive it; every test is skipped by name where either is missing.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_records import VERDICT, looks, trained

from topoopt.report.html import page as render

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: apt-get install chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")

HOSTILE = "=1+</script><script>window.PWNED=1</script><img src=x onerror=window.PWNED=1>"
RUNS = {
    "one": [trained()],
    "two": [trained("a", decisions=looks()), trained("b", lr=0.02, layers=2)],
    "hostile": [trained(HOSTILE[2:30])],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield one
        one.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    hostile = RUNS["hostile"][0].runs[0]
    hostile.measurements = [
        type(m)(
            **{**vars(m), "groups": {HOSTILE + name: group for name, group in m.groups.items()}, "notes": (HOSTILE,)}
        )
        for m in hostile.measurements
    ]
    for name, records in RUNS.items():
        (folder / f"{name}.html").write_text(render(records), encoding="utf-8")
    return folder


@pytest.fixture
def visit(browser: Any, files: Path) -> Iterator[Any]:
    """Open a page by name; at the end nothing may have been said on its console and no request have left it."""
    contexts, faults, requests = [], [], []

    def visit(name: str = "one", width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((files / f"{name}.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    assert len([url for url in requests if url.startswith("file:")]) == len(contexts)


def test_everything_is_drawn(visit: Any) -> None:
    page = visit()
    assert page.locator("#timeline-chart svg").count() == 1
    assert page.locator("#timeline-chart .band").count() == 3
    assert page.locator("#heat-chart .cell").count() == 3 * 12
    assert page.locator("#layer-pictures svg").count() == 8
    for svg in page.locator("svg[role][aria-labelledby]").all():
        for named in svg.get_attribute("aria-labelledby").split():
            assert page.locator(f"#{named}").text_content().strip()


def test_the_slider_moves_the_cursor_and_the_values(visit: Any) -> None:
    page = visit()
    before = page.locator(".cursor").get_attribute("d")
    assert "110" in page.locator("#readout").inner_text()
    page.locator("#cursor").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    row = page.locator("#readout tbody td").all_inner_texts()
    assert row[0] == "90"
    assert float(row[1]) == pytest.approx(0.2 * 1.4**9, rel=1e-3)
    assert page.locator(".cursor").get_attribute("d") != before
    assert page.locator("#cursor").get_attribute("aria-valuetext").startswith("step 90: r 4.132, simplification")


def test_the_pointer_moves_the_same_cursor(visit: Any) -> None:
    page = visit()
    page.locator("#timeline-chart").scroll_into_view_if_needed()
    box = page.locator("#timeline-chart svg").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    assert page.locator("#readout tbody td").first.inner_text() == "0"
    assert page.locator("#cursor").input_value() == "0"


def test_a_click_opens_the_layer_as_it_was_and_the_slider_goes_through_its_steps(visit: Any) -> None:
    page = visit()
    page.locator("#heat-chart .cell").nth(12 + 4).click()
    assert page.locator("#layer-title").inner_text() == "Layer layer.1.weight"
    assert page.locator("#layer-facts").inner_text().startswith("Step 40: 21 neurons")
    pictures = page.locator("#layer-pictures").inner_html()
    page.locator("#edition").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#layer-facts").inner_text().startswith("Step 50: ")
    assert page.locator("#layer-pictures").inner_html() != pictures
    assert page.locator("#layer-pictures h3").all_inner_texts()[:2] == ["Barcode, start, step 0", "Barcode, step 50"]


def test_the_bracket_opens_down_to_its_lower_bound(visit: Any) -> None:
    page = visit()
    lowest = "[...document.querySelectorAll('#timeline-chart .axis text')].map((one) => Number(one.textContent)).filter(Boolean)"
    if page.locator("#whole-bracket").count() == 0:
        pytest.fail("the bound of this run is far below r, so it should be asked for")
    before = page.evaluate(f"Math.min(...{lowest})")
    page.locator("#whole-bracket").check()
    assert page.locator("#timeline-chart .bracket").count() == 1
    assert page.evaluate(f"Math.min(...{lowest})") <= before


def test_the_course_is_of_the_run_that_was_simplified_with_a_picture_for_each_measure(visit: Any) -> None:
    page = visit("two")
    assert page.locator("#course-pictures h3").all_inner_texts() == [
        "Effective rank at each rate", "Silent units at each rate", "Loss at each rate"
    ]  # fmt: skip
    assert page.locator("#course-pictures .ring").count() == 3
    assert (
        page.locator("#course-told p").first.inner_text()
        == "a: Step 100: effective rank fell to 3 (asked for: 6) at 1.74 e/K."
    )
    assert page.locator("#course-told tbody tr").first.inner_text().split("\t") == ["effective rank", "–", "3"]
    page.locator("#heat-controls-run").select_option(label="b")
    assert page.locator("#course-pictures .ring").count() == 3


def test_the_gauge_marks_the_run_where_its_number_lies(visit: Any) -> None:
    page = visit()
    track, mark, edge, band = (
        page.locator(f".gauge > svg {one}").first.bounding_box()
        for one in (".track", ".run-mark", ".edge-mark", ".band-mark")
    )

    def place(value: float) -> float:
        return track["x"] + track["width"] * (math.log10(value) + 2) / 3

    assert mark["x"] + mark["width"] / 2 == pytest.approx(place(1.4), abs=1.5)
    assert edge["x"] + edge["width"] / 2 == pytest.approx(place(1.0), abs=1.5)
    assert band["x"] + band["width"] / 2 == pytest.approx((place(0.12) + place(0.67)) / 2, abs=1.5)
    assert page.locator(".gauge > svg").get_attribute("aria-label").startswith("r/e of this run, 1.4,")


def test_keys_alone_open_a_layer(visit: Any) -> None:
    page = visit()
    page.locator("#heat-chart svg").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("#heat-readout").inner_text() == "layer.2.weight, step 100: r of the layer 1.1"
    page.keyboard.press("Enter")
    assert page.locator("#layer-title").inner_text() == "Layer layer.2.weight"
    assert page.locator("#layer-facts").inner_text().startswith("Step 100: ")


def test_choices_change_what_is_shown(visit: Any) -> None:
    page = visit("two")
    page.locator("#metric-choice").select_option(label="twins")
    assert page.locator("#heat-meaning").inner_text().startswith("twins: ")
    page.locator("#heat-controls-run").select_option(label="b")
    assert page.locator("#heat-chart .name").count() == 2
    assert page.locator("#timeline-controls-run").input_value() == "1"
    page.locator("#rate-choice").select_option("1")
    assert page.locator("#readout tbody tr").count() == 2
    assert page.locator("#timeline-chart svg").count() == 1


def test_downloads_hold_what_is_embedded(visit: Any, tmp_path: Path) -> None:
    page = visit("hostile")
    rows = {}
    for label in ("Timeline", "Layers", "Features"):
        with page.expect_download() as event:
            page.get_by_role("button", name=f"{label} (CSV)").click()
        event.value.save_as(tmp_path / "file.csv")
        with (tmp_path / "file.csv").open(newline="", encoding="utf-8") as file:
            rows[label] = list(csv.DictReader(file))
    assert [row["step"] for row in rows["Timeline"]] == [str(10 * k) for k in range(12)]
    assert float(rows["Timeline"][5]["r"]) == pytest.approx(0.2 * 1.4**5, rel=1e-4)
    assert {row["layer"] for row in rows["Layers"]} == {f"'{HOSTILE}layer.{i}.weight"[:121] for i in range(3)}
    assert "inf" in {row["death"] for row in rows["Features"]}


def test_no_script_of_a_record_runs(visit: Any) -> None:
    page = visit("hostile")
    page.locator("#heat-chart .cell").first.click()
    page.locator("#heat-chart .cell").first.hover()
    page.wait_for_timeout(100)
    assert page.evaluate("window.PWNED") is None
    assert page.locator("img").count() == 0


def test_the_policy_stops_what_would_call_home(browser: Any, files: Path) -> None:
    page = browser.new_page()
    page.goto((files / "one.html").as_uri())
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.PWNED = 1'}))")
    assert page.evaluate("window.PWNED") is None
    assert page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 'stopped')") == "stopped"
    page.close()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_overflows(visit: Any, name: str, width: int) -> None:
    page = visit(name, width)
    page.locator("details").evaluate_all("all => all.forEach(one => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        """width => [...document.querySelectorAll("body *")].filter(one => {
             const box = one.getBoundingClientRect();
             return !one.closest(".scroll, pattern, .skip") && (box.right > width + 1 || box.left < -1) && box.width > 0;
           }).map(one => one.outerHTML.slice(0, 120))""",
        width,
    )
    assert beyond == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_an_audit_finds_nothing(visit: Any, name: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe audits: pip install axe-playwright-python"
    )
    page = visit(name, scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach(one => (one.open = true))")
    found = axe.Axe().run(page).response
    assert {"color-contrast", "label", "svg-img-alt"} <= {one["id"] for one in found["passes"]}
    assert [
        (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"]) for one in found["violations"]
    ] == []


CONTRASTS = """() => {
  const colour = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, share, k) => sum + share * linear(rgb[k] / 255), 0);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const ground = colour(getComputedStyle(document.querySelector("#timeline")).backgroundColor), rows = [];
  const decoration = ".tint, .bracket, .band, .cell, .chosen-halo, .share, [fill=transparent]"; // lines and words say it too
  for (const one of document.querySelectorAll("svg text, svg path, svg circle, svg rect, svg line")) {
    if (one.matches(decoration) || one.closest(".icon, defs, .legend")) continue;
    const style = getComputedStyle(one), text = one.tagName === "text";
    const paints = text ? [style.fill] : [style.stroke, one.matches("rect") ? "none" : style.fill];
    const cell = one.matches(".cell-value") && one.previousElementSibling; // a number stands on its cell
    const under = cell ? colour(d3.color(cell.getAttribute("fill")).formatRgb()) : ground;
    const tone = one.closest(".gauge") && colour(getComputedStyle(one.closest(".verdict")).backgroundColor);
    const grounds = !tone ? [under] : text ? [tone] : [tone, ground]; // the gauge reaches from its track into the card
    const known = paints.filter((paint) => paint.startsWith("rgb"))
      .map((paint) => Math.min(...grounds.map((one) => ratio(colour(paint), one))));
    if (known.length) rows.push([one.getAttribute("class") || one.tagName, text ? 4.5 : 3, Math.max(...known)]);
  }
  return rows;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out_from_their_ground(visit: Any, scheme: str) -> None:
    measured = visit("two", scheme=scheme).evaluate(CONTRASTS)
    classes = {str(name).split()[0] for name, _, _ in measured}
    assert {"line", "hatch", "level", "dot", "event", "frame", "soft", "ring", "cell-value"} <= classes
    assert {"run-mark", "band-mark", "edge-mark", "track", "tick"} <= classes
    assert [row for row in measured if row[2] < row[1]] == []


def test_print_opens_what_is_folded_and_folds_it_again(visit: Any) -> None:
    page = visit()
    folded = page.locator("details:not([open])").count()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded
    page.emulate_media(media="print")
    assert not page.locator("#cursor").is_visible()
    assert page.locator("#timeline-chart svg").is_visible()


def test_a_printed_picture_is_as_wide_as_the_paper_and_the_screen_s_comes_back(visit: Any) -> None:
    page = visit("two")

    def width(one: str) -> int:
        return int(page.locator(f"{one} svg").first.get_attribute("viewBox").split()[2])

    wide = width("#timeline-chart")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert 600 <= width("#timeline-chart") <= 720
    assert 260 <= width("#layer-pictures figure") <= 360
    assert page.locator(".several details[open]").count() == 0
    page.emulate_media(media="print")
    cards = [card.bounding_box() for card in page.locator(".several .run").all()]
    assert all(below["y"] >= above["y"] + above["height"] for above, below in itertools.pairwise(cards))
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert width("#timeline-chart") == wide


def test_without_scripts_verdict_and_tables_are_there(browser: Any, files: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((files / "one.html").as_uri())
    assert VERDICT.advice in page.locator(".verdict").inner_text()
    assert page.locator("noscript").inner_text().startswith("Pictures, slider and downloads need JavaScript")
    assert "layer.2.weight" in page.locator("#layers table").text_content()
    context.close()
