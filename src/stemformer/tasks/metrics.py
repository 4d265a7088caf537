"""The official figures of labelled tasks: from libraries where one has them, of our own for answers in passages.

All are fractions from 0 to 1 but for those of answers in passages, which are in percent as their official scripts print them. All
are plain Python numbers, so that a result can be written as JSON. A share of nothing (the precision of a label that was never
predicted, a correlation with a constant) is 0.0, without a warning.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Sized
from difflib import SequenceMatcher
from itertools import groupby
from operator import eq
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer

from stemformer.data.labelled.token_classification import as_bioes
from stemformer.errors import DataError
from stemformer.tasks import metrics
from stemformer.tasks.task import Task

Language = Literal["en", "zh", "ja"]
"""How answers are compared: words without articles, Chinese characters and words in turn, or characters."""


_Pair = tuple[float, float]
"""Exact match and F1 of one answer, each from 0 to 1."""


_CHINESE_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""What the evaluation of CMRC 2018 takes out; it leaves ASCII commas, stops and brackets in."""


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


_CHINESE_PIECES = re.compile(
    r"[\u4e00-\u9fa5]"
    r"|'[^\W\u4e00-\u9fa5]+"  # the end of a contraction
    r"|(?:[^\W\u4e00-\u9fa5]|(?<=\w)(?:\.(?=\w)|,(?=\d)))+"  # a word or a number, with stops and commas within
    r"|\S"
)
"""A Chinese character, a word in other letters, or a sign that is left."""


_NEARLY_CONSTANT = 1e-12
"""A range below this share of the largest value is rounding."""


def classification_metrics(
    gold: Integer[np.ndarray, "n"], predicted: Integer[np.ndarray, "n"], labels: Sequence[str]
) -> dict[str, Any]:
    """Returns how well one label for each example was predicted.

    Args:
        gold: Numbers of the right labels.
        predicted: Numbers of the predicted ones.
        labels: Names of all labels.

    Returns:
        `accuracy`; `macro_f1`, the mean over the labels that occur in either; `matthews`; with two labels `f1` of the second one, as
        in GLUE; `per_label`: `label`, `precision`, `recall`, `f1` and `count` (of the right ones) of each; `confusion`: how often
        each right label (row) was predicted as each (column).

    Raises:
        DataError: There is nothing to compare, or not as many predictions as examples.

    Source: Wang et al. 2019 (GLUE), table 1.

    Example:
        >>> told = classification(np.array([0, 1, 1]), np.array([0, 1, 0]), ["no", "yes"])
        >>> told["confusion"], round(told["f1"], 3)
        ([[1, 0], [1, 1]], 0.667)
    """
    from sklearn.metrics import confusion_matrix, matthews_corrcoef, precision_recall_fscore_support

    _check_lengths(gold, predicted)
    numbers = range(len(labels))
    counted = precision_recall_fscore_support(gold, predicted, labels=numbers, average=None, zero_division=0)
    per_label = _rows(labels, counted)
    present = np.union1d(gold, predicted).tolist()
    varies = len(np.unique(gold)) > 1 and len(np.unique(predicted)) > 1
    told = {
        "accuracy": float(np.mean(gold == predicted)),
        "macro_f1": fmean(per_label[i]["f1"] for i in present),
        "matthews": float(matthews_corrcoef(gold, predicted)) if varies else 0.0,
    }
    if len(labels) == 2:
        told["f1"] = per_label[1]["f1"]
    confusion = confusion_matrix(gold, predicted, labels=numbers).tolist()
    return {**told, "per_label": per_label, "confusion": confusion}


