"""Held-out figures of a masked model, on examples and masks that never change, beside what counting alone would give."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Integer
from torch import nn

from stemformer.data.examples.batch import Batch, collate
from stemformer.data.examples.sampling import example_generator, permuted
from stemformer.errors import DataError
from stemformer.objectives.masked_lm import MaskedLmConfig
from stemformer.objectives.objective import Examples, Objective, ObjectiveConfig

_SEED = 2**40 + 1
"""Of the choice of rows and of their masks: the same in every run, so that figures of two runs compare."""


def held_out_masks(config: ObjectiveConfig) -> ObjectiveConfig:
    """Returns how held-out text is hidden, whatever is hidden in training: single tokens, 15 %, so that figures of two runs compare.

    The next word hides nothing.
    """
    if not isinstance(config, MaskedLmConfig):
        return config
    return MaskedLmConfig(sentences=config.sentences, short_share=config.short_share)


def held_out_batches(
    examples: Examples, objective: Objective, *, num_examples: int, batch_tokens: int = 4096
) -> list[Batch]:
    """Returns the same masked examples each time.

    Args:
        examples: Of the held-out split.
        objective: What is hidden.
        num_examples: How many, at most; they are drawn from all.
        batch_tokens: Tokens a batch, about.

    Raises:
        DataError: The split has no example.
    """
    if len(examples) == 0:
        raise DataError("the held-out split has no row: prepare the data again with a larger --held-out")
    chosen = permuted(np.arange(min(num_examples, len(examples))), len(examples), seed=_SEED, epoch=0).tolist()
    made = []
    for i in chosen:
        rng = example_generator(_SEED, 0, i)
        made.append(objective.corrupt(examples.get_example(i, rng), rng))
    size = max(1, batch_tokens // examples.row_length)
    return [collate(made[a : a + size], chosen[a : a + size]) for a in range(0, len(chosen), size)]


def baselines(counts: Integer[np.ndarray, "V"], batches: Sequence[Batch]) -> dict[str, float]:
    """Returns what can be had without reading: guessing words by frequency, and always giving the more frequent answer about pairs.

    Args:
        counts: How often each id stands in the training text; one is added to each, so that none is impossible.
        batches: Scored batches.

    Returns:
        `unigram_loss` (nats) and `unigram_accuracy`; with pairs `majority_accuracy`.
    """
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    smoothed = counts.astype(np.float64) + 1
    log_p = np.log(smoothed / smoothed.sum())
    told = {
        "unigram_loss": float(-log_p[labels].mean()),
        "unigram_accuracy": float((labels == smoothed.argmax()).mean()),
    }
    answers = [batch.sequence_labels for batch in batches if batch.sequence_labels is not None]
    if answers:
        ones = float(torch.cat(answers).double().mean())
        told["majority_accuracy"] = max(ones, 1 - ones)
    return told


@torch.inference_mode()
def evaluate_held_out(
    module: nn.Module,
    batches: Sequence[Batch],
    *,
    device: torch.device,
    num_counted: int | None = None,
    add: Callable[[Sequence[float]], list[float]] = list,
) -> dict[str, float]:
    """Returns mean loss (nats) and accuracy over all scored places of the batches, by the objective's names of losses.

    Args:
        module: Its forward gives the summed losses of a batch (`objectives.sentence_pairs.WithLoss`).
        batches: At least one.
        device: Where the module is.
        num_counted: Only the first so many count; this rank goes through the others to keep step with the other ranks.
        add: Sums numbers over all ranks.
    """
    module.eval()
    totals: dict[str, list[float]] = {}
    for number, batch in enumerate(batches):
        weight = float(num_counted is None or number < num_counted)
        for name, loss in module(batch.to(device)).items():
            sums = totals.setdefault(name, [0.0, 0.0, 0.0])
            sums[0] += weight * float(loss.total)
            sums[1] += weight * float(loss.correct)
            sums[2] += weight * loss.count
    whole = add([value for sums in totals.values() for value in sums])
    out: dict[str, float] = {}
    for i, name in enumerate(totals):
        total, correct, count = whole[3 * i : 3 * i + 3]
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
    add: Callable[[Sequence[float]], list[float]] = list,
) -> Callable[[nn.Module], dict[str, float]]:
    """Returns a function from a module to its held-out figures, the baselines among them; ranks share the work.

    Args:
        examples: Of the held-out split.
        objective: What is hidden.
        num_examples: How many examples, at most.
        device: Where the module is.
        rank: Of this process, from 0.
        world_size: How many ranks there are; each takes every so manieth batch, and all the same number of them.
        add: Sums numbers over all ranks.
    """
    batches = held_out_batches(examples, objective, num_examples=num_examples)
    counts = examples.shards.manifest.splits["held_out" if "held_out" in examples.shards.manifest.splits else "train"]
    tokens_per_byte = (counts.tokens + counts.documents) / counts.bytes  # a document's end is asked for too
    known = baselines(examples.shards.unigram_counts, batches)
    own = batches[rank::world_size]
    as_many = [*own, *batches[: -(-len(batches) // world_size) - len(own)]]

    def evaluate(module: nn.Module) -> dict[str, float]:
        figures = evaluate_held_out(module, as_many, device=device, num_counted=len(own), add=add)
        if "causal_lm_loss" in figures:
            figures["bits_per_byte"] = figures["causal_lm_loss"] * tokens_per_byte / math.log(2)
        return {f"held_out_{name}": value for name, value in {**figures, **known}.items()}

    return evaluate
