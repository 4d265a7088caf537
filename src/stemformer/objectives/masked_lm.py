"""Masked language modeling: corrupt some tokens, and predict the originals.

Source: Devlin et al. 2019, section 3.1 and appendix A.1; whole words: the 2019 note in the released
code's README; spans: Joshi et al. 2020, section 3.1; causal, then masked LM: Gisserot-Boukhlef et al. 2025.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from stemformer.config import check_at_least, check_fields
from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.packing import PackedDataset, RawExample, pack_documents
from stemformer.data.examples.sentence_pairs import SentencePairDataset
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.objectives.sampled_softmax import lm_loss_sum, make_sampled_softmax

# Probabilities of spans of 1 to 10 words: geometric with p = 0.2, truncated, mean 3.8.
_SPAN_LENGTH_PROBS = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)


@dataclass(frozen=True)
class MaskedLmConfig:
    """Settings of masked language modeling: selection and corruption of tokens."""

    # Share of an example's tokens that are scored.
    mask_rate: float = 0.15
    # Unit of selection: tokens, whole words, or spans of whole words.
    unit: Literal["token", "word", "span"] = "token"
    # Shares of the selected tokens replaced by `[MASK]` and by a random token; the rest stay unchanged.
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    # Sentence-pair objective: next-sentence prediction (`next`), sentence order prediction (`order`), or masked LM alone.
    sentences: Literal["none", "next", "order"] = "none"
    # Share of sentence pairs that are cut to a random length.
    short_seq_prob: float = 0.1
    # Fraction of the run, at its start, that predicts each next token from the earlier ones instead (causal LM): all
    # tokens are scored, and the model learns sooner (`docs/log.md`).
    causal_start_ratio: float = 0.0
    # Share of the steps, evenly apart, that do so in all of the run: one model that fills masks and continues texts
    # (EuroBERT, also saved as a Llama).
    causal_share: float = 0.0
    # Ids that a training step's softmax sums over, if the vocabulary has more and the device is a CPU: frequent ones, and
    # a sample of the others (`objectives.sampled_softmax`). 0: all.
    sampled_softmax: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "objective.", "a share between 0 and 1", lambda x: 0 < x < 1, "mask_rate")
        check_fields(self, "objective.", "a share from 0 to 1", lambda x: 0 <= x <= 1, "short_seq_prob")
        check_at_least(0, self, "objective.", "sampled_softmax")
        causal = ("causal_start_ratio", "causal_share")
        check_fields(self, "objective.", "a fraction from 0, below 1", lambda x: 0 <= x < 1, *causal)
        if self.sentences != "none" and (name := next((name for name in causal if getattr(self, name)), None)):
            problem = f"objective.{name} is {getattr(self, name)}, with sentence pairs"
            raise ConfigError(f"{problem}; set it to 0, or objective.sentences to 'none'.")
        shares = self.mask_replace_prob, self.random_replace_prob
        if min(shares) < 0 or sum(shares) > 1:
            problem = f"objective.mask_replace_prob is {shares[0]} and objective.random_replace_prob is {shares[1]}"
            raise ConfigError(f"{problem}; expected two shares that sum to at most 1.")

    @property
    def name(self) -> str:
        """Key of `OBJECTIVES`."""
        return self.sentences

    @property
    def example_settings(self) -> tuple[object, ...]:
        """What decides which text an example has, and in which order."""
        return (self.sentences, 0.0 if self.sentences == "none" else self.short_seq_prob)


@dataclass(frozen=True)
class SpecialIds:
    """Ids of special tokens: three for masked LM and denoising, EOS for causal LM."""

    cls: int = -1
    sep: int = -1
    mask: int = -1
    eos: int = -1
    # Further ids that are no part of a text, such as that of padding.
    others: tuple[int, ...] = ()
    # Those that replace spans of a text, in order; each is one of the `others` too.
    sentinels: tuple[int, ...] = ()


class MaskedLm:
    """Masked-LM objective; random replacement tokens are uniform over the vocabulary."""

    heads: tuple[str, ...] = ("masked_lm",)

    def __init__(
        self,
        config: MaskedLmConfig,
        *,
        special: SpecialIds,
        vocab_size: int,
        unigram_counts: Integer[np.ndarray, "V"] | None = None,
    ) -> None:
        self.config = config
        self.special = special
        self.vocab_size = vocab_size
        self.sampled_softmax = make_sampled_softmax(config.sampled_softmax, unigram_counts)

    def make_examples(self, shards: Shards, sequence_length: int) -> PackedDataset | SentencePairDataset:
        return pack_documents(shards, sequence_length=sequence_length)

    def corrupt(self, raw: RawExample, rng: np.random.Generator) -> Example:
        """Add special tokens; corrupt exactly `max(1, round(mask_rate * n))` of `n` tokens."""
        config, tokens, lengths = self.config, raw.tokens, raw.lengths
        n = len(tokens)

        # Select tokens; those of one span share one action.
        budget = max(1, round(config.mask_rate * n))
        groups = np.arange(budget)
        if config.unit == "token":
            chosen = choose_tokens(n, budget, rng)
        elif config.unit == "word":
            chosen = choose_words(raw.word_starts, budget, rng)
        else:
            chosen, groups = choose_spans(raw.word_starts, lengths, budget, rng)

        # Replace each by [MASK] or a random token, or keep it.
        u = rng.random(budget)[groups]
        random_ids = rng.integers(self.vocab_size, size=budget)
        corrupted = tokens.copy()
        is_mask, is_kept = u < config.mask_replace_prob, u >= config.mask_replace_prob + config.random_replace_prob
        corrupted[chosen] = np.select([is_mask, is_kept], [self.special.mask, tokens[chosen]], random_ids)

        input_ids, positions, sizes = self._insert_special(raw, corrupted)
        return Example(
            input_ids,
            lengths=np.add.reduceat(sizes, np.flatnonzero(raw.segments == 0)),
            label_positions=positions[chosen],
            labels=tokens[chosen],
            token_type_ids=np.repeat(raw.segments, sizes),
            sequence_labels=None if raw.label is None else np.array([raw.label]),
            num_dropped_tokens=raw.num_dropped_tokens,
        )

    def shift(self, raw: RawExample) -> Example:
        """Add special tokens; each token is the label of the one before it, as in causal LM."""
        input_ids, _, sizes = self._insert_special(raw, raw.tokens)
        # All but the last token of each sequence.
        positions = np.delete(np.arange(len(input_ids)), np.cumsum(sizes) - 1)
        return Example(
            input_ids, lengths=sizes, label_positions=positions, labels=input_ids[positions + 1], is_causal=True
        )

    def _insert_special(
        self, raw: RawExample, tokens: Int[np.ndarray, "n"]
    ) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "n"], Int[np.ndarray, "s"]]:
        """Insert [CLS] and [SEP]; return ids, positions of the tokens and sizes of segments."""
        lengths, opens = raw.lengths, raw.segments == 0
        sizes = lengths + 1 + opens
        ends = np.cumsum(sizes)
        positions = np.arange(len(tokens)) + np.repeat(np.arange(len(lengths)) + np.cumsum(opens), lengths)
        input_ids = np.empty(int(ends[-1]), np.int64)
        input_ids[positions] = tokens
        input_ids[(ends - sizes)[opens]] = self.special.cls
        input_ids[ends - 1] = self.special.sep
        return input_ids, positions, sizes

    def counts(self, batch: Batch) -> dict[str, int]:
        return {_loss_name(batch): len(batch.labels)}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "M"]:
        return batch.label_positions

    def loss(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> dict[str, LossSum]:
        return {_loss_name(batch): lm_loss_sum(model, states, batch.labels, self.sampled_softmax)}

    def scores(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> Float[Tensor, "M V"]:
        return model.lm_logits(states)


class ShiftedLm(MaskedLm):
    """The causal steps of a masked LM alone, for held-out text."""

    def corrupt(self, raw: RawExample, rng: np.random.Generator) -> Example:
        return self.shift(raw)


def is_causal_step(step: int, share: float) -> bool:
    """Return whether a step is one of the `share` of all steps, evenly apart."""
    return math.floor((step + 1) * share + 1e-9) > math.floor(step * share + 1e-9)


def _loss_name(batch: Batch) -> str:
    return "causal_lm" if batch.is_causal else "masked_lm"


def choose_tokens(n: int, budget: int, rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Return `budget` of `n` positions, ascending; each subset is equally likely."""
    return np.sort(rng.permutation(n)[:budget])