def multi_label_metrics(
    gold: Bool[np.ndarray, "n C"], predicted: Bool[np.ndarray, "n C"], labels: Sequence[str]
) -> dict[str, Any]:
    """Returns how well any number of labels for each example was predicted.

    Args:
        gold: Which labels are right.
        predicted: Which were predicted.
        labels: Names of all labels.

    Returns:
        `micro_f1`, over all decisions together; `macro_f1`, the mean over all labels; `exact_match`, the share of examples without a
        mistake; `per_label` as in `classification_metrics`.

    Raises:
        DataError: There is nothing to compare, or not as many predictions as examples.
    """
    from sklearn.metrics import precision_recall_fscore_support

    _check_lengths(gold, predicted)

    def count(right: np.ndarray, given: np.ndarray) -> tuple[Any, ...]:
        counted = precision_recall_fscore_support(right, given, labels=[True], average=None, zero_division=0)
        return tuple(values[0] for values in counted)

    columns = zip(*(count(gold[:, i], predicted[:, i]) for i in range(len(labels))), strict=True)
    per_label = _rows(labels, columns)
    return {
        "micro_f1": float(count(gold.ravel(), predicted.ravel())[2]),
        "macro_f1": fmean(label["f1"] for label in per_label),
        "exact_match": float((gold == predicted).all(axis=1).mean()),
        "per_label": per_label,
    }


def regression_metrics(gold: Float[np.ndarray, "n"], predicted: Float[np.ndarray, "n"]) -> dict[str, float]:
    """Returns how well one number for each example was predicted.

    Returns:
        `pearson` and `spearman`, from -1 to 1, 0.0 where either side is constant; `mean_squared_error`.

    Raises:
        DataError: There is nothing to compare, or not as many predictions as examples.
    """
    from scipy.stats import pearsonr, spearmanr

    _check_lengths(gold, predicted)
    wide = [np.asarray(values, dtype=np.float64) for values in (gold, predicted)]
    varies = all(np.ptp(values) > _NEARLY_CONSTANT * np.abs(values).max() for values in wide)
    return {
        "pearson": float(pearsonr(*wide).statistic) if varies else 0.0,
        "spearman": float(spearmanr(*wide).statistic) if varies else 0.0,
        "mean_squared_error": float(np.mean((wide[0] - wide[1]) ** 2)),
    }


def tagging_metrics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, entities: bool
) -> dict[str, Any]:
    """Returns how well a tag for each word was predicted.

    Args:
        gold: The right tags of the words of each text.
        predicted: As many for each text.
        entities: Tags are `B-`, `I-` and the like, and whole entities count: the right words with the right type.

    Returns:
        `accuracy` over words. With entities `precision`, `recall` and `f1` of all entities together, as conlleval counts them, and
        `per_label` by type. Without, `labels` (all tags, sorted), and `per_label` and `confusion` in that order as in `classification_metrics`.

    Raises:
        DataError: There is nothing to compare, or a text has not as many predictions as words.

    Source: Tjong Kim Sang and De Meulder 2003; entities are counted by seqeval in its default mode, where `I-` may open one.
    """
    _check_lengths(gold, predicted)
    for number, (right, given) in enumerate(zip(gold, predicted, strict=True), 1):
        if len(right) != len(given):
            raise DataError(f"text {number} has {len(given)} predictions for {len(right)} words: give one a word")
    right_tags, given_tags = ([tag for tags in texts for tag in tags] for texts in (gold, predicted))
    if entities:
        _check_lengths(right_tags, given_tags)
        return {"accuracy": fmean(map(eq, right_tags, given_tags)), **_entities(gold, predicted)}
    labels = sorted({*right_tags, *given_tags})
    number_of = {label: i for i, label in enumerate(labels)}
    told = classification_metrics(
        np.array([number_of[tag] for tag in right_tags], dtype=np.int64),
        np.array([number_of[tag] for tag in given_tags], dtype=np.int64),
        labels,
    )
    return {"accuracy": told["accuracy"], "labels": labels, **{key: told[key] for key in ("per_label", "confusion")}}


