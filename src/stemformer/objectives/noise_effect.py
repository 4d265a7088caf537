"""Effect of a noise on the texts of a data set: measured before training, and shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemformer.data.examples.packing import PackedDataset
from stemformer.data.examples.sampling import example_generator
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError
from stemformer.objectives.denoising import NOISES, BrokenText, Denoising, sentence_firsts, texts_of

# Rows of texts that are measured, evenly apart.
_NUM_EXAMPLES = 256
# Share of the texts with one sentence from which permutation does nearly nothing.
_MOST_SINGLE = 0.9
# Preferred number of tokens of the texts that are shown.
_SHOWN_LENGTHS = range(12, 81)


@dataclass(frozen=True)
class NoiseEffect:
    """What a noise does to a sample of texts.

    Attributes:
        preset: Name of the noise.
        permutes: Whether it permutes sentences.
        lost: Share of the tokens that the source lacks.
        unchanged: Share of the texts whose source is the text.
        lost_texts: Share of the texts that lose all tokens.
        sentences: Mean number of sentences of a text.
        single: Share of the texts with one sentence.
    """

    preset: str
    permutes: bool
    lost: float
    unchanged: float
    lost_texts: float
    sentences: float
    single: float

    def lines(self) -> list[str]:
        """Return lines for messages: the effect, and a note if a part of the noise does nearly nothing."""
        parts = [f"{self.lost:.1%} of the tokens lost", f"{self.unchanged:.1%} of the texts unchanged"]
        if self.lost_texts:
            parts.append(f"{self.lost_texts:.1%} lost in full")
        parts.append(f"{self.sentences:.1f} sentences a text ({self.single:.0%} have one)")
        line = f"noise {self.preset}: {', '.join(parts)}"
        if not self.permutes or self.single < _MOST_SINGLE:
            return [line]
        problem = f"{self.single:.0%} of the texts have one sentence: permuting sentences does nearly nothing"
        return [line, f"note: {problem} (objective.permute_rate)"]


def broken_texts(
    examples: PackedDataset, objective: Denoising, *, num_examples: int, seed: int
) -> Iterator[tuple[BrokenText, np.ndarray, int]]:
    """Yield the texts of rows evenly apart with the noise of a seed: broken, their tokens, their number of sentences."""
    for i in np.unique(np.linspace(0, len(examples) - 1, num_examples).astype(int)).tolist() if len(examples) else ():
        rng = example_generator(seed, 0, i)
        for tokens, words, sentences in texts_of(examples.get_example(i, rng)):
            yield objective.break_text(tokens, words, sentences, rng), tokens, len(sentence_firsts(sentences))


def measure_noise(examples: PackedDataset, objective: Denoising, *, seed: int) -> NoiseEffect:
    """Return the effect of a noise, measured on a sample of texts.

    Raises:
        ConfigError: It changes no text; or it only permutes sentences, and nearly all texts have a single one.
    """
    sizes, lost, unchanged, sentences = [], [], [], []
    num_lost_texts = 0
    for broken, tokens, number in broken_texts(examples, objective, num_examples=_NUM_EXAMPLES, seed=seed):
        source = broken.source
        sizes.append(len(tokens))
        lost.append(len(tokens) - int((source.origins >= 0).sum()))
        num_lost_texts += lost[-1] == len(tokens)
        unchanged.append(np.array_equal(source.ids, tokens))
        sentences.append(number)
    made, preset = objective.config.noise, objective.config.preset
    effect = NoiseEffect(
        preset=preset,
        permutes=made.permute_rate > 0,
        lost=sum(lost) / sum(sizes),
        unchanged=float(np.mean(unchanged)),
        lost_texts=num_lost_texts / len(sizes),
        sentences=float(np.mean(sentences)),
        single=float(np.mean(np.array(sentences) == 1)),
    )
    only_permutes = effect.permutes and not (effect.lost or made.rotate_prob)
    if only_permutes and effect.single >= _MOST_SINGLE:
        problem = f"{effect.single:.0%} of the texts have one sentence, whose order cannot change"
        advice = "Prepare documents of several sentences, raise batch.sequence_length, or set another objective.preset"
        raise ConfigError(f"The noise {preset!r} permutes sentences, but {problem}. {advice}.")
    if all(unchanged):
        default = NOISES[preset]
        rates = {"noise_rate": default.noise_rate, "permute_rate": default.permute_rate, "rotate_prob": 1}
        name = next(name for name, rate in rates.items() if rate)
        problem = f"The noise {preset!r} changes none of {len(sizes):,} texts, and repairing them would be copying"
        raise ConfigError(f"{problem}. Raise objective.{name}, or set another objective.preset.")
    return effect


def example_texts(
    examples: PackedDataset, objective: Denoising, tokenizer: Tokenizer, *, number: int, seed: int
) -> list[dict[str, Any]]:
    """Return a few texts as ids and as text: `source_ids` and `target_ids` with special tokens, `source`, `target`.

    They are the first ones of 12 to 80 tokens in rows evenly apart, or any if there are no such.
    """
    found = list(broken_texts(examples, objective, num_examples=8 * number, seed=seed))
    found.sort(key=lambda item: len(item[1]) not in _SHOWN_LENGTHS)
    special = objective.special
    return [
        {
            "source_ids": [special.cls, *broken.source.ids.tolist(), special.sep],
            "target_ids": [special.cls, *broken.target.ids.tolist(), special.sep],
            "source": tokenizer.decode(broken.source.ids),
            "target": tokenizer.decode(broken.target.ids),
        }
        for broken, _, _ in found[:number]
    ]
