"""Report of a pre-training run: content, and a page that loads nothing."""

import json
import re
import shutil

import pytest
from report_page import Page, assert_loads_nothing_and_runs_nothing

import stemformer
from stemformer.commands import pretrain as pretraining
from stemformer.errors import DataError
from stemformer.io import read_jsonl
from stemformer.progress import format_count
from stemformer.reports import pretraining as run_report
from stemformer.reports.plots import plot_curves, plot_head_scores
from stemformer.reports.pretraining import write_report


@pytest.fixture(scope="module")
def run(tiny, no_timing, tmp_path_factory):
    """A finished run with next sentence and held-out text."""
    out = tmp_path_factory.mktemp("report") / "run"
    sizes = ["model.hidden_size=16", "model.intermediate_size=32", "batch.size=4", "batch.sequence_length=32"]
    often = ["log_every=1", "evaluation.every=2", "evaluation.num_examples=8", "evaluation.num_cloze_examples=6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "write_report", write_report)  # which other tests leave out
        stemformer.pretrain(
            "bert_tiny",
            data=str(tiny / "data"),
            out=str(out),
            settings=[*sizes, *often, "objective.sentences=next", "checkpoints.every=100"],
            steps=4,
            device="cpu",
        )
    return out


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    """Copy of the run without its report; plots, which take a second, are skipped."""
    monkeypatch.setattr(run_report, "plot_curves", lambda curves, unit: "<svg></svg>")
    copy = tmp_path / "a run"
    copy.mkdir()
    for name in ("config.toml", "log.jsonl"):
        shutil.copy(run / name, copy / name)
    return copy


def rewrite(folder, change):
    """Changes the lines of the log; `change` gives a line or None."""
    lines = [changed for line in read_jsonl(folder / "log.jsonl") if (changed := change(line)) is not None]
    (folder / "log.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return lines


def page_of(folder):
    assert write_report(folder) == folder / "report.html"
    assert not list(folder.glob("*.tmp"))
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# Content


def test_report_of_a_finished_run_has_all_plots_and_tiles(run):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.captions() == [
        "Loss on masked words",
        "Accuracy on masked words",
        "Loss on next sentence",
        "Accuracy on next sentence",
        "Cloze accuracy",
        "Learning rate",
        "Throughput",
    ]
    titles = [
        "held-out loss",
        "accuracy on masked words",
        "next sentence accuracy",
        "cloze accuracy",
        "trained on",
        "throughput",
    ]
    assert [title for title, *_ in page.tiles()] == titles
    assert 'recipe = "bert_tiny"' in page.text


def test_tiles_show_the_last_metrics_with_their_baselines(run):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    last = [line for line in read_jsonl(run / "log.jsonl") if line["kind"] == "evaluation"][-1]
    tiles = {title: (figure, remark) for title, figure, remark in page.tiles()}
    assert tiles["held-out loss"][0] == f"{last['held_out_masked_lm_loss']:.2f} nats"
    assert f"({last['held_out_unigram_loss']:.2f})" in tiles["held-out loss"][1]
    assert tiles["next sentence accuracy"][0] == f"{last['held_out_next_sentence_accuracy']:.1%}"
    assert tiles["next sentence accuracy"][1].endswith(f"{last['held_out_majority_accuracy']:.1%}")
    assert tiles["cloze accuracy"][0] == f"{last['held_out_blank_accuracy']:.1%}"
    assert tiles["trained on"][1].startswith("4 steps")


def test_report_without_next_sentence_prediction(folder):
    rewrite(folder, lambda line: {k: v for k, v in line.items() if "next_sentence" not in k and "majority" not in k})
    page = page_of(folder)
    assert page.captions()[:3] == ["Loss on masked words", "Accuracy on masked words", "Cloze accuracy"]
    assert not any("next sentence" in title for title, *_ in page.tiles())


def test_report_without_held_out_text_shows_training(folder):
    rewrite(folder, lambda line: line if line["kind"] == "train" else None)
    page = page_of(folder)
    assert [title for title, *_ in page.tiles()] == ["trained on", "throughput"]
    assert page.captions()[0] == "Loss on masked words"
    assert "held-out sentences" not in page.source


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_report_of_a_running_run(folder, steps):
    rewrite(folder, lambda line: line if line["step"] <= steps else None)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 9, "los')  # a line that is being written
    tiles = {title: remark for title, _, remark in page_of(folder).tiles()}
    assert "held-out loss" in tiles
    assert ("trained on" in tiles) == (steps > 0)
    assert steps == 0 or tiles["trained on"].startswith(f"{format_count(steps, 'step')} in")


def test_run_without_log_lines_has_an_empty_report(folder):
    (folder / "log.jsonl").write_text("")
    page = page_of(folder)
    assert (page.captions(), page.tiles()) == ([], [])
    assert 'recipe = "bert_tiny"' in page.text


def test_report_of_a_run_can_be_written_again(folder):
    page_of(folder)
    rewrite(folder, lambda line: line if line["kind"] == "train" else None)
    assert len(page_of(folder).tiles()) == 2


@pytest.mark.parametrize("first", [5, 0])
def test_resumed_run_may_have_another_number_of_cloze_sentences(folder, first):
    fills = [{"text": f"a [MASK] {i}", "answer": "b", "guess": "c", "probability": 0.5} for i in range(9)]
    kinds = iter([first, 3, 9])
    lines = rewrite(folder, lambda line: {**line, "fills": fills[: next(kinds)]} if line["kind"] == "fills" else line)
    assert [len(line["fills"]) for line in lines if line["kind"] == "fills"] == [first, 3, 9]
    rows = re.findall(r"<tr><td>a <span class=\"blank\">b</span> (\d)</td>", page_of(folder).source)
    assert rows == ["0", "1", "2"]  # those that all moments have, which are the first of more


# The page


def test_report_loads_nothing_and_runs_nothing(run):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert sum(tag == "svg" for tag, _ in page.tags) == 7
    assert_loads_nothing_and_runs_nothing(page)


def test_text_that_looks_like_html_is_shown_as_it_is(folder):
    bad = '<script>alert("1")</script>&amp;'

    def change(line):
        if line["kind"] != "fills":
            return line
        fill = {"text": f"a {bad} [MASK] b", "answer": "<b>", "guess": "</td>", "probability": 0.25}
        return {**line, "fills": [fill]}

    rewrite(folder, change)
    with (folder / "config.toml").open("a") as file:
        file.write("# <img src=x onerror=alert(1)>\n")
    page = page_of(folder)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    for text in (bad, "<b>", "</td>", "<img src=x onerror=alert(1)>"):
        assert text in page.text


def test_chinese_text_stays(folder):
    fill = {"text": "我们[MASK]北京，你好。", "answer": "在", "guess": "去", "probability": 0.25}
    rewrite(folder, lambda line: {**line, "fills": [fill]} if line["kind"] == "fills" else line)
    page = page_of(folder)
    assert "我们在北京，你好。" in page.text
    assert "去 25%" in page.text
    assert ("meta", {"charset": "utf-8"}) in page.tags


def test_name_of_the_folder_is_the_title_even_where_it_looks_like_html(folder):
    odd = folder.rename(folder.with_name("<i>运行 & co"))
    page = page_of(odd)
    assert "<i>运行 & co: pre-training report" in page.text
    assert "i" not in {tag for tag, _ in page.tags}


def test_right_and_wrong_guesses_look_different(folder):
    fill = {"text": "a [MASK]", "answer": "b", "guess": "b", "probability": 1.0}
    fills = [fill, {**fill, "guess": "c"}]
    rewrite(folder, lambda line: {**line, "fills": fills} if line["kind"] == "fills" else line)
    page = page_of(folder)
    assert page.source.count('<span class="right">b</span>') == 3  # at three moments
    assert page.source.count('<span class="wrong">c</span>') == 3


def test_plot_names_its_curves():
    curves = [("one", [0.0, 1.0], [2.0, 1.0], "line"), ("two", [0.0, 1.0], [3.0, 3.0], "baseline")]
    svg = plot_curves(curves, unit="nats")
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert all(f"<!-- {name} -->" in svg for name in ("one", "two", "nats", "tokens (millions)"))
    assert "<!-- one -->" not in plot_curves(curves[:1], unit="nats")  # a single curve needs no legend


def test_map_of_heads_prints_high_scores_and_is_vector_graphics():
    svg = plot_head_scores([("0.00 M", [[0.01, 0.02], [0.0, 0.03]]), ("1.50 M", [[0.01, 0.98], [0.2, 1.0]])])
    assert svg.startswith("<svg") and "<image" not in svg
    shown = re.findall("<!-- (.*?) -->", svg)
    assert [text for text in shown if text.startswith(".") or text.endswith("M")] == ["0.00 M", ".98", ".20", "1.50 M"]
    assert svg == plot_head_scores([("0.00 M", [[0.01, 0.02], [0.0, 0.03]]), ("1.50 M", [[0.01, 0.98], [0.2, 1.0]])])


# No run


@pytest.mark.parametrize("names", [[], ["config.toml"], ["log.jsonl"]])
def test_folder_that_holds_no_run_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"holds no run: expected config.toml and log.jsonl"):
        write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
