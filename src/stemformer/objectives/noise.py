"""Noise for denoising objectives: small functions that break a text.

A text is broken in *units*, tokens or full words. Noise works on a `NoisyText`, which keeps the index of the
original token of each of its ids, so that kinds of noise can follow each other.

Source: Lewis et al. 2020, section 2.2 (BART's five kinds); Song et al. 2019, section 3.1 (MASS's fragment);
Raffel et al. 2020, section 3.1.4 (T5's spans). Where these and their released code differ from each other, the
definitions here are: exactly `round(rate * n)` of `n` units are lost; spans do not touch each other, and lie on a
ring, so that each unit is lost equally often, the first and the last too; a rotation is never the identity. A fragment
is one span that is not on a ring, so that it loses units in the middle more often. (In fairseq spans overlap: at a
rate of 0.3 and a mean of 3 some 27 % of the tokens are lost; T5 never loses the first unit and always the last one,
and has no last sentinel in its code; MASS's code starts two fragments in five at the first unit or ends them at the
last, and one of its variants shows the first token to predict.)
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

# Index of an id that replaces tokens of the text.
INSERTED = -1


@dataclass(frozen=True)
class NoisyText:
    """Ids of a broken text, and the index of the original token of each, or `INSERTED`."""

    ids: Int[np.ndarray, "m"]
    origins: Int[np.ndarray, "m"]

    @classmethod
    def of(cls, tokens: Int[np.ndarray, "n"]) -> "NoisyText":
        return cls(tokens, np.arange(len(tokens)))

    def __getitem__(self, index: Int[np.ndarray, "k"] | Bool[np.ndarray, "m"] | slice) -> "NoisyText":
        return NoisyText(self.ids[index], self.origins[index])


@dataclass(frozen=True)
class Spans:
    """Spans of units, ascending and apart; a length of 0 is a position between units."""

    starts: Int[np.ndarray, "k"]
    lengths: Int[np.ndarray, "k"]


def number_lost(num_units: int, rate: float) -> int:
    """Return how many units are lost: the rounded share, halves rounded up."""
    return min(num_units, int(rate * num_units + 0.5))


def choose_units(num_units: int, rate: float, rng: np.random.Generator) -> Spans:
    """Return single units, which may be neighbors; each subset is equally likely."""
    starts = np.sort(rng.permutation(num_units)[: number_lost(num_units, rate)])
    return Spans(starts, np.ones_like(starts))


def choose_poisson_spans(num_units: int, rate: float, mean_length: float, rng: np.random.Generator) -> Spans:
    """Return spans of Poisson lengths that lose exactly the share `rate`.

    Spans do not touch. The last length is cut to what is left of the share. A span over the end of the text
    continues at its start, as a second span. Of the spans of length 0 some are left out where there is no room for
    them apart from the others, or where there would be more spans than lost units, so that with one mask for each
    span a text does not become longer.
    """
    num_lost = number_lost(num_units, rate)
    lengths: list[int] = []
    left = num_lost
    while left:
        lengths.append(min(int(rng.poisson(mean_length)), left))
        left -= lengths[-1]
    # The cut length anywhere, not at the end alone.
    spans = place_spans(num_units, rng.permutation(np.array(lengths, np.int64)), rng)
    if (excess := len(spans.starts) - num_lost) <= 0:
        return spans
    empty = np.flatnonzero(spans.lengths == 0)
    left_out = rng.permutation(empty)[:excess]
    return Spans(np.delete(spans.starts, left_out), np.delete(spans.lengths, left_out))


def choose_fixed_spans(num_units: int, rate: float, mean_length: float, rng: np.random.Generator) -> Spans:
    """Return `round(lost / mean_length)` spans, as T5's, of lengths that are a random composition."""
    num_lost = number_lost(num_units, rate)
    number = number_of_fixed_spans(num_lost, mean_length)
    if not number:
        return place_spans(num_units, np.zeros(0, np.int64), rng)
    cuts = np.sort(rng.permutation(num_lost - 1)[: number - 1]) + 1
    return place_spans(num_units, np.diff(np.concatenate([[0], cuts, [num_lost]])), rng)


def number_of_fixed_spans(num_lost: int, mean_length: float) -> int:
    """Return the number of spans that lose `num_lost` units; one over the end of a text becomes one more."""
    return min(num_lost, max(1, int(num_lost / mean_length + 0.5)))


def choose_suffix(num_units: int, rng: np.random.Generator) -> Spans:
    """Return the units after a random cut, at each position between two units equally often; of one unit that one."""
    start = int(rng.integers(1, num_units)) if num_units > 1 else 0
    return Spans(np.array([start]), np.array([num_units - start]))


def choose_fragment(num_units: int, rate: float, rng: np.random.Generator) -> Spans:
    """Return one span of the share `rate`, at each possible start equally often (MASS)."""
    length = number_lost(num_units, rate)
    start = int(rng.integers(num_units - length + 1))
    return Spans(np.array([start] if length else [], np.int64), np.array([length] if length else [], np.int64))


