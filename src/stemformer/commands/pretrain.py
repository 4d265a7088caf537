"""Pre-train a model."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stemformer.commands.training_run import note_on_best, open_run_dir, resolve, start_run
from stemformer.config import parse_toml, to_toml
from stemformer.data.examples.packing import PackedDataset
from stemformer.data.shards.manifest import check_tokenizer, read_manifest
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.device import choose_compile, choose_device, choose_precision, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.cloze import choose_cloze_examples, evaluate_cloze
from stemformer.evaluation.held_out import held_out_masks, make_held_out_evaluation
from stemformer.evaluation.in_context_learning import make_in_context_evaluation
from stemformer.evaluation.repair import MIN_SOURCE_GAIN, make_repair_evaluation
from stemformer.generation.text import generate_samples, sample_prompts
from stemformer.huggingface.load import find_model_folder
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl, write_folder
from stemformer.models.llama import LlamaConfig
from stemformer.models.model import Model, make_model
from stemformer.objectives.causal_lm import CausalLm
from stemformer.objectives.denoising import Denoising
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, ShiftedLm
from stemformer.objectives.noise_effect import measure_noise
from stemformer.objectives.objective import Examples, make_objective
from stemformer.options import PretrainOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, exclusive_output_dir
from stemformer.progress import Progress, Silent, format_count
from stemformer.recipes import find_recipe
from stemformer.reports.pretraining import write_report
from stemformer.training.budget import TrainingBudget
from stemformer.training.checkpoint import environment
from stemformer.training.config import RunConfig, num_steps_for
from stemformer.training.context import Phase, TrainingContext
from stemformer.training.distributed import DistributedContext, gather_full_state, init_distributed
from stemformer.training.initialization import check_model_settings, make_initial_model, special_ids
from stemformer.training.loop import train
from stemformer.training.resume import check_config_unchanged, find_checkpoint
from stemformer.training.throughput import matmul_rate

# Samples in a line of the log.
_NUM_TEXTS, _NUM_FILLS = 3, 24


@exclusive_output_dir
@accepts(PretrainOptions)
def pretrain(options: PretrainOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Pre-train a model on tokenized data.

    Started by `torchrun`, the process is one of several ranks that train together.

    Returns:
        Directories of the run and its model, the report, steps, tokens, seconds and validation metrics,
        and `before`: the metrics at the start.

    Raises:
        StemformerError: Config, data, tokenizer or checkpoint do not fit together; loss is not finite.
    """
    progress = progress or Silent()
    data = options.data
    folder, resume = open_run_dir(options)
    found = find_checkpoint(folder, RunConfig, options.recipe, progress) if resume else None
    if found is None and resume and options.recipe is None:
        raise CheckpointError(f"{folder} holds no run to resume. Remove --resume, or pass --recipe to start one.")
    config = found.config if found else find_recipe(options.recipe or "")
    if options.init is not None:
        # Before the settings: some are valid only with a model to start from.
        config = replace(config, init=options.init)
    if found is None and isinstance(config.objective, MaskedLmConfig) and (options.init or _sets(options, "init")):
        # A trained encoder needs no causal start; a setting may ask for one.
        config = replace(config, objective=replace(config.objective, causal_start_ratio=0.0))
    config = resolve(config, options)
    if options.show_config:
        return {"config": to_toml(config)}
    if found is None and config.init is not None:
        # Its errors come before anything is written.
        if config.embedding_init != "random" and _sets(options, "embedding_init"):
            problem = f"embedding_init is {config.embedding_init!r}, but a model to start from has embeddings"
            raise ConfigError(f"{problem}. Remove the setting or --init.")
        load_tokenizer(find_model_folder(config.init))
    inputs = (data, options.config, options.init)
    check_not_inside_inputs(folder, [path for path in inputs if path and Path(path).exists()])
    if found is not None:
        check_config_unchanged(found.config, config)

    with init_distributed(choose_device(config.compute.device)) as ranks:
        progress = progress if ranks.is_main else Silent()
        progress.start("opening the data")
        manifest = read_manifest(data)
        tokenizer = load_tokenizer(Path(data) / "tokenizer")
        check_tokenizer(manifest, tokenizer)
        shards = open_shards(data)
        tokenizer.unknown.add_counts(shards.unigram_counts)
        note = tokenizer.unknown.note()
        if tokenizer.unknown.are_nearly_all:
            raise DataError(f"{data}: {note}")
        set_threads(config.compute.threads)
        checkpoint = found.path if found else None
        begin = time.perf_counter()
        model = make_initial_model(config, tokenizer, progress, checkpoint=checkpoint, shards=shards)
        seconds = time.perf_counter() - begin
        check_model_settings(config, model, options.settings)
        # The same architecture as in the config.
        config = replace(config, model=model.config)  # type: ignore[arg-type]
        context = make_pretraining_context(config, shards, tokenizer, ranks, folder)
        # Its errors come before anything is written.
        noise_lines = _noise_lines(context)
        if found and not found.checkpoint.is_causal:
            # A causal start that has ended does not begin again in a longer run.
            context = replace(context, phases=[replace(phase, is_causal=False) for phase in context.phases])
        module, optimizer, state = start_run(model, context, found, progress)
        if found is None and config.init is None:
            # Counting for the first embeddings is part of the training time.
            state.seconds = seconds
        if not context.budget.is_last(state.step) and ranks.is_main:
            # The result of a smaller budget; a checkpoint holds the same weights.
            shutil.rmtree(folder / "final", ignore_errors=True)
        _report_start(context, model, progress)
        for line in (*noise_lines, *([note] if note else [])):
            progress.say(line)
        if context.evaluate is None:
            progress.say(f"{data} has no held-out split: no validation loss (stemformer prepare makes one)")

        # Train, save, report.
        metrics = train(model, module, optimizer, context, state, progress=progress)
        if context.phases[context.phase_number(state.step)].is_causal:
            problem = "the run ended in its causal start, before it trained on masked tokens"
            progress.say(f"note: {problem}. Train longer, or set objective.causal_start_ratio=0.")
        for note in filter(None, (*_notes(metrics), note_on_best(context, state))):
            progress.say(note)
        weights = gather_full_state(model.state_dict())
        if ranks.is_main:
            write_folder(folder / "final", lambda temporary: save_model(model, temporary, tokenizer, state=weights))
            if config.causal_share:
                _save_causal_view(model, weights, folder / "final_causal", tokenizer)
            progress.finish()
            write_report(folder)
        progress.finish()
        ranks.barrier()
    return {
        "run": str(folder),
        "model": str(folder / "final"),
        **({"causal_model": str(folder / "final_causal")} if config.causal_share else {}),
        "report": str(folder / "report.html"),
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 1),
        # Without a negative zero.
        **{name: round(value, 4) + 0.0 for name, value in metrics.items()},
        **_before(folder, metrics),
    }


