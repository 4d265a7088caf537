from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.evaluation.cloze import choose_cloze_examples, evaluate_cloze, shown_text

WORDS = ["the", "old", "king", "sees", "a", "river", "play", "##ing", "child", "now"]
SENTENCES = [
    "the old king sees a river .",
    "a child sees the king now .",
    "the child sees 3 , 7 play ##ing king ##ing ##ing",
    "the old king .",  # 4 tokens
    "the old old king sees a river now a child sees the king and the old king sees a river now now now now now now",  # 26
    "3 , 7 . . 3 play ##ing .",  # no word that is one token of letters
    "the the the the the",  # 5
    "a a a a a a",  # 6
    "old " * 24,
    "old " * 25,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    file.write_text("\n".join([*special, *WORDS, "and", ".", ",", "3", "7"]) + "\n")
    file.with_name("tokenizer_config.json").write_text('{"do_lower_case": true}')
    return load_tokenizer(file)


class Sentences(Shards):
    """Split in memory, from sentences of tokens separated by spaces."""

    def __init__(self, sentences, tokenizer):
        tokens = [sentence.split() for sentence in sentences]
        line = [token for sentence in tokens for token in sentence]
        self._line = np.array([tokenizer.token_to_id(token) for token in line], np.uint16)
        self._starts_word = np.array([not token.startswith("##") for token in line])
        self.sentence_starts = np.cumsum([0, *map(len, tokens)])
        self._counts = np.zeros(tokenizer.vocab_size, np.uint64)
        for token, count in {".": 900, "the": 50, "king": 70, "##ing": 800, "[UNK]": 990, "3": 500}.items():
            self._counts[tokenizer.token_to_id(token)] = count

    @property
    def unigram_counts(self):
        return self._counts

    def tokens(self, start, stop):
        return self._line[start:stop]

    def word_starts(self, start, stop):
        return self._starts_word[start:stop]


def choose(tokenizer, sentences=SENTENCES, number=100, **options):
    return choose_cloze_examples(Sentences(sentences, tokenizer), tokenizer, number=number, **options)


def restored(examples):
    return [text.replace("[MASK]", answer) for text, answer in zip(examples.texts, examples.answers, strict=True)]


# Selection


def test_examples_are_sentences_of_6_to_24_tokens_with_a_word_to_mask(tokenizer):
    fitting = [SENTENCES[i] for i in (0, 1, 2, 7, 8)]
    assert sorted(restored(choose(tokenizer))) == sorted(shown_text(sentence.split()) for sentence in fitting)


@pytest.mark.parametrize(("longest", "expected"), [(512, 24), (26, 24), (25, 7)])
def test_examples_fit_the_model_with_their_special_tokens(tokenizer, longest, expected):
    examples = choose(tokenizer, [SENTENCES[0], SENTENCES[8]], longest=longest)
    assert max(batch.max_seqlen for batch in examples.batches) == expected + 2 <= longest


def test_only_words_of_letters_that_are_one_token_are_masked(tokenizer):
    sentence = "3 play ##ing , 7 play ##ing ##ing now . . 3"
    examples = choose(tokenizer, [sentence + " ," * i for i in range(12)])
    assert len(examples.answers) == 12
    assert set(examples.answers) == {"now"}


def test_every_word_of_a_sentence_can_be_masked(tokenizer):
    examples = choose(tokenizer, ["the old king sees a river ." for _ in range(200)], number=200)
    assert set(examples.answers) == {"the", "old", "king", "sees", "a", "river"}


def test_model_sees_the_sentence_with_one_word_masked(tokenizer):
    examples = choose(tokenizer)
    shown = {tuple(t.split()) for t in (SENTENCES[i] for i in (0, 1, 2, 7, 8))}
    seen = set()
    for batch in examples.batches:
        ids = batch.input_ids.clone()
        assert ids[batch.label_positions].tolist() == [tokenizer.mask_token_id] * len(batch.labels)
        assert (ids == tokenizer.mask_token_id).sum() == len(batch.labels) == len(batch.cu_seqlens) - 1
        ids[batch.label_positions] = batch.labels
        for part in torch.tensor_split(ids, batch.cu_seqlens[1:-1].long()):
            assert (part[0], part[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            seen.add(tuple(tokenizer.tokens[i] for i in part[1:-1].tolist()))
    assert seen == shown


def test_examples_are_the_same_each_time(tokenizer):
    first, second = choose(tokenizer), choose(tokenizer)
    assert (first.texts, first.answers) == (second.texts, second.answers)


def test_fewer_examples_are_the_first_of_more(tokenizer):
    assert choose(tokenizer, number=2).texts == choose(tokenizer).texts[:2]


def test_order_of_examples_is_not_that_of_the_text(tokenizer):
    sentences = [f"the old king sees a river{' .' * i}" for i in range(1, 17)]
    lengths = [len(text) for text in choose(tokenizer, sentences).texts]
    assert len(lengths) == 16
    assert lengths != sorted(lengths)


@pytest.mark.parametrize("sentences", [SENTENCES[3:5], SENTENCES[5:7]])
def test_text_without_a_sentence_that_fits_gives_none(tokenizer, sentences):
    assert choose(tokenizer, sentences) is None


def test_number_zero_gives_none(tokenizer):
    assert choose(tokenizer, number=0) is None


def test_constant_is_the_most_frequent_word_of_letters(tokenizer):
    assert choose(tokenizer).constant == "king"


# Metrics


def test_accuracy_probability_and_baseline_equal_hand_computed_ones(tokenizer):
    examples = choose(tokenizer, ["the king king king king king", "a river river river river a", *SENTENCES[:2]])
    guess = {"king": "king", "river": "king", "the": "the", "a": "now"}
    order = [guess.get(answer, "old") for answer in examples.answers]

    def module(batch, return_logits):
        assert return_logits
        logits = torch.zeros(len(batch.labels), tokenizer.vocab_size)
        for row, label in enumerate(batch.labels.tolist()):
            logits[row, tokenizer.token_to_id(guess.get(tokenizer.tokens[label], "old"))] = np.log(
                tokenizer.vocab_size - 1
            )
        return logits

    class Fake(torch.nn.Module):
        forward = staticmethod(module)

    metrics = evaluate_cloze(Fake(), examples, tokenizer, device=torch.device("cpu"))
    right = [a == b for a, b in zip(order, examples.answers, strict=True)]
    assert 0 < sum(right) < 4
    assert metrics["blank_accuracy"] == sum(right) / 4
    assert metrics["blank_constant_accuracy"] == examples.answers.count("king") / 4 > 0
    assert metrics["fills"] == [
        {"text": text, "answer": answer, "guess": word, "probability": 0.5}
        for text, answer, word in zip(examples.texts, examples.answers, order, strict=True)
    ]


def test_pieces_and_special_tokens_are_not_shown_but_count_as_wrong(tokenizer):
    examples = choose(tokenizer)

    class Pieces(torch.nn.Module):
        def forward(self, batch, return_logits):
            logits = torch.nn.functional.one_hot(batch.labels, tokenizer.vocab_size + 8) * 5.0  # with padding rows
            for token in ("##ing", "[UNK]"):
                logits[:, tokenizer.token_to_id(token)] = 6.0
            return logits

    metrics = evaluate_cloze(Pieces(), examples, tokenizer, device=torch.device("cpu"))
    assert [fill["guess"] for fill in metrics["fills"]] == examples.answers
    assert metrics["blank_accuracy"] == 0


def test_guesses_of_several_batches_stay_with_their_texts(tokenizer):
    examples = choose(tokenizer, ["the old king sees a river ." for _ in range(400)], number=400)
    assert len(examples.batches) > 1

    class Right(torch.nn.Module):
        def forward(self, batch, return_logits):
            return torch.nn.functional.one_hot(batch.labels, tokenizer.vocab_size) * 9.0

    metrics = evaluate_cloze(Right(), examples, tokenizer, device=torch.device("cpu"))
    assert metrics["blank_accuracy"] == 1
    assert [fill["guess"] for fill in metrics["fills"]] == examples.answers


# Display


@pytest.mark.parametrize(
    "text",
    [
        "the child is playing (or not).",
        'he said, "I don\'t [MASK] it." then',
        '"[MASK]," she said, "is 5% of it!"',
        "it’s “[MASK]” now; isn't it?",
        "the dogs' [MASK]: [two] of {them}",
        "we'll see [MASK]",
        "我们[MASK]北京，你好。",
        "《红楼梦》（[MASK]）：好！",
        "[MASK]是“好”的",
        "用 python 写",
    ],
)
def test_tokens_are_displayed_as_normal_text(text, tokenizer):
    words = SimpleNamespace(tokens=[])
    for part in text.replace("[MASK]", "\0").split():
        run = ""
        for character in [*part, ""]:
            if character.isascii() and character.isalnum():
                run += character
                continue
            words.tokens += [token for token in (run, character) if token]
            run = ""
    assert shown_text(["[MASK]" if token == "\0" else token for token in words.tokens]) == text


def test_pieces_are_joined_to_their_word():
    assert shown_text(["un", "##believ", "##able", "play", "##s"]) == "unbelievable plays"
