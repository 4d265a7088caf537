"""The `compare` command: fine-tuning from pre-trained and from random weights, over training-set sizes and seeds.

A seed determines records, head, order and dropout in the same way for every initialization, so differences are taken
over paired seeds.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np

from stemformer.commands.finetune import (
    make_config,
    make_finetuning_context,
    predict_all,
    run_length,
    with_learning_rate,
)
from stemformer.config import from_toml, nearest, to_toml
from stemformer.data.labelled.splits import parse_sizes, subset_order
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import choose_device
from stemformer.errors import ConfigError
from stemformer.evaluation.seed_statistics import differences_from_random, gain_sentences, means, table_row
from stemformer.experiments.run_grid import PlannedRun, Record, RunGrid, conclude, prepare_experiment_dir
from stemformer.huggingface.load import find_model_folder
from stemformer.io import read_jsonl
from stemformer.models.model import Model
from stemformer.options import CompareOptions, accepts
from stemformer.output_dir import exclusive_output_dir
from stemformer.progress import Progress, Silent, format_count
from stemformer.reports.comparison import write_comparison_report
from stemformer.tasks.dataset import LabelledData, encode_splits, majority_baseline, read_labelled, stratification_keys
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import format_metric, points_per_unit
from stemformer.training.config import RENAMED_SETTINGS, FinetuneConfig
from stemformer.training.context import TrainState
from stemformer.training.distributed import init_distributed
from stemformer.training.initialization import load_initial_model, make_symbol_map, prepare_training
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import train
from stemformer.training.optimizer import finetuning_learning_rate
from stemformer.training.throughput import compile_blocks

INITIALIZATIONS: dict[str, tuple[Literal["nothing", "embeddings", "all"], float]] = {
    "pretrained": ("nothing", 1.0),
    "random": ("all", 10.0),
    "reembedded": ("embeddings", 1.0),
}
"""Initialization -> part with random weights (`FinetuneConfig.reinitialize`), factor of the default learning rate."""

_NUM_EVALUATIONS = 10
_MIN_LOG_LINES = 20
_RENAMED = {**RENAMED_SETTINGS, "starts": "initializations", "rates": "learning_rates"}


class Trial(NamedTuple):
    """One run of a comparison."""

    initialization: str
    size: int
    seed: int
    # Seed of the map of symbols to words.
    map: int


@dataclass(frozen=True)
class CompareConfig:
    """Config of a comparison; all runs share `finetune`, whose seed is the first one."""

    initializations: tuple[str, ...]
    # Numbers of training records, ascending.
    sizes: tuple[int, ...]
    num_seeds: int
    # Each size has the same number of epochs, not the same number of steps.
    is_by_epochs: bool
    # SHA-256 (hex) of all examples.
    data: str
    finetune: FinetuneConfig
    # Peak learning rate of each initialization.
    learning_rates: dict[str, float] = field(default_factory=dict)
    # Number of maps of symbols to words for each seed; with one, it is that of the seed.
    num_maps: int = 1

    def trials(self) -> list[Trial]:
        """Return all runs, seed by seed, so that an interrupted comparison covers all sizes."""
        first = self.finetune.seed
        seeds, maps = range(first, first + self.num_seeds), range(first, first + self.num_maps)
        pairs = [(seed, number) for seed in seeds for number in (maps if self.num_maps > 1 else [seed])]
        return [Trial(name, size, *pair) for pair in pairs for size in self.sizes for name in self.initializations]

    @property
    def repetitions(self) -> str:
        """What the runs of one initialization and size differ in."""
        maps = f" x {self.num_maps} maps of symbols" if self.num_maps > 1 else ""
        return format_count(self.num_seeds, "seed") + maps


@dataclass(frozen=True)
class TrialData:
    """What all runs share."""

    # Training and dev examples for each map of symbols to words, by its seed.
    encoded: dict[int, tuple[TaskExamples, TaskExamples]]
    tokenizer: Tokenizer
    max_length: int
    model: Path
    data: LabelledData
    # Sentences on truncated and split examples.
    notes: Sequence[str]


@exclusive_output_dir
@accepts(CompareOptions)
def compare(options: CompareOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Compare fine-tuning from pre-trained and from random weights, over training-set sizes and seeds.

    Every size has the same number of optimizer steps (that of 3 epochs over the largest size, unless
    `steps` is set), so that fewer examples do not also mean less training. The result of a run is that
    of its last step: nothing is selected on the dev data. Checkpoints are not kept.

    Returns:
        `table` of the metric by size and initialization, `summary` of the differences in sentences, and
        `majority_baseline` in percent. The output directory holds `compare.json`, `report.html`,
        `compare.svg`, `compare.png`, and a line for each run in `finished.jsonl`.

    Raises:
        StemformerError: Data, settings or model do not fit together; loss is not finite.
    """
    progress = progress or Silent()
    run = make_config(options)
    if options.show_config:
        return {"config": to_toml(run)}

    # Check the options and prepare the data.
    _check(run, options)
    chosen_rates = _parse_learning_rates(options)
    inputs = (*options.train, *options.dev, options.model, options.config)
    folder = prepare_experiment_dir(options, inputs, command="compare")
    data = read_labelled(run.task, progress, train=run.train, dev=run.dev, dev_fraction=run.dev_fraction, seed=run.seed)
    model_folder = find_model_folder(options.model)
    model, tokenizer, max_length = load_initial_model(run, data.task, model_folder)
    rates = default_learning_rates(run, model, options.initializations) | chosen_rates
    run = with_learning_rate(run, model)
    sizes = parse_sizes(options.sizes, len(data.train))
    examples, dev, notes = encode_splits(data, tokenizer, max_length, progress)

    # Every size gets the number of steps of the largest one.
    is_by_epochs = options.epochs is not None
    if not is_by_epochs and run.budget.steps is None:
        order = subset_order(stratification_keys(data.task.config, data.train), run.seed)
        num_steps = run_length(run, len(_select_records(examples, order[: sizes[-1]])))
        run = replace(run, budget=replace(run.budget, steps=num_steps, epochs=None))

    # Run.
    draws_maps = data.task.config.symbols == "draw"
    fingerprints = examples.fingerprint + dev.fingerprint + ("a map for each seed" if draws_maps else "")
    digest = hashlib.sha256(fingerprints.encode()).hexdigest()
    config = CompareConfig(
        tuple(rates), sizes, options.num_seeds, is_by_epochs, digest, run, rates, num_maps=options.num_maps
    )

    # Encode the data once for each map of symbols to words: the spread over runs contains that over maps.
    encoded = dict.fromkeys((trial.map for trial in config.trials()), (examples, dev))
    for number in [number for number in encoded if draws_maps and number != run.seed]:
        data.task.symbols = make_symbol_map(data.task.config, tokenizer, number)
        train_examples, dev_examples = (
            data.task.encode(records, tokenizer, max_length=max_length) for records in (data.train, data.dev)
        )
        encoded[number] = train_examples, dev_examples
    shared = TrialData(encoded, tokenizer, max_length, model_folder, data, notes)
    records = _run_trials(folder, config, shared, options, progress)
    return _conclude(folder, records, config, shared, progress)


