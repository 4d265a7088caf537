"""Denoising: repair a broken text with an encoder-decoder.

Source: Lewis et al. 2020, section 2.2; Song et al. 2019 (MASS) and Raffel et al. 2020 (T5, prefix), which write what is
lost. The noises and their definitions: `objectives.noise`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from stemformer.config import check_fields
from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.encoder_decoder import make_encoder_decoder_example
from stemformer.data.examples.packing import PackedDataset, RawExample, pack_documents
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError
from stemformer.models.model import Model
from stemformer.objectives import noise
from stemformer.objectives.losses import LossSum, linear_cross_entropy_sum
from stemformer.objectives.masked_lm import SpecialIds
from stemformer.objectives.noise import INSERTED, NoisyText, Spans


@dataclass(frozen=True)
class Noise:
    """Noise in terms of what `objectives.noise` does, in the order in which it does it."""

    # Share of the sentences that are permuted among themselves.
    permute_rate: float = 0.0
    # What is lost: single units, spans of Poisson lengths or of a fixed number, one fragment, all after a random cut
    # (which has no rate), or nothing.
    spans: Literal["none", "single", "poisson", "fixed", "fragment", "suffix"] = "none"
    # Share of the units that is lost, and the mean length of spans.
    noise_rate: float = 0.0
    mean_span_length: float = 3.0
    # What replaces the units that are lost: a mask for each token or for each span, a sentinel for each span, or nothing.
    replace: Literal["each", "one", "sentinel", "none"] = "each"
    # Probability that a text is rotated.
    rotate_prob: float = 0.0
    # What the decoder writes: the original text, or what is lost of it, with sentinels if the source has them.
    target: Literal["text", "lost"] = "text"


NOISES: dict[str, Noise] = {
    "infilling_permutation": Noise(spans="poisson", noise_rate=0.3, replace="one", permute_rate=1.0),
    "infilling": Noise(spans="poisson", noise_rate=0.3, replace="one"),
    "masking": Noise(spans="single", noise_rate=0.15),
    "deletion": Noise(spans="single", noise_rate=0.15, replace="none"),
    "permutation": Noise(permute_rate=1.0),
    "rotation": Noise(rotate_prob=1.0),
    "mass": Noise(spans="fragment", noise_rate=0.5, target="lost"),
    "t5": Noise(spans="fixed", noise_rate=0.15, replace="sentinel", target="lost"),
    "prefix": Noise(spans="suffix", replace="none", target="lost"),
    "left_to_right": Noise(spans="fragment", noise_rate=1.0, replace="none"),
}
"""Name -> noise; `infilling_permutation` is BART's choice (Lewis et al. 2020, section 3).

