"""Token classification: alignment of words and tokens by offsets."""

from itertools import pairwise

import numpy as np
import pytest

from stemformer.data.labelled.token_classification import TaggedSentence, join_tokens
from stemformer.data.tokenization.trainers import train_byte_bpe
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import IGNORE_INDEX, TokenClassification

TAGS = ("O", "B-X", "I-X")


def sentence(words, tags=None, joiners=" "):
    text, offsets = join_tokens(words, joiners)
    return TaggedSentence(tuple(words), None if tags is None else tuple(tags), "here", text, offsets)


def task(**settings):
    return TokenClassification(TaskConfig("tag", **settings), TAGS, [8, 1, 1])


def scored_tokens(examples, tokenizer):
    """Return (word, token at its scored position) of all examples of a sentence."""
    return [
        (word, tokenizer.tokens[example.input_ids[position]])
        for example, words in zip(examples.examples, examples.scored, strict=True)
        for word, position in zip(words.tolist(), example.label_positions.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("words", "joiners", "pieces"),
    [
        (["the", "king", "."], " ", ["the", "king", "."]),
        (["playing", "kings"], " ", ["play", "king"]),
        (["U.S.", "isn't", "(x)"], " ", ["u", "i", "("]),
        (["do", "n't", "!"], ["", " ", ""], ["d", "##n", "!"]),
        (["Café", "É", "ÀÇ"], " ", ["cafe", "e", "a"]),
        (["a", "😀", "river"], " ", ["a", "[UNK]", "river"]),
        (["你", "好", "世界"], "", ["你", "好", "世"]),
        (["你好", "king"], " ", ["你", "king"]),
    ],
    ids=["plain", "pieces", "punctuation", "joined", "accents", "emoji", "chinese", "mixed"],
)
def test_word_is_scored_at_its_first_token(tokenizer, words, joiners, pieces):
    examples = task().encode([sentence(words, joiners=joiners)], tokenizer, max_length=64)
    assert scored_tokens(examples, tokenizer) == list(enumerate(pieces))
    assert examples.counts == {}


def test_byte_level_tokens_start_at_the_space_before_their_word():
    texts = ["the old king spoke to her ."] * 50
    byte_level = train_byte_bpe(texts, vocab_size=300, special_tokens="bart")
    words = ["the", "old", "kin", "spoke", "her"]
    assert task().encode([sentence(words)], byte_level, max_length=64).counts == {}
    found, joined = (
        scored_tokens(task().encode([record], byte_level, max_length=64), byte_level)
        for record in (sentence(words), sentence(["the", "old"], joiners=""))
    )
    assert found[0] == (0, "the") and found[1] == (1, "Ġold") and found[3:] == [(3, "Ġspoke"), (4, "Ġher")]
    assert found[2][1].startswith("Ġk") and len(joined) == 2


def test_word_without_a_token_is_counted_and_gets_the_default_tag(tokenizer):
    records = [sentence(["king", "\u200b", "river"], ["B-X", "O", "I-X"])]
    examples = task().encode(records, tokenizer, max_length=64)
    assert scored_tokens(examples, tokenizer) == [(0, "king"), (2, "river")]
    assert examples.counts == {"words without a token (default tag)": 1}
    assert examples.examples[0].labels.tolist() == [1, 2]
    scores = [np.array([[0, 9, 0], [0, 0, 9]], np.float32)]
    (found,) = task().decode(scores, examples, records)
    assert found.tags == ("B-X", "O", "I-X")
    assert found.probabilities[1] == 0


def test_sentence_without_tokens_gets_the_default_tag(tokenizer):
    records = [sentence(["\u200b"], ["O"])]
    examples = task().encode(records, tokenizer, max_length=64)
    (found,) = task().decode([np.zeros((0, 3), np.float32)], examples, records)
    assert found.tags == ("O",)


def test_tag_unknown_to_the_task_is_ignored_by_the_loss(tokenizer):
    examples = task().encode([sentence(["a", "king"], ["B-Y", "B-X"])], tokenizer, max_length=64)
    assert examples.examples[0].labels.tolist() == [IGNORE_INDEX, 1]


@pytest.mark.parametrize("stride", [0, 2, 5])
def test_windows_score_every_word_once_where_it_has_most_context(tokenizer, stride):
    words = np.random.default_rng(0).choice(["king", "playing", "a", "isn't", "old", "xyz"], 40).tolist()
    examples = task(stride=stride).encode([sentence(words)], tokenizer, max_length=14)
    assert len(examples) > 3
    assert examples.counts == {"sentences split into windows": 1}
    assert all(len(e.input_ids) <= 14 for e in examples.examples)
    scored = np.concatenate(examples.scored)
    assert sorted(scored.tolist()) == list(range(len(words)))
    encoding = tokenizer.encode(" ".join(words))
    begins, at = [], 0
    # Find where each window begins in the sentence.
    for example in examples.examples:
        ids = example.input_ids[1:-1].tolist()
        at = next(i for i in range(at, len(encoding.ids)) if encoding.ids[i : i + len(ids)].tolist() == ids)
        begins.append(at)
        at += 1
    assert all(b - a <= 12 - stride for a, b in pairwise(begins))
    firsts = np.flatnonzero(np.isin(encoding.offsets[:, 0], [a for a, _ in join_tokens(words)[1]]))
    for number, words_here in enumerate(examples.scored):
        for word in words_here.tolist():
            context = [min(firsts[word] - b, b + 11 - firsts[word]) for b in begins]
            assert context[number] == max(context)


def test_tags_of_windows_come_back_in_the_order_of_the_words(tokenizer):
    words = ["king", "playing", "a", "isn't", "old"] * 8
    tags = [TAGS[i % 3] for i in range(len(words))]
    records = [sentence(["a", "king"], ["O", "B-X"]), sentence(words, tags)]
    examples = task(stride=3).encode(records, tokenizer, max_length=14)
    scores = [np.eye(3, dtype=np.float32)[e.labels] * 5 for e in examples.examples]
    found = task().decode(scores, examples, records)
    assert [p.tags for p in found] == [r.tags for r in records]
    assert all(0.9 < p < 1 for prediction in found for p in prediction.probabilities)
