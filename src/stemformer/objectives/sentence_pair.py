"""Masked LM with a sentence-pair objective (Devlin et al. 2019, appendix A.2; Lan et al. 2020, section 3.1)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch
from stemformer.data.examples.packing import PackedDataset
from stemformer.data.examples.sentence_pairs import SentencePairDataset, make_sentence_pairs
from stemformer.data.shards.reader import Shards
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig


class SentencePairs(MaskedLm):
    """Masked LM, and whether text B follows A (`next`) or which comes first (`order`)."""

    heads: tuple[str, ...] = ("masked_lm", "next_sentence")

    def __init__(self, config: MaskedLmConfig, **options: Any) -> None:
        """Make it with the `options` of `MaskedLm`."""
        assert config.sentences != "none"
        super().__init__(config, **options)
        self.task = config.sentences
        self.loss_name = {"next": "next_sentence", "order": "sentence_order"}[self.task]

    def make_examples(self, shards: Shards, sequence_length: int) -> PackedDataset | SentencePairDataset:
        share = self.config.short_seq_prob
        return make_sentence_pairs(shards, sequence_length=sequence_length, task=self.task, short_seq_prob=share)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {**super().counts(batch), self.loss_name: len(batch.cu_seqlens) - 1}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "R"]:
        # The scored tokens, then each [CLS].
        return torch.cat([batch.label_positions, batch.cu_seqlens[:-1].long()])

    def loss(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> dict[str, LossSum]:
        assert batch.sequence_labels is not None
        tokens, cls = states[: len(batch.labels)], states[len(batch.labels) :]  # (M, D), (S, D)
        pairs = cross_entropy_sum(model.heads["next_sentence"](cls), batch.sequence_labels)
        return {**super().loss(model, tokens, batch), self.loss_name: pairs}

    def scores(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> Float[Tensor, "M V"]:
        return super().scores(model, states[: len(batch.labels)], batch)
