"""Official metrics of the labelled tasks: fractions, or percent in question answering; undefined ratios are 0.0."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Sized
from difflib import SequenceMatcher
from itertools import chain
from operator import eq
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer

from stemformer.data.labelled.token_classification import as_bioes
from stemformer.errors import DataError
from stemformer.progress import format_count
from stemformer.tasks.rewriting_metrics import METRIC_NAMES, POINTS

# How answers are compared: as words without articles (en), Chinese characters and other words (zh), characters (ja).
Language = Literal["en", "zh", "ja"]
# Ends of the names of metrics that are shown in percent.
_FRACTIONS = ("accuracy", "f1", "precision", "recall", "exact", "exact_match", "copied", "cut")
# Characters that the evaluation of CMRC 2018 removes; it keeps ASCII commas, periods and parentheses.
_CHINESE_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# A Chinese character; the end of a contraction; a word or number, with inner periods and commas; any other character.
_CHINESE_UNITS = re.compile(
    r"[\u4e00-\u9fa5]|'[^\W\u4e00-\u9fa5]+|(?:[^\W\u4e00-\u9fa5]|(?<=\w)(?:\.(?=\w)|,(?=\d)))+|\S"
)

_BY_KIND = {
    "class": ["accuracy", "macro_f1", "matthews", "f1"],
    "labels": ["micro_f1", "macro_f1", "exact_match"],
    "score": ["pearson", "spearman", "mean_squared_error", "root_mean_squared_error", "mean_absolute_error"],
}
_BY_TASK = {
    "tag": ["accuracy", "precision", "recall", "f1"],
    "qa": [
        *("exact_match", "f1", "has_answer_exact", "has_answer_f1", "no_answer_exact", "no_answer_f1"),
        *("best_threshold", "best_f1", "best_exact"),
    ],
    "choice": ["accuracy"],
    "seq2seq": list(METRIC_NAMES),
}


# Metrics that say how texts are, not how good.
NOT_RANKED = ("copied", "length_ratio", "cut")


def metric_names(task: str, kind: str) -> list[str]:
    """Return the names of the metrics that a task may have; some depend on the data, such as `f1` of two labels."""
    return _BY_TASK.get(task, _BY_KIND[kind])


def classification_metrics(
    gold: Integer[np.ndarray, "n"], predicted: Integer[np.ndarray, "n"], labels: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of single-label classification; ids index `labels`.

    Returns:
        `accuracy`; `macro_f1`, the mean over the labels that occur in either; `matthews`; with two
        labels `f1` of the second one, `positive_label`, as in GLUE (Wang et al. 2019, table 1); `per_label`, a list of
        `label`, `precision`, `recall`, `f1` and `count` (in `gold`); `confusion` (rows: `gold`).
    """
    from sklearn.metrics import confusion_matrix, matthews_corrcoef, precision_recall_fscore_support

    _check_lengths(gold, predicted)
    ids = range(len(labels))
    columns = precision_recall_fscore_support(gold, predicted, labels=ids, average=None, zero_division=0)
    per_label = _to_rows(labels, columns)
    present = np.union1d(gold, predicted).tolist()
    varies = len(np.unique(gold)) > 1 and len(np.unique(predicted)) > 1
    metrics = {
        "accuracy": float(np.mean(gold == predicted)),
        "macro_f1": fmean(per_label[i]["f1"] for i in present),
        "matthews": float(matthews_corrcoef(gold, predicted)) if varies else 0.0,
    }
    binary = {"f1": per_label[1]["f1"], "positive_label": labels[1]} if len(labels) == 2 else {}
    confusion = confusion_matrix(gold, predicted, labels=ids).tolist()
    return {**metrics, **binary, "per_label": per_label, "confusion": confusion}


