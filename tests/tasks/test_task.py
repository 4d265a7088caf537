"""Windows, truncation, examples and settings of tasks."""

from itertools import pairwise

import numpy as np
import pytest

from stemformer.errors import ConfigError
from stemformer.tasks.examples import TaskExamples, make_example, sliding_windows, truncate_pair
from stemformer.tasks.task import TaskConfig


@pytest.mark.parametrize("stride", [0, 1, 3, 7, 50])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_windows_cover_every_position_and_overlap_by_the_stride(size, stride):
    for length in range(0, 41):
        spans = sliding_windows(length, size, stride)
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(end - begin == min(size, length) for begin, end in spans)
        for (a, b), (c, _) in pairwise(spans):
            # Windows advance, and skip nothing.
            assert a < c <= b
            assert b - c >= min(stride, size // 2)


@pytest.mark.parametrize("size", [62, 125, 381])
def test_number_of_windows_is_limited_for_any_stride(size):
    assert len(sliding_windows(1600, size, 128)) <= 2 * 1600 / size


def test_short_sequences_have_one_window():
    assert sliding_windows(8, 8, 3) == [(0, 8)]
    assert sliding_windows(0, 8, 3) == [(0, 0)]


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 6])
def test_truncation_removes_tokens_from_the_longer_text(max_tokens):
    for first in range(12):
        for second in range(12):
            a, b = first, second
            while a + b > max_tokens:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            assert truncate_pair(first, second, max_tokens) == (a, b)


def test_example_of_a_pair_has_two_segments(tokenizer):
    a, b = tokenizer.encode_ids(["the king", "a river"])
    example = make_example([a, b], tokenizer, answer=2)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert example.input_ids.tolist() == [cls, *a, sep, *b, sep]
    assert example.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert example.lengths.tolist() == [7]
    assert example.sequence_labels.tolist() == [2]


def test_example_of_one_text_has_one_segment(tokenizer):
    example = make_example(tokenizer.encode_ids(["the king"]), tokenizer)
    assert set(example.token_type_ids.tolist()) == {0}
    assert example.sequence_labels is None


def test_fingerprint_changes_with_text_and_with_answer(tokenizer):
    def fingerprint(text, answer):
        examples = [make_example(tokenizer.encode_ids([text]), tokenizer, answer=answer)]
        return TaskExamples(examples, np.zeros(1, np.int64), (), {}).fingerprint

    assert fingerprint("the king", 0) == fingerprint("the king", 0)
    assert len({fingerprint(text, answer) for text in ("the king", "a river") for answer in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 7}, "max_length is 7"),
        ({"stride": -1}, "stride is -1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"positive": 0.0}, "positive is 0.0"),
        ({"max_answer_tokens": 0}, "max_answer_tokens is 0"),
        ({"name": "tag", "kind": "score"}, "only classify and pair have kinds, not tag"),
        ({"kind": "score", "balance": True}, "balance applies to classes, labels and tags"),
        ({"name": "qa", "balance": True}, "balance applies to classes, labels and tags"),
        ({"kind": "labels", "label_smoothing": 0.1}, "label_smoothing applies to kind 'class', not to 'labels'"),
        ({"name": "qa", "symbols": "draw"}, "applies to classify and pair, not to qa"),
        ({"symbol_size": 3}, "add symbols=draw"),
        ({"symbols": "map.tsv", "alphabet": "AC"}, "add symbols=draw"),
        ({"symbols": "draw", "symbol_size": 2, "symbol_stride": 3}, "skips no symbol"),
    ],
)
def test_invalid_settings_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        TaskConfig(**settings)
