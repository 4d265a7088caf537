"""Report of a fine-tuning run or an evaluation: content for each task, and a page that loads nothing."""

import re

import pytest
from report_page import Page, assert_loads_nothing_and_runs_nothing

from stemformer.reports import finetuning as task_report
from stemformer.reports.finetuning import write_task_report

BAD = '<script>alert("1")</script>&amp;'
PASSAGE = "The tower is named after Gustave Eiffel, whose company built it."
BEGIN, END = PASSAGE.index("Gustave"), PASSAGE.index(", whose")


def tokens_of(passage):
    """Return tokens and their offsets."""
    offsets = [match.span() for match in re.finditer(r"\w+|[^\w\s]", passage)]
    return {"tokens": [passage[a:b] for a, b in offsets], "offsets": [list(index) for index in offsets]}


def peak(number, index, height=0.9):
    """Return probabilities with one peak."""
    return [height if i == index else (1 - height) / (number - 1) for i in range(number)]


def text_example(*texts, gold="yes", predicted="yes", loss=0.1):
    return {"texts": list(texts), "gold": gold, "predicted": predicted, "probability": 0.75, "loss": loss}


def answer_example(**changes):
    tokens = tokens_of(PASSAGE)
    number = len(tokens["tokens"])
    return {
        "question": "Who was it named after?",
        "passage": PASSAGE,
        "gold": ["Gustave Eiffel", "Gustave Eiffel"],
        "predicted": PASSAGE[BEGIN:END],
        "begin": BEGIN,
        "end": END,
        **tokens,
        "start": peak(number, tokens["tokens"].index("Gustave")),
        "end_p": peak(number, tokens["tokens"].index("Eiffel"), 0.8),
        **changes,
    }


TAGGED = {
    "words": ["Ursula", "von", "der", "Leyen", "met", "Macron", "in", "Paris", "."],
    "gold": ["B-PER", "I-PER", "I-PER", "I-PER", "O", "B-PER", "O", "B-LOC", "O"],
    "predicted": ["B-PER", "O", "O", "O", "B-ORG", "O", "O", "B-LOC", "O"],
}
CHOICE = {
    "prompt": "He broke his toe.",
    "choices": ["A sock.", "A hammer."],
    "gold": 1,
    "predicted": 0,
    "probabilities": [0.625, 0.375],
}
EXAMPLES = {
    "classify": text_example("a text"),
    "pair": text_example("one text", "another"),
    "tag": TAGGED,
    "qa": answer_example(),
    "choice": CHOICE,
    "seq2seq": {**text_example("a text"), "chrf": 12.5},
}
SCORES = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "count": 1200}
CURVES = {
    "title": "Loss",
    "unit": "nats",
    "x_name": "epochs",
    "curves": [("dev", [0.0, 1.0], [2.0, 1.0], "line"), ("training", [0.0, 1.0], [2.0, 0.5], "faint")],
}


def page_of(folder, task="classify", **content):
    path = write_task_report(folder, {"task": task, "title": "a run", "metrics": {"accuracy": 0.9}, **content})
    assert path == folder / "report.html"
    assert not list(folder.glob("*.tmp"))
    return Page(path.read_text(encoding="utf-8"))


# Metrics


def test_tiles_show_metrics_with_their_baseline(tmp_path):
    metrics = {"accuracy": 0.9123, "macro_f1": 0.8, "matthews": 0.81234, "examples": 1200}
    page = page_of(tmp_path, metrics=metrics, baseline={"accuracy": 0.5, "always_yes_f1": 0.25})
    assert page.tiles() == [
        ("accuracy", "91.2%", "baseline 50.0%"),
        ("macro F1", "80.0%", ""),
        ("matthews", "0.812", ""),
        ("examples", "1,200", ""),
        ("always yes F1", "25.0%", "baseline"),
    ]
    assert "needs no model" in page.text


def test_several_baselines_have_a_table(tmp_path):
    rows = [{"baseline": "copy", "bleu": 12.34, "copied": 1.0}, {"baseline": "constant", "bleu": 0.0, "copied": 0.0}]
    page = page_of(tmp_path, task="seq2seq", metrics={"bleu": 20.0, "copied": 0.25, "cut": 0.0}, baselines=rows)
    assert page.tiles()[0] == ("BLEU", "20.0", "baseline 12.3")
    cells = [
        re.findall(r">\s*([^<>]*?)</td>", row) for row in page.source.split("<h2>Baselines</h2>")[1].split("<tr>")[2:5]
    ]
    assert cells == [
        ["model", "20.0", "25.0%"],
        ["baseline: copy", "12.3", "100.0%"],
        ["baseline: constant", "0.0", "0.0%"],
    ]


