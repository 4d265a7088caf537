"""Causal language modeling: predict each next token (Radford et al. 2018, section 3.1)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, Integer
from torch import Tensor

from stemformer.config import check_at_least
from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.packing import PackedDataset, RawExample, TokenStream, make_token_stream, pack_documents
from stemformer.data.shards.reader import Shards
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.objectives.masked_lm import SpecialIds
from stemformer.objectives.sampled_softmax import lm_loss_sum, make_sampled_softmax


@dataclass(frozen=True)
class CausalLmConfig:
    """Settings of causal language modeling."""

    name: ClassVar[str] = "causal"

    # `backward` reverses each text. A saved model, a GPT-2's, does not record it: its inputs must be reversed.
    direction: Literal["forward", "backward"] = "forward"
    # `apart` packs pieces of documents that do not attend to each other, split before words; `stream`
    # concatenates the documents and cuts them into rows of full length, in each epoch elsewhere, within which a token
    # attends to all earlier ones.
    documents: Literal["apart", "stream"] = "apart"
    # As for masked LM.
    sampled_softmax: int = 0

    def __post_init__(self) -> None:
        check_at_least(0, self, "objective.", "sampled_softmax")

    @property
    def example_settings(self) -> tuple[object, ...]:
        """What decides which text an example has, and in which order."""
        return (self.direction, self.documents)


class CausalLm:
    """Causal-LM objective on packed pieces of documents or on a token stream.

    The EOS token precedes each piece, and is predicted where the document ends with it (backward:
    starts). Each token, and one EOS per document, is scored exactly once per epoch.
    """

    heads: tuple[str, ...] = ("causal_lm",)

    def __init__(
        self,
        config: CausalLmConfig,
        *,
        special: SpecialIds,
        vocab_size: int | None = None,
        unigram_counts: Integer[np.ndarray, "V"] | None = None,
    ) -> None:
        self.config = config
        self.eos = special.eos
        self.sampled_softmax = make_sampled_softmax(config.sampled_softmax, unigram_counts)

    def make_examples(self, shards: Shards, sequence_length: int) -> PackedDataset | TokenStream:
        if self.config.documents == "stream":
            return make_token_stream(shards, sequence_length=sequence_length, eos_token_id=self.eos)
        return pack_documents(shards, sequence_length=sequence_length, num_special=1)

    def corrupt(self, raw: RawExample, rng: np.random.Generator) -> Example:
        is_backward = self.config.direction == "backward"
        tokens = raw.tokens[::-1] if is_backward else raw.tokens
        if self.config.documents == "stream":
            n = len(tokens) - 1
            return Example(tokens[:n], lengths=np.array([n]), label_positions=np.arange(n), labels=tokens[1:])
        assert raw.starts_document is not None and raw.ends_document is not None, "a packed example"
        lengths = raw.lengths[::-1] if is_backward else raw.lengths
        predicts_eos = raw.starts_document[::-1] if is_backward else raw.ends_document

        # Inputs: EOS, then the tokens, for each piece.
        sizes = lengths + 1
        input_ids = np.insert(tokens.astype(np.int64), np.cumsum(lengths) - lengths, self.eos)

        # Labels: the next input, or EOS after a piece, scored only at a document's end.
        lasts = np.cumsum(sizes) - 1
        labels = np.append(input_ids[1:], self.eos)
        labels[lasts] = self.eos
        positions = np.delete(np.arange(len(input_ids)), lasts[~predicts_eos])
        return Example(input_ids, lengths=sizes, label_positions=positions, labels=labels[positions])

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"causal_lm": len(batch.labels)}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "M"]:
        return batch.label_positions

    def loss(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> dict[str, LossSum]:
        return {"causal_lm": lm_loss_sum(model, states, batch.labels, self.sampled_softmax)}

    def scores(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> Float[Tensor, "M V"]:
        return model.lm_logits(states)
