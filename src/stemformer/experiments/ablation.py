"""The `ablate` command: variants of pre-training under one budget, each fine-tuned on tasks over seeds.

The table is that of Lewis et al. 2020, table 1: a row for each variant, a column for each task. A seed sets head,
order and dropout of a fine-tuning in the same way for every variant, so differences are taken over paired seeds.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stemformer.commands.training_run import resolve
from stemformer.config import from_toml, to_toml
from stemformer.data.labelled.sequence_pairs import expand_parallel
from stemformer.data.shards.manifest import check_tokenizer, read_manifest
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import Tokenizer, load_tokenizer
from stemformer.device import set_threads
from stemformer.errors import ConfigError, StemformerError
from stemformer.experiments.ablation_plan import (
    CONFIGS,
    RANDOM,
    AblationConfig,
    AblationData,
    AblationRun,
    VariantPlan,
    parse_variants,
    plan_variant,
    rounding_notes,
    task_configs,
    variant_configs,
)
from stemformer.experiments.ablation_results import score_text, summarize
from stemformer.experiments.ablation_runs import RESULT, AblationRuns
from stemformer.experiments.comparison import default_learning_rates
from stemformer.experiments.run_grid import (
    CONFIG,
    FAILED,
    FINISHED,
    PlannedRun,
    Record,
    RunGrid,
    conclude,
    failure_fields,
    prepare_experiment_dir,
    stored_run_class,
)
from stemformer.huggingface.save import save_model
from stemformer.io import write_folder
from stemformer.options import AblateOptions, accepts
from stemformer.output_dir import exclusive_output_dir
from stemformer.progress import Progress, Silent
from stemformer.recipes import find_recipe
from stemformer.reports.ablation import write_ablation_report
from stemformer.tasks.dataset import encode_splits, read_labelled
from stemformer.training.config import RENAMED_SETTINGS, BudgetConfig, FinetuneConfig, RunConfig
from stemformer.training.initialization import load_initial_model, make_initial_model
from stemformer.training.resume import check_config_unchanged

# Checkpoints that a run has at most while it saves one: two new ones, the best, and the one that is written.
_NUM_CHECKPOINTS = 4


@exclusive_output_dir
@accepts(AblateOptions)
def ablate(options: AblateOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Pre-train variants of a recipe with one budget, fine-tune each on tasks over seeds, and tabulate the scores.

    The row `random` is the same fine-tuning from random weights. The score of a fine-tuning is that of its last step:
    nothing is selected on the dev data. A run that fails is kept as failed, and the others are made all the same.
    Pre-trained models stay in the output directory, fine-tuned ones and checkpoints do not.

    Returns:
        `table` of the scores in points with the metric of each task, `pretraining` of the variants, and `summary` in
        sentences; if runs failed, `failed` with their errors and the `exit_code` of the first. The output directory
        holds `ablate.json`, `report.html`, `ablate.svg`, `ablate.png`, a line for each run in `finished.jsonl`, and
        the logs below `variants`.

    Raises:
        StemformerError: Variants, tasks, settings and data do not fit together, or the disk is too small. Errors of
            single runs, a lack of memory included, are kept in the result.
    """
    progress = progress or Silent()

    # Check the options.
    run = resolve(find_recipe(options.recipe), options)
    _check(run, options)
    variants = parse_variants(options.variants, run)
    configs = variant_configs(run, variants)
    tasks = task_configs(options, run.seed)
    counts = (options.num_seeds, options.num_pretraining_seeds)
    config = CONFIGS[type(run)](variants, tasks, *counts, flops=options.flops, run=run)
    if options.show_config:
        return {"config": to_toml(config)}
    files = [name for task in tasks.values() for name in expand_parallel([*task.train, *task.dev])]
    folder = prepare_experiment_dir(options, (options.data, options.config, *files), command="ablate")

    # Read all data and plan all runs before the first one.
    manifest, tokenizer = read_manifest(options.data), load_tokenizer(Path(options.data) / "tokenizer")
    check_tokenizer(manifest, tokenizer)
    shards = open_shards(options.data)
    set_threads(run.compute.threads)
    progress.start("checking the variants", total=len(configs), unit="variants")
    plans = {}
    for name, variant in configs.items():
        plans[name] = plan_variant(name, variant, shards, tokenizer, options.flops)
        progress.advance(1, name)
    for note in rounding_notes(plans):
        progress.say(f"note: {note}. A larger --flops brings them closer.")
    with TemporaryDirectory() as temporary:
        _save_random_model(run, plans, tokenizer, Path(temporary) / "model")
        shared, task_data = _read_tasks(tasks, plans, Path(temporary) / "model", progress)
    config = replace(config, data=manifest.fingerprint, task_data=task_data)
    if options.resume and (folder / FINISHED).is_file() and (folder / CONFIG).is_file():
        stored = _read_config((folder / CONFIG).read_text(encoding="utf-8"), str(folder / CONFIG))
        # Another seed, or fewer pre-trainings, are refused below.
        if stored.run.seed == config.run.seed and stored.num_pretraining_seeds <= config.num_pretraining_seeds:
            config = config.with_seeds_of(stored)

    # Run.
    cells = config.cells()
    _check_disk(folder, cells, shared, resume=options.resume)
    grid = _open_grid(folder, config, options)
    runs = AblationRuns(config, shared, options, folder)
    if not runs.random_model.is_dir():
        runs.random_model.parent.mkdir(parents=True, exist_ok=True)
        _save_random_model(run, plans, tokenizer, runs.random_model)
    todo = {cell: PlannedRun(cell.label, partial(runs.run, cell)) for cell in cells}
    records = dict(zip(cells, grid.run(todo, progress, describe=runs.describe), strict=True))
    return _conclude(folder, records, config, shared, progress)