def multi_label_metrics(
    gold: Bool[np.ndarray, "n C"], predicted: Bool[np.ndarray, "n C"], labels: Sequence[str]
) -> dict[str, Any]:
    """Return `micro_f1` over all decisions, `macro_f1` over labels, `exact_match` of examples, and `per_label`."""
    from sklearn.metrics import precision_recall_fscore_support

    _check_lengths(gold, predicted)

    def score(gold: np.ndarray, predicted: np.ndarray) -> tuple[Any, ...]:
        columns = precision_recall_fscore_support(gold, predicted, labels=[True], average=None, zero_division=0)
        return tuple(values[0] for values in columns)

    per_label = _to_rows(labels, zip(*(score(gold[:, i], predicted[:, i]) for i in range(len(labels))), strict=True))
    return {
        "micro_f1": float(score(gold.ravel(), predicted.ravel())[2]),
        "macro_f1": fmean(label["f1"] for label in per_label),
        "exact_match": float((gold == predicted).all(axis=1).mean()),
        "per_label": per_label,
    }


def regression_metrics(gold: Float[np.ndarray, "n"], predicted: Float[np.ndarray, "n"]) -> dict[str, float]:
    """Return the metrics of regression.

    Returns:
        `pearson` and `spearman` (from -1 to 1, 0.0 if either side is constant), `mean_squared_error`,
        and `root_mean_squared_error` and `mean_absolute_error`, in the unit of the scores.
    """
    from scipy.stats import pearsonr, spearmanr

    _check_lengths(gold, predicted)
    wide = [np.asarray(values, dtype=np.float64) for values in (gold, predicted)]
    # A range below this share of the largest absolute value is a rounding error.
    varies = all(np.ptp(values) > 1e-12 * np.abs(values).max() for values in wide)
    errors = wide[0] - wide[1]
    return {
        "pearson": float(pearsonr(*wide).statistic) if varies else 0.0,
        "spearman": float(spearmanr(*wide).statistic) if varies else 0.0,
        "mean_squared_error": float(np.mean(errors**2)),
        "root_mean_squared_error": float(np.sqrt(np.mean(errors**2))),
        "mean_absolute_error": float(np.mean(np.abs(errors))),
    }


def tagging_metrics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, entities: bool
) -> dict[str, Any]:
    """Return the metrics of tags, one per word; with `entities` they mark entities (`B-`, `I-` and so on).

    Returns:
        `accuracy` over words. With entities `precision`, `recall` and `f1` of all together, and
        `per_label` by type. Without, `labels` (sorted), and in that order `per_label` and
        `confusion` as in `classification_metrics`.

    Source: Tjong Kim Sang and De Meulder 2003 (conlleval); seqeval's default mode: `I-` may start one.
    """
    _check_lengths(gold, predicted)
    for number, (right, tags) in enumerate(zip(gold, predicted, strict=True), 1):
        if len(right) != len(tags):
            found = f"{format_count(len(tags), 'prediction')} for {format_count(len(right), 'word')}"
            raise DataError(f"Text {number} has {found}: expected one per word")
    gold_tags, predicted_tags = (list(chain.from_iterable(texts)) for texts in (gold, predicted))
    if entities:
        _check_lengths(gold_tags, predicted_tags)
        from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

        texts = [as_bioes(tags) for tags in gold], [as_bioes(tags) for tags in predicted]
        types = sorted({kind for side in texts for kind, *_ in get_entities(side)})
        totals = precision_recall_fscore_support(*texts, average="micro", zero_division=0)
        columns = precision_recall_fscore_support(*texts, average=None, zero_division=0)
        metrics = dict(zip(("precision", "recall", "f1"), map(float, totals[:3]), strict=True))
        accuracy = fmean(map(eq, gold_tags, predicted_tags))
        return {"accuracy": accuracy, **metrics, "per_label": _to_rows(types, columns)}
    labels = sorted({*gold_tags, *predicted_tags})
    ids = {label: i for i, label in enumerate(labels)}
    gold_ids, predicted_ids = (np.array([ids[t] for t in tags], np.int64) for tags in (gold_tags, predicted_tags))
    metrics = classification_metrics(gold_ids, predicted_ids, labels)
    return {"accuracy": metrics["accuracy"], "labels": labels, **{k: metrics[k] for k in ("per_label", "confusion")}}