def test_metrics_of_question_answering_are_in_percent(tmp_path):
    page = page_of(tmp_path, task="qa", metrics={"exact_match": 71.25, "f1": 80.0, "best_threshold": -1.5})
    assert [figure for _, figure, _ in page.tiles()] == ["71.2%", "80.0%", "-1.50"]


def test_report_of_metrics_alone_has_no_empty_parts(tmp_path):
    page = page_of(tmp_path, confusion=None, per_label=None)
    assert re.findall("<h2>(.*?)</h2>", page.source) == ["Settings"]
    assert "needs no model" not in page.text


def test_parts_are_in_order(tmp_path):
    page = page_of(
        tmp_path,
        notes=["3 texts were cut."],
        curves=[CURVES],
        labels=["no", "yes"],
        confusion=[[3, 1], [0, 4]],
        per_label=[{"label": "no", **SCORES}],
        examples=[EXAMPLES["classify"]],
        config="seed = 1\n",
    )
    parts = ["Data", "Plots", "Confusion matrix", "Metrics by label", "Examples", "Settings"]
    assert re.findall("<h2>(.*?)</h2>", page.source) == parts
    assert page.captions() == ["Loss"]
    assert all(f"<!-- {name} -->" in page.source for name in ("dev", "training", "epochs", "nats"))
    assert "3 texts were cut." in page.text
    assert "seed = 1" in page.text
    for figure in ("1,200", "50.0%", "25.0%", "33.3%"):
        assert figure in page.text


@pytest.mark.parametrize(("number", "is_dense"), [(2, False), (60, True)])
def test_confusion_has_a_cell_for_each_pair_of_labels(tmp_path, number, is_dense):
    labels = [f"label {i}" for i in range(number)]
    confusion = [[9 if i == j else int(j == 0) for j in range(number)] for i in range(number)]
    page = page_of(tmp_path, labels=labels, confusion=confusion)
    assert sum(name == "hit" for name in page.classes()) == number
    assert sum(name == "miss" for name in page.classes()) == number - 1
    assert ("dense" in " ".join(page.classes())) == is_dense
    assert 'title="label 1 → label 0: 1"' in page.source
    assert page.source.count("--s:0.9") == number - 1  # 9 of 10
    assert page.source.count("--s:1.0") == 1


# Examples


def test_errors_come_first_by_decreasing_loss(tmp_path):
    examples = [
        text_example("right but unsure", loss=0.6),
        text_example("wrong", predicted="no", loss=1.0),
        text_example("very wrong", predicted="no", loss=3.0),
    ]
    page = page_of(tmp_path, examples=examples)
    assert re.findall('<span class="text">(.*?)</span>', page.source) == ["very wrong", "wrong", "right but unsure"]
    assert "2 of 3 are wrong" in page.text
    assert page.text.count("✗") == 2
    assert page.text.count("✓") == 1
    assert "no 75.0%" in page.text


def test_number_of_examples_is_limited(tmp_path):
    page = page_of(tmp_path, examples=[text_example(f"text {i}", predicted="no") for i in range(100)])
    assert "100 of 100 are wrong" in page.text
    assert "; 40 are shown." in page.text
    assert page.source.count('<span class="text">') == 40


def test_numbers_are_neither_right_nor_wrong(tmp_path):
    metrics = {"pearson": 0.8, "mean_squared_error": 0.5}
    example = {"texts": ["a", "b"], "gold": "3.0", "predicted": "2.9", "probability": None, "loss": 0.01}
    page = page_of(tmp_path, task="pair", metrics=metrics, examples=[example])
    assert "with the largest error" in page.text
    assert "wrong;" not in page.text
    assert "✗" not in page.text


def test_several_labels_are_listed(tmp_path):
    example = text_example("a text", gold=["joy", "anger"], predicted=[])
    page = page_of(tmp_path, examples=[example])
    assert re.findall("<td>(joy.*?)</td>", page.source) == ["joy, anger"]
    assert '<span class="wrong">–</span>' in page.source


def test_long_text_is_shortened(tmp_path):
    page = page_of(tmp_path, examples=[text_example("word " * 1000)])
    assert "word…" in page.text or "word …" in page.text
    assert page.text.count("word") < 200


