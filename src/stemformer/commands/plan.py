"""Estimate time and memory of a recipe."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemformer.commands.training_run import resolve
from stemformer.data.examples.batch import Batch, Example, collate
from stemformer.data.examples.packing import PackedDataset, RawExample
from stemformer.data.examples.sampling import example_generator
from stemformer.data.shards.manifest import read_manifest
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.device import (
    autocast,
    choose_compile,
    choose_device,
    choose_precision,
    configure_allocator,
    set_threads,
)
from stemformer.models.model import Model, make_model
from stemformer.objectives.denoising import Denoising
from stemformer.objectives.masked_lm import MaskedLm, SpecialIds
from stemformer.objectives.noise_effect import example_texts, measure_noise
from stemformer.objectives.objective import OBJECTIVES, Examples, LossModule, Objective, make_objective
from stemformer.options import PlanOptions, accepts
from stemformer.progress import Progress, Silent
from stemformer.recipes import find_recipe
from stemformer.training.config import BatchConfig, RunConfig, num_steps_for
from stemformer.training.initialization import keep_lookup_gradients, special_ids
from stemformer.training.optimizer import clip_grad_norm, make_optimizer, state_names
from stemformer.training.throughput import compile_blocks, matmul_rate, step_flops

# Forward and backward passes that are timed, after one for warm-up.
_NUM_TIMED = 3
# Texts that are shown; tokens of a sentence of random ids.
_NUM_TEXTS, _SENTENCE_LENGTH = 3, 25


@accepts(PlanOptions)
def plan(options: PlanOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Estimate time and memory of a recipe on this machine, from a few steps.

    Tokenized data sets the vocabulary size, how full the sequences are, and the length of an epoch.

    Returns:
        `parameters`, `memory_mb` (peak, without that of the libraries; none if the process has used as much before),
        `checkpoint_mb`; for each sequence length
        seconds per step, tokens per second and MFU; hours for the budget of the recipe, for a million
        tokens, and with data for an epoch; with data also `examples`, texts as the model reads them (`source`) and as
        it learns to write them (`target`), and of denoising `noise`, what it does to the texts (`NoiseEffect`).

    Raises:
        ConfigError: The noise needs other sentinels than the tokenizer has, or does nothing to the texts.
    """
    progress = progress or Silent()
    data = options.data
    config = resolve(find_recipe(options.recipe), options)
    set_threads(config.compute.threads)
    device = choose_device(config.compute.device)
    precision = choose_precision(config.compute.precision, device)
    before = _resident_mb()
    if data is not None:
        # The error of `read_manifest` says what is missing if this is not tokenized data.
        read_manifest(data)
        tokenizer = load_tokenizer(Path(data) / "tokenizer")
        config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    vocab_size = config.model.vocab_size
    made_up = SpecialIds(cls=2, sep=3, mask=4, eos=0, sentinels=tuple(range(5, vocab_size // 2)))
    special = made_up if data is None else special_ids(config, tokenizer)
    counts = np.ones(vocab_size, np.int64) if device.type == "cpu" else None
    objective = make_objective(config.objective, special=special, vocab_size=vocab_size, unigram_counts=counts)
    lengths = [batch.sequence_length for _, batch in config.all_phases()]
    examples = [] if data is None else [objective.make_examples(open_shards(data), length) for length in lengths]
    # Its errors come before anything is measured.
    texts = _texts(config, objective, examples, None if data is None else tokenizer)
    heads = OBJECTIVES[config.objective.name].heads
    generator = torch.Generator().manual_seed(0)
    model = make_model(config.model, heads, tied=config.ties_embeddings, generator=generator).to(device).train()
    configure_allocator(device)
    keep_lookup_gradients(model, objective)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if choose_compile(config.compute.compile, device):
        compile_blocks(model)
    progress.start("measuring", total=len(config.all_phases()) * (_NUM_TIMED + 1), unit="micro-batches")
    phases = []
    for number, (start, batch) in enumerate(config.all_phases()):
        is_causal = start < config.causal_start_ratio
        tokens_per_sequence: float = batch.sequence_length
        if examples:
            tokens_per_sequence = examples[number].num_tokens / len(examples[number])
        made = _random_batch(
            config, objective, batch.micro_size or batch.size, max(5, round(tokens_per_sequence)), is_causal
        )
        phases.append(_probe(LossModule(model, objective), config, batch, made, precision, progress))
    progress.finish()
    memory = _resident_mb() - before if device.type == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    stored = 4 * num_stored_values(model, config)
    # Weights, optimizer states and gradients are the least that training needs.
    is_measured = memory * 2**20 >= stored + 4 * model.num_parameters()
    if not is_measured:
        progress.say("memory is not measured: this process has used as much before. Run `stemformer plan` in a new one")
    peak = matmul_rate(device, precision)
    return {
        "recipe": config.recipe,
        "device": str(device),
        "precision": precision,
        "parameters": model.num_parameters(),
        **({"memory_mb": round(memory)} if is_measured else {}),
        "checkpoint_mb": round(stored / 1e6),
        **{
            _phase_name(config, number): {
                "batch_size": batch.size,
                "tokens_per_step": round(probed["tokens"]),
                "seconds_per_step": round(probed["seconds"], 3),
                "tokens_per_second": round(probed["tokens"] / probed["seconds"]),
                "mfu": round(probed["flops"] / probed["seconds"] / peak, 3),
            }
            for number, ((_, batch), probed) in enumerate(zip(config.all_phases(), phases, strict=True))
        },
        **_durations(config, phases, examples),
        **texts,
    }


def _phase_name(config: RunConfig, number: int) -> str:
    """Return the key of a phase: its sequence length, and what tells it from others of the same length."""
    start, batch = config.all_phases()[number]
    is_causal = [other < config.causal_start_ratio for other, _ in config.all_phases()]
    same = [
        is_causal[i] == is_causal[number] and other.sequence_length == batch.sequence_length
        for i, (_, other) in enumerate(config.all_phases())
    ]
    name = f"sequence_length_{batch.sequence_length}" + "_causal" * is_causal[number]
    return f"{name}_from_{start:g}" if sum(same) > 1 else name


def num_stored_values(model: Model, config: RunConfig) -> int:
    """Return the number of values in a checkpoint: weights and optimizer states."""
    number = model.num_parameters()
    for group in make_optimizer(model, config.optimizer).param_groups:
        num_states = sum(name != "step" for name in state_names(group))
        number += num_states * sum(p.numel() for p in group["params"])
    return number


def _probe(
    module: LossModule, config: RunConfig, batch: BatchConfig, made: Batch, precision: str, progress: Progress
) -> dict[str, float]:
    """Return tokens, seconds and FLOPs of a step, from a timed micro-batch and optimizer step."""
    model, size = module.model, batch.micro_size or batch.size
    device = next(model.parameters()).device
    made = made.to(device)
    seconds = []
    for _ in range(_NUM_TIMED + 1):
        started = time.perf_counter()
        with autocast(device, precision):
            losses = module(made)
        torch.stack([loss.total for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
        progress.advance(1)
    optimizer = make_optimizer(model, config.optimizer, precision=precision)
    # The first step creates the states.
    optimizer.step()
    started = time.perf_counter()
    num_steps = config.optimizer.muon_interval
    for _ in range(num_steps):
        clip_grad_norm(optimizer, model.parameters(), 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.kept_gradients.clear()
    _synchronize(device)
    optimizer_seconds = (time.perf_counter() - started) / num_steps
    forwards = batch.size / size
    return {
        "tokens": forwards * made.num_tokens,
        "seconds": forwards * sorted(seconds[1:])[_NUM_TIMED // 2] + optimizer_seconds,
        "flops": forwards * step_flops(model, made, module.objective),
    }


def _random_batch(config: RunConfig, objective: Objective, size: int, length: int, is_causal: bool) -> Batch:
    """Return a batch of random ids, with as many scored positions as the objective selects."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(size):
        ids = rng.integers(5, config.model.vocab_size, length)
        if config.objective.name == "denoising":
            examples.append(objective.corrupt(_random_text(ids[2:]), rng))
            continue
        if is_causal or config.objective.name == "causal":
            positions, labels = np.arange(length), None
        else:
            count = max(1, round(config.objective.mask_rate * (length - 2)))
            positions = np.sort(rng.permutation(length - 2)[:count]) + 1
            labels = None if config.objective.name == "none" else rng.integers(2, size=1)
        options: dict[str, Any] = {"sequence_labels": labels, "is_causal": is_causal}
        examples.append(Example(ids, np.array([length]), positions, ids[positions], **options))
    return collate(examples, range(size))


def _random_text(ids: np.ndarray) -> RawExample:
    """Return random ids as one text, of a word each and of sentences as long as those of English."""
    starts = np.arange(len(ids)) % _SENTENCE_LENGTH == 0
    return RawExample(ids, np.ones(len(ids), bool), np.array([len(ids)]), np.zeros(1, np.int64), sentence_starts=starts)


def _texts(
    config: RunConfig, objective: Objective, examples: Sequence[Examples], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Return what the noise does to the data, if there is one, and examples of it."""
    if tokenizer is None:
        return {}
    noise = {}
    if isinstance(objective, Denoising) and isinstance(examples[0], PackedDataset):
        effect = asdict(measure_noise(examples[0], objective, seed=config.seed))
        noise = {name: round(value, 4) for name, value in effect.items() if isinstance(value, float)}
    found = {"noise": noise, "examples": _example_texts(objective, examples[0], tokenizer, config.seed)}
    return {name: value for name, value in found.items() if value}


def _example_texts(objective: Objective, examples: Examples, tokenizer: Tokenizer, seed: int) -> list[dict[str, str]]:
    """Return a few texts as the model reads them, and what it learns to write; [] for causal LM."""
    if isinstance(objective, Denoising):
        assert isinstance(examples, PackedDataset)
        found = example_texts(examples, objective, tokenizer, number=_NUM_TEXTS, seed=seed)
        return [{name: row[name] for name in ("source", "target")} for row in found]
    if not isinstance(objective, MaskedLm):
        return []
    texts = []
    for i in range(min(_NUM_TEXTS, len(examples))):
        rng = example_generator(seed, 0, i)
        made = objective.corrupt(examples.get_example(i, rng), rng)
        full = made.input_ids.copy()
        full[made.label_positions] = made.labels
        # Without the special tokens around the first text.
        first = slice(1, int(made.lengths[0]) - 1)
        texts.append({"source": tokenizer.decode(made.input_ids[first]), "target": tokenizer.decode(full[first])})
    return texts


def _durations(config: RunConfig, phases: Sequence[dict[str, float]], examples: Sequence[Examples]) -> dict[str, Any]:
    starts = [start for start, _ in config.all_phases()]
    shares = [end - start for start, end in pairwise([*starts, 1.0])]
    seconds_per_step = sum(share * phase["seconds"] for share, phase in zip(shares, phases, strict=True))
    tokens = sum(share * phase["tokens"] for share, phase in zip(shares, phases, strict=True))
    result: dict[str, Any] = {"hours_per_million_tokens": _hours(seconds_per_step * 1e6 / tokens)}
    if examples:
        epoch = replace(config, budget=type(config.budget)(epochs=1.0))
        num_tokens = [e.num_tokens for e in examples]
        steps = num_steps_for(epoch, num_examples=list(map(len, examples)), num_tokens=num_tokens)
        result |= {"steps_per_epoch": steps, "hours_per_epoch": _hours(seconds_per_step * (steps or 0))}
    if config.budget.steps is not None:
        result |= {
            "steps": config.budget.steps,
            "hours": _hours(seconds_per_step * config.budget.steps),
            "tokens": round(tokens * config.budget.steps),
        }
    return result


def _hours(seconds: float) -> float:
    return float(f"{seconds / 3600:.3g}")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident_mb() -> float:
    """Return the peak resident size of the process, in MiB."""
    # macOS counts bytes, others KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
