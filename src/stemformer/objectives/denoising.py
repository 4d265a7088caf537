"""Denoising: repair a broken text with an encoder-decoder.

Source: Lewis et al. 2020, section 2.2; the noises and their definitions: `objectives.noise`.
"""

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
from stemformer.objectives.noise import NoisyText, Spans


@dataclass(frozen=True)
class Noise:
    """Noise in terms of what `objectives.noise` does, in the order in which it does it."""

    # Share of the sentences that are permuted among themselves.
    permute_rate: float = 0.0
    # What is lost: single units, spans of Poisson lengths, one fragment, or nothing.
    spans: Literal["none", "single", "poisson", "fragment"] = "none"
    # Share of the units that is lost, and the mean length of Poisson spans.
    noise_rate: float = 0.0
    mean_span_length: float = 3.0
    # What replaces the units that are lost: a mask for each token or for each span, or nothing.
    replace: Literal["each", "one", "none"] = "each"
    # Probability that a text is rotated.
    rotate_prob: float = 0.0


NOISES: dict[str, Noise] = {
    "infilling_permutation": Noise(spans="poisson", noise_rate=0.3, replace="one", permute_rate=1.0),
    "infilling": Noise(spans="poisson", noise_rate=0.3, replace="one"),
    "masking": Noise(spans="single", noise_rate=0.15),
    "deletion": Noise(spans="single", noise_rate=0.15, replace="none"),
    "permutation": Noise(permute_rate=1.0),
    "rotation": Noise(rotate_prob=1.0),
    "fragment": Noise(spans="fragment", noise_rate=0.5),
}
"""Name -> noise; `infilling_permutation` is BART's choice (Lewis et al. 2020, section 3)."""


@dataclass(frozen=True)
class DenoisingConfig:
    """Settings of denoising: a named noise, of which the other fields change values."""

    name: ClassVar[str] = "denoising"

    # A key of `NOISES`.
    preset: Literal[
        "infilling_permutation", "infilling", "masking", "deletion", "permutation", "rotation", "fragment"
    ] = "infilling_permutation"
    # Share of the units that is lost.
    noise_rate: float | None = None
    # Mean number of units of a Poisson span.
    mean_span_length: float | None = None
    # Share of the sentences that are permuted.
    permute_rate: float | None = None
    # Probability that a text is rotated.
    rotate_prob: float | None = None
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
        loses = noise.spans != "none"
        unused = {
            "noise_rate": self.noise_rate is not None and not loses,
            "mean_span_length": self.mean_span_length is not None and noise.spans != "poisson",
            "unit": self.unit != "token" and not loses,
            "random_replace_prob": self.random_replace_prob > 0 and not (loses and noise.replace != "none"),
        }
        if name := next((name for name, is_unused in unused.items() if is_unused), None):
            problem = f"objective.{name} is {getattr(self, name)!r}, which the noise {self.preset!r} does not use"
            raise ConfigError(f"{problem}. Remove it, or set another objective.preset.")

    @property
    def noise(self) -> Noise:
        """The noise of the preset with the values that are set."""
        values = {name: value for name, value in asdict(self).items() if name in Noise.__dataclass_fields__}
        return replace(NOISES[self.preset], **{name: value for name, value in values.items() if value is not None})


class Denoising:
    """Denoising objective: the encoder reads a broken text, the decoder writes the original.

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
        never_random = (special.cls, special.sep, special.mask, special.eos, *special.others)
        self._ordinary_ids = np.setdiff1d(np.arange(vocab_size), never_random)

    def make_examples(self, shards: Shards, sequence_length: int) -> PackedDataset:
        return pack_documents(shards, sequence_length=sequence_length, ends="sentence")

    def corrupt(self, raw: RawExample, rng: np.random.Generator) -> Example:
        """Break each sequence of an example by itself."""
        special, stops = self.special, np.cumsum(raw.lengths)
        assert raw.sentence_starts is not None, "a packed example"
        sources, targets, copied = [], [], []
        for start, stop in zip((stops - raw.lengths).tolist(), stops.tolist(), strict=True):
            tokens, span = raw.tokens[start:stop], slice(start, stop)
            text = self.add_noise(tokens, raw.word_starts[span], raw.sentence_starts[span], rng)
            is_copied = np.zeros(len(tokens), bool)
            is_copied[text.origins[text.origins >= 0]] = True
            sources.append(text.ids)
            targets.append(tokens)
            copied.append(is_copied)
        return make_encoder_decoder_example(
            sources,
            targets,
            cls=special.cls,
            sep=special.sep,
            is_copied=copied,
            num_dropped_tokens=raw.num_dropped_tokens,
        )

    def add_noise(
        self,
        tokens: Int[np.ndarray, "n"],
        word_starts: Bool[np.ndarray, "n"],
        sentence_starts: Bool[np.ndarray, "n"],
        rng: np.random.Generator,
    ) -> NoisyText:
        """Return a text as the encoder sees it, without special tokens around it."""
        made, text = self.config.noise, NoisyText.of(tokens)
        if made.permute_rate:
            firsts = np.flatnonzero(sentence_starts)
            # A text that starts within a sentence.
            firsts = firsts if len(firsts) and firsts[0] == 0 else np.append(0, firsts)
            order = noise.permute_sentences(firsts, len(tokens), made.permute_rate, rng)
            text, word_starts = text[order], word_starts[order]
        if made.spans != "none" and made.noise_rate:
            starts = np.flatnonzero(word_starts) if self.config.unit == "word" else np.arange(len(tokens))
            spans = noise.token_spans(_choose_spans(made, len(starts), rng), starts, len(tokens))
            text = self._without(text, spans, made, rng)
        if made.rotate_prob and rng.random() < made.rotate_prob:
            text = text[noise.rotate_text(len(text.ids), rng)]
        return text

    def _without(self, text: NoisyText, spans: Spans, made: Noise, rng: np.random.Generator) -> NoisyText:
        if made.replace == "none":
            return noise.delete(text, spans)
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


def _choose_spans(made: Noise, num_units: int, rng: np.random.Generator) -> Spans:
    if made.spans == "single":
        return noise.choose_units(num_units, made.noise_rate, rng)
    if made.spans == "fragment":
        return noise.choose_fragment(num_units, made.noise_rate, rng)
    return noise.choose_poisson_spans(num_units, made.noise_rate, made.mean_span_length, rng)