def squad_metrics(
    gold: Mapping[str, Sequence[str]],
    predicted: Mapping[str, str],
    *,
    language: Language = "en",
    no_answer: Mapping[str, float] | None = None,
    threshold: float | None = None,
) -> dict[str, float]:
    """Return the metrics of extractive question answering, in percent.

    Args:
        gold: Right answers by question, of which the best match counts; none if there is no answer.
        predicted: Predicted answer by question; empty for none.
        no_answer: Score of "no answer" by question, on any scale.
        threshold: Count an answer as none if its `no_answer` is above this.

    Returns:
        `exact_match` and `f1`; if some questions have no answer, also `has_answer_exact`,
        `has_answer_f1`, `no_answer_exact` and `no_answer_f1`; with `no_answer`, also `best_threshold`,
        the lowest threshold with the best F1, and `best_f1` and `best_exact` there.

    Source: Rajpurkar et al. 2016 and 2018 (English); Cui et al. 2019 (Chinese, CMRC 2018: F1 of the
    longest common substring; words in Latin letters by a rule of our own instead of NLTK's); So et al.
    2022 (Japanese, JaQuAD: F1 over characters, without punctuation and spaces). Unlike the script's,
    `best_threshold` reproduces its F1: questions with equal `no_answer` count together, answers of
    articles are scored as elsewhere, and it is below all `no_answer` if no question is best answered.

    Example:
        >>> squad_metrics({"q": ["the Eiffel Tower"]}, {"q": "Eiffel Tower."})
        {'exact_match': 100.0, 'f1': 100.0}
    """
    assert threshold is None or no_answer is not None, "a threshold needs no_answer"
    scores = _answer_scores(gold, predicted, language)
    best = {} if no_answer is None else _best_threshold(scores, gold, no_answer)
    if no_answer is not None and threshold is not None:
        scores = {q: x if no_answer[q] <= threshold else (float(not gold[q]),) * 2 for q, x in scores.items()}
    metrics = dict(zip(("exact_match", "f1"), _percent(scores.values()), strict=True))
    for kind, has_answer in (("has_answer", True), ("no_answer", False)):
        pairs = [pair for question, pair in scores.items() if bool(gold[question]) == has_answer]
        if pairs and not all(gold.values()):
            metrics |= dict(zip((f"{kind}_exact", f"{kind}_f1"), _percent(pairs), strict=True))
    return {**metrics, **best}


def format_metric(name: str, value: float, *, is_percent: bool = False) -> str:
    """Return the value of a metric as all output for people shows it; `name` is its result key.

    Fractions are shown in percent (`is_percent`: they are in percent already), metrics in points such as BLEU with one
    decimal, thresholds with a sign, losses, errors, ratios and correlations with three.
    """
    if isinstance(value, int):
        return f"{value:,}"
    if name.endswith(_FRACTIONS):
        return f"{value:.1f}%" if is_percent else f"{value:.1%}"
    if name.endswith(POINTS):
        return f"{value:.1f}"
    return f"{value:+.2f}" if name.endswith("threshold") else f"{value:z,.3f}"


def points_per_unit(task: str, metric: str) -> float:
    """Return what to multiply a metric of a task by for points from 0 to 100: 1 if it is in points already."""
    return 1.0 if task == "qa" or metric in POINTS else 100.0


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (n - 1); 0.0 for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _check_lengths(gold: Sized, predicted: Sized) -> None:
    if len(gold) != len(predicted):
        found = f"{format_count(len(predicted), 'prediction')} for {format_count(len(gold), 'example')}"
        raise DataError(f"{found}: expected one per example")
    if len(gold) == 0:
        raise DataError("No examples to score: expected at least one")