def _save_causal_view(model: Model, weights: Mapping[str, torch.Tensor], folder: Path, tokenizer: Tokenizer) -> None:
    """Save a EuroBERT's weights as those of a Llama, whose texts start with [CLS] and end with [SEP]."""
    names = {f.name for f in fields(LlamaConfig)} - {"eos_token_id"}
    config = LlamaConfig(**{name: getattr(model.config, name) for name in names}, eos_token_id=tokenizer.sep_token_id)
    causal = make_model(config, ["causal_lm"], tied=model.lm_head.decoder is None)
    causal.load_state_dict({name.replace("heads.masked_lm.", "heads.causal_lm."): x for name, x in weights.items()})
    causal.max_length = model.max_length
    opened = copy(tokenizer)
    opened.bos_token_id = tokenizer.cls_token_id
    write_folder(folder, lambda temporary: save_model(causal, temporary, opened))


def _sets(options: PretrainOptions, name: str) -> bool:
    """Return whether settings or the config file have a value for a field of the config."""
    names = [setting.partition("=")[0].strip() for setting in options.settings]
    file = options.config
    in_file = file is not None and Path(file).is_file() and name in parse_toml(Path(file).read_text("utf-8"), file)
    return name in names or in_file


def make_pretraining_context(
    config: RunConfig,
    shards: Shards,
    tokenizer: Tokenizer,
    ranks: DistributedContext,
    folder: Path,
    *,
    peak_flops: float | None = None,
) -> TrainingContext:
    """Return all that a run needs besides its model: examples, evaluation, budget, device.

    `peak_flops` is measured unless it is known, which takes seconds.
    """
    device = ranks.device
    precision = choose_precision(config.compute.precision, device)
    special = special_ids(config, tokenizer)
    # A model may have more ids than its tokenizer.
    counts = np.pad(shards.unigram_counts, (0, max(0, config.model.vocab_size - tokenizer.vocab_size)))
    objective = make_objective(
        config.objective,
        special=special,
        vocab_size=tokenizer.vocab_size,
        unigram_counts=counts if device.type == "cpu" else None,
    )

    # Examples of each phase.
    starts, batches = zip(*config.all_phases(), strict=True)
    by_length = {
        length: objective.make_examples(shards, length) for length in {batch.sequence_length for batch in batches}
    }
    datasets = [by_length[batch.sequence_length] for batch in batches]
    for batch, dataset in zip(batches, datasets, strict=True):
        if len(dataset) < batch.size:
            number = f"{len(dataset)} sequences of {batch.sequence_length}; a batch has {batch.size}"
            advice = (
                f"Add text, or lower the batch size, for example with --set batch.size={max(1, len(dataset) // 4)}."
            )
            raise DataError(f"{shards.folder} holds {shards.num_tokens:,} tokens, which is {number}. {advice}")
        if batch.size < ranks.world_size:
            expected = "expected at least one sequence for each rank"
            raise ConfigError(f"batch.size is {batch.size} for {ranks.world_size} ranks: {expected}.")
    num_tokens = [dataset.num_tokens for dataset in datasets]
    num_steps = num_steps_for(config, num_examples=list(map(len, datasets)), num_tokens=num_tokens)
    is_causal = [start < config.causal_start_ratio for start in starts]
    num_runs = 2 if isinstance(objective, Denoising) else 1
    phases = [Phase(*parts, num_runs) for parts in zip(batches, datasets, is_causal, strict=True)]

    # Evaluation on the held-out split, with masks that never change.
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    sample_fn: Callable[[nn.Module], dict[str, Any]] | None = None
    if "held_out" in shards.manifest.splits:
        held_out = open_shards(shards.folder, "held_out")
        length = batches[-1].sequence_length
        scored = make_objective(held_out_masks(config.objective), special=special, vocab_size=tokenizer.vocab_size)
        how: dict[str, Any] = {"num_examples": config.evaluation.num_examples, "device": device, "rank": ranks.rank}
        how |= {"world_size": ranks.world_size, "add": ranks.all_reduce_sum}
        evaluate = make_held_out_evaluation(scored.make_examples(held_out, length), scored, **how)
        if isinstance(scored, MaskedLm) and config.causal_share:
            shifted = ShiftedLm(scored.config, special=special, vocab_size=tokenizer.vocab_size)
            examples = shifted.make_examples(held_out, length)
            evaluate = _both(evaluate, make_held_out_evaluation(examples, shifted, **how))
        if isinstance(scored, Denoising):
            writes = not config.compute.shard
            how = {"device": device, "tokenizer": tokenizer if writes and ranks.is_main else None}
            sample_fn = make_repair_evaluation(scored.make_examples(held_out, length), scored, **how)
        elif not isinstance(scored, CausalLm):
            sample_fn = _cloze_samples(config, held_out, tokenizer, device)
        elif not config.compute.shard:
            sample_fn = _text_samples(config, held_out, scored, tokenizer, ranks)

    compiled = choose_compile(config.compute.compile, device)
    return TrainingContext(
        config=config,
        budget=TrainingBudget(config, num_steps, folder),
        objective=objective,
        phases=phases,
        evaluate=evaluate,
        sample_fn=sample_fn,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment=environment(device, precision, compiled, ranks),
        peak_flops=ranks.all_reduce_sum([matmul_rate(device, precision)])[0] if peak_flops is None else peak_flops,
        folder=folder,
        ranks=ranks,
    )


