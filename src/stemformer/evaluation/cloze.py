"""Cloze evaluation: predict one masked word in each of some held-out sentences.

Sentences have 6 to 24 tokens, in a fixed random order; the word is a single token of letters,
chosen uniformly. Ideographic and alphabetic words alternate.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.sampling import example_generator, permuted
from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import SUBWORD_PREFIX, Tokenizer
from stemformer.evaluation.fill_mask import MASK
from stemformer.evaluation.inference import even_batches, masked_example

_SEED = 2**40 + 2
_LENGTHS = range(6, 25)
# Sentences to examine at most.
_CANDIDATES_PER_EXAMPLE = 20
_FULL_WIDTH = tuple("。，、；：！？）》」』（《「『")
_EITHER = (MASK, *"“”‘’")
_CLOSING = ".,;:!?)]}%'’”。，、；：！？）》」』"
_OPENING = "([{‘“（《「『"
# It's, don't.
_CONTRACTIONS = ("s", "t", "d", "m", "re", "ve", "ll")


@dataclass(frozen=True)
class ClozeExamples:
    """Sentences with one masked word each, for display and as model inputs."""

    texts: list[str]
    answers: list[str]
    batches: list[Batch]
    # Baseline: the most frequent alphabetic word of the training text.
    constant: str


def choose_cloze_examples(
    shards: Shards, tokenizer: Tokenizer, *, number: int, longest: int = 512
) -> ClozeExamples | None:
    """Select up to `number` examples, always the same; None if there are none.

    `longest` is the maximum number of tokens, special ones included.
    """
    bounds = np.asarray(shards.sentence_starts)
    lengths = np.diff(bounds)
    suitable = np.flatnonzero((lengths >= _LENGTHS.start) & (lengths < min(_LENGTHS.stop, longest - 1)))
    is_word = np.array([token.isalpha() for token in tokenizer.shown_tokens])
    # By whether the masked word is ideographic.
    found: dict[bool, list[tuple[str, str, Example]]] = {False: [], True: []}
    order = permuted(np.arange(len(suitable)), len(suitable), seed=_SEED, epoch=0)
    for sentence in suitable[order[: _CANDIDATES_PER_EXAMPLE * number]].tolist():
        if min(map(len, found.values())) >= number:
            break
        start, stop = int(bounds[sentence]), int(bounds[sentence + 1])
        ids = shards.tokens(start, stop).astype(np.int64)
        starts_word = np.append(shards.word_starts(start, stop), True)
        # Words of letters that are a single token.
        positions = np.flatnonzero(starts_word[:-1] & starts_word[1:] & is_word[ids])
        if len(positions) == 0:
            continue
        position = int(positions[example_generator(_SEED, 0, sentence).integers(len(positions))])
        masked = ids.copy()
        masked[position] = tokenizer.mask_token_id
        example = masked_example(masked, np.array([position]), ids[position : position + 1], tokenizer)
        answer = tokenizer.shown_tokens[ids[position]]
        names = [MASK if i == tokenizer.mask_token_id else tokenizer.shown_tokens[i] for i in masked.tolist()]
        text = shown_text(names)
        found[_is_ideograph(answer)].append((text, answer, example))
    if not any(found.values()):
        return None
    alternating = [item for pair in itertools.zip_longest(*found.values()) for item in pair if item is not None]
    texts, answers, examples = (list(column) for column in zip(*alternating[:number], strict=True))
    constant = tokenizer.shown_tokens[int(np.where(is_word, shards.unigram_counts[: len(is_word)], 0).argmax())]
    return ClozeExamples(texts, answers, even_batches(examples, length=_LENGTHS.stop), constant)


@torch.inference_mode()
def evaluate_cloze(
    module: nn.Module, examples: ClozeExamples, tokenizer: Tokenizer, *, device: torch.device
) -> dict[str, Any]:
    """Predict the most likely token for each mask, for the accuracy, and the most likely word, to show (`fills`)."""
    module.eval()
    hidden = torch.from_numpy(np.flatnonzero(~tokenizer.is_full_word)).to(device)
    predicted: list[int] = []
    guesses: list[tuple[float, int]] = []
    for batch in examples.batches:
        p = module(batch.to(device), return_logits=True).float().softmax(-1)[:, : tokenizer.vocab_size]  # (M, V)
        predicted += p.argmax(-1).tolist()
        best = p.index_fill(1, hidden, 0.0).max(-1)
        guesses += zip(best.values.tolist(), best.indices.tolist(), strict=True)
    fills = [
        {"text": text, "answer": answer, "guess": tokenizer.shown_tokens[i], "probability": round(p, 4)}
        for text, answer, (p, i) in zip(examples.texts, examples.answers, guesses, strict=True)
    ]
    answers = zip(predicted, examples.answers, strict=True)
    return {
        "blank_accuracy": sum(tokenizer.shown_tokens[i] == answer for i, answer in answers) / len(fills),
        "blank_constant_accuracy": examples.answers.count(examples.constant) / len(fills),
        "fills": fills,
    }


def shown_text(tokens: list[str]) -> str:
    """Join tokens for display, without spaces between ideographs or before punctuation.

    Unlike the WordPiece decoder of `tokenizers`, it handles brackets, quotes and Chinese.

    Example:
        >>> shown_text(["play", "##ing", "(", "[MASK]", ")", "."])
        'playing ([MASK]).'
    """
    text, previous, is_quoting = "", "", False
    for token in tokens:
        last = text[-1:]
        joins = (
            not text
            or token.startswith(SUBWORD_PREFIX)
            or token[0] in _CLOSING
            or last in _OPENING
            or (last in "'’" and token in _CONTRACTIONS)
            or (is_quoting and '"' in (token, last))
            or _is_chinese_pair(previous, token)
        )
        text += token.removeprefix(SUBWORD_PREFIX) if joins else " " + token
        is_quoting ^= token == '"'
        previous = token
    return text


def _is_chinese_pair(*tokens: str) -> bool:
    """Tell whether no space separates two tokens; masks and quotes follow their neighbor."""
    other = [token for token in tokens if not _is_ideograph(token) and token not in _FULL_WIDTH]
    return len(other) < len(tokens) and all(token in _EITHER for token in other)


def _is_ideograph(token: str) -> bool:
    return "\u3400" <= token[:1] <= "\u9fff"
