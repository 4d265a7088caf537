"""What the tasks share: windows, trimming, examples, settings."""

from itertools import pairwise

import numpy as np
import pytest

from stemformer.errors import ConfigError
from stemformer.tasks.examples import TaskExamples, make_example, sliding_windows, truncate_pair
from stemformer.tasks.task import TaskConfig


@pytest.mark.parametrize("stride", [0, 1, 3, 7, 50])
@pytest.mark.parametrize("room", [1, 2, 5, 8])
def test_windows_cover_every_place_and_share_the_stride(room, stride):
    for length in range(0, 41):
        spans = sliding_windows(length, room, stride)
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(end - begin == min(room, length) for begin, end in spans)
        for (a, b), (c, _) in pairwise(spans):
            assert a < c <= b  # goes on, and leaves nothing out
            assert b - c >= min(stride, room // 2)


@pytest.mark.parametrize("room", [62, 125, 381])
def test_windows_are_few_whatever_stride_is_asked(room):
    assert len(sliding_windows(1600, room, 128)) <= 2 * 1600 / room


def test_one_window_holds_what_fits():
    assert sliding_windows(8, 8, 3) == [(0, 8)]
    assert sliding_windows(0, 8, 3) == [(0, 0)]


@pytest.mark.parametrize("room", [1, 2, 5, 6])
def test_trimming_takes_one_token_at_a_time_from_the_longer_text(room):
    for first in range(12):
        for second in range(12):
            a, b = first, second
            while a + b > room:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            assert truncate_pair(first, second, room) == (a, b)


def test_example_of_a_pair_has_two_segments(tokenizer):
    a, b = tokenizer.encode_ids(["the king", "a river"])
    example = make_example([a, b], tokenizer, answer=2)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
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
    ("settings", "told"),
    [
        ({"max_length": 7}, "max_length is 7"),
        ({"stride": -1}, "stride is -1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"positive": 0.0}, "positive is 0.0"),
        ({"max_answer_tokens": 0}, "max_answer_tokens is 0"),
        ({"name": "tag", "kind": "score"}, "tag has no kinds"),
        ({"kind": "score", "balance": True}, "are for classes"),
        ({"name": "qa", "symbols": "draw"}, "not for qa"),
        ({"symbol_size": 3}, "add symbols=draw"),
        ({"symbols": "map.tsv", "alphabet": "AC"}, "add symbols=draw"),
        ({"symbols": "draw", "symbol_size": 2, "symbol_stride": 3}, "leaves no symbol out"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        TaskConfig(**settings)
