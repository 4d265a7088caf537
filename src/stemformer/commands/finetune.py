"""Fine-tune a model on labelled data."""

import math
import time
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from stemformer.commands.training_run import note_on_best, open_run_dir, resolve, start_run
from stemformer.config import nearest, to_toml
from stemformer.data.examples.batch import collate
from stemformer.data.labelled.sequence_pairs import SourceTarget, expand_parallel
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.data.tokenization.trainers import train_byte_bpe
from stemformer.data.tokenization.unknown_words import CANNOT_READ
from stemformer.device import autocast, choose_compile, choose_device, choose_precision, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.inference import OnExamples, predict_scores
from stemformer.evaluation.repair import MIN_SOURCE_GAIN, source_gain
from stemformer.huggingface.load import find_model_folder, load_model
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl, write_folder, write_json
from stemformer.models.heads import init_output_bias_from_unigrams
from stemformer.models.model import Model, make_model
from stemformer.objectives.objective import LossModule
from stemformer.options import FinetuneOptions, TaskTrainingOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, exclusive_output_dir
from stemformer.progress import Progress, Silent, format_count
from stemformer.recipes import RECIPES, find_recipe
from stemformer.reports.finetuning import curves_of_log, write_task_report
from stemformer.tasks.dataset import LabelledData, encode_splits, read_labelled, weak_results
from stemformer.tasks.dataset_notes import save_training_texts
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import NOT_RANKED, format_metric, mean_std, metric_names
from stemformer.tasks.predictions import WorstExamples
from stemformer.tasks.registry import TASKS
from stemformer.tasks.seq2seq import find_languages
from stemformer.tasks.task import Task, TaskConfig
from stemformer.training.budget import TrainingBudget
from stemformer.training.checkpoint import environment, read_checkpoint
from stemformer.training.config import BartRunConfig, BatchConfig, BudgetConfig, FinetuneConfig
from stemformer.training.context import Phase, TrainingContext, TrainState
from stemformer.training.cooccurrence import init_from_pairs
from stemformer.training.distributed import DistributedContext, gather_full_state, init_distributed, is_restarted
from stemformer.training.initialization import has_matching_head, load_initial_model, make_initial_model
from stemformer.training.loop import train
from stemformer.training.optimizer import finetuning_learning_rate
from stemformer.training.resume import check_config_unchanged, find_checkpoint
from stemformer.training.throughput import matmul_rate

# An evaluation on more examples is announced.
_MANY_EXAMPLES = 2000
# Steps between two orthogonalizations for a new model.
_MUON_INTERVAL = 4
# Pairs that show whether a model uses its sources.
_NUM_GAIN_EXAMPLES = 64