def _check(config: FinetuneConfig, options: CompareOptions) -> None:
    names = options.initializations
    if options.num_seeds < 1:
        raise ConfigError(f"--num-seeds {options.num_seeds}: expected at least 1")
    if options.num_maps < 1:
        raise ConfigError(f"--num-maps {options.num_maps}: expected at least 1")
    if options.num_maps > 1 and config.task.symbols != "draw":
        raise ConfigError("--num-maps has no effect without --symbols draw. Add it, or remove --num-maps.")
    if unknown := next((name for name in names if name not in INITIALIZATIONS), None):
        hint = nearest(unknown, INITIALIZATIONS)
        raise ConfigError(f"--initializations {unknown}: expected some of {', '.join(INITIALIZATIONS)}{hint}")
    if not names or len(set(names)) < len(names):
        shown = ",".join(names) or "(none)"
        raise ConfigError(f"--initializations {shown}: expected at least one, each of them once")
    if config.reinitialize != "nothing":
        raise ConfigError(f"reinitialize={config.reinitialize} is set by --initializations. Remove the setting.")
    for name in ("patience", "best_metric"):
        if getattr(config.evaluation, name) is not None:
            needs = f"evaluation.{name} needs checkpoints, which a comparison does not keep."
            raise ConfigError(f"{needs} Remove the setting.")


