"""Held-out loss and accuracy on fixed examples and masks, next to baselines from counts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Integer
from torch import nn

from stemformer.data.examples.batch import Batch
from stemformer.data.examples.sampling import example_generator, permuted
from stemformer.errors import DataError
from stemformer.evaluation.inference import even_batches
from stemformer.objectives.denoising import Denoising
from stemformer.objectives.masked_lm import MaskedLmConfig
from stemformer.objectives.objective import Examples, Objective, ObjectiveConfig

SumOverRanks = Callable[[Sequence[float]], list[float]]
"""Sums each of some numbers over all ranks."""

# Of examples and masks: the same in every run, so that runs are comparable.
SEED = 2**40 + 1


def held_out_masks(config: ObjectiveConfig) -> ObjectiveConfig:
    """Return the objective for held-out text: 15 % token masks, whatever training masks."""
    if not isinstance(config, MaskedLmConfig):
        return config
    return MaskedLmConfig(sentences=config.sentences, short_seq_prob=config.short_seq_prob)


def held_out_batches(examples: Examples, objective: Objective, *, num_examples: int) -> list[Batch]:
    """Return the same masked examples at each call, sampled from all."""
    if len(examples) == 0:
        raise DataError("The held-out split has no examples. Prepare the data again with a larger --held-out.")
    chosen = permuted(np.arange(min(num_examples, len(examples))), len(examples), seed=SEED, epoch=0).tolist()
    made = []
    for i in chosen:
        rng = example_generator(SEED, 0, i)
        made.append(objective.corrupt(examples.get_example(i, rng), rng))
    return even_batches(made, length=examples.sequence_length, numbers=chosen)


def baselines(counts: Integer[np.ndarray, "V"], batches: Sequence[Batch]) -> dict[str, float]:
    """Return `unigram_loss` (nats), `unigram_accuracy`, and with sentence pairs `majority_accuracy`.

    `counts` of the ids in the training text are smoothed (Laplace).
    """
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    smoothed = counts.astype(np.float64) + 1
    log_p = np.log(smoothed / smoothed.sum())
    metrics = {
        "unigram_loss": float(-log_p[labels].mean()),
        "unigram_accuracy": float((labels == smoothed.argmax()).mean()),
    }
    if answers := [batch.sequence_labels for batch in batches if batch.sequence_labels is not None]:
        ones = float(torch.cat(answers).double().mean())
        metrics["majority_accuracy"] = max(ones, 1 - ones)
    return metrics


@torch.inference_mode()
def evaluate_held_out(
    module: nn.Module, batches: Sequence[Batch], *, device: torch.device, num_counted: int, add: SumOverRanks = list
) -> dict[str, float]:
    """Return the mean loss (nats) and accuracy over scored positions, by loss.

    Only the first `num_counted` batches count: the others make the number of forward passes equal
    on all ranks. `module` returns the summed losses of a batch (`objectives.objective.LossModule`).
    """
    module.eval()
    totals: dict[str, np.ndarray] = {}
    for number, batch in enumerate(batches):
        weight = float(number < num_counted)
        for name, loss in module(batch.to(device)).items():
            sums = weight * np.array([float(loss.total), float(loss.correct), loss.count])
            totals[name] = totals.get(name, 0.0) + sums
    reduced = np.reshape(add(np.concatenate(list(totals.values())).tolist()), (-1, 3)).tolist()
    out: dict[str, float] = {}
    for name, (total, correct, count) in zip(totals, reduced, strict=True):
        out |= {f"{name}_loss": total / max(1.0, count), f"{name}_accuracy": correct / max(1.0, count)}
    return out


def make_held_out_evaluation(
    examples: Examples,
    objective: Objective,
    *,
    num_examples: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    add: SumOverRanks = list,
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that computes the held-out metrics of a module, baselines included."""
    batches = held_out_batches(examples, objective, num_examples=num_examples)
    splits = examples.shards.manifest.splits
    counts = splits["held_out" if "held_out" in splits else "train"]
    # The end of each document is predicted, too.
    tokens_per_byte = (counts.tokens + counts.documents) / counts.bytes
    unigram_counts = examples.shards.unigram_counts
    if batches[0].decoder is not None:
        assert isinstance(objective, Denoising), "the only objective with a decoder"
        batches = [_text_only(batch, objective) for batch in batches]
        unigram_counts = _with_ends(unigram_counts, batches, objective.special.sep)
    known = baselines(unigram_counts, batches)
    # Ranks take batches in turn.
    own = batches[rank::world_size]
    padded = [*own, *batches[: -(-len(batches) // world_size) - len(own)]]

    def evaluate(module: nn.Module) -> dict[str, float]:
        metrics = evaluate_held_out(module, padded, device=device, num_counted=len(own), add=add)
        if "causal_lm_loss" in metrics:
            metrics["bits_per_byte"] = metrics["causal_lm_loss"] * tokens_per_byte / math.log(2)
        return {f"held_out_{name}": value for name, value in {**metrics, **known}.items()}

    return evaluate


def _text_only(batch: Batch, objective: Denoising) -> Batch:
    """Return a batch that scores a text and its end, not `<s>`, always the first token, and sentinels, in their order."""
    structure = torch.tensor([objective.special.cls, *objective.special.sentinels])
    kept = ~torch.isin(batch.labels, structure)
    is_copied = None if batch.is_copied is None else batch.is_copied[kept]
    return replace(batch, labels=batch.labels[kept], label_positions=batch.label_positions[kept], is_copied=is_copied)


def _with_ends(counts: Integer[np.ndarray, "V"], batches: Sequence[Batch], end_id: int) -> Integer[np.ndarray, "V"]:
    """Return counts of the ids of a text with its ends `</s>`, as frequent as in the batches."""
    number = sum(int((batch.labels == end_id).sum()) for batch in batches)
    num_tokens = sum(len(batch.labels) for batch in batches) - number
    found = counts.astype(np.int64)
    found[end_id] += round(int(found.sum()) * number / max(1, num_tokens))
    return found
