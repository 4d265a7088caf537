"""Masked language modelling together with a question about pairs of texts: the two objectives of 2018, or sentence order.

Source: Devlin et al. 2019, section 3.1 and appendix A.2 (the training loss is the sum of the two means); Lan et al. 2020, section 3.1.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.packing import PackedDataset, TokenStream
from stemformer.data.examples.sentence_pairs import SentencePairDataset
from stemformer.models.model import Model
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.objectives.losses import LossSum
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.objectives.sentence_pair import SentencePairs


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


Examples = PackedDataset | TokenStream | SentencePairDataset
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


def num_scored_positions(objective: Objective, batch: Batch) -> int | None:
    """Returns of how many tokens an objective needs the last states; None for all."""
    places = objective.places(batch)
    return None if places is None else len(places)


class LossModule(nn.Module):
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