def pieces(page):
    """State, label and text of each marked piece."""
    found = re.findall(r'<span class="piece is-(\w+)"[^>]*><small>(.*?)</small>(.*?)</span>', page.source)
    return [(state, re.sub(r"<s>(.*?)</s>", r"-\1-", label).strip(), text) for state, label, text in found]


def test_entities_are_marked_by_what_is_wrong_with_them(tmp_path):
    page = page_of(tmp_path, task="tag", examples=[TAGGED])
    assert pieces(page) == [
        ("bounds", "PER", "Ursula"),
        ("wrong", "PER missed", "von der Leyen"),
        ("wrong", "-ORG-", "met"),
        ("wrong", "PER missed", "Macron"),
        ("right", "LOC", "Paris"),
    ]
    assert "1 of 1 are wrong" in page.text


def test_entity_of_another_type_shows_both(tmp_path):
    page = page_of(tmp_path, task="tag", examples=[{"words": ["Paris"], "gold": ["B-LOC"], "predicted": ["B-PER"]}])
    assert pieces(page) == [("wrong", "-PER- LOC", "Paris")]


def test_each_word_has_its_tag_where_there_are_no_entities(tmp_path):
    example = {"words": ["dogs", "bark"], "gold": ["NOUN", "VERB"], "predicted": ["NOUN", "NOUN"]}
    page = page_of(tmp_path, task="tag", examples=[example])
    assert pieces(page) == [("right", "NOUN", "dogs"), ("wrong", "-NOUN- VERB", "bark")]
    assert len(set(re.findall(r"--hue:(\d+)", page.source))) == 2


def test_texts_with_most_errors_come_first(tmp_path):
    words = ["Anna", "Ben", "Carl"]
    examples = [
        {"words": words, "gold": ["B-PER"] * 3, "predicted": ["B-PER"] * n + ["O"] * (3 - n)} for n in (3, 1, 2)
    ]
    page = page_of(tmp_path, task="tag", examples=examples)
    shown = page.source.split('<div class="example tagged">')[1:]
    assert [text.count("is-wrong") for text in shown] == [2, 1, 0]


def test_chinese_words_are_joined_without_spaces(tmp_path):
    words = [*list("昨天，李小龙在"), "Paris", "met", "him"]
    gold = ["O"] * 3 + ["B-PER", "I-PER", "I-PER"] + ["O"] * 4
    page = page_of(tmp_path, task="tag", examples=[{"words": words, "gold": gold, "predicted": gold}])
    assert pieces(page) == [("right", "PER", "李小龙")]
    assert "昨天，" in page.text
    assert "在Paris met him" in page.text


def test_answer_is_marked_in_its_passage(tmp_path):
    page = page_of(tmp_path, task="qa", examples=[answer_example()])
    marked = re.search('<div class="passage">(.*?)</div>', page.source).group(1)
    assert marked == f'{PASSAGE[:BEGIN]}<mark class="right">Gustave Eiffel</mark>{PASSAGE[END:]}'
    assert "correct: Gustave Eiffel" in page.text
    assert "/ Gustave" not in page.text  # equal answers are shown once


def test_answer_is_right_when_its_exact_match_is(tmp_path):
    examples = [answer_example(gold=["the Gustave eiffel."]), answer_example(gold=["Eiffel"])]
    page = page_of(tmp_path, task="qa", examples=examples)
    assert "1 of 2 are wrong" in page.text
    assert page.text.index("✗") < page.text.index("✓")


def test_probabilities_of_start_and_end_are_plotted(tmp_path):
    page = page_of(tmp_path, task="qa", examples=[answer_example()])
    bars = {
        kind: [a for tag, a in page.tags if tag == "rect" and a["class"] == kind] for kind in ("start", "end", "span")
    }
    number = len(tokens_of(PASSAGE)["tokens"])
    assert [len(bars[kind]) for kind in ("start", "end", "span")] == [number, number, 1]
    highest = [max(bars[kind], key=lambda bar: float(bar["height"])) for kind in ("start", "end")]
    assert [float(bar["height"]) for bar in highest] == pytest.approx([0.9 * 55, 0.8 * 55], abs=0.05)
    assert float(highest[0]["y"]) + float(highest[0]["height"]) == pytest.approx(75, abs=0.1)  # up
    assert float(highest[1]["y"]) == 75  # down
    (span,) = bars["span"]
    left, right = float(span["x"]), float(span["x"]) + float(span["width"])
    assert float(highest[0]["x"]) == pytest.approx(left, abs=0.1)
    assert float(highest[1]["x"]) + 1000 / number == pytest.approx(right, abs=0.2)
    assert re.findall(r"<text [^>]*>(\w+ \d+%)</text>", page.source) == ["Gustave 90%", "Eiffel 80%"]


