"""Candidates of texts that are rewritten in pieces."""

from itertools import product

import pytest

from stemformer.data.tokenization.trainers import train_byte_bpe
from stemformer.generation.beam_search import Hypothesis
from stemformer.generation.rewriting import join_candidates
from stemformer.tasks.seq2seq import WrittenPiece, join_pieces


@pytest.fixture(scope="module")
def piece():
    texts = ["a queen came to the king . the old king spoke to her ."] * 20
    return WrittenPiece(train_byte_bpe(texts, vocab_size=300, special_tokens="bart"), " ")


def hypotheses(piece, *found):
    return [Hypothesis(piece.tokenizer.encode_ids([text])[0].tolist(), score, True) for text, score in found]


def test_candidates_are_the_best_joined_texts(piece):
    pieces = [
        (hypotheses(piece, ("the king", -0.2), ("a king", -0.3), ("king", -2.0)), piece),
        (hypotheses(piece, ("spoke to her", -0.1), ("spoke", -5.0)), piece),
        (hypotheses(piece, ("the end", -0.4), ("an end", -0.45)), piece),
    ]
    joined = [join_pieces([(h, piece) for h in found]) for found in product(*(h for h, _ in pieces))]
    expected = sorted(joined, key=lambda x: -x.score)
    # More of them than one piece has.
    for number in (1, 2, 4):
        assert join_candidates(pieces, number) == expected[:number]


def test_a_text_of_one_piece_has_its_hypotheses_and_a_blank_one_none(piece):
    found = hypotheses(piece, ("the king", -0.2), ("a king", -0.3))
    assert [x.score for x in join_candidates([(found, piece)], 2)] == pytest.approx([-0.2, -0.3])
    assert join_candidates([], 2) == []
