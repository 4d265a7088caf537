"""Classification, multi-label classification and regression of texts and pairs."""

from collections import Counter

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import Example, collate
from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.data.labelled.text_classification import TextExample
from stemformer.tasks.sequence_classification import SequenceClassification, TextPrediction
from stemformer.tasks.task import TaskConfig

LONG = "the old king sees a green river . who sees a quiet garden ? the river ."  # 17 tokens


def record(*texts, label=None):
    return TextExample(texts, label, {}, "here")


def encode(task, records, tokenizer, max_length=64):
    return task.encode(records, tokenizer, max_length=max_length)


def ids_of(example):
    return example.input_ids.tolist()


def classes(**settings):
    return SequenceClassification(TaskConfig("classify", **settings), ("no", "yes"))


def batch_of(answers):
    """Return a batch of one-token sequences with these answers."""
    none = np.empty(0, np.int64)
    labels = [np.array([answer]) for answer in answers]
    labels = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in labels]
    examples = [Example(np.array([5]), np.array([1]), none, none, sequence_labels=a) for a in labels]
    return collate(examples, range(len(examples)))


# Encoding


def test_short_texts_are_complete_and_nothing_is_counted(tokenizer):
    examples = encode(classes(), [record("the king", label="yes"), record("a river", label="no")], tokenizer)
    assert examples.counts == {}
    assert examples.records.tolist() == [0, 1]
    assert [e.sequence_labels.tolist() for e in examples.examples] == [[1], [0]]


def test_long_text_is_split_into_windows_that_cover_it(tokenizer):
    examples = encode(classes(), [record("the king"), record(LONG)], tokenizer, max_length=10)
    assert examples.counts == {"texts split into windows": 1}
    assert examples.records.tolist() == [0, 1, 1, 1]
    assert all(len(e.input_ids) <= 10 for e in examples.examples)
    pieces = [i for e in examples.examples[1:] for i in ids_of(e)[1:-1]]
    assert Counter(tokenizer.encode_ids([LONG])[0].tolist()) <= Counter(pieces)


def test_head_and_tail_keep_a_quarter_and_three_quarters(tokenizer):
    (example,) = encode(classes(long_texts="head_tail"), [record(LONG)], tokenizer, max_length=10).examples
    ids = tokenizer.encode_ids([LONG])[0].tolist()
    assert ids_of(example)[1:-1] == ids[:2] + ids[-6:]


def test_truncation_keeps_the_beginning(tokenizer):
    examples = encode(classes(long_texts="cut"), [record(LONG)], tokenizer, max_length=10)
    assert examples.counts == {"texts truncated": 1}
    assert ids_of(examples.examples[0])[1:-1] == tokenizer.encode_ids([LONG])[0].tolist()[:8]


def test_head_and_tail_are_counted(tokenizer):
    examples = encode(classes(long_texts="head_tail"), [record(LONG), record("a")], tokenizer, max_length=10)
    assert examples.counts == {"texts truncated in the middle": 1}


@pytest.mark.parametrize("texts", [(LONG, "a river"), ("a river", LONG), (LONG, LONG)])
def test_pair_is_truncated_at_the_longer_text(tokenizer, texts):
    task = SequenceClassification(TaskConfig("pair"), ("no", "yes"))
    examples = encode(task, [record(*texts)], tokenizer, max_length=13)
    assert examples.counts == {"pairs truncated": 1}
    (example,) = examples.examples
    a, b = (tokenizer.encode_ids([text])[0].tolist() for text in texts)
    while len(a) + len(b) > 10:
        (a if len(a) > len(b) else b).pop()
    assert ids_of(example) == [tokenizer.cls_token_id, *a, tokenizer.sep_token_id, *b, tokenizer.sep_token_id]
    assert example.token_type_ids.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_label_unknown_to_the_task_is_not_scored(tokenizer):
    (example,) = encode(classes(), [record("the king", label="maybe")], tokenizer).examples
    assert example.sequence_labels is None


def test_labels_become_a_multi_hot_row(tokenizer):
    task = SequenceClassification(TaskConfig("classify", kind="labels"), ("a", "b", "c"))
    records = [record("x", label=("c", "a")), record("x", label=()), record("x", label=("b", "new"))]
    rows = [e.sequence_labels.tolist() for e in encode(task, records, tokenizer).examples]
    assert rows == [[[1, 0, 1]], [[0, 0, 0]], [[0, 1, 0]]]


def test_symbols_are_read_as_their_words(tokenizer):
    task = classes(symbols="draw")
    task.symbols = SymbolMap({"A": "king", "C": "river", "*": "old"})
    examples = encode(task, [record("ACN")], tokenizer)
    assert ids_of(examples.examples[0])[1:-1] == tokenizer.encode_ids(["king river old"])[0].tolist()
    assert examples.counts == {"unknown symbols": 1}


# Loss


def test_balance_gives_all_classes_equal_weight():
    batch = batch_of([0, 0, 0, 1])
    scores = torch.zeros(4, 2)
    plain = SequenceClassification(TaskConfig("classify"), ("no", "yes"), [3, 1]).loss_from_scores(scores, batch).total
    task = SequenceClassification(TaskConfig("classify", balance=True), ("no", "yes"), [3, 1])
    assert task._class_weights.tolist() == pytest.approx([4 / 6, 2.0])
    assert task.loss_from_scores(scores, batch).total == pytest.approx(
        plain.item()
    )  # the mean weight of the training data is 1
    each = [task.loss_from_scores(scores[:1], batch_of([label])).total.item() for label in (0, 1)]
    assert 3 * each[0] == pytest.approx(each[1])