def squad_metrics(
    gold: Mapping[str, Sequence[str]],
    predicted: Mapping[str, str],
    *,
    language: Language = "en",
    no_answer: Mapping[str, float] | None = None,
    threshold: float | None = None,
) -> dict[str, float]:
    """Returns how well answers to questions were found in passages, in percent.

    An answer is compared with each right one, and its best score counts.

    Args:
        gold: By question the right answers; none where the passage has no answer.
        predicted: By question the predicted answer; empty for none.
        language: How answers are compared.
        no_answer: By question how much speaks for no answer, on any scale.
        threshold: An answer whose `no_answer` is above it counts as none.

    Returns:
        `exact_match` and `f1`. Where some questions have no answer, the same as `has_answer_exact`, `has_answer_f1`,
        `no_answer_exact` and `no_answer_f1` on the questions of each kind. With `no_answer`, `best_threshold`, and `best_f1` and
        `best_exact` there.

    Raises:
        DataError: There is no question, or one has no prediction.

    Source: Rajpurkar et al. 2016 and 2018 (English). Cui et al. 2019 (Chinese, CMRC 2018: F1 of the longest run that both have in
    common); we split words in letters by a rule of our own instead of NLTK's. So et al. 2022 (Japanese, JaQuAD): F1 over
    characters, without punctuation and spaces.

    Example:
        >>> squad({"q": ["the Eiffel Tower"]}, {"q": "Eiffel Tower."})
        {'exact_match': 100.0, 'f1': 100.0}
    """
    assert threshold is None or no_answer is not None, "a threshold needs no_answer"
    scores = _answer_scores(gold, predicted, language)
    best = {}
    if no_answer is not None:
        best = dict(zip(("best_threshold", "best_f1", "best_exact"), _best(scores, gold, no_answer), strict=True))
        if threshold is not None:
            scores = {q: pair if no_answer[q] <= threshold else _unanswered(gold[q]) for q, pair in scores.items()}
    told = {"exact_match": _percent(scores.values(), 0), "f1": _percent(scores.values(), 1)}
    if not all(gold.values()):
        for kind, has_answer in (("has_answer", True), ("no_answer", False)):
            pairs = [pair for question, pair in scores.items() if bool(gold[question]) == has_answer]
            if pairs:
                told |= {f"{kind}_exact": _percent(pairs, 0), f"{kind}_f1": _percent(pairs, 1)}
    return {**told, **best}


def threshold_midpoint(threshold: float, scores: Iterable[float]) -> float:
    """Returns the middle between a threshold and the next score above it: it decides the same, and other questions more evenly.

    Example:
        >>> midway(-4.0, [-4.0, 5.0, 7.0])
        0.5
    """
    above = [score for score in scores if threshold < score < math.inf]
    return (threshold + min(above)) / 2 if above else threshold


def best_threshold(
    gold: Mapping[str, Sequence[str]],
    predicted: Mapping[str, str],
    no_answer: Mapping[str, float],
    *,
    language: Language = "en",
) -> tuple[float, float, float]:
    """Returns the lowest threshold for `squad_metrics` that gives the best F1, with the F1 and the exact match there, in percent.

    Args:
        gold: By question the right answers; none where the passage has no answer.
        predicted: By question the best answer that is not empty.
        no_answer: By question how much speaks for no answer, on any scale.
        language: How answers are compared.

    Raises:
        DataError: There is no question, or one has no prediction or no `no_answer`.

    Source: Rajpurkar et al. 2018. The threshold really gives these figures, where the script's may not: we count questions with the
    same `no_answer` only together, score an answer of nothing but articles as `squad_metrics` does, and go below the smallest
    `no_answer` where all are best left unanswered and it is not above zero (the script says 0.0).
    """
    return _best(_answer_scores(gold, predicted, language), gold, no_answer)


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of some runs' figures, and their standard deviation (n - 1); 0.0 for a single run."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _check_lengths(gold: Sized, predicted: Sized) -> None:
    if len(gold) != len(predicted):
        raise DataError(f"{len(predicted)} predictions for {len(gold)} examples: give one for each")
    if len(gold) == 0:
        raise DataError("there is nothing to score: give at least one example")


