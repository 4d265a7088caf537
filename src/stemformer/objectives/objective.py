"""Objective protocol, registry of objectives, and the module that computes losses."""

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor, nn

from stemformer.data.examples.batch import Batch, Example, Run
from stemformer.data.examples.packing import PackedDataset, TokenStream
from stemformer.data.examples.sentence_pairs import SentencePairDataset
from stemformer.models.bart import Bart, DecoderInput
from stemformer.models.layers import pad_to_bucket
from stemformer.models.model import Model
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.objectives.denoising import Denoising, DenoisingConfig
from stemformer.objectives.losses import LossSum
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.objectives.sentence_pair import SentencePairs

# Data sets of pre-training.
Examples = PackedDataset | TokenStream | SentencePairDataset

ObjectiveConfig = MaskedLmConfig | CausalLmConfig | DenoisingConfig

# Heads that predict tokens.
LM_HEADS = {"masked_lm", "causal_lm", "seq2seq_lm"}


@runtime_checkable
class Objective(Protocol):
    """What the training loop requires of a pre-training objective or a task."""

    # Names of the heads it needs.
    heads: tuple[str, ...]

    def corrupt(self, raw: Any, rng: np.random.Generator) -> Example:
        """Make inputs and labels from a raw example, with the example's own random generator."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of scored items of a batch by loss name."""

    def scored_positions(self, batch: Batch) -> Tensor | None:
        """Return the positions (R,) whose last states `loss` needs, in order; None for all."""

    def loss(self, model: Model, states: Tensor, batch: Batch) -> dict[str, LossSum]:
        """Return the summed losses of a batch by name, from states (R, D)."""

    def scores(self, model: Model, states: Tensor, batch: Batch) -> Tensor:
        """Return the logits of a batch from states (R, D)."""


# `name` of an objective's config -> objective: masked LM without ("none") or with a sentence-pair objective; causal LM;
# denoising.
OBJECTIVES: dict[str, Any] = {
    "none": MaskedLm,
    "next": SentencePairs,
    "order": SentencePairs,
    "causal": CausalLm,
    "denoising": Denoising,
}


def make_objective(
    config: ObjectiveConfig,
    *,
    special: SpecialIds,
    vocab_size: int,
    unigram_counts: Integer[np.ndarray, "V"] | None = None,
) -> MaskedLm | CausalLm | Denoising:
    """Make the objective of a config; its softmax may be sampled only with `unigram_counts`."""
    options: dict[str, Any] = {"special": special, "vocab_size": vocab_size, "unigram_counts": unigram_counts}
    return OBJECTIVES[config.name](config, **options)


def num_softmax_ids(objective: Objective) -> int | None:
    """Return the number of ids that the loss of a language model sums over; None for all."""
    sampled = getattr(objective, "sampled_softmax", None)
    return None if sampled is None else sampled.size


def lookup_only_weights(model: Model, objective: Objective) -> list[nn.Parameter]:
    """Return the matrices of which a training step on a CPU only looks up rows."""
    word = model.body.embeddings.word.weight
    if not LM_HEADS & set(objective.heads):
        return [word]
    output = model.lm_head.decoder
    if num_softmax_ids(objective) is not None:
        return [word] if output is None else [word, output.weight]  # type: ignore[list-item]
    return [] if output is None else [word]


def num_scored_positions(objective: Objective, batch: Batch) -> int | None:
    """Return the number of positions whose last states are needed; None for all."""
    positions = objective.scored_positions(batch)
    return None if positions is None else len(positions)


class LossModule(nn.Module):
    """A model with its objective as one module with a single forward, as DDP needs it."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        if LM_HEADS & set(objective.heads):
            model.share_word_gradient()

    def forward(self, batch: Batch, *, return_logits: bool = False) -> Any:
        """Return the summed losses by name, or the objective's logits with `return_logits`."""
        if isinstance(self.model.body, Bart) and batch.decoder is None:
            batch = with_text_in_decoder(batch, self.model.body.config.decoder_start_token_id)
        rows = self.objective.scored_positions(batch)
        num_rows = None if rows is None else len(rows)
        if return_logits and rows is not None and torch.is_autocast_enabled(rows.device.type):
            # The head's rows too: oneDNN keeps a kernel for each number of them.
            rows = pad_to_bucket(rows, multiple=32)
        tokens = batch.input_ids, batch.position_ids, batch.token_type_ids
        sizes = batch.cu_seqlens, batch.max_seqlen
        options: dict[str, Any] = {"rows": rows, "causal": batch.is_causal}
        if (run := batch.decoder) is not None:
            options["decoder"] = DecoderInput(run.input_ids, run.position_ids, run.cu_seqlens, run.max_seqlen)
        states = self.model.body(*tokens, *sizes, **options)  # (R, D)
        if return_logits:
            return self.objective.scores(self.model, states, batch)[:num_rows]
        return self.objective.loss(self.model, states, batch)


def with_text_in_decoder(batch: Batch, start_token_id: int) -> Batch:
    """Return a batch whose decoder reads the text too, one token later, as BART does for tasks without a target.

    So the decoder's state at the position of a token has read the tokens before it, and sees all of the encoder's; the
    state of the last token represents a text.

    Source: Lewis et al. 2020, section 3.1 and 3.2.
    """
    starts, ends = batch.cu_seqlens[:-1].long(), batch.cu_seqlens[1:].long()
    ids = batch.input_ids.roll(1).index_fill(0, starts, start_token_id)
    decoder = Run(ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
    return replace(batch, decoder=decoder, summary_positions=ends - 1)