def _to_rows(labels: Sequence[str], columns: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    """Return a row per label from columns of precision, recall, F1 and count."""
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f1), "count": int(count)}
        for label, p, r, f1, count in zip(labels, *columns, strict=True)
    ]


def _answer_scores(
    gold: Mapping[str, Sequence[str]], predicted: Mapping[str, str], language: Language
) -> dict[str, tuple[float, float]]:
    """Return exact match and F1 (from 0 to 1) of each question, the best over its right answers."""
    if not gold:
        raise DataError("No questions to score: expected at least one")
    _check_complete(gold, predicted, "prediction")
    scores = {}
    # With unanswerable questions, the script of SQuAD 2.0 ignores answers of articles and punctuation only.
    ignores_empty = not all(gold.values())
    for question, answers in gold.items():
        answer = predicted[question]
        right = [text for text in answers if not ignores_empty or _split_answer(text, language)] or [""]
        exact = max(_normalize(text, language) == _normalize(answer, language) for text in right)
        scores[question] = float(exact), max(_answer_f1(text, answer, language) for text in right)
    return scores


def _check_complete(gold: Mapping[str, Sequence[str]], values: Mapping[str, Any], name: str) -> None:
    if missing := [question for question in gold if question not in values]:
        example = f"such as {missing[0]!r}: expected one per question"
        raise DataError(f"{len(missing)} of {len(gold)} questions have no {name}, {example}")


def _best_threshold(
    scores: Mapping[str, tuple[float, float]], gold: Mapping[str, Sequence[str]], no_answer: Mapping[str, float]
) -> dict[str, float]:
    """Return the lowest threshold with the best F1, with F1 and exact match there."""
    _check_complete(gold, no_answer, "no_answer")
    order = sorted(scores, key=no_answer.__getitem__)
    values = [float(no_answer[question]) for question in order]
    # Totals of exact match and F1 if the first n questions are answered; those with equal `no_answer` go together.
    unanswered = np.array([[float(not gold[question])] * 2 for question in order])
    gains = np.array([scores[question] for question in order]) - unanswered
    totals = np.cumsum([unanswered.sum(0), *gains], axis=0)  # (questions + 1, 2)
    bounds = [n for n in range(len(totals)) if n in (0, len(values)) or values[n] != values[n - 1]]
    best = max(bounds, key=lambda n: float(totals[n, 1]))
    none = 0.0 if values[0] > 0 else values[0] - 1
    exact, f1 = (100 * totals[best] / len(scores)).tolist()
    return {"best_threshold": values[best - 1] if best else none, "best_f1": f1, "best_exact": exact}


def _percent(pairs: Collection[tuple[float, float]]) -> list[float]:
    """Return the means of exact match and F1."""
    return [100 * sum(column) / len(pairs) for column in zip(*pairs, strict=True)]


def _split_answer(text: str, language: Language) -> list[str]:
    """Return the words or characters that F1 compares."""
    text = text.lower()
    if language == "en":
        return re.sub(r"\b(?:a|an|the)\b", " ", "".join(c for c in text if c not in string.punctuation)).split()
    if language == "ja":
        return [c for c in text if not c.isspace() and not unicodedata.category(c).startswith("P")]
    return _CHINESE_UNITS.findall("".join(c for c in text if c not in _CHINESE_PUNCTUATION))


def _normalize(text: str, language: Language) -> Hashable:
    """Return the form of an answer that exact match compares."""
    if language == "zh":
        return "".join(c for c in text.lower().strip() if c not in _CHINESE_PUNCTUATION)
    return tuple(_split_answer(text, language))


def _answer_f1(gold: str, predicted: str, language: Language) -> float:
    right, answer = _split_answer(gold, language), _split_answer(predicted, language)
    if not right or not answer:
        return float(right == answer)
    if language == "zh":
        common = SequenceMatcher(None, right, answer, autojunk=False).find_longest_match().size
    else:
        common = (Counter(right) & Counter(answer)).total()
    return 2 * common / (len(right) + len(answer))
