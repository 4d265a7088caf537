"""The scaling command: one recipe at several sizes on one budget rule, and what held-out loss has to do with size and text read.

The runs themselves are in `sizes.py`.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from stemformer.commands.pretrain import resolve
from stemformer.config import to_toml
from stemformer.data.shards.manifest import Manifest, read_manifest
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import ConfigError, DataError, StemformerError
from stemformer.evaluation.few_shot.task import open_task
from stemformer.evaluation.scaling_laws import fit_joint_law, fit_power_law, joint_sentences, size_sentences
from stemformer.experiments.few_shot import fewshot, show_prompts
from stemformer.experiments.scaling_trials import (
    GptScaleConfig,
    ScaleConfig,
    Size,
    finished_sizes,
    prepare_scaling,
    read_model_sizes,
    run_sizes,
)
from stemformer.io import write_file
from stemformer.options import ScalingLawsOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent
from stemformer.recipes import find_recipe
from stemformer.reports.scaling import write_scale_report
from stemformer.training.config import BudgetConfig, GptRunConfig, RunConfig
from stemformer.training.initialization import resolve_model_config

_FIRST_SHARE = 0.2
"""Of a run, whose evaluations are left out of the fit over tokens: the rate still rises, and word frequencies come first."""


@exclusive_output_dir
@accepts(ScalingLawsOptions)
def scaling_laws(options: ScalingLawsOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Pre-train a recipe at several model sizes and fit scaling laws to the validation loss.

    Attention heads have about 64 dimensions and the feed-forward layer is four times as wide as the
    hidden size; vocabulary and positions are those of the recipe.

    Returns:
        Table of the sizes with their validation losses, and the fitted laws. The output directory holds
        `scale.json`, `report.html`, `scale.svg`, `scale.png`, and the runs below `sizes`.

    Raises:
        StemformerError: Sizes, settings or data do not fit together; loss is not finite.
    """
    progress = progress or Silent()
    recipe, data, out, sizes, config = options.recipe, options.data, options.out, options.sizes, options.config
    steps, tokens, time, settings, seed = options.steps, options.tokens, options.time, options.settings, options.seed
    tokens_per_parameter, rate_power = options.tokens_per_parameter, options.lr_width_exponent
    prompt_tasks, num_shots = options.fewshot_tasks, options.num_shots
    resume, overwrite = options.resume, options.overwrite
    chosen = read_model_sizes(sizes, and_also=finished_sizes(Path(out)) if resume else ())
    budget = {"steps": steps, "tokens": tokens, "time": time}
    compute = options.compute()
    run = resolve(find_recipe(recipe), options)
    manifest = read_manifest(data)
    run = replace(run, model=resolve_model_config(run, load_tokenizer(Path(data) / "tokenizer")))
    asked = _asked(run, chosen, manifest, rate_power=rate_power, tokens_per_parameter=tokens_per_parameter)
    _check(asked, settings, budget, manifest, data)
    _check_tasks(run, prompt_tasks, num_shots)
    if options.show_config:
        return {"config": to_toml(asked)}
    folder = prepare_output_dir(out, resume=resume, overwrite=overwrite)
    check_not_inside_inputs(folder, [path for path in (data, config) if path and Path(path).exists()])
    done = prepare_scaling(folder, asked, progress, resume=resume)
    of_run = {"data": data, "config": config, "steps": steps, "tokens": tokens, "time": time, "seed": seed, **compute}
    try:
        run_sizes(asked, chosen, manifest, folder, done, {"settings": settings, **of_run}, progress)
    except StemformerError:
        if not any((folder / "sizes").iterdir()):  # what is wrong was found before anything was trained
            shutil.rmtree(folder)
        raise
    lines, notes = [done[size.name] for size in chosen], []
    if prompt_tasks:
        machine = {
            "device": options.device or "auto",
            "precision": options.precision or "fp32",
            "threads": options.threads,
        }
        try:
            _ask_in_context(lines, folder, prompt_tasks, num_shots, progress, seed=run.seed, **machine)
        except StemformerError as error:  # what was trained is told all the same
            notes = [f"nothing was asked in context: {error}"]
            progress.say(notes[0])
    return _conclude(asked, lines, notes, folder, progress)


def _ask_in_context(
    lines: Sequence[dict[str, Any]],
    folder: Path,
    tasks: Sequence[str],
    num_shots: Sequence[int],
    progress: Progress,
    **options: Any,
) -> None:
    """Adds to the line of each size how often its model is right in context, in percent (or by a task's own metric), mean over tasks."""
    models = {line["size"]: str(folder / "sizes" / line["size"] / "final") for line in lines}
    out = folder / "prompts"
    is_begun = (out / "figures.jsonl").is_file()
    told = fewshot(
        tasks,
        model=list(models.values()),
        out=str(out),
        num_shots=num_shots,
        resume=is_begun,
        overwrite=not is_begun,
        progress=progress,
        **options,
    )
    for line in lines:
        mine = [r for r in told["figures"] if r["model"] == models[line["size"]] and not r.get("is_from_before")]
        if all(row["chance"] is not None for row in mine):
            line["in_context_chance"] = 100 * fmean(row["chance"] for row in mine)
        line["in_context"] = {
            str(shots): 100 * fmean(row["figure"] for row in mine if row["num_shots"] == shots)
            for shots in sorted({row["num_shots"] for row in mine})
        }


# ------------------------------------------------------------------------------------------------------------------- what is asked for


def _asked(
    run: RunConfig, sizes: Sequence[Size], manifest: Manifest, *, rate_power: float, tokens_per_parameter: float | None
) -> ScaleConfig:
    kind = GptScaleConfig if isinstance(run, GptRunConfig) else ScaleConfig
    names = tuple(size.name for size in sizes)
    return kind(names, manifest.fingerprint, rate_power, tokens_per_parameter, run)  # type: ignore[arg-type]