def _rows(labels: Sequence[str], columns: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    """Returns `label`, `precision`, `recall`, `f1` and `count` of each label, from one column for each of the four."""
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f1), "count": int(count)}
        for label, p, r, f1, count in zip(labels, *columns, strict=True)
    ]


def _entities(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

    texts = [as_bioes(tags) for tags in gold], [as_bioes(tags) for tags in predicted]
    types = sorted({kind for side in texts for kind, *_ in get_entities(side)})
    precision, recall, f1, _ = precision_recall_fscore_support(*texts, average="micro", zero_division=0)
    columns = precision_recall_fscore_support(*texts, average=None, zero_division=0)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "per_label": _rows(types, columns),
    }


def _answer_scores(
    gold: Mapping[str, Sequence[str]], predicted: Mapping[str, str], language: Language
) -> dict[str, _Pair]:
    """Returns exact match and F1 of each question as it was answered, each the best over the right answers."""
    if not gold:
        raise DataError("there is nothing to score: give at least one question")
    _check_questions(gold, predicted, "prediction")
    scores = {}
    drops_empty = not all(
        gold.values()
    )  # the script of v2.0 leaves out right answers that are nothing but articles and punctuation
    for question, answers in gold.items():
        given = predicted[question]
        right = [answer for answer in answers if not drops_empty or _pieces(answer, language)] or [""]
        exact = max(_bare(answer, language) == _bare(given, language) for answer in right)
        scores[question] = float(exact), max(_answer_f1(answer, given, language) for answer in right)
    return scores


def _check_questions(gold: Mapping[str, Sequence[str]], given: Mapping[str, Any], what: str) -> None:
    missing = [question for question in gold if question not in given]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(gold)} questions have no {what}, {missing[0]!r} among them: give one for each"
        )


def _best(
    scores: Mapping[str, _Pair], gold: Mapping[str, Sequence[str]], no_answer: Mapping[str, float]
) -> tuple[float, float, float]:
    """Returns threshold, F1 and exact match: one question after the other is answered, those first where least speaks against it."""
    _check_questions(gold, no_answer, "no_answer")
    order = sorted(scores, key=no_answer.__getitem__)
    lowest = no_answer[order[0]]
    exact = f1 = float(sum(not answers for answers in gold.values()))
    best = (0.0 if lowest > 0 else lowest - 1, f1, exact)
    for threshold, questions in groupby(order, key=no_answer.__getitem__):
        for question in questions:
            for_none = float(not gold[question])
            exact += scores[question][0] - for_none
            f1 += scores[question][1] - for_none
        if f1 > best[1]:
            best = (threshold, f1, exact)
    return float(best[0]), 100 * best[1] / len(scores), 100 * best[2] / len(scores)


def _unanswered(answers: Sequence[str]) -> _Pair:
    right = float(not answers)
    return right, right


def _percent(pairs: Collection[_Pair], which: int) -> float:
    return 100 * sum(pair[which] for pair in pairs) / len(pairs)


def _pieces(text: str, language: Language) -> list[str]:
    """Returns what F1 counts in an answer: words, or characters."""
    text = text.lower()
    if language == "en":
        bare = "".join(character for character in text if character not in string.punctuation)
        return _ARTICLES.sub(" ", bare).split()
    if language == "ja":
        return [c for c in text if not c.isspace() and not unicodedata.category(c).startswith("P")]
    bare = "".join(character for character in text if character not in _CHINESE_PUNCTUATION)
    return _CHINESE_PIECES.findall(bare)


def _bare(text: str, language: Language) -> Hashable:
    """Returns what must be equal for an exact match."""
    if language == "zh":
        return "".join(character for character in text.lower().strip() if character not in _CHINESE_PUNCTUATION)
    return tuple(_pieces(text, language))


