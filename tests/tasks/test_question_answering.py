"""Extractive question answering."""

import numpy as np
import pytest

from stemformer.data.labelled.question_answering import Question
from stemformer.tasks.question_answering import AnswerPrediction, QuestionAnswering, Window, best_spans
from stemformer.tasks.task import TaskConfig

PASSAGE = "The old king (not the young one) sees a green river. Playing in the café's garden, he isn't quiet: 你好世界!"


def question(answer=None, *, context=PASSAGE, text="who sees?", start=None):
    at = context.index(answer) if answer is not None and start is None else start
    answers = () if answer is None else ((answer, at),)
    gold = () if answer is None else (answer,)
    return Question("q", text, context, answers, "", answer is None, gold)


def task(**settings):
    return QuestionAnswering(TaskConfig("qa", **settings))


def perfect_scores(examples):
    """Logits that are high at the answers only."""
    scores = []
    for example in examples.examples:
        rows = np.full((len(example.input_ids), 2), -5, np.float32)
        begin, end = example.sequence_labels[0]
        if begin:
            rows[begin, 0] = rows[end, 1] = 5
        scores.append(rows)
    return scores


ANSWERS = [
    "The",
    "old king",
    "(not the young one)",
    "green river",
    "river.",
    "café",
    "café's garden",
    "isn't quiet",
    "好世",
    "世界!",
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("max_length", [64, 30])
def test_decoded_answer_is_exactly_its_characters(tokenizer, answer, max_length):
    records = [question(answer)]
    examples = task(stride=12).encode(records, tokenizer, max_length=max_length)
    (found,) = task().decode(perfect_scores(examples), examples, records)
    assert found.text == answer
    assert PASSAGE[found.begin : found.end] == answer
    assert found.candidates[0].text == answer


def test_windows_cover_the_passage_and_mark_the_answer_where_it_is_complete(tokenizer):
    records = [question("green river")]
    examples = task(stride=4).encode(records, tokenizer, max_length=20)
    assert examples.counts == {"passages split into windows": 1}
    offsets = {tuple(row) for window in examples.scored for row in window.offsets.tolist()}
    assert offsets == {tuple(row) for row in tokenizer.encode(PASSAGE).offsets.tolist()}
    marked = 0
    begin = PASSAGE.index("green river")
    for example, window in zip(examples.examples, examples.scored, strict=True):
        assert len(example.input_ids) <= 20
        holds = window.offsets[0, 0] <= begin and window.offsets[-1, 1] >= begin + len("green river")
        first, last = example.sequence_labels[0].tolist()
        assert (first > 0) == holds
        if holds:
            marked += 1
            assert window.offsets[first - window.first, 0] == begin
            assert window.offsets[last - window.first, 1] == begin + len("green river")
    assert marked


def test_long_question_is_truncated_and_counted(tokenizer):
    examples = task().encode([question("river", text="who " * 200)], tokenizer, max_length=40)
    assert examples.counts["questions truncated"] == 1
    assert all(len(e.input_ids) <= 40 for e in examples.examples)


def test_answer_that_matches_no_token_is_counted(tokenizer):
    examples = task().encode([question("\u200b", context="a \u200b king")], tokenizer, max_length=40)
    assert examples.counts == {"answers that match no token": 1}
    assert examples.examples[0].sequence_labels.tolist() == [[0, 0]]


def test_question_without_an_answer_is_trained_to_point_at_the_first_token(tokenizer):
    (example,) = task().encode([question()], tokenizer, max_length=64).examples
    assert example.sequence_labels.tolist() == [[0, 0]]


@pytest.mark.parametrize("n", [1, 2, 7, 23])
@pytest.mark.parametrize("max_tokens", [1, 3, 30])
def test_best_spans_equal_an_exhaustive_search(n, max_tokens):
    rng = np.random.default_rng(n * max_tokens)
    scores = rng.normal(size=(n + 5, 2)).astype(np.float32)
    window = Window(3, np.stack([np.arange(n) * 2, np.arange(n) * 2 + 1], 1))
    wide = scores.astype(np.float64)
    every = [
        (wide[3 + i, 0] + wide[3 + j, 1], 2 * i, 2 * j + 1) for i in range(n) for j in range(i, min(n, i + max_tokens))
    ]
    expected = sorted(every, key=lambda span: -span[0])[:20]
    found = best_spans(scores, window, max_tokens=max_tokens)
    assert [(b, e) for _, b, e in found] == [(b, e) for _, b, e in expected]
    np.testing.assert_allclose([s for s, *_ in found], [s for s, *_ in expected])


def test_window_without_a_token_has_no_span():
    assert best_spans(np.zeros((3, 2), np.float32), Window(3, np.zeros((0, 2), np.int64)), max_tokens=5) == []


def test_best_span_of_all_windows_is_the_answer(tokenizer):
    records = [question("green river"), question("old king")]
    examples = task(stride=4).encode(records, tokenizer, max_length=20)
    scores = [np.zeros((len(e.input_ids), 2), np.float32) for e in examples.examples]
    last = int(np.flatnonzero(examples.records == 0)[-1])
    window = examples.scored[last]
    scores[last][window.first + 1] = [3, 0]
    scores[last][window.first + 2] = [0, 4]
    found = task().decode(scores, examples, records)
    assert (found[0].begin, found[0].end) == (window.offsets[1, 0], window.offsets[2, 1])
    assert found[0].candidates[0].score == pytest.approx(7)
    assert len({(c.begin, c.end) for c in found[0].candidates}) == len(found[0].candidates)


@pytest.mark.parametrize(("threshold", "text"), [(-3.0, ""), (0.0, "river"), (5.0, "river")])
def test_threshold_decides_whether_there_is_an_answer(tokenizer, threshold, text):
    task = QuestionAnswering(TaskConfig("qa", no_answer=True))
    task.threshold = threshold
    records = [question("river")]
    examples = task.encode(records, tokenizer, max_length=64)
    scores = perfect_scores(examples)
    # Scores of [CLS], sum 8: 2 below that of the span.
    scores[0][0] = 4
    (found,) = task.decode(scores, examples, records)
    assert found.no_answer == pytest.approx(-2)
    assert found.text == text
    p = np.exp([10, 8]) / np.exp([10, 8]).sum()
    # All other spans have a probability below 1e-3.
    assert found.probability == pytest.approx(p[1 if text == "" else 0], abs=1e-3)


def test_question_that_must_have_an_answer_gets_one(tokenizer):
    records = [question("river")]
    examples = task(no_answer=False).encode(records, tokenizer, max_length=64)
    scores = perfect_scores(examples)
    scores[0][0] = 100
    assert task(no_answer=False).decode(scores, examples, records)[0].text == "river"


@pytest.mark.parametrize(("scores", "threshold"), [([-4.0, 5.0, 7.0], 0.5), ([-4.0, float("inf")], -4.0)])
def test_threshold_is_tuned_to_the_midpoint_between_scores(scores, threshold):
    tuned = task(no_answer=True)
    tuned.tune({"best_threshold": -4.0}, [AnswerPrediction("", 0, 0, 1.0, score) for score in scores])
    assert tuned.threshold == threshold
