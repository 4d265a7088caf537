"""Lengths of written texts, and long sources in pieces."""

import numpy as np
import pytest

from stemformer.data.examples.encoder_decoder import make_encoder_decoder_example, max_target_tokens, split_source


def encode(text):
    return np.arange(len(text.split()))


def split(text, **options):
    return [(len(piece.ids), piece.space, piece.is_cut) for piece in split_source(text, encode, **options)]


def test_pieces_are_as_long_as_fits():
    text = "One two three. Four five.  Six. Seven eight nine ten.\n\nEleven."
    assert split(text, max_tokens=100) == [(11, "", False)]
    assert split(text, max_tokens=6) == [(6, " ", False), (5, "", False)]
    assert split(text, max_tokens=4) == [(3, " ", False), (3, " ", False), (4, "\n\n", False), (1, "", False)]
    expected = [(3, " ", False), (2, "  ", False), (1, " ", False), (4, "\n\n", False), (1, "", False)]
    assert split(text, max_tokens=100, max_sentences=1) == expected


def test_a_sentence_that_does_not_fit_is_cut():
    assert split("One. Two three four five. Six.", max_tokens=3) == [(1, " ", False), (3, " ", True), (1, "", False)]


def test_texts_without_spaces_are_joined_without():
    pieces = split_source("我去北京。你去上海。", lambda text: np.arange(len(text)), max_tokens=5)
    assert [(len(piece.ids), piece.space) for piece in pieces] == [(5, ""), (5, "")]


def test_languages_stand_where_bart_has_its_start_tokens():
    source, target = np.array([20, 21]), np.array([30])
    example = make_encoder_decoder_example([source], [target], cls=7, sep=2, target_cls=8)
    assert example.input_ids.tolist() == [7, 20, 21, 2]
    assert example.decoder_input_ids.tolist() == [2, 8, 30] and example.labels.tolist() == [8, 30, 2]
    plain = make_encoder_decoder_example([source], [target], cls=0, sep=2)
    assert plain.input_ids.tolist() == [0, 20, 21, 2] and plain.decoder_input_ids.tolist() == [2, 0, 30]


@pytest.mark.parametrize(
    ("length", "max_length", "ratio", "expected"),
    [(9, 512, 4.0, 72), (8, 512, 4.0, 40), (9, 20, 4.0, 18), (3, 2, 2.0, 1)],
)
def test_the_length_of_a_written_text_follows_its_source(length, max_length, ratio, expected):
    assert max_target_tokens(length, max_length, ratio) == expected