def _answer_f1(gold: str, predicted: str, language: Language) -> float:
    right, given = _pieces(gold, language), _pieces(predicted, language)
    if not right or not given:
        return float(right == given)
    if language == "zh":
        common = SequenceMatcher(None, right, given, autojunk=False).find_longest_match().size
    else:
        common = (Counter(right) & Counter(given)).total()
    return 2 * common / (len(right) + len(given))


MAIN_METRIC = {"class": "accuracy", "labels": "micro_f1", "score": "pearson", "tag": "accuracy", "entities": "f1"}


MAIN_METRIC |= {"qa": "f1", "choice": "accuracy"}
"""What a task is judged by: kind of a classification, or name of another task -> metric."""


def main_metric(task: Task, *, entities: bool = False) -> str:
    """Returns the name of the figure that a task is judged by.

    Args:
        task: Any.
        entities: Tags mark entities.
    """
    name = task.config.kind if task.head == "sequence" else task.config.name
    return MAIN_METRIC["entities" if entities else name]


def score_predictions(
    task: Task,
    predictions: Sequence[Any],
    records: Sequence[Any],
    *,
    entities: bool = False,
    language: metrics.Language = "en",
) -> dict[str, Any]:
    """Returns the official figures of some predictions (see `evaluation.metrics`), those of records without an answer left out.

    Args:
        task: That was decoded.
        predictions: One for each record.
        records: With their answers.
        entities: Tags mark entities.
        language: Of answers in passages.

    Raises:
        DataError: No record has an answer.
    """
    if task.head == "token":
        known = [(r.tags, p.tags) for p, r in zip(predictions, records, strict=True) if r.tags is not None]
        return metrics.tagging_metrics([a for a, _ in known], [b for _, b in known], entities=entities)
    if task.head == "span":
        return _score_answers(task, predictions, records, language)
    if task.head == "choice":
        known = [(r.answer, p.choice) for p, r in zip(predictions, records, strict=True) if r.answer is not None]
        right, given = (np.array(x, np.int64) for x in (list(zip(*known, strict=True)) or ((), ())))
        names = [str(i) for i in range(int(max(right.max(initial=0), given.max(initial=0))) + 1)]
        return {"accuracy": metrics.classification_metrics(right, given, names)["accuracy"]}
    known = [(r.label, p) for p, r in zip(predictions, records, strict=True) if r.label is not None]
    if task.config.kind == "score":
        return metrics.regression_metrics(np.array([float(a) for a, _ in known]), np.array([p.score for _, p in known]))
    if task.config.kind == "labels":
        gold = np.array([[label in a for label in task.labels] for a, _ in known], bool)
        probabilities = np.array([p.probabilities for _, p in known]).reshape(len(known), len(task.labels))
        return metrics.multi_label_metrics(gold, probabilities >= task.config.positive, task.labels)
    names = [
        *task.labels,
        *sorted({a for a, _ in known} - set(task.labels)),
    ]  # a label that was not trained is never right
    number = {label: i for i, label in enumerate(names)}
    right, given = (
        np.array([number[x] for x in column], np.int64)
        for column in ([a for a, _ in known], [p.label for _, p in known])
    )
    return {**metrics.classification_metrics(right, given, names), "labels": names}


def _score_answers(
    task: Task, predictions: Sequence[Any], records: Sequence[Any], language: metrics.Language
) -> dict[str, Any]:
    gold = {str(i): list(record.gold) for i, record in enumerate(records)}
    if not task.config.no_answer:
        return dict(metrics.squad_metrics(gold, {str(i): p.text for i, p in enumerate(predictions)}, language=language))
    spans = {str(i): p.candidates[0].text if p.candidates else "" for i, p in enumerate(predictions)}
    no_answer = {str(i): p.no_answer for i, p in enumerate(predictions)}
    threshold = getattr(task, "threshold", 0.0)
    return dict(metrics.squad_metrics(gold, spans, language=language, no_answer=no_answer, threshold=threshold))