def _check(run: RunConfig, options: AblateOptions) -> None:
    if not options.tasks:
        raise ConfigError("No tasks. Pass a labelled file, such as --task classify:FILE.csv.")
    for name in ("num_seeds", "num_pretraining_seeds"):
        if (number := getattr(options, name)) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {number}: expected at least 1.")
    if options.num_pretraining_seeds > options.num_seeds:
        numbers = f"{options.num_pretraining_seeds}, more than --num-seeds {options.num_seeds}"
        raise ConfigError(f"--num-pretraining-seeds is {numbers}: some models would not be fine-tuned.")
    if options.flops is not None and not 0 < options.flops < float("inf"):
        raise ConfigError(f"--flops is {options.flops}: expected a number above 0, such as 1e15.")
    if options.flops is not None and run.budget != BudgetConfig():
        raise ConfigError("Two training budgets (--flops and another one). Pass one of them.")
    if options.flops is None and run.budget == BudgetConfig():
        raise ConfigError("No training budget. Pass --steps, --tokens, --time or --flops for each variant.")
    if run.init is not None:
        raise ConfigError("init has no effect: every variant starts from random weights. Remove the setting.")


def _save_random_model(run: RunConfig, plans: Mapping[str, VariantPlan], tokenizer: Tokenizer, folder: Path) -> None:
    """Save the model of the recipe with random weights, for texts as long as those of pre-training."""
    model = make_initial_model(run, tokenizer, Silent())
    model.max_length = max(batch.sequence_length for _, batch in run.all_phases())
    write_folder(folder, lambda temporary: save_model(model, temporary, tokenizer))


