"""The comparing command: one task from pre-trained weights, from random ones, and from a pre-trained body under fresh word embeddings.

The runs themselves are in `cells.py`.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from stemformer.commands.finetune import make_config, run_length
from stemformer.config import nearest, to_toml
from stemformer.data.labelled.splits import parse_sizes, subset_order
from stemformer.errors import ConfigError
from stemformer.evaluation.seed_statistics import differences_from_random, gain_sentences, means, table_row
from stemformer.experiments.comparison_trials import (
    INITIALIZATIONS,
    CompareConfig,
    Trial,
    TrialTable,
    prepare_comparison,
    run_trials,
    subset,
)
from stemformer.huggingface.load import find_folder
from stemformer.io import read_jsonl, write_file
from stemformer.options import CompareOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent
from stemformer.reports.comparison import write_compare_report
from stemformer.tasks.dataset import encode_splits, majority_baseline, read_labelled, stratification_keys
from stemformer.training.config import FinetuneConfig
from stemformer.training.initialization import load_initial_model

_RATE_FACTORS = {"pretrained": 1.0, "random": 10.0, "reembedded": 1.0}
"""Peak of the learning rate of a start, over that of fine-tuning, where it is not given: weights drawn at random have a longer way."""


@exclusive_output_dir
@accepts(CompareOptions)
def compare(options: CompareOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Compare fine-tuning from pre-trained and from random weights, over training-set sizes and seeds.

    Every size has the same number of optimizer steps (that of 3 epochs over the largest size, unless
    `steps` is set), so that fewer examples do not also mean less training. The result of a run is that
    of its last step: nothing is selected on the dev data. Checkpoints are not kept.

    Returns:
        Table of the metric by size and initialization, and sentences about the differences. The output
        directory holds `compare.json`, `report.html`, `compare.svg`, `compare.png`, and a line for each
        run in `cells.jsonl`.

    Raises:
        StemformerError: Data, settings or model do not fit together; loss is not finite.
    """
    progress = progress or Silent()
    given = make_config(options)
    if options.show_config:
        return {"config": to_toml(given)}
    seeds, sizes, starts, rates = options.num_seeds, options.sizes, options.initializations, options.learning_rates
    model, train, dev, epochs, config = options.model, options.train, options.dev, options.epochs, options.config
    out, resume, overwrite = options.out, options.resume, options.overwrite
    _check(given, seeds, starts)
    peaks = _read_rates(rates, starts, given.optimizer.learning_rate)
    folder = prepare_output_dir(out, resume=resume, overwrite=overwrite)
    check_not_inside_inputs(folder, [path for path in (*train, *dev, model, config) if path and Path(path).exists()])
    source = find_folder(model)
    data = read_labelled(
        given.task, progress, train=given.train, dev=given.dev, dev_fraction=given.dev_fraction, seed=given.seed
    )
    _, tokenizer, longest = load_initial_model(given, data.task, source)
    numbers = parse_sizes(sizes, len(data.train))
    examples, dev_examples, notes = encode_splits(data, tokenizer, longest, progress)
    is_by_epochs = epochs is not None
    if not is_by_epochs and given.budget.steps is None:
        biggest = subset(
            examples, subset_order(stratification_keys(data.task.config, data.train), given.seed)[: numbers[-1]]
        )
        num_steps = run_length(given, len(biggest))
        given = replace(given, budget=replace(given.budget, steps=num_steps, epochs=None))
    fingerprint = hashlib.sha256((examples.fingerprint + dev_examples.fingerprint).encode()).hexdigest()
    chosen = tuple(start for start in INITIALIZATIONS if start in starts)
    asked = CompareConfig(chosen, numbers, seeds, is_by_epochs, fingerprint, given, peaks)
    table = TrialTable(examples, dev_examples, tokenizer, longest, source, data)
    done = prepare_comparison(folder, asked, progress, resume=resume)
    run_trials(asked, table, folder, done, progress)
    return _conclude(asked, table, folder, done, notes, progress)


# ------------------------------------------------------------------------------------------------------------------- what is asked for