def choose_words(word_starts: Bool[np.ndarray, "n"], budget: int, rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Return `budget` positions of random whole words that fit, ascending; at last, the first that did not is cut."""
    starts = np.flatnonzero(word_starts)
    sizes = np.diff(np.append(starts, len(word_starts)))
    chosen: list[np.ndarray] = []
    skipped, left = -1, budget
    for word in rng.permutation(len(starts)).tolist():
        if sizes[word] <= left:
            chosen.append(np.arange(starts[word], starts[word] + sizes[word]))
            left -= int(sizes[word])
            if left == 0:
                break
        elif skipped < 0:
            skipped = word
    if left:
        chosen.append(np.arange(starts[skipped], starts[skipped] + left))
    return np.sort(np.concatenate(chosen))


def choose_spans(
    word_starts: Bool[np.ndarray, "n"], lengths: Int[np.ndarray, "s"], budget: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Return exactly `budget` positions in spans of whole words within a sequence, and their spans."""
    n = len(word_starts)
    starts = np.flatnonzero(word_starts)
    bounds = np.append(starts, n)
    sequence_ends = np.cumsum(lengths)
    span_of = np.full(n, -1, np.int64)
    left, number = budget, 0
    while left:
        # Start at a random free word, or, if none is left, at the first free token.
        free = starts[span_of[starts] < 0]
        first = int(free[rng.integers(len(free))]) if len(free) else int(np.flatnonzero(span_of < 0)[0])
        num_words = 1 + int(rng.choice(10, p=_SPAN_LENGTH_PROBS))
        word = int(np.searchsorted(starts, first, side="right")) - 1
        stop = int(bounds[min(word + num_words, len(starts))])
        stop = min(stop, int(sequence_ends[np.searchsorted(sequence_ends, first, side="right")]))
        # Take the free tokens up to the end of the span, the sequence or the budget.
        inside = np.arange(first, stop)
        inside = inside[span_of[inside] < 0][:left]
        span_of[inside] = number
        left -= len(inside)
        number += 1
    chosen = np.flatnonzero(span_of >= 0)
    return chosen, span_of[chosen]
