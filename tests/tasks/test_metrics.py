"""Metrics of the tasks, compared with other implementations and with their definitions."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from stemformer.errors import DataError
from stemformer.tasks.metrics import (
    classification_metrics,
    format_metric,
    mean_std,
    multi_label_metrics,
    points_per_unit,
    regression_metrics,
    squad_metrics,
    tagging_metrics,
)


def numbers(*values):
    return np.array(values, dtype=np.int64)


# Classification


def test_two_labels_have_the_f1_of_the_second():
    metrics = classification_metrics(numbers(0, 0, 1, 1, 1), numbers(0, 1, 1, 1, 0), ["no", "yes"])
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["f1"] == pytest.approx(2 / 3) and metrics["positive_label"] == "yes"
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["matthews"] == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    assert metrics["confusion"] == [[1, 1], [1, 2]]
    assert metrics["per_label"][1] == pytest.approx(
        {"label": "yes", "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "count": 3}
    )


def test_rows_of_the_confusion_matrix_are_right_labels():
    metrics = classification_metrics(numbers(0, 0, 2), numbers(1, 1, 2), ["a", "b", "c"])
    assert metrics["confusion"] == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert [label["count"] for label in metrics["per_label"]] == [2, 0, 1]
    assert "f1" not in metrics


def test_label_that_never_occurs_does_not_count_for_macro_f1():
    metrics = classification_metrics(numbers(0, 1, 1), numbers(0, 1, 1), ["a", "b", "never"])
    assert metrics["macro_f1"] == 1.0
    assert metrics["per_label"][2] == {"label": "never", "precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}


def test_label_that_is_only_predicted_counts_for_macro_f1():
    assert classification_metrics(numbers(0, 0), numbers(0, 1), ["a", "b", "c"])["macro_f1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("predicted", [numbers(1, 1, 1), numbers(0, 0, 0)])
def test_constant_predictions_have_no_correlation(predicted):
    assert classification_metrics(numbers(0, 1, 1), predicted, ["no", "yes"])["matthews"] == 0.0
    assert classification_metrics(numbers(1, 1, 1), predicted, ["no", "yes"])["matthews"] == 0.0


# Multi-label classification


def test_micro_f1_counts_the_decisions_of_all_labels():
    gold = np.array([[True, False, False], [True, True, False], [False, False, False]])
    predicted = np.array([[True, False, False], [True, False, False], [False, False, True]])
    metrics = multi_label_metrics(gold, predicted, ["a", "b", "c"])
    assert metrics["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert metrics["macro_f1"] == pytest.approx(1 / 3)
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert [label["count"] for label in metrics["per_label"]] == [2, 1, 0]


def test_several_labels_agree_with_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    gold, predicted = rng.random((2, 50, 7)) < 0.3
    metrics = multi_label_metrics(gold, predicted, [str(i) for i in range(7)])
    assert metrics["micro_f1"] == pytest.approx(f1_score(gold, predicted, average="micro"))
    assert metrics["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))


def test_multi_label_with_one_label_is_scored():
    metrics = multi_label_metrics(np.array([[True], [False], [True]]), np.array([[True], [False], [False]]), ["a"])
    assert metrics["per_label"] == [
        {"label": "a", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "count": 2}
    ]


@pytest.mark.parametrize("value", [True, False])
def test_predictions_that_are_all_the_same_are_scored_without_a_warning(value):
    gold = np.full((4, 2), not value)
    assert multi_label_metrics(gold, np.full((4, 2), value), ["a", "b"])["micro_f1"] == 0.0


# Regression


def test_correlations_follow_their_definition():
    gold, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 9.0, 16.0], dtype=np.float32)
    metrics = regression_metrics(gold, predicted)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(gold, predicted)[0, 1])
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["mean_squared_error"] == pytest.approx((0 + 4 + 36 + 144) / 4)
    assert metrics["root_mean_squared_error"] == pytest.approx(46**0.5)
    assert metrics["mean_absolute_error"] == pytest.approx((0 + 2 + 6 + 12) / 4)


@pytest.mark.parametrize("predicted", [[2.5, 2.5, 2.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0 + 1e-15]])
def test_constant_numbers_have_no_correlation_and_give_no_warning(predicted):
    varying = np.array([1.0, 2.0, 3.0])
    for metrics in (regression_metrics(varying, np.array(predicted)), regression_metrics(np.array(predicted), varying)):
        assert (metrics["pearson"], metrics["spearman"]) == (0.0, 0.0)
        assert metrics["mean_squared_error"] > 0


def test_single_number_has_no_correlation():
    assert regression_metrics(np.array([1.0]), np.array([3.0])) == {
        "pearson": 0.0,
        "spearman": 0.0,
        "mean_squared_error": 4.0,
        "root_mean_squared_error": 2.0,
        "mean_absolute_error": 2.0,
    }


# Tagging


def test_tags_without_entities_have_a_confusion():
    metrics = tagging_metrics([["DET", "NOUN"], ["VERB"]], [["DET", "VERB"], ["VERB"]], entities=False)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["labels"] == ["DET", "NOUN", "VERB"]
    assert metrics["confusion"] == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert [label["label"] for label in metrics["per_label"]] == metrics["labels"]


def test_entity_counts_only_with_all_its_words_and_its_type():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "O"]]
    metrics = tagging_metrics(gold, predicted, entities=True)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert metrics["per_label"] == [
        {"label": "LOC", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "count": 1},
        {"label": "ORG", "precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 1},
        {"label": "PER", "precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 1},
    ]


def test_inside_tag_starts_an_entity_as_in_conlleval():
    assert tagging_metrics([["O", "B-PER", "I-PER"]], [["O", "I-PER", "I-PER"]], entities=True)["f1"] == 1.0
    assert tagging_metrics([["B-PER", "B-LOC"]], [["B-PER", "I-LOC"]], entities=True)["f1"] == 1.0


@pytest.mark.parametrize("marks", ["BIOES", "BILOU", "BMMES"])
def test_entities_of_schemes_with_ends_and_single_words_are_counted(marks):
    begin, inside, _, end, single = marks if marks != "BILOU" else "BIOLU"
    gold = [[f"{single}-PER", f"{single}-PER", "O", f"{begin}-LOC", f"{inside}-LOC", f"{end}-LOC"]]
    predicted = [[f"{single}-PER", "O", "O", f"{begin}-LOC", f"{inside}-LOC", f"{end}-LOC"]]
    metrics = tagging_metrics(gold, predicted, entities=True)
    assert (metrics["precision"], metrics["recall"]) == pytest.approx((1.0, 2 / 3))
    assert [(row["label"], row["count"]) for row in metrics["per_label"]] == [("LOC", 1), ("PER", 2)]


def test_tags_without_a_scheme_are_no_entities():
    metrics = tagging_metrics([["PER", "O", "B-LOC"]], [["B-PER", "O", "B-LOC"]], entities=True)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert {row["label"]: row["count"] for row in metrics["per_label"]} == {"LOC": 1, "PER": 0}


def test_entities_agree_with_seqeval():
    import seqeval.metrics

    rng = random.Random(0)
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    gold, predicted = ([[rng.choice(tags) for _ in range(9)] for _ in range(40)] for _ in range(2))
    metrics = tagging_metrics(gold, predicted, entities=True)
    for name, of in (("precision", "precision_score"), ("recall", "recall_score"), ("f1", "f1_score")):
        assert metrics[name] == pytest.approx(getattr(seqeval.metrics, of)(gold, predicted))


def test_predictions_without_an_entity_score_nothing_and_give_no_warning():
    metrics = tagging_metrics([["B-PER", "O"]], [["O", "O"]], entities=True)
    assert (metrics["accuracy"], metrics["precision"], metrics["recall"], metrics["f1"]) == (0.5, 0.0, 0.0, 0.0)
    assert tagging_metrics([["O"]], [["O"]], entities=True)["per_label"] == []


def test_text_with_too_few_tags_is_an_error():
    with pytest.raises(DataError, match="Text 2 has 1 prediction for 2 words"):
        tagging_metrics([["O"], ["O", "O"]], [["O"], ["O"]], entities=True)


# Question answering, English


WORDS = [
    "the",
    "a",
    "an",
    "The",
    "Eiffel",
    "tower",
    "tower.",
    "(tower)",
    "in",
    "Paris,",
    "Paris",
    "it's",
    "A.",
    "1,000",
]


def made_up_answers(seed, *, impossible, number=200):
    """Questions with answers of a few words, and predictions that are right, nearly right, wrong or empty."""
    rng = random.Random(seed)

    def text(least=1):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, 4)))

    gold = {
        str(i): [] if rng.random() < impossible else [text() for _ in range(rng.randint(1, 3))] for i in range(number)
    }
    predicted = {
        question: rng.choice(answers) if answers and rng.random() < 0.4 else text(least=0)
        for question, answers in gold.items()
    }
    no_answer = {question: rng.gauss(1.0 if not answers else 0.0, 1.0) for question, answers in gold.items()}
    return gold, predicted, no_answer


@pytest.mark.parametrize("seed", range(3))
def test_answers_agree_with_torchmetrics(seed):
    from torchmetrics.functional.text import squad as torchmetrics_squad

    gold, predicted, _ = made_up_answers(seed, impossible=0.0)
    expected = torchmetrics_squad(
        [{"id": question, "prediction_text": answer} for question, answer in predicted.items()],
        [{"id": q, "answers": {"text": texts, "answer_start": [0] * len(texts)}} for q, texts in gold.items()],
    )
    metrics = squad_metrics(gold, predicted)
    for name in ("exact_match", "f1"):
        assert metrics[name] == pytest.approx(float(expected[name]), rel=1e-6)  # torchmetrics computes in fp32
    assert set(metrics) == {"exact_match", "f1"}


@pytest.mark.parametrize(
    ("right", "answer", "exact", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 100, 100),
        ("Eiffel Tower", "Eiffel", 0, 100 * 2 / 3),
        ("it's", "its", 100, 100),
        ("another", "other", 0, 0),  # an article is a word of its own
        ("2,000", "2000", 100, 100),
        ("埃菲尔铁塔。", "埃菲尔铁塔", 0, 0),  # only ASCII punctuation is taken out
        ("tower tower", "tower", 0, 100 * 2 / 3),
        ("x", "", 0, 0),
    ],
)
def test_answer_is_compared_without_articles_punctuation_and_case(right, answer, exact, f1):
    assert squad_metrics({"q": [right]}, {"q": answer}) == pytest.approx({"exact_match": exact, "f1": f1})


def test_best_right_answer_counts():
    assert squad_metrics({"q": ["no", "yes sir"]}, {"q": "yes"})["f1"] == pytest.approx(100 * 2 / 3)


def test_question_without_an_answer_is_right_when_nothing_is_answered():
    metrics = squad_metrics({"a": [], "b": [], "c": ["x y"]}, {"a": "", "b": "x", "c": "x"})
    assert metrics == pytest.approx(
        {
            "exact_match": 100 / 3,
            "f1": (100 + 200 / 3) / 3,
            "has_answer_exact": 0,
            "has_answer_f1": 200 / 3,
            "no_answer_exact": 50,
            "no_answer_f1": 50,
        }
    )


def test_kind_of_question_that_does_not_occur_has_no_metrics():
    assert set(squad_metrics({"a": []}, {"a": ""})) == {"exact_match", "f1", "no_answer_exact", "no_answer_f1"}


def test_answer_above_the_threshold_counts_as_none():
    gold, predicted = {"a": [], "b": ["x"]}, {"a": "y", "b": "x"}
    assert squad_metrics(gold, predicted, no_answer={"a": 2.0, "b": 2.0}, threshold=1.0)["f1"] == 50
    assert squad_metrics(gold, predicted, no_answer={"a": 2.0, "b": 1.0}, threshold=1.0)["f1"] == 100
    assert squad_metrics(gold, predicted, no_answer={"a": 1.0, "b": 1.0}, threshold=1.0)["f1"] == 50


def test_metrics_equal_those_of_the_squad_v2_script():
    """Expected values: output of the official script with threshold 0.5."""
    gold = {"1": ["in Paris", "Paris"], "2": [], "3": ["the", "1889"], "4": [], "5": ["Gustave Eiffel"], "6": []}
    predicted = {"1": "the Paris", "2": "London", "3": "1889", "4": "", "5": "Eiffel", "6": "x"}
    no_answer = {"1": 0.1, "2": 0.9, "3": 0.6, "4": 0.2, "5": 0.3, "6": 0.4}
    metrics = squad_metrics(gold, predicted, no_answer=no_answer, threshold=0.5)
    assert metrics == pytest.approx(
        {
            "exact_match": 50.0,
            "f1": 61.111111,
            "has_answer_exact": 33.333333,
            "has_answer_f1": 55.555556,
            "no_answer_exact": 66.666667,
            "no_answer_f1": 66.666667,
            "best_threshold": 0.3,
            "best_f1": 77.777778,
            "best_exact": 66.666667,
        }
    )


def best_of(metrics):
    return metrics["best_threshold"], metrics["best_f1"], metrics["best_exact"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [6, 0])  # with and without questions of equal score
def test_no_other_threshold_is_better_than_the_best(seed, digits):
    gold, predicted, no_answer = made_up_answers(seed, impossible=0.5, number=40)
    no_answer = {question: round(value, digits) for question, value in no_answer.items()}
    threshold, f1, exact = best_of(squad_metrics(gold, predicted, no_answer=no_answer))
    metrics = squad_metrics(gold, predicted, no_answer=no_answer, threshold=threshold)
    assert (metrics["f1"], metrics["exact_match"]) == pytest.approx((f1, exact))
    assert best_of(metrics) == (threshold, f1, exact)
    others = {
        value: squad_metrics(gold, predicted, no_answer=no_answer, threshold=value)["f1"]
        for value in no_answer.values()
    }
    assert f1 == pytest.approx(max(others.values()))
    assert threshold == min(value for value, other in others.items() if other > f1 - 1e-9)


@pytest.mark.parametrize(("lowest", "threshold"), [(0.5, 0.0), (0.0, -1.0), (-3.0, -4.0)])
def test_threshold_that_leaves_all_unanswered_is_below_all_scores(lowest, threshold):
    no_answer = {"a": lowest, "b": lowest + 1}
    gold, predicted = {"a": [], "b": []}, {"a": "x", "b": "y"}
    assert best_of(squad_metrics(gold, predicted, no_answer=no_answer)) == (threshold, 100.0, 100.0)
    assert squad_metrics(gold, predicted, no_answer=no_answer, threshold=threshold)["f1"] == 100.0


# Question answering, Chinese and Japanese


@pytest.mark.parametrize(
    ("right", "answer", "exact", "f1"),
    [
        ("《红楼梦》", "红楼梦", 100, 100),
        ("北京市", "在北京市区", 0, 100 * 2 * 3 / 8),
        ("甲乙丙丁", "甲乙X丙丁", 0, 100 * 2 * 2 / 9),  # the longest run, not the longest subsequence
        ("NBA 联盟", "nba联盟", 0, 100),  # spaces count for the exact match alone
        ("1,000米", "1,000米", 100, 100),
        ("Python语言", "python", 0, 100 * 2 / 4),
        ("北京，上海", "北京上海", 100, 100),
        ("北京,上海", "北京上海", 0, 100 * 2 * 2 / 9),  # an ASCII comma stays
        ("北京", "", 0, 0),
    ],
)
def test_chinese_answer_is_compared_by_characters_and_words(right, answer, exact, f1):
    assert squad_metrics({"q": [right]}, {"q": answer}, language="zh") == pytest.approx(
        {"exact_match": exact, "f1": f1}
    )


@pytest.mark.parametrize(
    ("right", "answer", "exact", "f1"),
    [
        ("「東京都」", "東京都。", 100, 100),
        ("東京都", "東京", 0, 100 * 4 / 5),
        ("データ", "データ", 100, 100),
        ("2011年 3月", "2011年3月", 100, 100),
        ("大阪", "東京", 0, 0),
    ],
)
def test_japanese_answer_is_compared_by_characters(right, answer, exact, f1):
    assert squad_metrics({"q": [right]}, {"q": answer}, language="ja") == pytest.approx(
        {"exact_match": exact, "f1": f1}
    )


def test_chinese_question_may_have_no_answer():
    metrics = squad_metrics({"a": [], "b": ["北京"]}, {"a": "", "b": "北京"}, language="zh")
    assert (metrics["f1"], metrics["no_answer_f1"]) == (100, 100)
    metrics = squad_metrics({"a": ["北京"]}, {"a": "北京"}, language="zh", no_answer={"a": 2.0})
    assert best_of(metrics) == (2.0, 100.0, 100.0)


# All metrics


def test_mean_and_standard_deviation():
    assert mean_std([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.0))
    assert mean_std([0.5]) == (0.5, 0.0)


def test_metrics_are_plain_python_numbers():
    ones, flags = numbers(0, 1), np.array([[True, False], [False, False]])
    reals = np.array([1.0, 2.0], dtype=np.float32)
    metrics = [
        classification_metrics(ones, ones, ["a", "b"]),
        multi_label_metrics(flags, flags, ["a", "b"]),
        regression_metrics(reals, reals),
        tagging_metrics([["B-PER"]], [["O"]], entities=True),
        tagging_metrics([["X"]], [["Y"]], entities=False),
        squad_metrics({"a": []}, {"a": ""}, no_answer={"a": 1.0}),
    ]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: classification_metrics(numbers(), numbers(), ["a"]), "No examples to score"),
        (lambda: tagging_metrics([["O"]], [], entities=False), "0 predictions for 1 example"),
        (lambda: tagging_metrics([[]], [[]], entities=True), "No examples to score"),
        (lambda: squad_metrics({}, {}), "No questions to score"),
        (
            lambda: squad_metrics({"a": ["x"], "b": ["y"]}, {"a": "x"}),
            "1 of 2 questions have no prediction, such as 'b'",
        ),
        (
            lambda: squad_metrics({"a": ["x"]}, {"a": "x"}, no_answer={}),
            "1 of 1 questions have no no_answer, such as 'a'",
        ),
    ],
)
def test_missing_predictions_are_errors(score, message):
    with pytest.raises(DataError, match=message):
        score()


def test_libraries_are_imported_lazily():
    code = "import stemformer.tasks.metrics, sys; print({'sklearn', 'scipy', 'seqeval'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "value", "is_percent", "shown"),
    [
        ("dev_accuracy", 0.9254, False, "92.5%"),
        ("f1", 0.81249, False, "81.2%"),
        ("exact_match", 60.0123, True, "60.0%"),
        ("best_threshold", -1.2345, True, "-1.23"),
        ("dev_loss", 0.12345, True, "0.123"),
        ("root_mean_squared_error", 1234.5678, False, "1,234.568"),
        ("num_questions", 1500, True, "1,500"),
        ("dev_source_gain", -0.0001, False, "0.000"),
        ("sari", 40.126, False, "40.1"),
        ("rougeLsum", 9.96, False, "10.0"),
    ],
)
def test_metric_is_shown_with_its_own_precision(name, value, is_percent, shown):
    assert format_metric(name, value, is_percent=is_percent) == shown


def test_points_of_metrics_that_are_in_points_already_stay():
    assert [points_per_unit("classify", "accuracy"), points_per_unit("qa", "f1")] == [100.0, 1.0]
    assert [points_per_unit("seq2seq", name) for name in ("bleu", "sari", "rougeL", "exact_match")] == [1, 1, 1, 100]
