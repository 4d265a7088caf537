"""Masked language modelling together with a question about pairs of texts: the two objectives of 2018, or sentence order.

Source: Devlin et al. 2019, section 3.1 and appendix A.2 (the training loss is the sum of the two means); Lan et al. 2020, section 3.1.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.data.batches import Batch, Example
from stemformer.data.chunks import Chunks, make_chunks
from stemformer.data.shards import Shards
from stemformer.data.windows import Passage, Rows, Stream
from stemformer.models.model import Model
from stemformer.objectives.causal import CausalLm, CausalLmConfig
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.objectives.masked import MaskedLm, MaskedLmConfig, SpecialIds

__all__ = [
    "OBJECTIVES",
    "Examples",
    "Objective",
    "ObjectiveConfig",
    "SentencePairs",
    "WithLoss",
    "make_objective",
    "num_places",
    "objective_name",
]


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

    def make_examples(self, shards: Shards, row_length: int) -> Rows | Chunks:
        """Returns the examples of a split: chunks that are split into pairs."""
        task: Literal["next", "order"] = "next" if self.question == "next_sentence" else "order"
        return make_chunks(shards, row_length=row_length, task=task, short_share=self.config.short_share)

    def corrupt(self, passage: Passage, rng: np.random.Generator) -> Example:
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


@runtime_checkable
class Objective(Protocol):
    """What the training loop asks of an objective of pre-training, and of a task.

    Attributes:
        heads: Names of the heads that it needs.
    """

    heads: tuple[str, ...]

    def corrupt(self, passage: Any, rng: np.random.Generator) -> Example:
        """Returns what the model sees of a passage."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many places of a batch are scored, by the name of the loss."""

    def places(self, batch: Batch) -> Tensor | None:
        """Returns the tokens of a batch whose last states are needed, in the order in which they are; None for all."""

    def loss(self, model: Model, states: Tensor, batch: Batch) -> dict[str, LossSum]:
        """Returns the summed losses of a batch from the states (R, D) of its places."""

    def scores(self, model: Model, states: Tensor, batch: Batch) -> Tensor:
        """Returns the scores of a batch from the states (R, D) of its places."""


OBJECTIVES: dict[str, type[MaskedLm] | type[SentencePairs] | type[CausalLm]] = {
    "none": MaskedLm,
    "next": SentencePairs,
    "order": SentencePairs,
    "causal": CausalLm,
}
"""`objective.sentences`, or `causal`, -> objective."""

Examples = Rows | Stream | Chunks
"""What the objectives of pre-training draw their passages from."""

ObjectiveConfig = MaskedLmConfig | CausalLmConfig
"""Settings of an objective of pre-training."""


def objective_name(config: ObjectiveConfig) -> str:
    """Returns the key of `OBJECTIVES` that a configuration belongs to."""
    return "causal" if isinstance(config, CausalLmConfig) else config.sentences


def make_objective(
    config: ObjectiveConfig, *, special: SpecialIds, vocab_size: int
) -> MaskedLm | SentencePairs | CausalLm:
    """Returns the objective of a configuration.

    Example:
        >>> make_objective(MaskedLmConfig(sentences="order"), special=SpecialIds(1, 2, 3), vocab_size=9).heads
        ('masked_lm', 'next_sentence')
    """
    if isinstance(config, CausalLmConfig):
        return CausalLm(config, end=special.end)
    kind = MaskedLm if config.sentences == "none" else SentencePairs
    return kind(config, special=special, vocab_size=vocab_size)


def num_places(objective: Objective, batch: Batch) -> int | None:
    """Returns of how many tokens an objective needs the last states; None for all."""
    places = objective.places(batch)
    return None if places is None else len(places)


class WithLoss(nn.Module):
    """A model and its objective as one module, so that whatever distributes or evaluates it sees a single forward.

    Args:
        model: Body and heads.
        objective: What is scored.
    """

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        if {"masked_lm", "causal_lm"} & set(objective.heads):
            model.share_word_gradient()

    def forward(self, batch: Batch, *, return_logits: bool = False) -> Any:
        """Returns the summed losses of a batch by name, or with `return_logits` the objective's scores of its marked places."""
        states = self.model.body(
            batch.input_ids,
            batch.position_ids,
            batch.token_type_ids,
            batch.cu_seqlens,
            batch.max_seqlen,
            rows=self.objective.places(batch),
        )
        if return_logits:
            return self.objective.scores(self.model, states, batch)
        return self.objective.loss(self.model, states, batch)
