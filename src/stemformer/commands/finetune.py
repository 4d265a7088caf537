"""The fine-tuning command: joins labelled data, a pre-trained body, a fresh head and the loop into a run folder."""

import json
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stemformer.commands.pretrain import resolve
from stemformer.config import to_toml
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import autocast, choose_compile, choose_device, choose_precision, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.inference import predict_scores
from stemformer.huggingface.load import find_model_folder, load_model
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl, write_file, write_folder
from stemformer.models.model import BodyConfig, Model, make_model
from stemformer.objectives.objective import LossModule
from stemformer.options import FinetuneOptions, TaskTrainingOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent
from stemformer.reports.finetuning import curves_of_log, write_task_report
from stemformer.tasks.dataset import LabelledData, encode_splits, majority_baseline, read_labelled
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import mean_std
from stemformer.tasks.predictions import examples_to_show
from stemformer.tasks.task import TaskConfig
from stemformer.training.budget import TrainingBudget
from stemformer.training.checkpoint import environment, read_checkpoint
from stemformer.training.config import BatchConfig, FinetuneConfig
from stemformer.training.distributed import DistributedContext, gather_full_state, init_distributed, is_restarted
from stemformer.training.initialization import has_matching_head, load_initial_model, prepare_training
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import Phase, TrainingContext, TrainState, train
from stemformer.training.resume import (
    check_config_unchanged,
    find_checkpoint,
    prepare_run_dir,
    restore,
    validate_resume,
)
from stemformer.training.throughput import compile_blocks, matmul_rate