def _check(config: FinetuneConfig, seeds: int, starts: Sequence[str]) -> None:
    if seeds < 1:
        raise ConfigError(f"--num-seeds {seeds}: expected at least 1")
    for start in starts:
        if start not in INITIALIZATIONS:
            raise ConfigError(
                f"--initializations {start}: expected some of {', '.join(INITIALIZATIONS)}{nearest(start, INITIALIZATIONS)}"
            )
    if not starts or len(set(starts)) < len(starts):
        raise ConfigError(
            f"--initializations {','.join(starts) or '(none)'}: expected each of them once, and at least one"
        )
    if config.reinitialize != "nothing":
        raise ConfigError(
            f"reinitialize is {config.reinitialize}: what is drawn at random is said with --initializations; leave it out"
        )
    if config.evaluation.patience is not None:
        raise ConfigError("evaluation.patience: runs that are compared keep no checkpoint to go back to; leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("compare runs in one process: start it without torchrun")


def _read_rates(rates: Sequence[str], starts: Sequence[str], usual: float) -> dict[str, float]:
    """Returns the peak learning rate of each start."""
    found = {start: usual * _RATE_FACTORS[start] for start in INITIALIZATIONS if start in starts}
    for rate in rates:
        start, _, number = rate.partition("=")
        if start not in found:
            raise ConfigError(f"--learning-rates {rate}: expected START=NUMBER, the start one of {', '.join(found)}")
        try:
            found[start] = float(number)
        except ValueError:
            found[start] = math.nan
        if not 0 < found[start] < math.inf:
            raise ConfigError(f"--learning-rates {rate}: expected START=NUMBER, such as {start}=1e-4")
    return found


# --------------------------------------------------------------------------------------------------------------------------- the result


def _conclude(
    asked: CompareConfig,
    table: TrialTable,
    folder: Path,
    done: dict[Trial, dict[str, Any]],
    notes: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """Writes `compare.json`, report and pictures, and returns what is printed."""
    task = table.data.task
    metric = task.main_metric
    scale = 1.0 if task.head == "span" else 100.0  # of answers in passages, figures are in percent already
    cells = [cell for cell in asked.cells() if cell in done]
    figures: dict[str, dict[int, dict[int, float]]] = {
        start: {size: {} for size in asked.sizes} for start in asked.starts
    }
    for cell in cells:
        figures[cell.start][cell.size][cell.seed] = scale * done[cell]["metrics"][metric]
    summary = {
        start: [
            {"records": size, "mean": mean, "spread": deviation, "each": list(of_start[size].values())}
            for size, (mean, deviation) in means(of_start).items()
        ]
        for start, of_start in figures.items()
    }
    usual = majority_baseline(table.data) if metric == "accuracy" else None
    baseline = None if usual is None else round(100 * usual[1], 2)
    told = gain_sentences(figures, metric=metric.replace("_", " "), baseline=baseline)
    rows = [table_row(figures, size) for size in asked.sizes]
    written = {
        "task": task.config.name,
        "metric": metric,
        "model": asked.finetune.model,
        "train": len(table.data.train),
        "dev": len(table.data.dev),
        "sizes": list(asked.sizes),
        "seeds": sorted({cell.seed for cell in cells}),
        "baseline": baseline,
        "sentences": told,
        "summary": summary,
        "differences": differences_from_random(figures),
        "notes": [*_conditions(asked, done, cells), *notes],
        "cells": [{**done[cell], "log": f"cells/{cell.name}/log.jsonl"} for cell in cells],
    }
    write_file(folder / "compare.json", [(json.dumps(written, ensure_ascii=False, indent=2) + "\n").encode()])
    progress.start("drawing")
    logs = {
        (cell.start, cell.size, cell.seed): read_jsonl(folder / "cells" / cell.name / "log.jsonl") for cell in cells
    }
    page = {**written, "table": rows, "title": folder.resolve().name, "figures": figures}
    write_compare_report(folder, page, logs, config=(folder / "config.toml").read_text(encoding="utf-8"))
    progress.finish()
    return {
        "comparison": str(folder),
        "report": str(folder / "report.html"),
        "runs": len(cells),
        "seconds": round(sum(done[cell]["seconds"] for cell in cells), 1),
        "metric": metric,
        "spread": f"standard deviation over seeds, of which there are {asked.num_seeds}",
        **({} if baseline is None else {"without reading": baseline}),
        "table": rows,
        "what pre-training is worth": told,
        "notes": written["notes"],
    }


def _conditions(asked: CompareConfig, done: dict[Trial, dict[str, Any]], cells: Sequence[Trial]) -> list[str]:
    """Returns under which conditions the runs were made, in sentences."""
    given = asked.finetune
    numbers = sorted({done[cell]["steps"] for cell in cells})
    steps = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    rows = {c: min(given.batch.size, done[c]["examples"]) for c in cells}
    passes = [
        f"{fmean(rows[c] * done[c]['steps'] / done[c]['examples'] for c in cells if c.size == size):.2g} over {size:,} records"
        for size in asked.sizes
    ]
    told_rows = " to ".join(f"{number:,}" for number in sorted({min(rows.values()), max(rows.values())}))
    same = "as many passes over each size" if asked.is_by_epochs else "the same number for each size"
    rates = ", ".join(f"{rate:g} {start}" for start, rate in asked.rates.items())
    return [
        f"{steps} steps of {told_rows} examples a run, {same}; passes: {', '.join(passes)}",
        f"peak of the learning rate: {rates}",
        "the figure of a run is that of its last step; nothing was chosen on the dev data",
        "a seed draws records (class shares kept, a smaller part within the larger ones), head, order and dropout, alike for each start",
    ]
