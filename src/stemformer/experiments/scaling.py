"""The `scaling-laws` command: pre-train a recipe at several model sizes and fit scaling laws to the validation loss."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from stemformer.commands.pretrain import pretrain
from stemformer.commands.training_run import resolve
from stemformer.config import from_toml, to_toml
from stemformer.data.shards.manifest import Manifest, read_manifest
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import ConfigError, DataError, StemformerError
from stemformer.evaluation.few_shot.task import open_task
from stemformer.evaluation.scaling_laws import fit_joint_law, fit_power_law, joint_sentences, size_sentences
from stemformer.experiments.few_shot import fewshot, show_prompts
from stemformer.experiments.run_grid import (
    FINISHED,
    PlannedRun,
    Record,
    RunGrid,
    conclude,
    prepare_experiment_dir,
    stored_run_class,
    with_run_config,
)
from stemformer.io import read_jsonl
from stemformer.models.model import make_model
from stemformer.objectives.objective import OBJECTIVES
from stemformer.options import ScalingLawsOptions, accepts
from stemformer.output_dir import exclusive_output_dir
from stemformer.progress import Progress, Silent
from stemformer.recipes import find_recipe
from stemformer.reports.scaling import write_scaling_report
from stemformer.training.config import RENAMED_SETTINGS, BudgetConfig, RunConfig
from stemformer.training.initialization import resolve_model_config

_HEAD_SIZE = 64
_EMBEDDING_COST = 2_000_000
"""Cost of a token outside of matrix products, in parameters of the same cost; measured on a CPU, for the progress bar."""
_SKIPPED_FRACTION = 0.2
"""Start of a run whose evaluations are not fitted: the learning rate still rises, and unigram frequencies come first."""
_RENAMED = {**RENAMED_SETTINGS, "rate_power": "lr_width_exponent"}


@dataclass(frozen=True)
class Size:
    """Number of layers and hidden size of a model."""

    layers: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"

    @property
    def heads(self) -> int:
        """Number of attention heads: those of about 64 dimensions that divide the width."""
        return next(h for h in range(max(1, self.width // _HEAD_SIZE), 0, -1) if self.width % h == 0)

    def model_settings(self, recipe: Any) -> dict[str, Any]:
        """Return the settings of a model config, with the feed-forward ratio of that of the recipe."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": round(self.width * recipe.intermediate_size / recipe.hidden_size),
        }


@dataclass(frozen=True)
class ScalingConfig:
    """Config of a scaling study."""

    sizes: tuple[str, ...]
    # Fingerprint of the tokenized data.
    data: str
    lr_width_exponent: float = 0.5
    # None for the budget of `run`.
    tokens_per_parameter: float | None = None
    # Recipe with all settings; its hidden size and learning rate are the reference of the scaling rule.
    run: RunConfig = field(default_factory=RunConfig)


_CONFIGS = with_run_config(ScalingConfig)