def _check_tasks(run: RunConfig, tasks: Sequence[str], num_shots: Sequence[int]) -> None:
    """Says what is wrong with prompts before anything is trained."""
    if not tasks:
        return
    show_prompts(tasks, num_shots=num_shots)
    if not isinstance(run, GptRunConfig) and all(open_task(task).how != "choose" for task in tasks):
        raise ConfigError(
            f"{', '.join(tasks)}: a masked model writes no text: give a task with choices, or a GPT's recipe"
        )


def _check(
    asked: ScaleConfig, settings: Sequence[str], budget: Mapping[str, Any], manifest: Manifest, data: str
) -> None:
    """Refuses what would be known too late, or have no effect."""
    ratio = asked.tokens_per_parameter
    if ratio is not None and not 0 < ratio < float("inf"):
        raise ConfigError(f"--tokens-per-parameter {ratio}: expected a number above 0")
    if ratio is not None and any(value is not None for value in budget.values()):
        raise ConfigError("two budgets were given (--tokens-per-parameter and another one): give one")
    if ratio is None and asked.run.budget == BudgetConfig():
        raise ConfigError(
            "how long to train is not said: give --tokens, --tokens-per-parameter, --steps or --time, for each size"
        )
    for key in (setting.partition("=")[0].strip().removeprefix("model.") for setting in settings):
        if key in Size(1, 1).of_model():
            raise ConfigError(f"model.{key} is said with --sizes: leave the setting out")
    if asked.run.init is not None:
        raise ConfigError("init: every size starts from fresh weights; leave it out")
    if "held_out" not in manifest.splits:
        raise DataError(f"{data} has no held-out part to measure the loss on: prepare it with --held-out 0.01")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("scale runs in one process: start it without torchrun")


# --------------------------------------------------------------------------------------------------------------------------- the result


def _conclude(
    asked: ScaleConfig, lines: list[dict[str, Any]], notes: Sequence[str], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Writes `scale.json`, report and pictures, and returns what is printed."""
    points = [
        {"parameters_in_layers": line["parameters_in_layers"], **point}
        for line in lines
        for point in line["curve"]
        if point["tokens"] >= _FIRST_SHARE * line["tokens"]
    ]
    n, losses = ([line[key] for line in lines] for key in ("parameters_in_layers", "loss"))
    law = fit_power_law(n, losses)
    joint = fit_joint_law(*([p[key] for p in points] for key in ("parameters_in_layers", "tokens", "loss")))
    told = [*size_sentences(n, losses, law), *joint_sentences(joint)]
    rows = [_row(line) for line in lines]
    written = {
        "recipe": asked.run.recipe,
        "sentences": told,
        "notes": [*_conditions(asked), *_unlearned(lines), *notes],
        "law": None if law is None else asdict(law),
        "joint": None if joint is None else asdict(joint),
        "points": points,
        "sizes": lines,
    }
    write_file(folder / "scale.json", [(json.dumps(written, ensure_ascii=False, indent=2) + "\n").encode()])
    progress.start("drawing")
    page = {**written, "title": folder.resolve().name, "table": rows}
    write_scale_report(folder, page, law, joint, config=(folder / "config.toml").read_text(encoding="utf-8"))
    progress.finish()
    return {
        "scaling": str(folder),
        "report": str(folder / "report.html"),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "table": rows,
        "what size does": told,
        "notes": written["notes"],
    }


def _unlearned(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence about sizes that learned nothing from what stands around a word; nothing where there are none."""
    sizes = [line["size"] for line in lines if line["loss"] >= line["unigram_loss"]]
    if not sizes:
        return []
    words = max(line["unigram_loss"] for line in lines)
    return [
        f"not below the loss of word frequency alone ({words:.3f}), so trained too briefly to compare: {', '.join(sizes)}"
    ]


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "size": line["size"],
        "parameters": line["parameters"],
        "in layers": line["parameters_in_layers"],
        "tokens": line["tokens"],
        "operations": f"{line['flops']:.3g}",
        "loss": round(line["loss"], 4),
    }
    if "bits_per_byte" in line:
        row["bits per byte"] = round(line["bits_per_byte"], 4)
    row |= {f"{shots}-shot": round(value, 1) for shots, value in line.get("in_context", {}).items()}
    return {**row, "seconds": line["seconds"]}


def _conditions(asked: ScaleConfig) -> list[str]:
    """Returns under which conditions the runs were made, in sentences."""
    run, budget = asked.run, asked.run.budget
    if asked.tokens_per_parameter is not None:
        length = f"{asked.tokens_per_parameter:g} tokens for each parameter, those of the embeddings among them"
    elif budget.seconds is not None:
        length = f"{budget.seconds:g} seconds each"
    else:
        length = next(f"{value:,} {name} each" for name, value in asdict(budget).items() if value is not None)
    return [
        f"the budget of the sizes: {length}; the same text in the same order, {run.batch.size} rows of {run.batch.sequence_length} a step",
        f"peak of the learning rate: {run.optimizer.learning_rate:g} at width {run.model.hidden_size}, times ({run.model.hidden_size} "
        f"/ width)^{asked.rate_power:g} at others; it was not searched for each size",
        "N counts the parameters in the layers, without embeddings and head; D the tokens read; loss is in nats a scored token",
        f"of each run, evaluations of its first {_FIRST_SHARE:.0%} are not fitted; those before its last were made before the learning "
        "rate had fallen to its end, so B and beta tell of this schedule and not of runs that end there",
        "one seed; how far a fit can be relied on is shown by leaving one size out at a time",
    ]
