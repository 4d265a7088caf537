"""Metrics of edited texts, which compare what is written with the source too: SARI and GLEU.

Written by hand, as no kept library has them: sacreBLEU has neither, NLTK's GLEU (Wu et al. 2016) is another metric.

Source: Xu et al. 2016, section 4 (SARI), in the corpus definition of EASSE (Alva-Manchego et al. 2019): n-grams are
counted over all texts, all three parts are F1, also that of deletions, which is precision in Xu et al. Napoles et al.
2015 and 2016 (GLEU without tuning), as in their script `compute_gleu` of 2017.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

_ORDERS = range(1, 5)
# Of GLEU with several references: how often one of each text is chosen at random.
_NUM_SAMPLES, _SEED_STEP = 500, 101

Tokens = Sequence[str]
Ngrams = Counter[tuple[str, ...]]


def sari(sources: Sequence[Tokens], written: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Return SARI of a corpus of tokens, from 0 to 100: the mean F1 of what is added, kept and deleted.

    An n-gram counts in kept and deleted ones as often as the share of the references that agree. EASSE's default is
    lower-case text in the tokens `13a`. Each text may have another number of references.
    """
    # Right, found and expected counts, (added, kept, deleted) x orders.
    totals = np.zeros((3, 3, len(_ORDERS)))
    for source, text, refs in zip(sources, written, references, strict=True):
        for i, order in enumerate(_ORDERS):
            before, after = _ngrams(source, order), _ngrams(text, order)
            expected: Ngrams = Counter()
            for ref in refs:
                expected.update(_ngrams(ref, order))
            totals[:, :, i] += _edits(before, after, expected, len(refs))
    right, found, expected_counts = totals.swapaxes(0, 1)  # (3, orders) each
    # F1 = 2 right / (found + expected); 0 where nothing is right.
    f1 = 2 * right / np.maximum(found + expected_counts, 1)
    return float(100 * f1.mean())


def _edits(before: Ngrams, after: Ngrams, references: Ngrams, number: int) -> Float[np.ndarray, "3 3"]:
    """Return right, found and expected counts of added, kept and deleted n-grams; those of `number` references are sums.

    Added n-grams are counted once.
    """
    added, wanted = after.keys() - before.keys(), references.keys() - before.keys()
    kept = deleted = right_kept = right_deleted = wanted_kept = wanted_deleted = 0
    for ngram, count in before.items():
        all_of_it = number * count
        keep, want = number * min(count, after[ngram]), min(all_of_it, references[ngram])
        delete, want_deleted = all_of_it - keep, all_of_it - want
        kept, wanted_kept, right_kept = kept + keep, wanted_kept + want, right_kept + min(keep, want)
        deleted, wanted_deleted = deleted + delete, wanted_deleted + want_deleted
        right_deleted += min(delete, want_deleted)
    return np.array(
        [
            (len(added & references.keys()), len(added), len(wanted)),
            (right_kept, kept, wanted_kept),
            (right_deleted, deleted, wanted_deleted),
        ],
        np.float64,
    )


def gleu(sources: Sequence[Tokens], written: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Return GLEU of grammar correction for a corpus of tokens, from 0 to 100.

    BLEU's precision of n-grams of the references, less those of the source that the reference has not. With several
    references, the mean over 500 choices of one for each text, with the random numbers of the authors' script.
    """
    statistics = [
        np.array([_statistics(source, text, ref) for ref in refs])
        for source, text, refs in zip(sources, written, references, strict=True)
    ]
    numbers = [len(rows) for rows in statistics]
    if max(numbers) == 1:
        return 100 * _gleu_of(sum(rows[0] for rows in statistics))
    table = np.concatenate(statistics)
    starts = np.cumsum([0, *numbers[:-1]])
    scores = []
    for sample in range(_NUM_SAMPLES):
        # As random.randint of Python 2, for which the script is written.
        rng = random.Random(_SEED_STEP * sample)
        chosen = [int(rng.random() * number) for number in numbers]
        scores.append(_gleu_of(table[starts + chosen].sum(0)))
    return 100 * math.fsum(scores) / len(scores)


def _statistics(source: Tokens, text: Tokens, reference: Tokens) -> list[int]:
    """Return the lengths of text and reference, and for each order the matches and the n-grams of the text."""
    found = [len(text), len(reference)]
    for order in _ORDERS:
        before, after, expected = (_ngrams(tokens, order) for tokens in (source, text, reference))
        right = (after & expected).total()
        unchanged = sum(min(count, before[ngram]) for ngram, count in after.items() if ngram not in expected)
        found += [max(0, right - unchanged), max(0, len(text) + 1 - order)]
    return found


def _gleu_of(statistics: Int[np.ndarray, "10"]) -> float:
    if not statistics.all():
        return 0.0
    length, expected, *counts = statistics.tolist()
    precisions = [math.log(right / total) for right, total in zip(counts[::2], counts[1::2], strict=True)]
    return math.exp(min(0.0, 1 - expected / length) + sum(precisions) / len(precisions))


def _ngrams(tokens: Tokens, order: int) -> Ngrams:
    return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))