def test_balance_weights_the_presence_of_each_label():
    config = TaskConfig("classify", kind="labels", balance=True)
    task = SequenceClassification(config, ("rare", "usual"), [2, 5], 10)
    scores, targets = torch.tensor([[0.3, -0.2], [1.0, 2.0]]), [[1.0, 0.0], [0.0, 1.0]]
    weights = torch.tensor([8 / 2, 5 / 5])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, torch.tensor(targets), pos_weight=weights, reduction="sum"
    )
    assert task.loss_from_scores(scores, batch_of(targets)).total.item() == pytest.approx(expected.item() / 2)


def test_label_smoothing_equals_that_of_torch(tokenizer):
    scores = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    batch = batch_of([0, 1, 1, 0, 1])
    total = classes(label_smoothing=0.2).loss_from_scores(scores, batch).total
    expected = torch.nn.functional.cross_entropy(scores, batch.sequence_labels, label_smoothing=0.2, reduction="sum")
    torch.testing.assert_close(total, expected)


def test_multi_label_loss_is_the_mean_over_labels_and_regression_loss_the_squared_error():
    scores = torch.tensor([[0.0, 2.0]])
    task = SequenceClassification(TaskConfig("classify", kind="labels"), ("a", "b"))
    expected = -(np.log(0.5) + np.log(1 / (1 + np.exp(-2)))) / 2
    assert task.loss_from_scores(scores, batch_of([[0.0, 1.0]])).total.item() == pytest.approx(expected)
    task = SequenceClassification(TaskConfig("classify", kind="score"))
    assert task.loss_from_scores(torch.tensor([[1.0]]), batch_of([3.0])).total.item() == 4


@pytest.mark.parametrize("is_standardized", [True, False])
def test_regression_loss_is_in_standard_deviations_of_the_training_targets(is_standardized):
    task = SequenceClassification(TaskConfig("classify", kind="score"))
    task.targets, task.is_standardized = (100.0, 20.0), is_standardized
    score = 0.5 if is_standardized else 110.0
    assert task.loss_from_scores(torch.tensor([[score]]), batch_of([130.0])).total.item() == pytest.approx(1.0)


# Decoding


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_windows_of_a_text_give_the_mean_of_their_probabilities(tokenizer):
    task = classes()
    records = [record("the king"), record(LONG)]
    examples = encode(task, records, tokenizer, max_length=10)
    scores = [np.array([row], np.float32) for row in ([1.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 1.5])]
    first, second = task.decode(scores, examples, records)
    np.testing.assert_allclose(first.probabilities, softmax(np.array([1.0, 0.0])))
    expected = np.mean([softmax(np.array(row)) for row in ([4.0, 0.0], [0.0, 1.0], [0.0, 1.5])], axis=0)
    np.testing.assert_allclose(second.probabilities, expected)
    assert second.label == ("no", "yes")[expected.argmax()]
    assert second.score == pytest.approx(expected.max())


@pytest.mark.parametrize(("positive", "expected"), [(0.5, "a,c"), (0.05, "a,b,c"), (0.99, "")])
def test_labels_above_the_threshold_are_predicted(tokenizer, positive, expected):
    task = SequenceClassification(TaskConfig("classify", kind="labels", positive=positive), ("a", "b", "c"))
    records = [record("x")]
    (found,) = task.decode([np.array([[2.0, -2.0, 0.5]], np.float32)], encode(task, records, tokenizer), records)
    assert found.label == expected
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp([-2.0, 2.0, -0.5])), rtol=1e-6)


def test_regression_returns_the_number(tokenizer):
    task, records = SequenceClassification(TaskConfig("classify", kind="score")), [record("x")]
    (found,) = task.decode([np.array([[3.25]], np.float32)], encode(task, records, tokenizer), records)
    assert (found.label, found.score, found.probabilities) == ("", 3.25, ())


def test_standardized_scores_are_decoded_to_the_original_unit(tokenizer):
    task, records = SequenceClassification(TaskConfig("classify", kind="score")), [record("x")]
    task.targets, task.is_standardized = (100.0, 20.0), True
    (found,) = task.decode([np.array([[0.5]], np.float32)], encode(task, records, tokenizer), records)
    assert found.score == 110


def test_baseline_of_regression_is_the_mean_of_the_training_targets():
    task = SequenceClassification(TaskConfig("classify", kind="score"))
    task.targets = (2.0, 1.0)
    predictions = [TextPrediction("", score, ()) for score in (1.0, 5.0)]
    metrics, details = task.compute_metrics(predictions, [record("x", label=1.0), record("x", label=5.0)])
    assert metrics["root_mean_squared_error"] == 0
    assert details["baseline"] == {
        "mean_squared_error": 5.0,
        "root_mean_squared_error": pytest.approx(5**0.5),
        "mean_absolute_error": 2.0,
    }


def test_counts_are_numbers_of_sequences(tokenizer):
    task = classes()
    examples = encode(task, [record(LONG, label="no")], tokenizer, max_length=10)
    assert task.counts(collate(examples.examples, range(3))) == {"classify": 3}