def place_spans(num_units: int, lengths: Int[np.ndarray, "k"], rng: np.random.Generator) -> Spans:
    """Return spans of these lengths in this order, uniformly at random, no two of which touch.

    If too few units are kept to separate them, neighbors are joined.
    """
    num_kept = num_units - int(lengths.sum())
    if num_kept == 0:
        size = int(num_units > 0)
        return Spans(np.zeros(size, np.int64), np.full(size, num_units, np.int64))
    lengths = _joined(lengths, num_kept)
    # On a ring, each span comes before another kept unit; then turn the ring.
    slots = np.sort(rng.permutation(num_kept)[: len(lengths)])
    starts = slots + np.cumsum(lengths) - lengths + int(rng.integers(num_units))
    starts %= num_units
    # A span over the end becomes two.
    over = starts + lengths - num_units
    is_split = over > 0
    starts = np.concatenate([starts, np.zeros(int(is_split.sum()), np.int64)])
    lengths = np.concatenate([np.where(is_split, lengths - over, lengths), over[is_split]])
    order = np.argsort(starts, kind="stable")
    return Spans(starts[order], lengths[order])


def _joined(lengths: Int[np.ndarray, "k"], most: int) -> Int[np.ndarray, "j"]:
    """Return at most `most` spans: drop those of length 0, then join neighbors."""
    if len(lengths) <= most:
        return lengths
    lengths = np.concatenate([lengths[lengths > 0], lengths[lengths == 0]])[: max(most, int((lengths > 0).sum()))]
    if len(lengths) <= most:
        return lengths
    return np.array([part.sum() for part in np.array_split(lengths, most)], np.int64)


def token_spans(spans: Spans, unit_starts: Int[np.ndarray, "u"], num_tokens: int) -> Spans:
    """Return spans of units, which start with the tokens `unit_starts`, as spans of tokens."""
    bounds = np.append(unit_starts, num_tokens)
    starts = bounds[spans.starts]
    return Spans(starts, bounds[spans.starts + spans.lengths] - starts)


def is_in_spans(spans: Spans, size: int) -> Bool[np.ndarray, "n"]:
    """Return for each of `size` tokens whether a span has it."""
    edges = np.zeros(size + 1, np.int64)
    np.add.at(edges, spans.starts, 1)
    np.add.at(edges, spans.starts + spans.lengths, -1)
    return np.cumsum(edges)[:-1] > 0


def delete(text: NoisyText, spans: Spans) -> NoisyText:
    """Remove the tokens of spans."""
    return text[~is_in_spans(spans, len(text.ids))]


def mask_each(text: NoisyText, spans: Spans, replacements: Int[np.ndarray, "l"]) -> NoisyText:
    """Replace each token of the spans, in order, by an id."""
    lost = is_in_spans(spans, len(text.ids))
    ids = text.ids.copy()
    ids[lost] = replacements
    return NoisyText(ids, np.where(lost, INSERTED, text.origins))


def infill(text: NoisyText, spans: Spans, replacements: Int[np.ndarray, "k"]) -> NoisyText:
    """Replace each span by one id; a span of length 0 gets one before its position."""
    kept = delete(text, spans)
    lost_before = np.cumsum(spans.lengths) - spans.lengths
    positions = spans.starts - lost_before
    return NoisyText(
        np.insert(kept.ids, positions, replacements),
        np.insert(kept.origins, positions, np.full(len(positions), INSERTED)),
    )


def lost_tokens(text: NoisyText, spans: Spans, sentinels: Int[np.ndarray, "k1"] | None = None) -> NoisyText:
    """Return the tokens of spans, in order; each span after its sentinel, if there are any, and the last one at the end."""
    lost = text[is_in_spans(spans, len(text.ids))]
    if sentinels is None:
        return lost
    positions = np.append(np.cumsum(spans.lengths) - spans.lengths, len(lost.ids))
    inserted = np.full(len(positions), INSERTED)
    return NoisyText(np.insert(lost.ids, positions, sentinels), np.insert(lost.origins, positions, inserted))


def permute_sentences(
    sentence_starts: Int[np.ndarray, "s"], num_tokens: int, rate: float, rng: np.random.Generator
) -> Int[np.ndarray, "n"]:
    """Return the order of tokens with `round(rate * s)` sentences permuted at random."""
    bounds = np.append(sentence_starts, num_tokens)
    order = np.arange(len(sentence_starts))
    chosen = np.sort(rng.permutation(len(order))[: number_lost(len(order), rate)])
    order[chosen] = rng.permutation(chosen)
    return np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in order.tolist()] or [np.zeros(0, np.int64)])


def rotate_text(num_tokens: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """Return the order of tokens that starts at a random token but the first."""
    start = int(rng.integers(1, num_tokens)) if num_tokens > 1 else 0
    return np.roll(np.arange(num_tokens), -start)