def _parse_learning_rates(options: CompareOptions) -> dict[str, float]:
    """Return the peak learning rates that were set for single initializations."""
    rates = {}
    for text in options.learning_rates:
        name, _, number = text.partition("=")
        expected = f"--learning-rates {text}: expected INITIALIZATION=NUMBER"
        if name not in options.initializations:
            names = (known for known in INITIALIZATIONS if known in options.initializations)
            raise ConfigError(f"{expected}, the initialization one of {', '.join(names)}")
        try:
            rates[name] = float(number)
        except ValueError:
            rates[name] = math.nan
        if not 0 < rates[name] < math.inf:
            raise ConfigError(f"{expected} with a number above 0, such as {name}=1e-4")
    return rates


def default_learning_rates(config: FinetuneConfig, model: Model, names: Collection[str]) -> dict[str, float]:
    """Return the default peak learning rate of each initialization, in the order of `INITIALIZATIONS`."""
    chosen = config.optimizer.learning_rate
    rate = chosen or finetuning_learning_rate(model.config.hidden_size)
    lowest = finetuning_learning_rate(768)
    # The default of small models is high enough for random weights too.
    return {
        name: rate * factor if chosen else max(rate, lowest * factor)
        for name, (_, factor) in INITIALIZATIONS.items()
        if name in names
    }


def _run_trials(
    folder: Path, config: CompareConfig, shared: TrialData, options: CompareOptions, progress: Progress
) -> dict[Trial, Record]:
    """Make the missing runs and return the records of all."""

    def stored_config(text: str, source: str) -> CompareConfig:
        stored = from_toml(CompareConfig, text, source=source, renamed=_RENAMED)
        # The learning rate of an added initialization is new, that of an absent one does not matter.
        rates = {name: stored.learning_rates.get(name, rate) for name, rate in config.learning_rates.items()}
        return replace(stored, learning_rates=rates)

    grid = RunGrid(
        folder,
        config,
        # Earlier versions had a map for each seed only.
        key=lambda r: Trial(r["initialization"], r["size"], r["seed"], r["map"] if "map" in r else r["seed"]),
        what="comparison",
        resume=options.resume,
        stored_config=stored_config,
        may_change=("initializations", "sizes", "num_seeds", "num_maps", "finetune.compute."),
        former=("cells.jsonl", "cells"),
        renamed={"start": "initialization"},
    )
    keys = stratification_keys(shared.data.task.config, shared.data.train)
    trials = config.trials()
    orders = {trial.seed: subset_order(keys, trial.seed) for trial in trials}
    subsets = {t[1:]: _select_records(shared.encoded[t.map][0], orders[t.seed][: t.size]) for t in trials}
    plans = {}
    for trial in trials:
        examples = subsets[trial[1:]]
        label = f"{trial.initialization}, {trial.size:,} records, seed {trial.seed}"
        label += f", map {trial.map}" if config.num_maps > 1 else ""
        make = partial(_run_trial, trial, config, shared, examples, _log_file(folder, trial).parent)
        plans[trial] = PlannedRun(label, make, weight=run_length(config.finetune, len(examples)))

    def describe(record: Record) -> str:
        task, metric = shared.data.task, shared.data.task.main_metric
        return f"{metric} {format_metric(metric, record['metrics'][metric], is_percent=task.head == 'span')}"

    return dict(zip(trials, grid.run(plans, progress, describe=describe, unit="steps"), strict=True))


