from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.data.tokenization.trainers import train_byte_bpe, train_wordpiece
from stemformer.data.tokenization.unknown_words import CANNOT_READ


@pytest.fixture
def tokenizer():
    return train_wordpiece(["the cat sat on the mat with a hat"] * 3, vocab_size=60)


def test_share_is_of_words_not_of_pieces(tokenizer):
    tokenizer.encode_ids(["the mathat хат", "mat on Катя"])
    assert len(tokenizer.encode("mathat").ids) > 1
    # The single word "mathat" was encoded, too: 2 of 7 words.
    assert tokenizer.unknown.note().startswith("29% of the words are [UNK], such as 'хат': the vocabulary cannot write")


@pytest.mark.parametrize("encode", ["encode_ids", "encode_batch"])
def test_unknown_words_of_a_batch_are_counted_until_cleared(tokenizer, encode):
    getattr(tokenizer, encode)(["the cat", "кот"])
    assert "33% of the words are [UNK], such as 'кот'" in tokenizer.unknown.note()
    tokenizer.unknown.clear()
    assert tokenizer.unknown.note() is None


def test_few_unknown_words_are_no_note(tokenizer):
    tokenizer.encode_ids(["the cat sat on the mat " * 5 + "кот"])
    assert tokenizer.unknown.note() is None


@pytest.mark.parametrize(
    ("num_known", "expected"),
    [(8, "the vocabulary cannot write them. They are lost"), (2, "much of the text is lost"), (0, CANNOT_READ)],
)
def test_advice_is_graded_by_the_share(tokenizer, num_known, expected):
    tokenizer.encode_ids(["cat " * num_known + "кот"])
    note = tokenizer.unknown.note()
    assert expected in note
    assert (CANNOT_READ in note) == tokenizer.unknown.are_nearly_all == (num_known == 0)


def test_byte_level_tokenizer_has_no_unknown_words():
    tokenizer = train_byte_bpe(["the cat"], vocab_size=260)
    tokenizer.encode_ids(["кот 猫 <|endoftext|> [UNK]"])
    assert tokenizer.unknown.note() is None


def test_bpe_without_bytes_counts_tokens():
    backend = Backend(models.BPE({"<unk>": 0, "a": 1, "b": 2}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    tokenizer.encode_ids(["ab я"])
    assert tokenizer.unknown.note().startswith("33% of the tokens are <unk>, such as 'я'")


def test_threads_count_apart(tokenizer):
    tokenizer.encode_ids(["the cat", "кот"])
    with ThreadPoolExecutor(1) as pool:
        tokenizer_of_thread = pool.submit(lambda: (tokenizer.encode_ids(["the cat"]), tokenizer.unknown.note()))
        assert tokenizer_of_thread.result()[1] is None
        pool.submit(tokenizer.unknown.clear).result()
    assert "33% of the words are [UNK]" in tokenizer.unknown.note()


@pytest.mark.parametrize("encode", ["encode_ids", "encode_batch"])
def test_bpe_without_bytes_and_unknown_token_counts_dropped_characters(encode):
    backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    rows = getattr(tokenizer, encode)(["ab aя", "жb 猫"])
    assert sum(len(row if encode == "encode_ids" else row.ids) for row in rows) == 3
    assert tokenizer.unknown.note().startswith("43% of the characters are left out, such as 'я': the vocabulary cannot")
    tokenizer.unknown.clear()
    tokenizer.encode("ab ab")
    assert tokenizer.unknown.note() is None
