"""Single words of held-out sentences, hidden and guessed: what a model has learned, in a form that one can read.

The blanks are chosen by a rule, not by hand: sentences of 6 to 24 tokens in a fixed random order, and in each a word that is a single
token of letters, all equally likely. Where a corpus has words in ideographs and words in letters, they take turns.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from stemformer.data.examples.batch import Batch, Example, collate
from stemformer.data.examples.sampling import example_generator, permuted
from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.data.tokenization.wordpiece import PREFIX

_SEED = 2**40 + 2
_LENGTHS = range(6, 25)
_TOKENS_AT_ONCE = 4096
_SEARCHED = 20
"""Sentences that are looked at for each blank, at most."""
_FULL_WIDTH = tuple("。，、；：！？）》」』（《「『")
_EITHER = ("[MASK]", *"“”‘’")
_CLOSING = ".,;:!?)]}%'’”。，、；：！？）》」』"
_OPENING = "([{‘“（《「『"
_ENDINGS = ("s", "t", "d", "m", "re", "ve", "ll")
"""What stands behind an apostrophe: it's, don't."""


@dataclass(frozen=True)
class ClozeExamples:
    """Sentences with one word hidden each.

    Attributes:
        texts: As they are shown, with `[MASK]`.
        answers: The hidden words.
        batches: The same for the model.
        constant: The word of letters that the training text has most; guessing it always is the baseline.
    """

    texts: list[str]
    answers: list[str]
    batches: list[Batch]
    constant: str


def choose_cloze_examples(
    shards: Shards, tokenizer: Tokenizer, *, number: int, longest: int = 512
) -> ClozeExamples | None:
    """Returns up to `number` blanks of a split, always the same ones; None where no sentence has a word to hide.

    Args:
        shards: The held-out split.
        tokenizer: Of the split.
        number: How many.
        longest: Tokens that the model takes, special ones included.
    """
    bounds = np.asarray(shards.sentence_starts)
    lengths = np.diff(bounds)
    fitting = np.flatnonzero((lengths >= _LENGTHS.start) & (lengths < min(_LENGTHS.stop, longest - 1)))
    is_word = np.array([token.isalpha() for token in tokenizer.tokens])
    found: dict[bool, list[tuple[str, str, Example]]] = {
        False: [],
        True: [],
    }  # by whether the word is written in ideographs
    order = permuted(np.arange(len(fitting)), len(fitting), seed=_SEED, epoch=0)
    for sentence in fitting[order[: _SEARCHED * number]].tolist():
        if min(map(len, found.values())) >= number:
            break
        start, stop = int(bounds[sentence]), int(bounds[sentence + 1])
        ids = shards.tokens(start, stop).astype(np.int64)
        words = np.append(shards.word_starts(start, stop), True)
        places = np.flatnonzero(words[:-1] & words[1:] & is_word[ids])  # a word of letters that is one token
        if len(places) == 0:
            continue
        place = int(places[example_generator(_SEED, 0, sentence).integers(len(places))])
        hidden = ids.copy()
        hidden[place] = tokenizer.mask_id
        with_special = np.concatenate([[tokenizer.cls_id], hidden, [tokenizer.sep_id]])
        example = Example(with_special, np.array([len(ids) + 2]), np.array([place + 1]), ids[place : place + 1])
        answer = tokenizer.tokens[ids[place]]
        text = shown_text([tokenizer.tokens[i] for i in hidden.tolist()])
        found[_is_ideograph(answer)].append((text, answer, example))
    if not any(found.values()):
        return None
    in_turns = [blank for pair in itertools.zip_longest(*found.values()) for blank in pair if blank is not None]
    texts, answers, examples = (list(column) for column in zip(*in_turns[:number], strict=True))
    size = max(1, _TOKENS_AT_ONCE // _LENGTHS.stop)
    batches = [
        collate(examples[a : a + size], range(a, min(a + size, len(examples)))) for a in range(0, len(examples), size)
    ]
    constant = tokenizer.tokens[int(np.where(is_word, shards.unigram_counts[: len(is_word)], 0).argmax())]
    return ClozeExamples(texts, answers, batches, constant)


@torch.inference_mode()
def evaluate_cloze(
    module: nn.Module, blanks: ClozeExamples, tokenizer: Tokenizer, *, device: torch.device
) -> dict[str, Any]:
    """Returns the likeliest word for each blank, and how many are right.

    Args:
        module: Its forward gives scores with `return_logits` (`objectives.sentence_pairs.WithLoss`).
        blanks: What is asked.
        tokenizer: Ids to words.
        device: Where the module is.

    Returns:
        `blank_accuracy`, `blank_constant_accuracy`, and `fills`: text, answer, guess and its probability for each blank.
    """
    module.eval()
    guesses: list[tuple[str, float]] = []
    for batch in blanks.batches:
        probabilities = module(batch.to(device), return_logits=True).float().softmax(-1)
        largest, ids = probabilities.max(-1)
        guesses += [(tokenizer.tokens[i], p) for i, p in zip(ids.tolist(), largest.tolist(), strict=True)]
    right = [guess == answer for (guess, _), answer in zip(guesses, blanks.answers, strict=True)]
    fills = [
        {"text": text, "answer": answer, "guess": guess, "probability": round(p, 4)}
        for text, answer, (guess, p) in zip(blanks.texts, blanks.answers, guesses, strict=True)
    ]
    constant = sum(answer == blanks.constant for answer in blanks.answers)
    return {
        "blank_accuracy": sum(right) / len(right),
        "blank_constant_accuracy": constant / len(right),
        "fills": fills,
    }


def shown_text(tokens: list[str]) -> str:
    """Returns tokens as a line for people: pieces joined, no spaces between ideographs or before closing marks.

    Example:
        >>> shown_text(["play", "##ing", "(", "[MASK]", ")", "."])
        'playing ([MASK]).'
    """
    line, before, is_quoting = "", "", False
    for token in tokens:
        last = line[-1:]
        joins = (
            not line
            or token.startswith(PREFIX)
            or token[0] in _CLOSING
            or last in _OPENING
            or (last in "'’" and token in _ENDINGS)
            or (is_quoting and '"' in (token, last))
            or _touch(before, token)
        )
        line += token.removeprefix(PREFIX) if joins else " " + token
        is_quoting ^= token == '"'
        before = token
    return line


def _touch(*neighbours: str) -> bool:
    """Says whether two tokens stand without a space between them, as in Chinese; what is hidden does as its neighbour does."""
    chinese = [_is_ideograph(token) or token in _FULL_WIDTH for token in neighbours]
    return any(chinese) and all(
        is_chinese or token in _EITHER for is_chinese, token in zip(chinese, neighbours, strict=True)
    )


def _is_ideograph(token: str) -> bool:
    return "\u3400" <= token[:1] <= "\u9fff"
