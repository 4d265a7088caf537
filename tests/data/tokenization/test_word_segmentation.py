import numpy as np
import pytest

from stemformer.data.shards.encoding import encode_batch
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.data.tokenization.word_segmentation import join_words, load_segmenter
from stemformer.errors import ConfigError


def test_join_words_keeps_the_tokens_of_other_scripts():
    starts, offsets = np.array([True, True, True, True]), np.array([[0, 2], [2, 3], [3, 4], [4, 6]])
    assert join_words("ab中文cd", starts, offsets, lambda run: [run]).tolist() == [True, True, False, True]


def test_join_words_joins_the_characters_of_a_word():
    starts, offsets = np.ones(3, bool), np.array([[0, 1], [1, 2], [2, 3]])
    assert join_words("我们好", starts, offsets, lambda run: ["我们", "好"]).tolist() == [True, False, True]


def test_join_words_never_adds_a_start():
    starts, offsets = np.array([True, False, False]), np.array([[0, 1], [1, 2], [2, 3]])
    assert join_words("中文好", starts, offsets, list).tolist() == [True, False, False]


def test_unknown_segmenter_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'jieba'"):
        load_segmenter("jeiba")


def test_encode_batch_with_jieba_marks_words_instead_of_characters():
    text = "我们在北京大学学习语言模型。We learn."
    tokenizer = train_wordpiece([text], vocab_size=80, min_frequency=1)
    plain = encode_batch([text], tokenizer, 0.0)["train"]
    joined = encode_batch([text], tokenizer, 0.0, segment=load_segmenter("jieba"))["train"]
    assert plain.ids.tolist() == joined.ids.tolist()
    tokens = [tokenizer.tokens[i] for i in joined.ids]
    starts = [token for token, start in zip(tokens, joined.word_starts, strict=True) if start]
    assert starts[0] == "我" and "们" not in starts and "京" not in starts
    assert joined.counts.words < plain.counts.words