def _both(
    masked: Callable[[nn.Module], dict[str, float]], causal: Callable[[nn.Module], dict[str, float]]
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function with the metrics of masked steps, and loss and accuracy of causal ones."""
    names = ("held_out_causal_lm_loss", "held_out_causal_lm_accuracy")

    def evaluate(module: nn.Module) -> dict[str, float]:
        found = causal(module)
        return {**masked(module), **{name: found[name] for name in names}}

    return evaluate


def _text_samples(
    config: RunConfig, held_out: Shards, objective: CausalLm, tokenizer: Tokenizer, ranks: DistributedContext
) -> Callable[[nn.Module], dict[str, Any]]:
    """Return a function from a module to generated text and in-context metrics, computed on the first rank."""
    length = config.all_phases()[-1][1].sequence_length
    is_backward = objective.config.direction == "backward"
    number = _NUM_TEXTS if config.evaluation.num_cloze_examples else 0
    prompts = sample_prompts(held_out, tokenizer, number=number, is_backward=is_backward)
    evaluate_in_context = make_in_context_evaluation(objective.make_examples(held_out, length), objective)

    def sample(module: nn.Module) -> dict[str, Any]:
        if not ranks.is_main:
            return {}
        # Within DDP.
        model = getattr(module, "module", module).model
        assert isinstance(model, Model)
        texts = generate_samples(model, tokenizer, prompts, max_length=length, is_backward=is_backward)
        return {**evaluate_in_context(model), **({"samples": texts} if number else {})}

    return sample


def _cloze_samples(
    config: RunConfig, held_out: Shards, tokenizer: Tokenizer, device: torch.device
) -> Callable[[nn.Module], dict[str, Any]] | None:
    """Return a function from a module to filled masks of held-out sentences; None if there are none."""
    number, longest = config.evaluation.num_cloze_examples, config.all_phases()[-1][1].sequence_length
    examples = choose_cloze_examples(held_out, tokenizer, number=number, longest=longest)
    if examples is None:
        return None

    def sample(module: nn.Module) -> dict[str, Any]:
        metrics = evaluate_cloze(module, examples, tokenizer, device=device)
        fills = metrics.pop("fills")
        return {**{f"held_out_{name}": value for name, value in metrics.items()}, "fills": fills[:_NUM_FILLS]}

    return sample


def _notes(metrics: Mapping[str, float]) -> Iterator[str]:
    unigram = metrics.get("held_out_unigram_loss")
    losses = (metrics.get(f"held_out_{name}_loss") for name in ("causal_lm", "masked_lm", "denoising"))
    loss = next((loss for loss in losses if loss is not None), None)
    gain = metrics.get("held_out_source_gain")
    if gain is not None and gain < MIN_SOURCE_GAIN:
        problem = f"source_gain is {gain:.2f} nats a token: the decoder ignores its source so far"
        yield f"note: {problem}, and only continues text; train longer (--resume with a larger budget)"
    if unigram is not None and loss is not None and loss >= unigram:
        advice = (
            "has not learned from context yet; train longer (--resume with a larger budget), or raise --learning-rate"
        )
        # No model that learns at all is so far off.
        advice = "has diverged; lower --learning-rate" if loss > 2 * unigram else advice
        baseline = f"is not below the unigram baseline ({unigram:.3f})"
        yield f"note: the held-out loss ({loss:.3f}) {baseline}: the model {advice}"


def _before(folder: Path, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return the held-out metrics before training, without the baselines, which are constant."""
    first = next((line for line in read_jsonl(folder / "log.jsonl") if line["kind"] == "evaluation"), {})
    baselines = ("unigram_loss", "unigram_accuracy", "majority_accuracy", "blank_constant_accuracy")
    names = [name for name in metrics if name in first and name.removeprefix("held_out_") not in baselines]
    return {"before": {name: round(first[name], 4) for name in names}} if names else {}


def _noise_lines(context: TrainingContext) -> list[str]:
    """Return lines on what the noise of denoising does to the texts, which raises if this is nothing."""
    examples = context.phases[0].examples
    if not isinstance(context.objective, Denoising) or not isinstance(examples, PackedDataset):
        return []
    return measure_noise(examples, context.objective, seed=context.config.seed).lines()


def _report_start(context: TrainingContext, model: Model, progress: Progress) -> None:
    config, budget = context.config, context.budget
    assert isinstance(config, RunConfig)
    progress.say(
        f"{config.recipe}: {model.num_parameters():,} parameters ({model.num_parameters(embeddings=False):,} in "
        f"{config.model.num_hidden_layers} layers), {context.device}, {context.precision}"
        + (", blocks compiled" if context.environment["compile"] else "")
        + (f", {context.ranks.world_size} ranks" if context.ranks.world_size > 1 else "")
    )
    kind = "pair" if config.objective.name in ("next", "order") else "sequence"
    ratios = [*(ratio for ratio, _ in config.all_phases()), 1.0]
    for phase, (start, end) in zip(context.phases, pairwise(ratios), strict=True):
        dataset, batch = phase.examples, phase.batch
        assert isinstance(dataset, Examples)
        left_out = getattr(dataset, "num_left_out", 0)
        if budget.seconds is not None:
            length = f"{(end - start) * budget.seconds:,.0f} seconds"
            if end == 1.0:
                length += f", learning rate decay over the last {config.schedule.decay_ratio:.0%} of the run"
        else:
            steps = round(end * (budget.num_steps or 0)) - round(start * (budget.num_steps or 0))
            epochs = steps * batch.size / len(dataset)
            length = f"{format_count(steps, 'step')} x batch size {batch.size} = {epochs:.2f} epochs"
        number = format_count(len(dataset), kind)
        progress.say(
            f"{dataset.num_tokens:,} tokens (special tokens included) in {number}, max length "
            f"{batch.sequence_length} ({dataset.packing_efficiency:.1%} filled)"
            + (f", {left_out:,} of one word left out" if left_out else "")
            + f"; {length}"
            + (", as a causal LM: the validation loss of masked tokens falls after that" if phase.is_causal else "")
        )
