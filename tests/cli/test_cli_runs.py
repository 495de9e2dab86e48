"""Commands on records: show, compare, check, watch, report; what each prints, and how each ends."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from measurements import make
from runs import a_run, a_summary, a_verdict, write_run

from topoopt.cli import main
from topoopt.cli.checking import ORDER, judged
from topoopt.cli.watching import follow, merged, told
from topoopt.measurement import SpectralReading
from topoopt.report import JsonLines, lines, read
from topoopt.terminal import Terminal, clean, fitting, plain_table
from topoopt.verdict import STATES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "record.jsonl", a_run("one"), range(0, 500, 10))
    return tmp_path


def test_show_says_what_a_run_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run)]) == 0
    text = capsys.readouterr().out
    for line in a_verdict().lines:
        assert line in text
    assert "Net" in text
    assert "SGD" in text
    rows = [line for line in text.splitlines() if " constrained " in line and line.lstrip()[0].isdigit()]
    assert len(rows) == 20
    assert rows[0].split()[0] == "0"
    assert rows[-1].split()[0] == "490"
    assert max(map(len, text.splitlines())) <= 80


def test_show_as_json_and_csv(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run), "--json", "--rows", "0"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == {"state": "right", "lines": list(a_verdict().lines), "ratio": 0.25, "band": [0.1, 0.67]}
    assert len(data["measurements"]) == 50
    assert data["r/e, median"] == 0.275
    assert main(["show", str(run), "--csv", "--table", "readings", "--rows", "3"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["step", "0", "250", "495"]


def test_quiet_is_the_verdict_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "-q", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == list(a_verdict().lines)


def test_a_run_is_chosen_by_its_id(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines(run / "record.jsonl", append=True) as sink:
        sink.begin(a_run("two", model="Other"))
        sink(make(3))
    assert main(["show", str(run)]) == 0
    assert "holds 2 runs" in (text := capsys.readouterr().out)
    assert "Other" in text
    assert main(["show", str(run), "--run-id", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "Net"
    assert main(["show", str(run), "--run-id", "six"]) == 1
    assert "it holds one, two" in capsys.readouterr().err


def test_compare_says_what_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(run / "b" / "record.jsonl", a_run("two", settings={"every": 9}), state="too high", loss=3.0)
    assert main(["compare", str(run), str(other), "--json"]) == 0
    rows = {row[""]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["verdict"]["A"], rows["verdict"]["B"]) == ("right", "too high")
    assert (rows["loss at the end"]["A"], rows["loss at the end"]["B"]) == (1.0, 3.0)
    assert rows["loss at the end"]["B against A"] == "+2 (3 x)"
    assert (rows["setting every"]["A"], rows["setting every"]["B"]) == (7, 9)
    assert "version topoopt" not in rows
    assert main(["compare", str(run), str(other)]) == 0
    head, other_head, table, same = capsys.readouterr().out.split("\n\n")
    assert [one.splitlines()[0].rsplit(": ", 1)[1] for one in (head, other_head)] == ["right", "too high"]
    assert next(line for line in table.splitlines() if line.startswith("loss at the end")).split()[-3:] == [
        "1",
        "3",
        "3",
    ]
    assert max(map(len, table.splitlines())) <= 80
    assert not [line for line in table.splitlines() if line.startswith("model")]
    assert same.startswith("the same in both: started, model, parameters, optimizer")


def test_a_folder_of_runs_names_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ba":
        write_run(run / "all" / name / "record.jsonl", a_run(name))
    assert main(["show", str(run / "all")]) == 1
    assert f"give one of {run / 'all' / 'a'}, {run / 'all' / 'b'}\n" in capsys.readouterr().err


def test_a_long_setting_leaves_the_other_columns_their_room(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"policy": "simplify", "target": None, "ceiling": 200.0, "then": {"policy": "preserve", "target": 0.9}}
    other = write_run(run / "b" / "record.jsonl", a_run("two", settings={"mode": policy, "every": 7}), loss=3.0)
    assert main(["compare", str(run), str(other)]) == 0
    assert "simplify (ceiling 200, then preserve (target" in capsys.readouterr().out
    rows = [{"": f"a name of {k}", "A": "1", "B": "x" * 300, "C": "y" * 30} for k in range(3)]
    assert max(map(len, plain_table(rows, 80))) == sum(fitting(rows, 80)) + 6 == 80
    assert fitting(rows, 80)[:2] == [11, 1]


@pytest.mark.parametrize("state", STATES)
def test_check_exits_by_the_verdict(state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "record.jsonl", a_run("one"), state=state)
    for limit in ORDER:
        passes = state in ORDER and ORDER.index(state) <= ORDER.index(limit)
        assert main(["check", str(path), "--at-most", limit]) == (0 if passes else 3)
    assert repr(state) in capsys.readouterr().out
    assert main(["check", str(path), "--fail-on", state]) == 3
    assert main(["check", str(path), "--fail-on", next(other for other in STATES if other != state)]) == 0
    if state not in ORDER:
        assert main(["check", str(path), "--allow-unknown", "-q"]) == 0


def test_a_run_without_a_verdict_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines(tmp_path / "record.jsonl") as sink:
        sink(make(0))
    run = read(tmp_path).last
    if run.verdict is None:
        assert judged(run) == (False, "the verdict is 'missing': nothing is known of the rate")
    assert main(["check", str(tmp_path), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_watch_ends_with_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-4:] == ["the run ended after 20 steps", *a_verdict().lines]
    assert sum("constrained" in line for line in out) == 100  # readings, and the measurements between them
    assert sum(line.split()[0] == "20" for line in out) == 1  # a reading is told with its measurement


def test_a_record_is_followed_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    sink = JsonLines(path)
    sink.begin(a_run("one"))
    waits = iter(range(10**6))

    def wait() -> None:
        match next(waits):
            case 0:
                sink.reading(SpectralReading(step=0, r=0.5, edge=2.0, lr=(0.1,)))
                sink(make(0))
            case 1:
                with path.open("ab") as file:
                    file.write(b"nonsense\n")
                    file.write(lines.encode(lines.MeasurementLine(make(1)))[:40])
            case 2:
                with path.open("ab") as file:
                    file.write(lines.encode(lines.MeasurementLine(make(1)))[40:])
            case 3:
                sink.close()
                write_run(path, a_run("two"), range(0, 20, 10))

    seen = []
    for line in merged(follow(path, wait)):
        seen.append(type(line).__name__)
        if isinstance(line, lines.EndLine):
            break
    assert seen[:3] == ["Header", "MeasurementLine", "MeasurementLine"]
    assert seen[3:] == ["Header", *["MeasurementLine", "ReadingLine"] * 2, "DecisionLine", "VerdictLine", "EndLine"]


def test_a_measurement_that_is_told_again_with_its_loops_is_told_once() -> None:
    reading = lines.ReadingLine(SpectralReading(step=12))
    again, then = lines.MeasurementLine(make(10)), lines.MeasurementLine(make(20))
    header = lines.Header(2, run=a_run("one", resumed="zero", resumed_at=5))
    seen = merged(iter([again, reading, again, then, header, again]))
    assert list(seen) == [again, reading, then, header, again]


def test_every_line_is_told_in_words() -> None:
    run, verdict = a_run("one"), a_verdict()
    assert told(lines.Header(2, run=run)) == ["run one of Net with SGD, started 2026-01-01T00:00:00+00:00"]
    assert told(lines.Header(2)) == []
    assert "warming up" in told(lines.ReadingLine(SpectralReading(step=3, warming="two steps only")))[0]
    assert told(lines.VerdictLine(3, verdict)) == ["       3  verdict: right"]
    assert told(lines.EndLine(a_summary(run)))[1:] == list(verdict.lines)


HOSTILE = "\033[2J\033]0;owned\007\r\u202e"


def test_text_of_records_moves_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run("one", model=HOSTILE, optimizer=HOSTILE)
    path = write_run(tmp_path / "record.jsonl", run)
    path.write_text(path.read_text() + '{"type":"\\u001b[2J"}\n')
    for command in ("show", "watch"):
        assert main([command, str(path)]) == 0
    assert main(["compare", str(path), str(path)]) == 0
    assert not set("\033\007\r\u202e") & set(capsys.readouterr().out)


def test_clean_keeps_what_people_write() -> None:
    assert clean("η* = 3·10⁻⁴, naïve 神經") == "η* = 3·10⁻⁴, naïve 神經"
    assert clean("a\tb\x1b[0m") == "a\\tb\\x1b[0m"


def test_plain_tables_fit_the_screen() -> None:
    rows = [{"layer": "x" * 200, "n": 3, "share": 0.123456, "ok": True, "r": float("nan")}]
    head, row = plain_table(rows, 40)
    assert len(row) <= 40
    assert row.endswith("3  0.1235  yes  -")
    assert head.startswith("layer ")
    assert "…" in row


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals_that_want_them(
    env: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal(Screen())
    terminal.table([{"verdict": "too high", "r": 0.5}])
    with terminal.progress("something long", 10) as advance:
        advance(3)
    assert ("\033[31m" in terminal.stream.getvalue()) is coloured  # type: ignore[attr-defined]
    assert "too high" in terminal.stream.getvalue()  # type: ignore[attr-defined]


# -- how commands end -------------------------------------------------------------------------------------------------


def ended(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "topoopt", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(run: Path) -> None:
    with open("/dev/full", "w") as full:
        done = ended("show", str(run), "--json", stdout=full)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


def test_a_reader_that_has_gone_is_no_traceback(run: Path) -> None:
    here, there = os.pipe()
    os.close(here)
    done = ended("show", str(run), "--json", stdout=there)
    os.close(there)
    assert done.returncode == 141
    assert done.stderr == ""


def test_an_interrupt_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("topoopt.cli.showing.opened", interrupted)
    assert main(["show", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "topoopt: interrupted\n"


@pytest.mark.parametrize("traced", [False, True])
def test_a_fault_of_its_own_is_one_line_too(
    traced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("one\ntwo\033[2J")

    monkeypatch.setattr("topoopt.cli.showing.opened", failing)
    assert main(["show", str(tmp_path), *(["--traceback"] if traced else [])]) == 70
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("topoopt: RuntimeError: one two\\x1b[2J (a fault of topoopt's own")
    assert ("Traceback" in error) is traced


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "RUN", "-o", "/proc/x.html"],
        ["report", "RUN", "-o", "/dev/null/x.html"],
        ["report", "RUN", "-o", "/no/such/x.html"],
        ["report", "RUN", "-o", "a\0b"],
        ["report", "RUN", "-o", "."],
        ["report", "/" + "a" * 5000],
        ["show", "nowhere"],
        ["watch", "nowhere"],
        ["watch", "RUN", "--interval", "0"],
        ["check", "nowhere"],
        ["compare", "RUN", "nowhere"],
        ["demo", "--out", "/proc/demo"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_what_cannot_be_is_one_line(arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run) if one == "RUN" else one for one in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("topoopt: ")
    assert error.count("\n") == 1


def test_a_page_replaces_a_link_and_not_what_it_points_to(run: Path) -> None:
    (run / "victim").write_text("precious")
    (run / "report.html").symlink_to(run / "victim")
    assert main(["report", str(run)]) == 0
    assert (run / "victim").read_text() == "precious"
    assert not (run / "report.html").is_symlink()


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["show"], ["check", "x", "--at-most", "good"]])
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert "usage: topoopt" in capsys.readouterr().err


def test_on_a_terminal_it_is_drawn_by_rich(run: Path) -> None:
    pytest.importorskip("rich")
    mine, its = pty.openpty()
    text: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                text.append(os.read(mine, 65536))
            except OSError:
                return

    reader = threading.Thread(target=drain)
    reader.start()
    done = ended("show", str(run), stdout=its, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"})
    os.close(its)
    reader.join(20)
    os.close(mine)
    assert done.returncode == 0
    assert b"\x1b[32mconstrained" in b"".join(text)
