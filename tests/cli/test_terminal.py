import doctest
import inspect

import pytest
from rich.cells import cell_len

from stemformer.cli import terminal
from stemformer.cli.terminal import Terminal, as_text
from stemformer.progress import Progress, Silent


@pytest.fixture
def clock(monkeypatch):
    """Clock that moves only when a test moves it: `clock[0] += seconds`."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_plain_progress_writes_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    bar = Terminal(is_live=False)
    bar.start("training", total=100, unit="steps")
    for _ in range(25):
        bar.advance(2, "loss 5.0")
        clock[0] += 1
    bar.finish()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "training: 22/100 steps (22%)  2 steps/s  0:39 left  loss 5.0",
        "training: 42/100 steps (42%)  2 steps/s  0:29 left  loss 5.0",
        "training: 50/100 steps (50%)  1.9 steps/s  0:26 left  loss 5.0",
    ]


def test_rate_leaves_out_the_jump_of_a_resume(clock, capsys):
    bar = Terminal(is_live=False)
    bar.start("training", total=1000, unit="steps")
    bar.advance(900)
    clock[0] += 10
    bar.advance(10)
    assert "910/1,000 steps (91%)  1 steps/s  1:30 left" in capsys.readouterr().err


def test_percent_is_printed_once(clock, capsys):
    bar = Terminal(is_live=False)
    bar.start("sizes", total=100, unit="%")
    bar.advance(0)
    clock[0] += 10
    bar.advance(20, "2x64")
    assert capsys.readouterr().err == "sizes: 20%  0:40 left  2x64\n"


def test_unknown_total_shows_amount_and_rate_only(clock, capsys):
    bar = Terminal(is_live=False)
    bar.start("reading", unit="bytes")
    bar.advance(0)
    clock[0] += 10
    bar.advance(3_000_000)
    assert capsys.readouterr().err == "reading: 3.0M bytes  300,000 bytes/s\n"


def test_new_start_ends_the_previous_bar_and_finish_prints_once(clock, capsys):
    bar = Terminal(is_live=False)
    bar.start("one", total=2)
    bar.advance(1)
    bar.start("two", total=2)
    bar.advance(2)
    bar.finish()
    bar.finish()
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["one", "two"]


def test_advance_without_start_says_nothing(capsys):
    bar = Terminal(is_live=False)
    bar.advance(1)
    bar.finish()
    assert capsys.readouterr().err == ""


def test_live_bar_goes_to_standard_error_and_takes_lines(capsys):
    bar = Terminal(is_live=True)
    bar.start("training", total=10, unit="steps")
    bar.advance(4, "loss [5.0]")
    bar.say("saved [step 4]")
    bar.finish()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "saved [step 4]" in captured.err
    assert "training" in captured.err


def test_say_writes_to_standard_error(capsys):
    Terminal(is_live=False).say("a line")
    assert capsys.readouterr() == ("", "a line\n")


@pytest.mark.parametrize("kind", [Silent, Terminal])
def test_implementation_has_the_signatures_of_the_protocol(kind):
    for name in ("start", "advance", "say", "finish"):
        assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Progress, name))


def test_silent_says_nothing(capsys):
    bar = Silent()
    bar.start("x", total=1)
    bar.advance(1)
    bar.say("line")
    bar.finish()
    assert capsys.readouterr() == ("", "")


def test_wide_characters_align():
    candidates = [{"token": "巴黎", "probability": 0.5}, {"token": "abc", "probability": 0.25}]
    text = as_text([{"text": "t", "masks": [{"candidates": candidates}], "filled": "f"}])
    assert text.splitlines()[1:3] == ["  mask 1  巴黎  0.5000", "          abc   0.2500"]


@pytest.mark.parametrize(
    ("result", "text"),
    [({}, ""), ([], ""), ({"a": None}, "a  none"), ({"a": [1, 2.5]}, "a  1, 2.5"), ("done", "done"), (["x"], "x")],
)
def test_small_results_read_well(result, text):
    assert as_text(result) == text


@pytest.mark.parametrize("module", [terminal])
def test_examples_in_docstrings_hold(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_wide_cells_are_cut_on_a_screen_only():
    rows = [{"id": 1, "text": "word " * 50, "other": "巴黎" * 40}, {"id": 12345, "text": "a\r\nb\tc", "other": "x"}]
    for width in (40, 80):
        lines = as_text({"wrong": rows}, width=width).splitlines()
        assert max(map(cell_len, lines)) <= width and len(lines) == 6
        assert "12,345  a b c" in lines[-1] and lines[-2].count("…") == 2
    assert "word " * 50 in as_text(rows) and "巴黎" * 40 in as_text(rows)
    # Without a screen, long cells do not pad the others.
    assert as_text({"wrong": rows}).splitlines()[-1].split() == ["12,345", "a", "b", "c", "x"]
    assert max(map(len, as_text([{"text": "x" * 500, "n": 1}, {"text": "y", "n": 2}]).splitlines()[2:])) < 60


def test_confusion_matrix_names_its_labels():
    lines = as_text({"confusion": [[105, 0], [3, 95]], "labels": ["bad", "good"], "notes": []}).splitlines()
    assert lines == ["labels  bad, good", "", "confusion", "        bad  good", "  bad   105  0", "  good  3    95"]
    lines = as_text({"confusion": [[105, 0], [3, 95]], "labels": ["label", "no label"]}).splitlines()
    assert [line.split() for line in lines[-2:]] == [["label", "105", "0"], ["no", "label", "3", "95"]]


def test_matrix_is_set_in_rows():
    lines = as_text({"accuracy": 0.95, "confusion": [[105, 0], [3, 95]]}).splitlines()
    assert lines[-3:] == ["confusion", "  105  0", "  3    95"]


def test_empty_answer_is_shown_as_no_answer():
    text = as_text({"wrong": [{"question": "Who?", "predicted": ""}, {"question": "Where?", "predicted": "here"}]})
    assert [line.split("  ")[-1] for line in text.splitlines()[-2:]] == ["(no answer)", "here"]


def test_sources_and_targets_are_not_cut():
    rows = [{"source": "a <mask> " * 20, "target": "a b " * 20}, {"source": "", "target": "c\nd"}]
    first, second = as_text({"steps": 1, "examples": rows}, width=30).partition("examples\n")[2].split("\n  \n")
    assert first == f"  source  {rows[0]['source'].strip()}\n  target  {rows[0]['target'].strip()}"
    assert second == "  source\n  target  c d"
