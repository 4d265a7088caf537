"""Notes on models that are no better on dev data than one that has learned nothing."""

import pytest

from stemformer.data.labelled.multiple_choice import ChoiceQuestion
from stemformer.data.labelled.question_answering import Question
from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.labelled.token_classification import TaggedSentence, join_tokens
from stemformer.tasks.dataset import LabelledData, weak_results
from stemformer.tasks.multiple_choice import ChoicePrediction
from stemformer.tasks.question_answering import AnswerPrediction
from stemformer.tasks.registry import TASKS
from stemformer.tasks.sequence_classification import TextPrediction
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TagPrediction


def tagged(*tags):
    words = ("w",) * len(tags)
    text, offsets = join_tokens(words)
    return TaggedSentence(words, tags, "a:1", text, offsets)


def question(*gold):
    answers = tuple((text, 0) for text in gold)
    return Question("q", "Who?", "Ann sees it", answers, "t", is_impossible=not gold, gold=gold)


def answer(text):
    return AnswerPrediction(text, 0, len(text), 0.5, 0.0)


def labels(*found):
    return TextPrediction(",".join(found), 0.5, (0.5, 0.5), found)


TAGS, SETS = [tagged("O", "B-X", "O")], [TextExample(("t",), ("a",), {}, "a:1")]
CHOICES = [ChoiceQuestion(str(i), "p", "", ("x", "y"), i % 2) for i in range(4)]
CASES = {
    "tag": (TaskConfig("tag"), ("O", "B-X"), TAGS, [TagPrediction(("B-X", "O", "O"), (1.0,) * 3)], "no entity"),
    "tag-good": (TaskConfig("tag"), ("O", "B-X"), TAGS, [TagPrediction(("O", "B-X", "O"), (1.0,) * 3)], None),
    "labels": (TaskConfig(kind="labels"), ("a", "b"), SETS, [labels()], "no label"),
    "labels-good": (TaskConfig(kind="labels"), ("a", "b"), SETS, [labels("a", "b")], None),
    "qa-empty": (TaskConfig("qa", no_answer=True), (), [question("Ann"), question()], [answer("")] * 2, "every answer"),
    "qa-wrong": (TaskConfig("qa"), (), [question("Ann")], [answer("sees it")], "no answer to the dev data is right"),
    "qa-good": (TaskConfig("qa"), (), [question("Ann")], [answer("Ann sees")], None),
    "choice": (TaskConfig("choice"), (), CHOICES, [ChoicePrediction(0, (0.6, 0.4))] * 4, "not better than chance"),
    "choice-good": (
        *(TaskConfig("choice"), (), CHOICES),
        [*[ChoicePrediction(0, (0.6, 0.4))] * 3, ChoicePrediction(1, (0.4, 0.6))],
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_results_of_a_model_that_has_learned_nothing_are_noted(case):
    config, names, dev, predictions, expected = CASES[case]
    task = TASKS[config.name](config, names)
    data = LabelledData(task, dev, dev, [])
    notes = [x for x in weak_results(data, predictions, *task.compute_metrics(predictions, dev)) if "majority" not in x]
    assert (notes == []) if expected is None else notes[0].startswith(expected)
