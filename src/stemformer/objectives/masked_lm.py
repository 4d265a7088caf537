"""Masked language modelling: some tokens are hidden, and the model says what stood there.

Source: Devlin et al. 2019, section 3.1 and appendix A.1 (15 %, of these 80 % `[MASK]`, 10 % a random word, 10 % unchanged);
whole words: the 2019 note in the released code's README; spans: Joshi et al. 2020, section 3.1.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.packing import PackedDataset, RawExample, pack_documents
from stemformer.data.examples.sentence_pairs import SentencePairDataset
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, linear_cross_entropy_sum

_SPAN_SHARES = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
"""How likely a span of 1 to 10 words is: geometric with p = 0.2, cut off and renormalised, 3.8 words on average."""


@dataclass(frozen=True)
class MaskedLmConfig:
    """What is hidden, and how.

    Attributes:
        rate: Share of an example's tokens that are scored, in (0, 1).
        unit: What is chosen: tokens, whole words, or spans of whole words.
        mask_share: Of the chosen, how many become `[MASK]`.
        random_share: Of the chosen, how many become a random word of the whole vocabulary; the rest stay as they are.
        sentences: What is asked about pairs of texts beside that: nothing, whether the second follows the first (`next`), or which
            of them comes first (`order`).
        short_share: Of the pairs, how many are cut to a random length.
    """

    rate: float = 0.15
    unit: Literal["token", "word", "span"] = "token"
    mask_share: float = 0.8
    random_share: float = 0.1
    sentences: Literal["none", "next", "order"] = "none"
    short_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"objective.rate is {self.rate}: expected a share between 0 and 1")
        if not 0 <= self.short_share <= 1:
            raise ConfigError(f"objective.short_share is {self.short_share}: expected a share from 0 to 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"objective.mask_share {self.mask_share} and random_share {self.random_share}: expected two shares that sum to at most 1"
            )


@dataclass(frozen=True)
class SpecialIds:
    """The ids that an objective writes itself: those of a masked model, or the one that ends a document of a causal one."""

    cls: int = -1
    sep: int = -1
    mask: int = -1
    end: int = -1


class MaskedLm:
    """The masked-LM objective.

    Args:
        config: Rates and unit.
        special: Ids of `[CLS]`, `[SEP]` and `[MASK]`.
        vocab_size: Random words are drawn from all of it, uniformly.
    """

    heads: tuple[str, ...] = ("masked_lm",)

    def __init__(self, config: MaskedLmConfig, *, special: SpecialIds, vocab_size: int) -> None:
        self.config = config
        self.special = special
        self.vocab_size = vocab_size

    def make_examples(self, shards: Shards, row_length: int) -> PackedDataset | SentencePairDataset:
        """Returns the examples of a split: rows of pieces."""
        return pack_documents(shards, row_length=row_length)

    def corrupt(self, passage: RawExample, rng: np.random.Generator) -> Example:
        """Returns an example in which exactly `max(1, round(rate * n))` of the passage's `n` tokens are scored.

        Args:
            passage: What `make_examples(...).get_example` gave.
            rng: The example's own generator.
        """
        tokens, lengths = passage.tokens, passage.lengths
        n = len(tokens)
        budget = max(1, round(self.config.rate * n))
        if self.config.unit == "token":
            chosen = choose_tokens(n, budget, rng)
            groups = np.arange(budget)
        elif self.config.unit == "word":
            chosen = choose_words(passage.word_starts, budget, rng)
            groups = np.arange(budget)
        else:
            chosen, groups = choose_spans(passage.word_starts, lengths, budget, rng)
        fate = rng.random(budget)[groups]
        random_ids = rng.integers(self.vocab_size, size=budget)
        seen = tokens.copy()
        seen[chosen] = np.where(fate < self.config.mask_share, self.special.mask, seen[chosen])
        is_random = (fate >= self.config.mask_share) & (fate < self.config.mask_share + self.config.random_share)
        seen[chosen] = np.where(is_random, random_ids, seen[chosen])
        opens = passage.segments == 0  # [CLS] stands before these, [SEP] after each segment
        sizes = lengths + 1 + opens
        ends = np.cumsum(sizes)
        places = np.arange(n) + np.repeat(np.arange(len(lengths)) + np.cumsum(opens), lengths)
        input_ids = np.empty(int(ends[-1]), np.int64)
        input_ids[places] = seen
        input_ids[(ends - sizes)[opens]] = self.special.cls
        input_ids[ends - 1] = self.special.sep
        return Example(
            input_ids,
            lengths=np.add.reduceat(sizes, np.flatnonzero(opens)),
            label_positions=places[chosen],
            labels=tokens[chosen],
            token_type_ids=np.repeat(passage.segments, sizes),
            sequence_labels=None if passage.label is None else np.array([passage.label]),
            num_dropped_tokens=passage.num_dropped_tokens,
        )

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many places of a batch are scored, by the name of the loss."""
        return {"masked_lm": len(batch.labels)}

    def places(self, batch: Batch) -> Int[Tensor, "M"]:
        """Returns the tokens of a batch whose states are needed: the scored ones."""
        return batch.label_positions

    def loss(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> dict[str, LossSum]:
        """Returns the summed loss of a batch from the states of its places."""
        return {"masked_lm": linear_cross_entropy_sum(*model.before_masked_lm_scores(states), batch.labels)}

    def scores(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> Float[Tensor, "M V"]:
        """Returns the score of each word at each marked place of a batch, from the states of its places."""
        return model.masked_lm_logits(states)


def choose_tokens(n: int, budget: int, rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Returns `budget` of `n` places, each set equally likely, ascending."""
    return np.sort(rng.permutation(n)[:budget])


def choose_words(word_starts: Bool[np.ndarray, "n"], budget: int, rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Returns exactly `budget` places that make up whole words, ascending.

    Words are taken in random order, one that no longer fits is passed over, so long words are hidden a little less often. Where only
    longer words are left at the end, the first that was passed over is cut, so that the number is exact.
    """
    starts = np.flatnonzero(word_starts)
    sizes = np.diff(np.append(starts, len(word_starts)))
    chosen: list[np.ndarray] = []
    passed = -1
    left = budget
    for word in rng.permutation(len(starts)).tolist():
        if sizes[word] <= left:
            chosen.append(np.arange(starts[word], starts[word] + sizes[word]))
            left -= int(sizes[word])
            if left == 0:
                break
        elif passed < 0:
            passed = word
    if left:
        chosen.append(np.arange(starts[passed], starts[passed] + left))
    return np.sort(np.concatenate(chosen))


def choose_spans(
    word_starts: Bool[np.ndarray, "n"], lengths: Int[np.ndarray, "s"], budget: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Returns exactly `budget` places in spans of whole words, ascending, and the number of the span of each.

    A span begins at a word and has a geometric number of words (p = 0.2, at most 10), within one sequence; the last one is cut
    where the budget ends. A span is replaced as a whole, so its places share one fate. Since spans run to the right, the first words
    of a sequence are hidden less often than the others.
    """
    n = len(word_starts)
    starts = np.flatnonzero(word_starts)
    bounds = np.append(starts, n)
    sequence_ends = np.cumsum(lengths)
    span_of = np.full(n, -1, np.int64)
    left, number = budget, 0
    while left:
        free = starts[span_of[starts] < 0]
        first = int(free[rng.integers(len(free))]) if len(free) else int(np.flatnonzero(span_of < 0)[0])
        words = 1 + int(rng.choice(10, p=_SPAN_SHARES))
        word = int(np.searchsorted(starts, first, side="right")) - 1
        stop = int(bounds[min(word + words, len(starts))])
        stop = min(stop, int(sequence_ends[np.searchsorted(sequence_ends, first, side="right")]))
        inside = np.arange(first, stop)
        inside = inside[span_of[inside] < 0][:left]
        span_of[inside] = number
        left -= len(inside)
        number += 1
    chosen = np.flatnonzero(span_of >= 0)
    return chosen, span_of[chosen]