@exclusive_output_dir
@accepts(FinetuneOptions)
def finetune(options: FinetuneOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Fine-tune a model on labelled data.

    Returns:
        Directories of the run and its model, the report, numbers of examples, and the metrics on the dev
        data; of several seeds, mean and standard deviation. `seconds` is the time of training with its evaluations,
        `evaluation_seconds` that of the evaluation after the last step, which comes on top of a budget of time.

    Raises:
        StemformerError: Data, config or model do not fit together; loss is not finite.
    """
    progress = progress or Silent()
    config = make_config(options)
    if options.show_config:
        return {"config": to_toml(config)}
    folder, _ = open_run_dir(options)
    inputs = (*expand_parallel(options.train), *expand_parallel(options.dev), options.model, options.config)
    check_not_inside_inputs(folder, [path for path in inputs if path and Path(path).exists()])
    if options.num_seeds < 1:
        raise ConfigError(f"--num-seeds is {options.num_seeds}: expected at least 1.")
    if options.num_seeds > 1 and (folder / "config.toml").is_file() and not options.overwrite:
        raise CheckpointError(f"{folder} holds a single run. Resume it without --num-seeds, or pass another --out.")
    data = read_labelled(
        config.task, progress, train=config.train, dev=config.dev, dev_fraction=config.dev_fraction, seed=config.seed
    )
    if options.num_seeds == 1:
        return run_finetuning(config, data, folder, resume=options.resume, progress=progress)
    results = []
    for number in range(options.num_seeds):
        run_config = replace(config, seed=config.seed + number)
        progress.say(f"run {number + 1} of {options.num_seeds}, seed {run_config.seed}")
        run_dir = folder / f"seed-{run_config.seed}"
        results.append(run_finetuning(run_config, data, run_dir, resume=options.resume, progress=progress))
    return _summarize_seeds(folder, results)


def make_config(options: TaskTrainingOptions) -> FinetuneConfig:
    """Return the config of a fine-tuning run; raise ConfigError if options or settings do not fit together."""
    config = FinetuneConfig(
        model=options.model,
        train=options.train,
        dev=options.dev,
        task=TaskConfig(
            options.task,
            kind=options.kind,
            text=options.text_column,
            label=options.label_column,
            max_length=options.max_length,
            symbols=options.symbols,
            symbol_size=options.kmer,
            **options.languages(),
        ),
    )
    is_new = TASKS[options.task].writes_texts and _is_recipe(options.model)
    if is_new:
        # A new model is trained as in pre-training.
        recipe = find_recipe(options.model)
        if not isinstance(recipe, BartRunConfig):
            raise ConfigError(
                f"{options.model} is not an encoder-decoder. Pass a BART or a recipe of one, such as bart_mini."
            )
        optimizer = recipe.optimizer
        if optimizer.kind == "muon":
            # For batches of short texts orthogonalizing takes a quarter of a step (docs/log.md, 2026-12-01).
            optimizer = replace(optimizer, muon_interval=_MUON_INTERVAL)
        config = replace(config, optimizer=optimizer, schedule=recipe.schedule)
    default = config.budget
    config = resolve(replace(config, budget=BudgetConfig()), options)
    if config.budget == BudgetConfig():
        config = replace(config, budget=BudgetConfig(epochs=20) if is_new else default)
    if not is_new and config.task.vocab_size != TaskConfig().vocab_size:
        what = f"task.vocab_size is {config.task.vocab_size}, but {config.model} has a vocabulary"
        raise ConfigError(f"{what}: it applies to a new model of a recipe. Remove it.")
    if TASKS[config.task.name].writes_texts and config.compute.shard:
        raise ConfigError(f"compute.shard is not supported with {config.task.name}, which writes texts. Remove it.")
    if config.layer_decay != 1 and config.optimizer.kind == "muon":
        raise ConfigError("layer_decay has no effect on matrices with optimizer.kind = muon. Use adamw.")
    if config.budget.tokens is not None:
        raise ConfigError("Fine-tuning takes a budget of epochs, steps or time, not of tokens.")
    if config.budget.seconds is not None and not isinstance(options, FinetuneOptions):
        raise ConfigError("Runs are compared after as many steps: set a budget of epochs or steps, not of time.")
    if config.evaluation.best_metric is not None:
        # Before the data is read; the metrics of this data are known later.
        names = [x for x in metric_names(config.task.name, config.task.kind) if x not in NOT_RANKED]
        _check_metric(config.evaluation.best_metric, names)
    return config


def run_finetuning(
    config: FinetuneConfig, data: LabelledData, folder: Path, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    """Make one run of `finetune` on records that were read, and return what it returns for one seed.

    `resume` continues from the newest checkpoint, or starts the run if it has none.
    """
    resume = resume or is_restarted(folder)
    found = find_checkpoint(folder, FinetuneConfig, None, progress) if resume and folder.is_dir() else None
    # A run must not see what the one before has tuned.
    data = replace(data, task=(task := copy(data.task)))
    with init_distributed(choose_device(config.compute.device)) as ranks, TemporaryDirectory() as temporary:
        progress = progress if ranks.is_main else Silent()
        set_threads(config.compute.threads)
        if found is None and task.writes_texts and _is_recipe(config.model):
            progress.start("training a vocabulary on the pairs")
            source = Path(temporary)
            _save_new_model(config, data.train, source)
        else:
            source = find_model_folder(found.path) if found else _find_start(config)
        model, tokenizer, max_length = load_initial_model(config, task, source, is_resumed=found is not None)
        if task.writes_texts and 2 * task.config.num_beams > tokenizer.vocab_size:
            expected = f"expected at most half of the {tokenizer.vocab_size} ids"
            raise ConfigError(f"task.num_beams is {task.config.num_beams}: {expected}.")
        if task.writes_texts and tokenizer.requires_languages and not config.task.has_languages:
            side, advice = "before", "pass --source-language and --target-language, or columns of them"
            if tokenizer.has_final_language:
                side, advice = "after", "this is not supported, it is trained without; an mBART-50 can have languages"
            progress.say(f"note: {config.model} was trained with the language {side} each text: {advice}")
        config = with_learning_rate(config, model, found.config.optimizer.learning_rate if found else None)
        examples, dev, notes = encode_splits(data, tokenizer, max_length, progress)
        context, last = make_finetuning_context(
            config, data, examples, dev, tokenizer, ranks, folder, max_length, progress
        )
        if found is not None:
            check_config_unchanged(found.config, context.config)
        module, optimizer, state = start_run(model, context, found, progress)
        if found is not None:
            _restore_best(state, context)
        elif has_matching_head(source, task):
            progress.say(f"training continues with the head of {source}, which has the same labels")
        progress.say(_describe_start(context, model))
        progress.say(_describe_learning_rate(context.config, model))

        # Train, select, evaluate, save.
        train(model, module, optimizer, context, state, progress=progress)
        weights = gather_full_state(model.state_dict())
        result: dict[str, Any] = {}
        if ranks.is_main:
            if config.evaluation.patience is None:
                final = make_model(model.config, task.heads, num_labels=task.num_labels)
                final.load_state_dict(weights)
                final.max_length = max_length
                note = note_on_best(context, state)
                note = note and f"{note}; --set evaluation.patience=N makes the best model the result"
            else:
                best = folder / "checkpoints" / "best"
                final = load_model(best, task.heads, num_labels=task.num_labels)
                task.is_standardized = False
                checkpoint = read_checkpoint(best)
                value = context.describe_monitored(checkpoint.held_out_loss or 0.0)
                note = f"the result is the best model, of step {checkpoint.step} ({value})"
                last.clear()
            if note is not None:
                notes.append(note)
                progress.say(note)
            result = _finish(final.to(context.device).eval(), data, dev, context, notes, last, progress)
            result["evaluation_seconds"] = round(state.final_eval_seconds + result["evaluation_seconds"], 1)
        ranks.barrier()
    return {
        "run": str(folder),
        "model": str(folder / "final"),
        "report": str(folder / "report.html"),
        "seed": config.seed,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        **result,
    }


def _is_recipe(model: str) -> bool:
    return model in RECIPES and not Path(model).exists()


def _find_start(config: FinetuneConfig) -> Path:
    """Return the folder of the model to start from; of a name like that of a recipe, say so if there is none."""
    try:
        return find_model_folder(config.model)
    except CheckpointError as error:
        if not TASKS[config.task.name].writes_texts or not (similar := nearest(config.model, RECIPES)):
            raise
        raise CheckpointError(
            f"Recipe {config.model!r} does not exist{similar}, nor a model of this name: {error}"
        ) from error


def _save_new_model(config: FinetuneConfig, pairs: Sequence[SourceTarget], folder: Path) -> None:
    """Save a new model of a recipe, with a byte-level BPE vocabulary of both sides of the pairs.

    Its embeddings are from counts of the pairs, in which translations are similar from the start; other weights are random.
    """
    targets = [text for pair in pairs for text in pair.targets or ()]
    task, seed = config.task, config.seed
    how: dict[str, Any] = {"vocab_size": task.vocab_size, "special_tokens": "bart"}
    how["languages"] = find_languages(task, pairs)
    tokenizer = train_byte_bpe([*(pair.source for pair in pairs), *targets], **how, seed=seed)
    recipe = replace(find_recipe(config.model), seed=seed)
    model = make_initial_model(recipe, tokenizer, Silent())
    model.max_length = model.config.max_position_embeddings
    with_target = [pair for pair in pairs if pair.targets]
    sources = tokenizer.encode_ids([pair.source for pair in with_target])
    first_targets = tokenizer.encode_ids([pair.targets[0] for pair in with_target if pair.targets])
    generator = torch.Generator().manual_seed(seed)
    init_from_pairs(model.body.embeddings.word, sources, first_targets, generator=generator)
    if model.lm_head.bias is not None:
        counts = np.bincount(np.concatenate(first_targets), minlength=tokenizer.vocab_size)
        init_output_bias_from_unigrams(model.lm_head, counts)
    save_model(model, folder, tokenizer)


def with_learning_rate(config: FinetuneConfig, model: Model, stored: float | None = None) -> FinetuneConfig:
    """Set the default learning rate for the size of the model, unless there is one; a resumed run keeps its `stored` one."""
    rate = config.optimizer.learning_rate or stored or finetuning_learning_rate(model.config.hidden_size)
    return replace(config, optimizer=replace(config.optimizer, learning_rate=rate))


def run_length(config: FinetuneConfig, num_examples: int) -> int:
    """Return the number of optimizer steps of a run that is not limited by time."""
    batch_size = min(config.batch.size, num_examples)
    return config.budget.steps or max(1, math.ceil((config.budget.epochs or 3) * num_examples / batch_size - 1e-9))


def make_finetuning_context(
    config: FinetuneConfig,
    data: LabelledData,
    examples: TaskExamples,
    dev: TaskExamples,
    tokenizer: Tokenizer,
    ranks: DistributedContext,
    folder: Path,
    max_length: int,
    progress: Progress | None = None,
) -> tuple[TrainingContext, list[Any]]:
    """Return all that a run needs besides its model, and a list for scores and loss of the last evaluation.

    `examples` and `dev` are the encoded records of `data`.
    """
    task, device = data.task, ranks.device
    if len(examples) < ranks.world_size:
        raise DataError(f"{len(examples)} training examples for {ranks.world_size} ranks. Add training data.")
    batch_size = min(config.batch.size, len(examples))
    # By default, evaluate after each epoch, and save a checkpoint after each evaluation.
    # Under a budget of time the clock decides, so that evaluations take a small part of it.
    epoch = None if config.budget.seconds is not None else math.ceil(len(examples) / batch_size)
    evaluation = replace(config.evaluation, every=config.evaluation.every or epoch)
    checkpoints = replace(config.checkpoints, every=config.checkpoints.every or evaluation.every)
    config = replace(config, evaluation=evaluation, checkpoints=checkpoints)
    num_steps = None if config.budget.seconds is not None else run_length(config, len(examples))
    precision = choose_precision(config.compute.precision, device)
    monitored = config.evaluation.best_metric or task.main_metric
    sign = 1 if monitored.endswith(("loss", "error")) else -1
    if config.evaluation.best_metric is not None:
        # Before training; the names do not depend on the scores.
        zeros = [np.zeros((task.num_scores(example), task.num_labels), np.float32) for example in dev.examples]
        _check_metric(monitored, task.compute_metrics(task.decode(zeros, dev, data.dev), data.dev)[0])
    last: list[Any] = []
    show = partial(format_metric, is_percent=task.head == "span")

    def evaluate(module: torch.nn.Module) -> dict[str, float]:
        if progress is not None and len(dev) > _MANY_EXAMPLES:
            progress.say(f"evaluating on {len(dev):,} examples")
        scored = task.during_training()
        with autocast(device, precision):
            scores, loss = predict_scores(module, scored, dev, device=device)
        last[:] = [scores, loss] if scored is task else []
        metrics, _ = scored.compute_metrics(task.decode(scores, dev, data.dev), data.dev)
        losses = {} if loss is None else {"dev_loss": loss}
        if (gain := _source_gain(module, task, dev, device)) is not None:
            losses["dev_source_gain"] = gain
            if progress is not None and gain < MIN_SOURCE_GAIN:
                progress.say(f"note: the decoder ignores its sources so far (source gain {gain:z.3f} nats a token)")
        # The main metric first, which `list_runs` shows.
        names = sorted(metrics, key=lambda name: name != task.main_metric)
        return losses | {f"dev_{name}": metrics[name] for name in names}

    def describe(metrics: dict[str, float]) -> str:
        names = task.shown_metrics or [name.removeprefix("dev_") for name in metrics]
        chosen = {name: metrics[f"dev_{name}"] for name in names if f"dev_{name}" in metrics}
        return ", ".join(f"dev {name.replace('_', ' ')} {show(name, value)}" for name, value in chosen.items())

    context = TrainingContext(
        config=config,
        budget=TrainingBudget(config, num_steps, folder),
        objective=task,
        phases=[Phase(BatchConfig(batch_size, None, max_length, config.batch.micro_tokens), examples)],
        evaluate=evaluate,
        sample_fn=None,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment=environment(device, precision, choose_compile(config.compute.compile, device), ranks),
        peak_flops=ranks.all_reduce_sum([matmul_rate(device, precision, size=1024)])[0],
        folder=folder,
        ranks=ranks,
        describe=describe,
        monitor=lambda metrics: sign * metrics[key] if (key := f"dev_{monitored}") in metrics else None,
        describe_monitored=lambda value: f"dev {monitored.replace('_', ' ')} {show(monitored, sign * value)}",
        task=task.metadata() | {"max_length": max_length},
    )
    return context, last


def _source_gain(module: torch.nn.Module, task: Task, dev: TaskExamples, device: torch.device) -> float | None:
    """Return what the sources of some dev pairs are worth; None for other tasks."""
    if not task.writes_texts:
        return None
    model: Any = getattr(module, "module", module).model
    # Pairs of different sources, evenly apart: another source of the same text would swap nothing.
    distinct = list({example.input_ids.tobytes(): i for i, example in enumerate(dev.examples)}.values())
    number = min(len(distinct), _NUM_GAIN_EXAMPLES)
    numbers = [distinct[i] for i in np.linspace(0, len(distinct) - 1, number).round().astype(int)]
    batch = collate([dev.examples[i] for i in numbers], numbers).to(device)
    return source_gain(model, [batch])


def _check_metric(name: str, known: Iterable[str]) -> None:
    if name not in (names := ["loss", *known]):
        expected = f"Expected one of {', '.join(names)}."
        raise ConfigError(f"Metric {name!r} does not exist{nearest(name, names)}. {expected}")


def predict_all(
    model: Model, task: Task, dev: TaskExamples, context: TrainingContext, *, on_examples: OnExamples = None
) -> tuple[list[Any], float | None]:
    """Return what `predict_scores` does, of all examples, in the precision of a run."""
    with autocast(context.device, context.precision):
        return predict_scores(LossModule(model, task), task, dev, device=context.device, on_examples=on_examples)


def _finish(
    model: Model,
    data: LabelledData,
    dev: TaskExamples,
    context: TrainingContext,
    notes: list[str],
    last: Sequence[Any],
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate the model unless that is done, tune its decision on the dev data, save it, write the report."""
    task, folder, tokenizer = data.task, context.folder, context.tokenizer

    # Evaluate.
    begin = time.perf_counter()
    if not last:
        progress.start("evaluating", total=len(dev), unit="examples")
        last = predict_all(model, task, dev, context, on_examples=progress.advance)
    scores, loss = last
    predictions = task.decode(scores, dev, data.dev)
    metrics, details = task.compute_metrics(predictions, data.dev)
    if tuned := task.tune(metrics, predictions):
        notes += tuned
        progress.say(notes[-1])
        predictions = task.decode(scores, dev, data.dev)
        metrics, details = task.compute_metrics(predictions, data.dev)
    seconds = time.perf_counter() - begin
    advice = "train longer, or with a higher --learning-rate"
    if any(CANNOT_READ in note for note in notes):
        advice = CANNOT_READ
    for weakness in weak_results(data, predictions, metrics, details):
        notes.append(f"{weakness}; {advice}")
        progress.say(notes[-1])

    # Save.
    if model.class_note is not None:
        notes.append(model.class_note)
        progress.say(notes[-1])
    metadata = task.metadata() | {"max_length": context.phases[0].batch.sequence_length}

    def write(temporary: Path) -> None:
        save_model(model, temporary, tokenizer, task=metadata)
        notes.extend(save_training_texts(temporary, task, data.train))

    write_folder(folder / "final", write)
    progress.finish()
    results = {"task": task.config.name, "metrics": {**metrics, "loss": loss}, **details, "notes": notes}
    write_json(folder / "metrics.json", results)

    # Report.
    shown = WorstExamples(task, len(data.dev))
    shown.add(data.dev, predictions, (dev, scores, tokenizer))
    page = {
        "task": task.config.name,
        "title": "/".join(folder.resolve().parts[-2:]),
        "metrics": metrics,
        **details,
        "curves": curves_of_log(read_jsonl(folder / "log.jsonl"), task.config.name),
        "notes": [_describe_learning_rate(context.config, model), *notes],
        "examples": shown.entries,
        "config": (folder / "config.toml").read_text(encoding="utf-8"),
    }
    write_task_report(folder, page)
    shown_details = ("positive_label", "baseline", "baselines")
    named: dict[str, Any] = {name: details[name] for name in shown_details if name in details}
    sizes = {"train": len(data.train), "dev": len(data.dev)}
    return {"evaluation_seconds": seconds, **sizes, **metrics, **named, "notes": notes}


def _summarize_seeds(folder: Path, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation of the metrics; ranks that are not the first have no metrics."""
    first = results[0]
    summary: dict[str, Any] = {"run": str(folder), "trials": len(results)}
    if "notes" not in first:
        return summary
    summary["seeds"] = [result["seed"] for result in results]
    for name in (key for key, value in first.items() if isinstance(value, float)):
        values = [result[name] for result in results]
        mean, deviation, *each = (float(f"{value:.6g}") for value in (*mean_std(values), *values))
        summary[name] = {"mean": mean, "spread": deviation, "each": each}
    summary |= {"positive_label": first["positive_label"]} if "positive_label" in first else {}
    summary |= {"models": [result["model"] for result in results], "notes": first["notes"]}
    write_json(folder / "trials.json", summary)
    return summary


def _restore_best(state: TrainState, context: TrainingContext) -> None:
    """Restore the best value and the evaluations since then from the log."""
    for line in read_jsonl(context.folder / "log.jsonl"):
        if line["kind"] == "evaluation" and line["step"] <= state.step and (value := context.monitor(line)) is not None:
            state.update_best(value)


def _describe_learning_rate(config: Any, model: Model) -> str:
    rate, hidden_size = config.optimizer.learning_rate, model.config.hidden_size
    is_default = rate == finetuning_learning_rate(hidden_size)
    return f"learning_rate {rate:g}" + (f" (default for {hidden_size} hidden units)" if is_default else "")


def _describe_start(context: TrainingContext, model: Model) -> str:
    examples, batch = context.phases[0].examples, context.phases[0].batch
    size, steps, seconds = batch.size, context.budget.num_steps, context.budget.seconds
    assert isinstance(examples, TaskExamples)
    number = format_count(len(examples), "example") + (
        f" ({examples.num_sequences:,} sequences)" if examples.num_sequences > len(examples) else ""
    )
    mean = examples.num_tokens / examples.num_sequences
    length = f"mean length {mean:.0f}, max length {batch.sequence_length}"
    if steps is None:
        epochs = f"{seconds:,.0f} seconds of batches of {size} (no padding)"
    else:
        number_of_epochs = f"{steps * size / len(examples):.2f} epochs (no padding)"
        epochs = f"{format_count(steps, 'step')} x batch size {size} = {number_of_epochs}"
    start = f"{model.num_parameters():,} parameters; {number}, {length}; {epochs}"
    return f"{start}; {context.device}, {context.precision}"