@exclusive_output_dir
@accepts(ScalingLawsOptions)
def scaling_laws(options: ScalingLawsOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Pre-train a recipe at several model sizes and fit scaling laws to the validation loss.

    Attention heads have about 64 dimensions; vocabulary, positions and the ratio of feed-forward and
    hidden size are those of the recipe.

    Returns:
        `table` of the sizes with their validation losses, and `summary` of the fitted laws in sentences. The
        output directory holds `scale.json`, `report.html`, `scale.svg`, `scale.png`, a line for each
        size in `finished.jsonl`, and the runs below `sizes`.

    Raises:
        StemformerError: Sizes, settings or data do not fit together; loss is not finite.
    """
    progress = progress or Silent()

    # Check the options.
    files = [Path(options.out) / name for name in (FINISHED, "sizes.jsonl")] if options.resume else []
    sizes = _parse_sizes(options.sizes, [record["size"] for file in files for record in read_jsonl(file)])
    run = resolve(find_recipe(options.recipe), options)
    manifest = read_manifest(options.data)
    run = replace(run, model=resolve_model_config(run, load_tokenizer(Path(options.data) / "tokenizer")))
    names = tuple(size.name for size in sizes)
    rule = (options.lr_width_exponent, options.tokens_per_parameter)
    config = _CONFIGS[type(run)](names, manifest.fingerprint, *rule, run)
    _check(config, options, manifest)
    if options.show_config:
        return {"config": to_toml(config)}
    folder = prepare_experiment_dir(options, (options.data, options.config), command="scaling-laws")

    # Train, then evaluate few-shot. If that fails, the trained sizes are reported all the same.
    records = _train_sizes(folder, config, sizes, options, progress)
    notes = []
    if options.fewshot_tasks:
        try:
            _evaluate_few_shot(records, folder, options, run.seed, progress)
        except StemformerError as error:
            notes = [f"no few-shot evaluation: {error}"]
            progress.say(notes[0])
    return _conclude(config, records, notes, folder, progress)


def _parse_sizes(texts: Sequence[str], finished: Sequence[str]) -> list[Size]:
    """Return sizes from text such as 4x256, and those finished before, by ascending number of parameters."""
    sizes: list[Size] = []
    named = [text.strip().lower() for text in texts]
    for text in [*named, *dict.fromkeys(name for name in finished if name not in named)]:
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,5})", text)
        if match is None:
            raise ConfigError(f"--sizes {text}: expected layers x width, such as 4x256")
        size = Size(int(match[1]), int(match[2]))
        if size in sizes:
            raise ConfigError(f"--sizes: {size.name} is repeated. Pass each size once.")
        sizes.append(size)
    if len(sizes) < 2:
        shown = ",".join(texts) or "(none)"
        raise ConfigError(f"--sizes {shown}: expected at least two, with commas, such as 2x64,2x128,4x128,4x256")
    return sorted(sizes, key=lambda size: (size.layers * (12 * size.width**2 + 13 * size.width), size.width))


def _check(config: ScalingConfig, options: ScalingLawsOptions, manifest: Manifest) -> None:
    """Raise an error for what would fail late, or have no effect."""
    ratio = options.tokens_per_parameter
    if ratio is not None and not 0 < ratio < float("inf"):
        raise ConfigError(f"--tokens-per-parameter {ratio}: expected a number above 0")
    if ratio is not None and any(value is not None for value in (options.steps, options.tokens, options.time)):
        raise ConfigError("Two budgets (--tokens-per-parameter and another one). Pass one of them.")
    if ratio is None and config.run.budget == BudgetConfig():
        raise ConfigError("No training budget. Pass --tokens, --tokens-per-parameter, --steps or --time for each size.")
    for key in (setting.partition("=")[0].strip().removeprefix("model.") for setting in options.settings):
        if key in Size(1, 1).model_settings(config.run.model):
            raise ConfigError(f"model.{key} is set by --sizes. Remove the setting.")
    if config.run.init is not None:
        raise ConfigError("init has no effect: every size starts from random weights. Remove the setting.")
    if "held_out" not in manifest.splits:
        raise DataError(f"{options.data} has no held-out split for the loss. Prepare it with --held-out 0.01.")
    if options.fewshot_tasks:
        show_prompts(options.fewshot_tasks, num_shots=options.num_shots)
        is_causal = "causal_lm" in OBJECTIVES[config.run.objective.name].heads
        if not is_causal and all(open_task(task).output_type != "multiple_choice" for task in options.fewshot_tasks):
            tasks = ", ".join(options.fewshot_tasks)
            raise ConfigError(f"{tasks}: A masked model generates no text. Pass a task with choices, or a GPT recipe.")


def _train_sizes(
    folder: Path, config: ScalingConfig, sizes: Sequence[Size], options: ScalingLawsOptions, progress: Progress
) -> list[Record]:
    """Pre-train the missing sizes and return the records of all."""

    def stored_config(text: str, source: str) -> ScalingConfig:
        return from_toml(_CONFIGS[stored_run_class(text, source)], text, source=source, renamed=_RENAMED)

    # Cost of a token times the number of tokens.
    totals = {size: _count_parameters(config, size)[0] for size in sizes}
    costs = {s: (n + _EMBEDDING_COST) * (n if config.tokens_per_parameter else 1) for s, n in totals.items()}
    seconds = config.run.budget.seconds
    grid = RunGrid(
        folder,
        config,
        key=lambda record: str(record["size"]),
        what="scaling study",
        resume=options.resume,
        stored_config=stored_config,
        may_change=("sizes", "run.compute."),
        former=("sizes.jsonl", "sizes"),
    )

    plans = {}
    for size, cost in costs.items():
        make = partial(_train_size, size, config, folder / "sizes" / size.name, options)
        plans[size.name] = PlannedRun(size.name, make, weight=seconds or 100 * cost / sum(costs.values()))

    def describe(record: Record) -> str:
        return f"held-out loss {record['loss']:.4g}"

    (folder / "sizes").mkdir(exist_ok=True)
    try:
        return grid.run(plans, progress, describe=describe, name="size", unit="seconds" if seconds else "%")
    except StemformerError:
        # Nothing was trained: the error is in the options.
        if not any((folder / "sizes").iterdir()):
            shutil.rmtree(folder)
        raise


def _train_size(
    size: Size, config: ScalingConfig, folder: Path, options: ScalingLawsOptions, progress: Progress
) -> Record:
    """Pre-train a size, or resume its run, and return its record."""
    run, counts = config.run, _count_parameters(config, size)
    assert run.optimizer.learning_rate is not None
    learning_rate = run.optimizer.learning_rate * (run.model.hidden_size / size.width) ** config.lr_width_exponent
    ratio = config.tokens_per_parameter
    architecture = (f"model.{key}={value}" for key, value in size.model_settings(config.run.model).items())
    result = pretrain(
        run.recipe,
        data=options.data,
        out=str(folder),
        config=options.config,
        settings=[*options.settings, *architecture, f"optimizer.learning_rate={learning_rate!r}"],
        steps=options.steps,
        tokens=options.tokens if ratio is None else round(ratio * counts[0]),
        time=options.time,
        seed=options.seed,
        **options.compute(),
        resume=True,
        progress=progress,
    )
    return {
        "size": size.name,
        **asdict(size),
        "heads": size.heads,
        "parameters": counts[0],
        "parameters_in_layers": counts[1],
        "learning_rate": learning_rate,
        **{key: result[key] for key in ("steps", "tokens", "seconds")},
        **_read_losses(read_jsonl(folder / "log.jsonl")),
    }


def _count_parameters(config: ScalingConfig, size: Size) -> tuple[int, int]:
    """Return the number of parameters of a size, and that in its layers, without allocating them."""
    model_config = replace(config.run.model, **size.model_settings(config.run.model))
    with torch.device("meta"):
        heads = OBJECTIVES[config.run.objective.name].heads
        model = make_model(model_config, heads, tied=config.run.ties_embeddings)
    return model.num_parameters(), model.num_parameters(embeddings=False)


def _read_losses(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the final losses of a log, the operations, and the loss over tokens."""
    evaluations = [line for line in log if line["kind"] == "evaluation"]
    last = evaluations[-1]
    name = next(name for name in ("held_out_causal_lm_loss", "held_out_masked_lm_loss") if name in last)
    keys = {"loss": name, "unigram_loss": "held_out_unigram_loss", "bits_per_byte": "held_out_bits_per_byte"}
    losses = {key: last[logged] for key, logged in keys.items() if logged in last}
    flops = sum(line["flops"] for line in log if line["kind"] == "train")
    curve = [{"tokens": line["tokens"], "loss": line[name]} for line in evaluations if line["step"]]
    return {**losses, "flops": flops, "curve": curve}


def _evaluate_few_shot(
    records: Sequence[Record], folder: Path, options: ScalingLawsOptions, seed: int, progress: Progress
) -> None:
    """Add the few-shot accuracy (or the task's own metric) of each size to its record, in percent, mean over tasks."""
    models = {record["size"]: str(folder / "sizes" / record["size"] / "final") for record in records}
    out = folder / "prompts"
    is_started = out.is_dir() and any(out.glob("*.jsonl"))
    result = fewshot(
        options.fewshot_tasks,
        model=list(models.values()),
        out=str(out),
        num_shots=options.num_shots,
        resume=is_started,
        overwrite=not is_started,
        seed=seed,
        device=options.device or "auto",
        precision=options.precision or "fp32",
        threads=options.threads,
        progress=progress,
    )
    for record in records:
        model = models[record["size"]]
        rows = [row for row in result["results"] if row["model"] == model and not row.get("is_from_before")]
        if all(row["chance"] is not None for row in rows):
            record["in_context_chance"] = 100 * fmean(row["chance"] for row in rows)
        record["in_context"] = {
            str(shots): 100 * fmean(row["value"] for row in rows if row["num_shots"] == shots)
            for shots in sorted({row["num_shots"] for row in rows})
        }


def _conclude(
    config: ScalingConfig, records: Sequence[Record], notes: Sequence[str], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Fit the laws, write `scale.json`, report and plots, and return the result."""
    points = [
        {"parameters_in_layers": record["parameters_in_layers"], **point}
        for record in records
        for point in record["curve"]
        if point["tokens"] >= _SKIPPED_FRACTION * record["tokens"]
    ]
    sizes, losses = ([record[key] for record in records] for key in ("parameters_in_layers", "loss"))
    law = fit_power_law(sizes, losses)
    joint = fit_joint_law(*([p[key] for p in points] for key in ("parameters_in_layers", "tokens", "loss")))
    content = {
        "recipe": config.run.recipe,
        "summary": [*size_sentences(sizes, losses, law), *joint_sentences(joint)],
        "notes": [*_conditions(config, records), *notes],
        "law": None if law is None else asdict(law),
        "joint": None if joint is None else asdict(joint),
        "points": points,
        "sizes": records,
    }
    write_report = partial(write_scaling_report, law=law, joint=joint)
    return {
        "scaling": str(folder),
        "report": str(folder / "report.html"),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        **conclude(folder, "scale", content, [_table_row(record) for record in records], write_report, progress),
    }


def _table_row(record: Record) -> dict[str, Any]:
    row = {key: record[key] for key in ("size", "parameters", "parameters_in_layers", "tokens")}
    row["flops"] = f"{record['flops']:.3g}"
    row |= {key: round(record[key], 4) for key in ("loss", "bits_per_byte") if key in record}
    row |= {f"shots_{shots}": round(value, 1) for shots, value in record.get("in_context", {}).items()}
    return {**row, "seconds": record["seconds"]}


def _conditions(config: ScalingConfig, records: Sequence[Record]) -> list[str]:
    """Return sentences about how the sizes were trained, and on those that are not below the unigram baseline."""
    run, budget = config.run, config.run.budget
    if config.tokens_per_parameter is not None:
        length = f"{config.tokens_per_parameter:g} tokens for each parameter, embeddings included"
    elif budget.seconds is not None:
        length = f"{budget.seconds:g} seconds each"
    else:
        length = next(f"{value:,} {name} each" for name, value in asdict(budget).items() if value is not None)
    untrained = ", ".join(record["size"] for record in records if record["loss"] >= record["unigram_loss"])
    unigram = max(record["unigram_loss"] for record in records)
    note = f"not below the unigram baseline ({unigram:.3f}), so trained too briefly to compare: {untrained}"
    width = run.model.hidden_size
    return [
        f"training budget of the sizes: {length}; the same text in the same order, {run.batch.size} sequences of "
        f"{run.batch.sequence_length} tokens in a step",
        f"peak learning rate: {run.optimizer.learning_rate:g} at hidden size {width}, times ({width} / hidden size)^"
        f"{config.lr_width_exponent:g} for others; it was not tuned for each size",
        "N is the number of parameters in the layers, without embeddings and head; D is the number of training tokens; "
        "the loss is in nats per scored token",
        f"evaluations in the first {_SKIPPED_FRACTION:.0%} of a run are not fitted; all but the last were made before "
        "the learning rate had decayed, so B and beta hold for this schedule and not for runs that end there",
        "one seed; the ranges in which one size at a time is left out show how reliable a fit is",
        *([note] if untrained else []),
    ]