def _read_tasks(
    tasks: Mapping[str, FinetuneConfig], plans: Mapping[str, VariantPlan], model_folder: Path, progress: Progress
) -> tuple[AblationData, dict[str, str]]:
    """Read and encode the data of every task; return it with the SHA-256 of the examples of each."""
    labelled, rates, notes, digests = {}, {}, {}, {}
    for name, config in tasks.items():
        try:
            how: dict[str, Any] = {"train": config.train, "dev": config.dev, "dev_fraction": config.dev_fraction}
            data = read_labelled(config.task, progress, **how, seed=config.seed)
            model, tokenizer, max_length = load_initial_model(config, data.task, model_folder)
            examples, dev, notes[name] = encode_splits(data, tokenizer, max_length, progress)
        except StemformerError as error:
            raise ConfigError(f"Task {name!r}: {error}") from error
        labelled[name] = data
        rates[name] = default_learning_rates(config, model, (RANDOM,))[RANDOM]
        digests[name] = hashlib.sha256((examples.fingerprint + dev.fingerprint).encode()).hexdigest()
    return AblationData(labelled, dict(plans), rates, notes), digests


def _read_config(text: str, source: str) -> AblationConfig:
    return from_toml(CONFIGS[stored_run_class(text, source)], text, source=source, renamed=RENAMED_SETTINGS)


def _open_grid(folder: Path, config: AblationConfig, options: AblateOptions) -> RunGrid[AblationRun]:
    def stored_config(text: str, source: str) -> AblationConfig:
        stored = _read_config(text, source)
        for name in set(stored.tasks) & set(config.tasks):
            check_config_unchanged(
                stored.tasks[name], config.tasks[name], may_change=("compute.",), what=f"task {name!r}"
            )
        # Variants and tasks may be added or left out; those of both must be the same.
        kept: dict[str, Any] = {"tasks": config.tasks}
        for part in ("variants", "task_data"):
            kept[part] = {n: getattr(stored, part).get(n, value) for n, value in getattr(config, part).items()}
        # More pre-trainings change none of the finished runs; fewer would leave some out.
        if stored.num_pretraining_seeds < config.num_pretraining_seeds:
            kept["num_pretraining_seeds"] = config.num_pretraining_seeds
        return replace(stored, **kept)

    return RunGrid(
        folder,
        config,
        key=lambda record: AblationRun(record["variant"], record["task"], record["seed"]),
        what="ablation",
        resume=options.resume,
        stored_config=stored_config,
        may_change=("num_seeds", "pretraining_seeds", "run.compute."),
    )


def _check_disk(folder: Path, cells: Sequence[AblationRun], shared: AblationData, *, resume: bool) -> None:
    """Raise an error if the pre-trained models and the checkpoints of one run do not fit on the disk."""
    missing = [cell for cell in cells if not (resume and (folder / cell.folder / RESULT).is_file())]
    models = sum(shared.plans[cell.variant].model_bytes for cell in missing if not cell.task)
    largest = max(plan.model_bytes + _NUM_CHECKPOINTS * plan.checkpoint_bytes for plan in shared.plans.values())
    present = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    needed, free = models + largest, shutil.disk_usage(present).free
    if missing and needed > free:
        problem = f"{folder} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise ConfigError(f"{problem}. Make room, or pass another --out.")


def _conclude(
    folder: Path,
    records: Mapping[AblationRun, Record],
    config: AblationConfig,
    shared: AblationData,
    progress: Progress,
) -> dict[str, Any]:
    """Write `ablate.json`, report and plot, and return the result."""
    content = summarize(records, config, shared)
    done = [record for record in records.values() if FAILED not in record]
    table = [
        {"variant": variant} | {column: score_text(content, variant, column) for column in content["columns"]}
        for variant in (*config.variants, RANDOM)
    ]
    return {
        "ablation": str(folder),
        "report": str(folder / "report.html"),
        "runs": len(done),
        "seconds": round(sum(record["seconds"] for record in done), 1),
        "metrics": {name: task["metric"] for name, task in content["tasks"].items()},
        **failure_fields({cell.label: record for cell, record in records.items()}),
        **conclude(folder, "ablate", content, table, write_ablation_report, progress),
    }