`mass`: Song et al. 2019, section 3.1; as in BART, positions of the decoder count from 0, not from the fragment's start.
`t5`: Raffel et al. 2020, sections 3.1.4 and 3.3.4. `prefix`: Raffel et al. 2020, section 3.3.1. `left_to_right`: the
language model of BART's table 1, whose encoder reads only special tokens.
"""

# What a model writes that was pre-trained with a preset, if it is not the repaired text.
_WRITES = {
    "mass": "writes only the fragment that masks replace",
    "t5": "writes the span for each of <extra_id_0>, <extra_id_1>, ... in a text, after this sentinel",
    "prefix": "writes what follows a text",
    "left_to_right": "has never read a source, and writes the same for every text",
}


@dataclass(frozen=True)
class DenoisingConfig:
    """Settings of denoising: a named noise, of which the other fields change values."""

    name: ClassVar[str] = "denoising"

    # A key of `NOISES`.
    preset: Literal[
        "infilling_permutation",
        "infilling",
        "masking",
        "deletion",
        "permutation",
        "rotation",
        "mass",
        "t5",
        "prefix",
        "left_to_right",
    ] = "infilling_permutation"
    # Share of the units that is lost.
    noise_rate: float | None = None
    # Mean number of units of a span.
    mean_span_length: float | None = None
    # Share of the sentences that are permuted.
    permute_rate: float | None = None
    # Probability that a text is rotated.
    rotate_prob: float | None = None
    # What the decoder writes: the text, or what is lost of it.
    target: Literal["text", "lost"] | None = None
    # Units that are lost: tokens, or full words.
    unit: Literal["token", "word"] = "token"
    # Share of the masks replaced by a random token.
    random_replace_prob: float = 0.0

    def __post_init__(self) -> None:
        shares = [name for name in ("noise_rate", "permute_rate", "rotate_prob") if getattr(self, name) is not None]
        check_fields(self, "objective.", "a share from 0 to 1", lambda x: 0 <= x <= 1, *shares, "random_replace_prob")
        if self.mean_span_length is not None:
            check_fields(self, "objective.", "a number from 1 to 100", lambda x: 1 <= x <= 100, "mean_span_length")
        self._check_effects()

    def _check_effects(self) -> None:
        """Raise ConfigError for a value that the preset does not use."""
        noise = NOISES[self.preset]
        loses, loses_all = noise.spans != "none", noise.noise_rate == 1
        has_rate = loses and not loses_all and noise.spans != "suffix"
        unused = {
            "noise_rate": self.noise_rate is not None and not has_rate,
            "mean_span_length": self.mean_span_length is not None and noise.spans not in ("poisson", "fixed"),
            "permute_rate": bool(self.permute_rate) and loses_all,
            "rotate_prob": bool(self.rotate_prob) and loses_all,
            "target": self.target == "lost" and not loses,
            "unit": self.unit != "token" and (not loses or loses_all),
            "random_replace_prob": self.random_replace_prob > 0 and not (loses and noise.replace in ("each", "one")),
        }
        if name := next((name for name, is_unused in unused.items() if is_unused), None):
            problem = f"objective.{name} is {getattr(self, name)!r}, which the noise {self.preset!r} does not use"
            raise ConfigError(f"{problem}. Remove it, or set another objective.preset.")

    @property
    def noise(self) -> Noise:
        """The noise of the preset with the values that are set."""
        values = {name: value for name, value in asdict(self).items() if name in Noise.__dataclass_fields__}
        return replace(NOISES[self.preset], **{name: value for name, value in values.items() if value is not None})

    @property
    def example_settings(self) -> tuple[object, ...]:
        """What decides which text an example has: whether it leaves room for sentinels."""
        return (self.adds_sentinels_to_words,)

    @property
    def adds_sentinels_to_words(self) -> bool:
        """Whether the decoder writes lost words after sentinels, which may be more tokens than the text has."""
        return self.unit == "word" and self.noise.replace == "sentinel" and self.noise.target == "lost"

    @property
    def writes(self) -> str | None:
        """What a model that was trained so writes, for messages; None for the repaired text."""
        if self.noise.target == "text" and self.preset != "left_to_right":
            return None
        return _WRITES.get(self.preset, f"writes only what the noise {self.preset!r} loses")


@dataclass(frozen=True)
class BrokenText:
    """A text as the encoder reads it, and what the decoder writes, both without special tokens around them."""

    source: NoisyText
    target: NoisyText


class Denoising:
    """Denoising objective: the encoder reads a broken text, the decoder writes the original, or what is lost of it.

    Special tokens are never lost, and random tokens are never special.
    """

    heads: tuple[str, ...] = ("seq2seq_lm",)

    def __init__(
        self,
        config: DenoisingConfig,
        *,
        special: SpecialIds,
        vocab_size: int,
        unigram_counts: Integer[np.ndarray, "V"] | None = None,
    ) -> None:
        self.config = config
        self.special = special
        self.special_ids = {special.cls, special.sep, special.mask, special.eos, *special.others, *special.sentinels}
        self._ordinary_ids = np.setdiff1d(np.arange(vocab_size), list(self.special_ids))

    def make_examples(self, shards: Shards, sequence_length: int) -> PackedDataset:
        self._check_length(sequence_length)
        if self.config.adds_sentinels_to_words:
            # Words that are lost may be nearly all tokens of a text: with the sentinels up to two more than it has.
            sequence_length -= 2
        return pack_documents(shards, sequence_length=sequence_length, ends="sentence")

    def _check_length(self, sequence_length: int) -> None:
        """Raise ConfigError if there are too few sentinels for the longest text, or its target could be longer."""
        made = self.config.noise
        if made.replace != "sentinel":
            return
        num_lost = noise.number_lost(sequence_length - 2, made.noise_rate)
        # A span over the end is two, and the last sentinel ends the target.
        needed = noise.number_of_fixed_spans(num_lost, made.mean_span_length) + 2
        if (found := len(self.special.sentinels)) < needed:
            problem = f"{needed} sentinels, <extra_id_0> to <extra_id_{needed - 1}>, and the tokenizer has {found}"
            options = f"--kind bpe --special-tokens bart --num-sentinels {max(100, needed)}"
            advice = f"Train one with stemformer train-tokenizer {options}, and prepare the data with it"
            raise ConfigError(f"The noise {self.config.preset!r} needs {problem}. {advice}.")
        if (
            made.target == "lost"
            and self.config.unit == "token"
            and (longest := num_lost + needed + 2) > sequence_length
        ):
            problem = f"the targets of the noise {self.config.preset!r} would have up to {longest} tokens"
            raise ConfigError(
                f"objective.noise_rate is {made.noise_rate}: {problem}, more than batch.sequence_length, "
                f"{sequence_length}. Lower objective.noise_rate, or raise objective.mean_span_length."
            )

    def corrupt(self, raw: RawExample, rng: np.random.Generator) -> Example:
        """Break each sequence of an example by itself."""
        broken = [self.break_text(*text, rng) for text in texts_of(raw)]
        return make_encoder_decoder_example(
            [text.source.ids for text in broken],
            [text.target.ids for text in broken],
            cls=self.special.cls,
            sep=self.special.sep,
            is_copied=[np.isin(text.target.origins, np.append(text.source.origins, INSERTED)) for text in broken],
            num_dropped_tokens=raw.num_dropped_tokens,
        )

    def break_text(
        self,
        tokens: Int[np.ndarray, "n"],
        word_starts: Bool[np.ndarray, "n"],
        sentence_starts: Bool[np.ndarray, "n"],
        rng: np.random.Generator,
    ) -> BrokenText:
        """Return a text with noise, and its target."""
        made, original = self.config.noise, NoisyText.of(tokens)
        source, lost = original, original[:0]
        if made.permute_rate:
            order = noise.permute_sentences(sentence_firsts(sentence_starts), len(tokens), made.permute_rate, rng)
            source, word_starts = source[order], word_starts[order]
        if made.spans != "none":
            starts = np.flatnonzero(word_starts) if self.config.unit == "word" else np.arange(len(tokens))
            spans = noise.token_spans(_choose_spans(made, len(starts), rng), starts, len(tokens))
            sentinels = np.array(self.special.sentinels[: len(spans.starts) + 1], np.int64)
            lost = noise.lost_tokens(source, spans, sentinels if made.replace == "sentinel" else None)
            source = self._without(source, spans, made, rng)
        if made.rotate_prob and rng.random() < made.rotate_prob:
            source = source[noise.rotate_text(len(source.ids), rng)]
        return BrokenText(source, original if made.target == "text" else lost)

    def _without(self, text: NoisyText, spans: Spans, made: Noise, rng: np.random.Generator) -> NoisyText:
        if made.replace == "none":
            return noise.delete(text, spans)
        if made.replace == "sentinel":
            return noise.infill(text, spans, np.array(self.special.sentinels[: len(spans.starts)], np.int64))
        masks = np.full(int(spans.lengths.sum()) if made.replace == "each" else len(spans.starts), self.special.mask)
        if self.config.random_replace_prob:
            is_random = rng.random(len(masks)) < self.config.random_replace_prob
            masks[is_random] = rng.choice(self._ordinary_ids, int(is_random.sum()))
        return (noise.mask_each if made.replace == "each" else noise.infill)(text, spans, masks)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"denoising": len(batch.labels)}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "M"]:
        return batch.label_positions

    def loss(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> dict[str, LossSum]:
        return {"denoising": linear_cross_entropy_sum(*model.lm_projection(states), batch.labels)}

    def scores(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> Float[Tensor, "M V"]:
        return model.lm_logits(states)


def texts_of(
    raw: RawExample,
) -> Iterator[tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]]:
    """Yield tokens, word starts and sentence starts of each sequence of a packed example."""
    assert raw.sentence_starts is not None, "a packed example"
    stops = np.cumsum(raw.lengths)
    for start, stop in zip((stops - raw.lengths).tolist(), stops.tolist(), strict=True):
        span = slice(start, stop)
        yield raw.tokens[span], raw.word_starts[span], raw.sentence_starts[span]


def sentence_firsts(sentence_starts: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "s"]:
    """Return the first token of each sentence of a text, which may start within one."""
    found = np.flatnonzero(sentence_starts)
    return found if len(found) and found[0] == 0 else np.append(0, found)


def _choose_spans(made: Noise, num_units: int, rng: np.random.Generator) -> Spans:
    if made.spans == "single":
        return noise.choose_units(num_units, made.noise_rate, rng)
    if made.spans == "fragment":
        return noise.choose_fragment(num_units, made.noise_rate, rng)
    if made.spans == "suffix":
        return noise.choose_suffix(num_units, rng)
    if made.spans == "fixed":
        return noise.choose_fixed_spans(num_units, made.noise_rate, made.mean_span_length, rng)
    return noise.choose_poisson_spans(num_units, made.noise_rate, made.mean_span_length, rng)