def _log_file(folder: Path, trial: Trial, parent: str = "trials") -> Path:
    suffix = f"-map{trial.map}" if trial.map != trial.seed else ""
    return folder / parent / f"{trial.initialization}-{trial.size}-seed{trial.seed}{suffix}" / "log.jsonl"


def _select_records(examples: TaskExamples, records: Sequence[int]) -> TaskExamples:
    """Return the examples of some records, in their order."""
    kept = np.flatnonzero(np.isin(examples.records, records)).tolist()
    scored = [examples.scored[i] for i in kept] if len(examples.scored) else ()
    return TaskExamples([examples.examples[i] for i in kept], examples.records[kept], scored, {})


def _run_trial(
    trial: Trial, config: CompareConfig, shared: TrialData, examples: TaskExamples, folder: Path, progress: Progress
) -> Record:
    """Fine-tune and return the record of a run."""
    base, task = config.finetune, shared.data.task
    num_steps = run_length(base, len(examples))
    every = base.evaluation.every or math.ceil(num_steps / _NUM_EVALUATIONS)
    run_config = replace(
        base,
        seed=trial.seed,
        reinitialize=INITIALIZATIONS[trial.initialization][0],
        optimizer=replace(base.optimizer, learning_rate=config.learning_rates[trial.initialization]),
        evaluation=replace(base.evaluation, every=every),
        log_every=max(1, min(base.log_every, num_steps // _MIN_LOG_LINES)),
    )
    dev = shared.encoded[trial.map][1]
    with init_distributed(choose_device(run_config.compute.device)) as ranks:
        model, _, _ = load_initial_model(run_config, task, shared.model)
        if task.config.symbols == "draw":
            task.symbols = make_symbol_map(task.config, shared.tokenizer, trial.map)
        context, _ = make_finetuning_context(
            run_config, shared.data, examples, dev, shared.tokenizer, ranks, folder, shared.max_length
        )
        context = replace(context, saves_checkpoints=False)
        folder.mkdir(parents=True, exist_ok=True)
        module, optimizer = prepare_training(model, context)
        if context.environment["compile"]:
            compile_blocks(model)
        state = TrainState(metrics=MetricAccumulator(None, ranks))
        metrics = train(model, module, optimizer, context, state, progress=progress)
        if task.during_training() is not task:
            # Only a part was scored until now.
            scores, loss = predict_all(model, task, dev, context)
            found, _ = task.compute_metrics(task.decode(scores, dev, shared.data.dev), shared.data.dev)
            losses = {} if loss is None else {"loss": loss}
            metrics = {**metrics, **{f"dev_{name}": value for name, value in {**losses, **found}.items()}}
    lines = [line for line in read_jsonl(folder / "log.jsonl") if line["kind"] == "train"]
    return {
        **trial._asdict(),
        "steps": state.step,
        "examples": len(examples),
        "tokens": state.tokens,
        "seconds": round(state.seconds, 1),
        "training_loss": lines[-1][f"{task.config.name}_loss"],
        "metrics": {key.removeprefix("dev_"): value for key, value in metrics.items()},
    }


def _conclude(
    folder: Path, records: Mapping[Trial, Record], config: CompareConfig, shared: TrialData, progress: Progress
) -> dict[str, Any]:
    """Write `compare.json`, report and plots, and return the result."""
    task = shared.data.task
    metric = task.main_metric
    scale = points_per_unit(task.config.name, metric)
    score = {trial: scale * record["metrics"][metric] for trial, record in records.items()}
    by_run = {
        name: {size: {t[2:]: score[t] for t in score if t[:2] == (name, size)} for size in config.sizes}
        for name in config.initializations
    }
    scores = {
        name: [
            {"records": size, "mean": mean, "spread": deviation, "each": list(by_size[size].values())}
            for size, (mean, deviation) in means(by_size).items()
        ]
        for name, by_size in by_run.items()
    }
    majority = majority_baseline(shared.data) if metric == "accuracy" else None
    baseline = None if majority is None else round(100 * majority[1], 2)
    # Earlier versions called the directory of the runs `cells`.
    found = {trial: [_log_file(folder, trial, parent) for parent in ("trials", "cells")] for trial in records}
    logs = {trial: next(filter(Path.is_file, files), files[0]) for trial, files in found.items()}
    content = {
        "task": task.config.name,
        "metric": metric,
        "model": config.finetune.model,
        "train": len(shared.data.train),
        "dev": len(shared.data.dev),
        "sizes": list(config.sizes),
        "seeds": sorted({trial.seed for trial in records}),
        **({"maps": sorted({trial.map for trial in records})} if config.num_maps > 1 else {}),
        "repetitions": config.repetitions,
        "baseline": baseline,
        "summary": gain_sentences(
            by_run, metric=metric.replace("_", " "), baseline=baseline, repetitions=config.repetitions
        ),
        "scores": scores,
        "differences": differences_from_random(by_run),
        "notes": [*_conditions(config, records), *shared.notes],
        "trials": [{**record, "log": str(logs[trial].relative_to(folder))} for trial, record in records.items()],
    }
    write_report = partial(write_comparison_report, logs={trial: read_jsonl(file) for trial, file in logs.items()})
    table = [table_row(by_run, size) for size in config.sizes]
    if config.num_maps > 1:
        table = [{**row, "runs": config.repetitions} for row in table]
    return {
        "comparison": str(folder),
        "report": str(folder / "report.html"),
        "runs": len(records),
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "metric": metric,
        **({} if baseline is None else {"majority_baseline": baseline}),
        **conclude(folder, "compare", content, table, write_report, progress),
    }


def _conditions(config: CompareConfig, records: Mapping[Trial, Record]) -> list[str]:
    """Return sentences about how the runs were made."""
    steps = [record["steps"] for record in records.values()]
    batch_sizes = {trial: min(config.finetune.batch.size, record["examples"]) for trial, record in records.items()}
    epochs = [
        f"{fmean(batch_sizes[t] * r['steps'] / r['examples'] for t, r in records.items() if t.size == size):.2g} "
        f"over {size:,} records"
        for size in config.sizes
    ]
    same = "the same number of epochs for each size" if config.is_by_epochs else "the same number for each size"
    rates = ", ".join(f"{rate:g} {name}" for name, rate in config.learning_rates.items())
    by_label = "stratified by label, " if config.finetune.task.has_classes else ""
    maps = ""
    if config.finetune.task.symbols == "draw":
        shown = f"that of seed {config.finetune.seed} is listed"
        maps = f", each with its own map of symbols to words for all initializations ({shown})"
        if config.num_maps > 1:
            maps = f", each seed with each map ({shown}); runs that share a seed or a map are not independent"
    return [
        f"{_range(steps, 'step')} of {_range(batch_sizes.values(), 'example')} in a run, {same}; "
        f"epochs: {', '.join(epochs)}",
        f"peak learning rate: {rates}",
        "the score of a run is that of its last step; nothing was selected on the dev data",
        f"± is the standard deviation over {config.repetitions}" + maps,
        f"a seed sets records ({by_label}smaller subsets within larger ones), head, order and dropout in the same way "
        "for each initialization",
    ]


def _range(numbers: Collection[int], noun: str) -> str:
    """Return the least and the largest number with their noun: `1 step`, `1 to 9 steps`."""
    least, largest = min(numbers), max(numbers)
    return (f"{least:,} to " if least < largest else "") + format_count(largest, noun)
