"""Masked language modelling together with a question about pairs of texts: the two objectives of 2018, or sentence order.

Source: Devlin et al. 2019, section 3.1 and appendix A.2 (the training loss is the sum of the two means); Lan et al. 2020, section 3.1.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.packing import PackedDataset, RawExample
from stemformer.data.examples.sentence_pairs import SentencePairDataset, make_sentence_pairs
from stemformer.data.shards.reader import Shards
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds


class SentencePairs:
    """Masked words, and whether text B follows text A (`next`) or which of the two comes first (`order`).

    Args:
        config: `sentences` says which question is asked.
        special: Ids of `[CLS]`, `[SEP]` and `[MASK]`.
        vocab_size: Random words are drawn from all of it.
    """

    heads: tuple[str, ...] = ("masked_lm", "next_sentence")

    def __init__(self, config: MaskedLmConfig, *, special: SpecialIds, vocab_size: int) -> None:
        self.masked = MaskedLm(config, special=special, vocab_size=vocab_size)
        self.config = config
        self.question = "next_sentence" if config.sentences == "next" else "sentence_order"

    def make_examples(self, shards: Shards, row_length: int) -> PackedDataset | SentencePairDataset:
        """Returns the examples of a split: chunks that are split into pairs."""
        task: Literal["next", "order"] = "next" if self.question == "next_sentence" else "order"
        return make_sentence_pairs(shards, row_length=row_length, task=task, short_share=self.config.short_share)

    def corrupt(self, passage: RawExample, rng: np.random.Generator) -> Example:
        """Returns the pair with some of its words hidden; see `MaskedLm.corrupt`."""
        return self.masked.corrupt(passage, rng)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many places and how many pairs of a batch are scored."""
        return {**self.masked.counts(batch), self.question: len(batch.cu_seqlens) - 1}

    def places(self, batch: Batch) -> Int[Tensor, "R"]:
        """Returns the tokens of a batch whose states are needed: the scored ones, then each `[CLS]`."""
        return torch.cat([batch.label_positions, batch.cu_seqlens[:-1].long()])

    def loss(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> dict[str, LossSum]:
        """Returns the two summed losses of a batch from the states of its places."""
        assert batch.sequence_labels is not None
        scored, firsts = states[: len(batch.labels)], states[len(batch.labels) :]
        pairs = cross_entropy_sum(model.next_sentence_logits(firsts), batch.sequence_labels)
        return {**self.masked.loss(model, scored, batch), self.question: pairs}

    def scores(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> Float[Tensor, "M V"]:
        """Returns the masked-LM scores of a batch's marked places."""
        return self.masked.scores(model, states[: len(batch.labels)], batch)
