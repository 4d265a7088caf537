"""Denoising on held-out text: loss at lost and at copied tokens, gain from the source."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stemformer.data.examples.batch import Batch
from stemformer.data.examples.encoder_decoder import NUM_START_TOKENS
from stemformer.data.examples.packing import PackedDataset
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.evaluation.held_out import SEED, held_out_batches
from stemformer.generation.beam_search import BeamConfig
from stemformer.generation.rewriting import decode_sources
from stemformer.models.bart import DecoderInput
from stemformer.models.model import Model
from stemformer.objectives.denoising import Denoising
from stemformer.objectives.losses import LossSum, linear_cross_entropy_sum
from stemformer.objectives.noise_effect import example_texts

MIN_SOURCE_GAIN = 0.05
"""Source gain in nats a token below which a decoder ignores its source."""

_NUM_EXAMPLES = 64
# Special tokens of a source.
_NUM_SPECIAL = 2
# Texts that are shown, and the tokens that may be written of each besides those of its target.
_NUM_SHOWN, _NUM_MORE = 3, 8


def make_repair_evaluation(
    examples: PackedDataset, objective: Denoising, *, device: torch.device, tokenizer: Tokenizer | None = None
) -> Callable[[nn.Module], dict[str, Any]]:
    """Return a function that measures how a model repairs fixed texts with fixed noise.

    Its results are `held_out_lost_loss` and `held_out_copied_loss` (nats a token, of tokens of the text that the source
    lacks and has; absent if there are none, as of copied ones where the decoder writes only what is lost), their
    `_accuracy`, and `held_out_source_gain`: the nats a token that the loss rises by if each target gets the source of
    another text. It is 0 for a model that ignores its source, and absent if sources hold nothing of a text. Special
    tokens of the targets, `<s>`, `</s>` and sentinels, are left out: they say little of the text. With a tokenizer also
    `repairs`: a few texts as the `source` has them, their `target`, and what the model has `written`.
    """
    shown = [] if tokenizer is None else example_texts(examples, objective, tokenizer, number=_NUM_SHOWN, seed=SEED)
    special_ids = torch.tensor(sorted(objective.special_ids), device=device)
    batches = [batch.to(device) for batch in held_out_batches(examples, objective, num_examples=_NUM_EXAMPLES)]

    def measure(module: nn.Module) -> dict[str, Any]:
        # Within DDP.
        model = getattr(module, "module", module).model
        assert isinstance(model, Model)
        model.eval()
        metrics = repair_metrics(model, batches, special_ids)
        repairs = {"repairs": _written(model, shown, tokenizer)} if tokenizer is not None else {}
        return {**{f"held_out_{name}": value for name, value in metrics.items()}, **repairs}

    return measure


def _written(model: Model, shown: list[dict[str, Any]], tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Return texts with what the model writes greedily, at most a few tokens more than the longest target has."""
    room = model.config.max_position_embeddings - NUM_START_TOKENS
    limit = min(room, max((len(row["target_ids"]) for row in shown), default=0) + _NUM_MORE)
    config = BeamConfig(num_beams=1, max_new_tokens=limit)
    sources = [row["source_ids"] for row in shown]
    found = decode_sources(sources, model, config, batch_size=len(shown), limit_of=lambda length: limit)
    return [
        {"source": row["source"], "target": row["target"], "written": tokenizer.decode(best.ids)}
        for row, (best,) in zip(shown, found, strict=True)
    ]


@torch.inference_mode()
def repair_metrics(model: Model, batches: list[Batch], special_ids: Int[Tensor, "_"]) -> dict[str, float]:
    """Return the metrics of `make_repair_evaluation`, without prefix; `special_ids` are no tokens of a text."""
    sums: dict[str, float] = defaultdict(float)
    for batch in batches:
        assert batch.decoder is not None and batch.is_copied is not None, "a batch of denoising"
        is_text = ~torch.isin(batch.labels, special_ids)
        states = _states(model, batch)
        groups = {"lost": is_text & ~batch.is_copied, "copied": is_text & batch.is_copied}
        for name, chosen in groups.items():
            loss = _loss(model, states, batch, chosen)
            sums[f"{name}_loss"] += float(loss.total)
            sums[f"{name}_accuracy"] += float(loss.correct)  # type: ignore[arg-type]
            sums[name] += loss.count
        gain, count = _gain_and_count(model, batch, states, is_text)
        sums["source_gain"] += gain
        sums["swapped"] += count
    metrics = {
        f"{group}_{kind}": sums[f"{group}_{kind}"] / sums[group]
        for group in ("lost", "copied")
        if sums[group]
        for kind in ("loss", "accuracy")
    }
    return {**metrics, **({"source_gain": sums["source_gain"] / sums["swapped"]} if sums["swapped"] else {})}


@torch.inference_mode()
def source_gain(model: Model, batches: Iterable[Batch]) -> float | None:
    """Return the nats a token that the loss rises by if each target gets the source of another text of its batch.

    None if no batch has several texts, or sources hold nothing but special tokens.
    """
    model.eval()
    parts = ((batch, _states(model, batch), ~_first_tokens(batch)) for batch in batches)
    gains, counts = zip(*(_gain_and_count(model, *part) for part in parts), strict=True)
    return sum(gains) / sum(counts) if sum(counts) else None


def _gain_and_count(
    model: Model, batch: Batch, states: Float[Tensor, "M D"], chosen: Bool[Tensor, "M"]
) -> tuple[float, int]:
    """Return the gain, summed over the chosen tokens of the targets, and their number; `states` are of all."""
    if len(batch.cu_seqlens) <= 2 or batch.max_seqlen <= _NUM_SPECIAL:
        return 0.0, 0
    other = _loss(model, _states(model, with_other_sources(batch)), batch, chosen)
    own = _loss(model, states, batch, chosen)
    return float(other.total) - float(own.total), own.count


def _first_tokens(batch: Batch) -> Bool[Tensor, "M"]:
    """Return which tokens of the targets are `<s>`."""
    assert batch.decoder is not None, "a batch of an encoder-decoder"
    is_first = torch.zeros(len(batch.labels), dtype=torch.bool, device=batch.labels.device)
    is_first[batch.decoder.cu_seqlens[:-1].long()] = True
    return is_first


def with_other_sources(batch: Batch) -> Batch:
    """Return a batch in which each target has the source of the next sequence, in a ring."""
    lengths = batch.cu_seqlens.diff().long()
    order = torch.arange(len(lengths), device=lengths.device).roll(-1)
    starts = batch.cu_seqlens[:-1].long()[order]
    cu_seqlens = torch.cat([batch.cu_seqlens[:1], lengths[order].cumsum(0).int()])
    shifts = (starts - cu_seqlens[:-1]).repeat_interleave(lengths[order])
    tokens = torch.arange(len(batch.input_ids), device=shifts.device) + shifts
    moved = {name: getattr(batch, name)[tokens] for name in ("input_ids", "position_ids", "token_type_ids")}
    return replace(batch, cu_seqlens=cu_seqlens, **moved)


def _states(model: Model, batch: Batch) -> Float[Tensor, "M D"]:
    run = batch.decoder
    assert run is not None
    tokens = batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen
    decoder = DecoderInput(run.input_ids, run.position_ids, run.cu_seqlens, run.max_seqlen)
    return model.body(*tokens, decoder=decoder, rows=batch.label_positions)


def _loss(model: Model, states: Float[Tensor, "M D"], batch: Batch, chosen: Bool[Tensor, "M"]) -> LossSum:
    return linear_cross_entropy_sum(*model.lm_projection(states[chosen]), batch.labels[chosen])