def test_question_without_an_answer_is_shown(tmp_path):
    changes = {"gold": [], "predicted": "", "begin": None, "end": None}
    page = page_of(tmp_path, task="qa", examples=[answer_example(**changes)])
    assert "<mark" not in page.source
    assert page.text.count("no answer") == 2
    assert PASSAGE in page.text
    assert "span" not in page.classes()
    assert "0 of 1 are wrong" in page.text


@pytest.mark.parametrize("pair", [(0, 1), ("A sock.", "A hammer.")])
def test_choices_have_their_probabilities(tmp_path, pair):
    wrong = {**CHOICE, "predicted": pair[0], "gold": pair[1]}
    right = {**wrong, "predicted": pair[1], "probabilities": [0.25, 0.75]}
    page = page_of(tmp_path, task="choice", examples=[right, wrong])
    first, second = page.source.split('<div class="example">')[1:]
    assert "✗" in first
    assert "✓" in second
    assert re.findall(r"\d+\.\d%(?=</span>)", first) == ["62.5%", "37.5%"]
    assert re.search(r'A hammer\. <span class="right">correct</span>', first)


# The page


@pytest.fixture
def without_plots(monkeypatch):
    """Skip plots, which take a second."""
    monkeypatch.setattr(task_report, "plot_curves", lambda curves, unit, x_name: "<svg></svg>")


def bad_example(task):
    """An example with text that looks like HTML wherever it has text."""

    def spoil(value):
        if isinstance(value, str):
            return BAD
        return [spoil(v) for v in value] if isinstance(value, list) else value

    return {key: value if key == "tokens" else spoil(value) for key, value in EXAMPLES[task].items()} | (
        {"tokens": [BAD] * len(EXAMPLES["qa"]["tokens"])} if task == "qa" else {}
    )


@pytest.mark.parametrize("task", EXAMPLES)
def test_text_that_looks_like_html_is_shown_as_it_is(tmp_path, task, without_plots):
    page = page_of(
        tmp_path,
        task=task,
        title=BAD,
        metrics={BAD: 0.5},
        baseline={"<b>": 0.5},
        notes=[BAD],
        labels=[BAD, "<td>"],
        confusion=[[1, 2], [3, 4]],
        per_label=[{"label": BAD, **SCORES}],
        curves=[{**CURVES, "title": BAD}],
        examples=[bad_example(task)],
        config=BAD,
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(BAD) >= 7


@pytest.mark.parametrize("task", EXAMPLES)
def test_report_loads_nothing_and_runs_nothing(tmp_path, task):
    page = page_of(tmp_path, task=task, curves=[CURVES], examples=[EXAMPLES[task]])
    assert_loads_nothing_and_runs_nothing(page)


@pytest.mark.parametrize("task", EXAMPLES)
def test_every_tag_is_closed(tmp_path, task, without_plots):
    source = page_of(
        tmp_path,
        task=task,
        notes=["one"],
        labels=["a", "b"],
        confusion=[[1, 0], [3, 4]],
        per_label=[{"label": "a", **SCORES}],
        curves=[CURVES],
        examples=[EXAMPLES[task]],
    ).source
    for tag in ("div", "span", "small", "table", "tr", "td", "th", "ul", "svg", "b", "i", "s", "mark", "p", "h2"):
        assert len(re.findall(rf"<{tag}[ >]", source)) == source.count(f"</{tag}>"), tag


def test_report_can_be_written_again(tmp_path):
    page_of(tmp_path, metrics={"accuracy": 0.5})
    assert page_of(tmp_path, metrics={"accuracy": 0.75}).tiles() == [("accuracy", "75.0%", "")]


def test_chinese_text_stays(tmp_path):
    page = page_of(
        tmp_path, title="情感分类", examples=[text_example("这部电影太无聊了。", gold="负面", predicted="正面")]
    )
    for text in ("情感分类", "这部电影太无聊了。", "负面", "正面"):
        assert text in page.text
    assert ("meta", {"charset": "utf-8"}) in page.tags