@exclusive_output_dir
@accepts(FinetuneOptions)
def finetune(options: FinetuneOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Fine-tune a model on labelled data.

    Returns:
        Directories of the run and its model, the report, numbers of examples, and the metrics on the dev
        data; of several seeds, mean and standard deviation.

    Raises:
        StemformerError: Data, config or model do not fit together; loss is not finite.
    """
    progress = progress or Silent()
    given = make_config(options)
    if options.show_config:
        return {"config": to_toml(given)}
    is_restart = is_restarted(Path(options.out))
    resume, trials = options.resume, options.num_seeds
    folder = prepare_output_dir(
        options.out, resume=resume or is_restart, overwrite=options.overwrite and not is_restart
    )
    inputs = (*options.train, *options.dev, options.model, options.config)
    check_not_inside_inputs(folder, [path for path in inputs if path and Path(path).exists()])
    if trials < 1:
        raise ConfigError(f"--num-seeds is {trials}: expected at least 1.")
    if trials > 1 and (folder / "config.toml").is_file() and not options.overwrite:
        raise CheckpointError(f"{folder} holds a single run. Resume it without --num-seeds, or choose another --out.")
    data = read_labelled(
        given.task, progress, train=given.train, dev=given.dev, dev_fraction=given.dev_fraction, seed=given.seed
    )
    if trials == 1:
        return _run(given, data, folder, resume=resume, progress=progress)
    told = []
    for number in range(trials):
        at = replace(given, seed=given.seed + number)
        progress.say(f"trial {number + 1} of {trials}, seed {at.seed}")
        told.append(_run(at, data, folder / f"seed-{at.seed}", resume=resume, progress=progress))
    return _over_trials(folder, told)


def make_config(options: TaskTrainingOptions) -> FinetuneConfig:
    """Return the config of a fine-tuning run.

    Raises:
        ConfigError: Options or settings do not fit together.
    """
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
        ),
    )
    config = resolve(config, options)
    if config.layer_decay != 1 and config.optimizer.kind == "muon":
        raise ConfigError("layer_decay has no effect on matrices with optimizer.kind = muon. Use adamw.")
    if config.budget.seconds is not None or config.budget.tokens is not None:
        raise ConfigError("Fine-tuning takes a budget of epochs or steps, not of time or tokens.")
    return config


# ------------------------------------------------------------------------------------------------------------------------------- a run


def _run(
    config: FinetuneConfig, data: LabelledData, folder: Path, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    resume = resume or is_restarted(folder)
    found = find_checkpoint(folder, FinetuneConfig, None, progress) if resume and folder.is_dir() else None
    task = copy(data.task)  # a trial must not see what the one before has tuned
    data = replace(data, task=task)
    source = find_model_folder(found.path if found else config.model)
    with init_distributed(choose_device(config.compute.device)) as ranks:
        progress = progress if ranks.is_main else Silent()
        set_threads(config.compute.threads)
        model, tokenizer, max_length = load_initial_model(config, task, source, is_resumed=found is not None)
        examples, dev, notes = encode_splits(data, tokenizer, max_length, progress)
        setup, last = make_finetuning_context(
            config, data, examples, dev, tokenizer, model, ranks, folder, max_length, progress
        )
        if found is not None:
            assert isinstance(setup.config, FinetuneConfig)
            check_config_unchanged(found.config, setup.config)
            validate_resume(found, setup)
        ranks.barrier()
        if ranks.is_main:
            prepare_run_dir(folder, found, setup.config, progress)
        ranks.barrier()
        module, optimizer = prepare_training(model, setup)
        at = (
            restore(found, model, optimizer, setup, progress)
            if found
            else TrainState(metrics=MetricAccumulator(None, ranks))
        )
        if found is not None:
            _recall(at, setup)
        if found is None and has_matching_head(source, task):
            progress.say(
                f"the head of {source} is for the same labels: training goes on with it (a new body gets a fresh one)"
            )
        progress.say(_told_of_start(setup, model, examples, max_length))
        if setup.environment["compile"]:
            compile_blocks(model)
        train(model, module, optimizer, setup, at, progress=progress)
        weights = gather_full_state(model.state_dict())
        told: dict[str, Any] = {}
        if ranks.is_main:
            if config.evaluation.patience is not None:
                best = folder / "checkpoints" / "best"
                weights = load_model(best, task.heads, num_labels=task.num_labels).state_dict()
                progress.say(f"early stopping: the result is the model of step {read_checkpoint(best).step}")
                last.clear()
            told = _finish(weights, model.config, data, dev, setup, tokenizer, max_length, notes, last, progress)
        ranks.barrier()
    return {
        "run": str(folder),
        "model": str(folder / "final"),
        "report": str(folder / "report.html"),
        "seed": config.seed,
        "steps": at.step,
        "seconds": round(at.seconds, 1),
        **told,
    }


def run_length(config: FinetuneConfig, num_examples: int) -> int:
    """Returns how many optimizer steps a run over so many examples has."""
    rows = min(config.batch.size, num_examples)
    return config.budget.steps or max(1, math.ceil((config.budget.epochs or 3) * num_examples / rows - 1e-9))


def make_finetuning_context(
    config: FinetuneConfig,
    data: LabelledData,
    examples: TaskExamples,
    dev: TaskExamples,
    tokenizer: Tokenizer,
    model: Model,
    ranks: DistributedContext,
    folder: Path,
    max_length: int,
    progress: Progress | None = None,
) -> tuple[TrainingContext, list[Any]]:
    """Returns all that a run needs beside its model, and a list that holds scores and loss of the last evaluation.

    Args:
        config: Of the run.
        data: Its records.
        examples: Made of the training records.
        dev: Made of the dev records.
        tokenizer: Saved with each checkpoint.
        model: That is trained.
        ranks: This process among all that train.
        folder: The run folder.
        max_length: Tokens of an example, at most.
        progress: Told that an evaluation of many examples begins, which takes a while.

    Raises:
        DataError: Fewer examples than ranks.
    """
    task, device = data.task, ranks.device
    if len(examples) < ranks.world_size:
        raise DataError(f"{len(examples)} training examples for {ranks.world_size} ranks: give more data")
    rows = min(config.batch.size, len(examples))
    a_pass = math.ceil(len(examples) / rows)
    if config.evaluation.every is None:
        config = replace(config, evaluation=replace(config.evaluation, every=a_pass))
    if config.checkpoints.every is None:
        config = replace(config, checkpoints=replace(config.checkpoints, every=config.evaluation.every))
    num_steps = run_length(config, len(examples))
    precision = choose_precision(config.compute.precision, device)
    name = data.task.main_metric
    last: list[Any] = []

    def evaluate(module: torch.nn.Module) -> dict[str, float]:
        if progress is not None and len(dev) > _MANY_EXAMPLES:
            progress.say(f"evaluating on {len(dev):,} examples")
        with autocast(device, precision):
            scores, loss = predict_scores(module, task, dev, device=device)
        last[:] = [scores, loss]
        figures, _ = data.task.compute_metrics(task.decode(scores, dev, data.dev), data.dev)
        named = {f"dev_{key}": value for key, value in figures.items()}
        return {**({} if loss is None else {"dev_loss": loss}), **named}

    setup = TrainingContext(
        config=config,
        budget=TrainingBudget(config, num_steps, folder),
        objective=task,
        phases=[Phase(0, BatchConfig(rows, None, max_length, config.batch.micro_tokens), examples)],
        evaluate=evaluate,
        sample_fn=None,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment=environment(device, precision, choose_compile(config.compute.compile, device), ranks),
        peak_flops=ranks.all_reduce_sum([matmul_rate(device, precision, size=1024)])[0],
        folder=folder,
        ranks=ranks,
        describe=lambda figures: ", ".join(f"{key.replace('_', ' ')} {_shown(key, v)}" for key, v in figures.items()),
        monitor=lambda figures: -figures[f"dev_{name}"] if f"dev_{name}" in figures else None,
        task=data.task.metadata() | {"max_length": max_length},
    )
    return setup, last


def _finish(
    weights: dict[str, Any],
    body: BodyConfig,
    data: LabelledData,
    dev: TaskExamples,
    setup: TrainingContext,
    tokenizer: Tokenizer,
    max_length: int,
    notes: Sequence[str],
    last: Sequence[Any],
    progress: Progress,
) -> dict[str, Any]:
    """Evaluates the result if that is still to be done, tunes what is tuned on dev data, and saves the model and its figures."""
    task, folder = data.task, setup.folder
    assert isinstance(setup.config, FinetuneConfig)
    model = make_model(body, task.heads, num_labels=task.num_labels)
    model.load_state_dict(weights)
    model.to(setup.device).eval()
    scores, loss = last or [None, None]
    if scores is None:
        progress.start("evaluating", total=len(dev), unit="examples")
        with autocast(setup.device, setup.precision):
            scores, loss = predict_scores(
                LossModule(model, setup.objective), task, dev, device=setup.device, on_examples=progress.advance
            )
    predictions = task.decode(scores, dev, data.dev)
    figures, details = data.task.compute_metrics(predictions, data.dev)
    if tuned := task.tune(figures, predictions):
        notes = [*notes, *tuned]
        progress.say(notes[-1])
        predictions = task.decode(scores, dev, data.dev)
        figures, details = data.task.compute_metrics(predictions, data.dev)
    usual = majority_baseline(data)
    if usual is not None and figures.get("accuracy", 1.0) <= usual[1] < 1:
        notes = [
            *notes,
            f"not better than always answering {usual[0]!r}, which is right for {usual[1]:.1%} of the dev data: {_LEARN}",
        ]
        progress.say(notes[-1])
    of_task = data.task.metadata() | {"max_length": max_length}
    write_folder(folder / "final", lambda temporary: save_model(model, temporary, tokenizer, task=of_task))
    progress.finish()
    written = {"task": task.config.name, "metrics": {**figures, "loss": loss}, **details, "notes": list(notes)}
    write_file(folder / "metrics.json", [(json.dumps(written, ensure_ascii=False, indent=2) + "\n").encode()])
    shown = examples_to_show(data.task, data.dev, predictions, number=len(data.dev), outputs=(dev, scores, tokenizer))
    page = {"task": task.config.name, "title": "/".join(folder.resolve().parts[-2:]), "metrics": figures, **details}
    page |= {
        "curves": curves_of_log(read_jsonl(folder / "log.jsonl"), task.config.name),
        "notes": list(notes),
        "examples": shown,
    }
    write_task_report(folder, {**page, "config": (folder / "config.toml").read_text(encoding="utf-8")})
    return {"train": len(data.train), "dev": len(data.dev), **figures, "notes": list(notes)}


def _over_trials(folder: Path, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean and spread of the figures of several runs; of ranks that are not the first, who have none, where they were."""
    if "notes" not in told[0]:
        return {"run": str(folder), "trials": len(told)}
    names = [key for key, value in told[0].items() if isinstance(value, float)]
    out: dict[str, Any] = {"run": str(folder), "trials": len(told), "seeds": [t["seed"] for t in told]}
    for name in names:
        mean, deviation = mean_std([t[name] for t in told])
        out[name] = {"mean": _rounded(mean), "spread": _rounded(deviation), "each": [_rounded(t[name]) for t in told]}
    out["models"] = [t["model"] for t in told]
    out["notes"] = told[0]["notes"]
    write_file(folder / "trials.json", [(json.dumps(out, ensure_ascii=False, indent=2) + "\n").encode()])
    return out


# ------------------------------------------------------------------------------------------------------------------------ small parts


_LEARN = "train longer, or with a higher --learning-rate (a small model may need 1e-3)"

_MANY_EXAMPLES = 2000
"""From how many dev examples on it is said that an evaluation begins."""


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _recall(at: TrainState, setup: TrainingContext) -> None:
    """Fills in how good earlier evaluations were, from the log."""
    for line in read_jsonl(setup.folder / "log.jsonl"):
        if line["kind"] == "evaluation" and line["step"] <= at.step and (now := setup.monitor(line)) is not None:
            at.update_best(now)


def _shown(name: str, value: float) -> str:
    is_share = any(word in name for word in ("accuracy", "precision", "recall")) or (
        name.endswith("match") and value <= 1
    )
    return f"{value:.1%}" if is_share else f"{value:.3f}"


def _told_of_start(setup: TrainingContext, model: Model, examples: TaskExamples, max_length: int) -> str:
    rows, steps = setup.phases[0].batch.size, setup.budget.num_steps or 0
    mean = examples.num_tokens / max(1, len(examples))
    return (
        f"{model.num_parameters():,} parameters; {len(examples):,} examples of {mean:.0f} tokens on average, at most {max_length}, "
        f"none padded; {steps:,} steps of {rows}, {steps * rows / len(examples):.2f} passes; {setup.device}, {setup.precision}"
    )
