"""The comparing command: one task from pre-trained weights, from random ones, and from a pre-trained body under fresh word embeddings.

A cell is one run: a start, a number of training records, a seed. What a seed draws (records, head, order, dropout) it draws for
every start alike, so differences are taken over paired seeds.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from stemformer.config import differences, from_toml, nearest, to_toml
from stemformer.data.manifest import write_file
from stemformer.data.subsets import draw_order, read_sizes
from stemformer.data.tokenizer import Tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.worth import differences_from_random, means, sentences, table_row
from stemformer.finetuning import make_config, make_setup, run_length
from stemformer.folders import free_folder, refuse_inside
from stemformer.labelling import LabelledData, encode, read_labelled
from stemformer.pretrained import find_folder
from stemformer.problems import strata
from stemformer.progress import Progress, Silent
from stemformer.report.compare_report import write_compare_report
from stemformer.starting import open_model, put_on_device
from stemformer.tasks.task import TaskExamples
from stemformer.training.compute import choose_device, compile_blocks
from stemformer.training.distributed import this_rank
from stemformer.training.log import StepSums, read_log
from stemformer.training.loop import Position, train
from stemformer.training.run import FinetuneConfig

__all__ = ["STARTS", "Cell", "CompareConfig", "compare"]

STARTS: dict[str, Literal["nothing", "embeddings", "all"]] = {
    "pretrained": "nothing",
    "random": "all",
    "reembedded": "embeddings",
}
"""What a run starts from -> what of the model is drawn at random (`FinetuneConfig.fresh`)."""

_RATE_FACTORS = {"pretrained": 1.0, "random": 10.0, "reembedded": 1.0}
"""Peak of the learning rate of a start, over that of fine-tuning, where it is not given: weights drawn at random have a longer way."""

_NUM_EVALUATIONS = 10
_FEWEST_LINES = 20
"""Of a cell's log, however short it is: a curve needs points."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    start: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.start}-{self.size}-seed{self.seed}"


@dataclass(frozen=True)
class CompareConfig:
    """A comparison as data: what its `config.toml` holds.

    Attributes:
        starts: Names of `STARTS`.
        sizes: Numbers of training records, ascending.
        num_seeds: From `finetune.seed` on.
        rates: Peak of the learning rate of each start.
        is_by_epochs: Each size has as many passes over its own records; else each has the same number of steps.
        data: SHA-256 (hex) of all examples.
        finetune: What all cells share.
    """

    starts: tuple[str, ...]
    sizes: tuple[int, ...]
    num_seeds: int
    is_by_epochs: bool
    data: str
    finetune: FinetuneConfig
    rates: dict[str, float] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Returns all runs, those of a seed together, so that each seed adds to the whole picture."""
        seeds = range(self.finetune.seed, self.finetune.seed + self.num_seeds)
        return [Cell(start, size, seed) for seed in seeds for size in self.sizes for start in self.starts]


_MAY_CHANGE = ("starts", "sizes", "num_seeds", "rates", "finetune.compute.")
"""Keys of a comparison that goes on; rates are checked for the starts that it has."""


def compare(
    task: str,
    *,
    model: str,
    train: Sequence[str],
    out: str,
    dev: Sequence[str] = (),
    seeds: int = 3,
    sizes: Sequence[str | float] = (0.01, 0.1, 1),
    starts: Sequence[str] = tuple(STARTS),
    rates: Sequence[str] = (),
    text: Sequence[str] = (),
    label: str | None = None,
    kind: str = "class",
    max_length: int | None = None,
    symbols: str | None = None,
    symbol_size: int = 1,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    config: str | None = None,
    settings: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    compile: bool | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains one task from several starts, over sizes of the training data and over seeds, and says what pre-training was worth.

    Every size has the same number of optimizer steps (that of three passes over the largest size, unless `steps` says another), so
    that fewer records do not also mean less training; `epochs` gives each size so many passes over its own records instead. The
    figure of a run is that of its last step: nothing is chosen on the dev data. Checkpoints are not kept.

    Args:
        task: As for `finetune`, like all that is not listed here.
        model: The pre-trained model; the other starts have its sizes.
        train: Files of labelled data.
        out: Folder of the comparison: `compare.json`, `report.html`, `compare.svg`, `compare.png`, a line for each run in `cells.jsonl`.
        dev: The same, for evaluation; by default a part of the training data is set aside.
        seeds: So many, from `seed` on.
        sizes: Numbers of training records; up to 1 a share of them. Class shares are kept, and a smaller part is a part of the larger ones.
        starts: Of `pretrained`, `random` (the same model, drawn at random) and `reembedded` (its body, with word embeddings drawn at
            random).
        rates: Peak learning rates by start, such as `random=1e-3`; by default `random` has ten times that of the others.
        text: Columns of the texts.
        label: Column of the answer.
        kind: `class`, `labels` or `score`.
        max_length: Tokens of an example.
        symbols: Texts are sequences of symbols, read as words.
        symbol_size: How many symbols a drawn word stands for.
        epochs: Passes of each size over its own records.
        steps: Optimizer steps of every run.
        batch_size: Examples a step.
        learning_rate: Peak.
        config: TOML file laid over the defaults.
        settings: `key=value` laid over both.
        seed: The first one; 0 by default.
        device: As in `training.run.ComputeConfig`, like the next three.
        precision: Number format.
        threads: Processor threads.
        compile: Compile the blocks.
        resume: Keep the runs that are finished, and do the others; starts, sizes and seeds may have been added.
        overwrite: Replace what `out` holds.
        progress: Told how far it is, over all runs.

    Raises:
        StemformerError: Data, settings or a model that do not fit; a loss that is not finite.
    """
    progress = progress or Silent()
    given = make_config(
        task,
        model=model,
        train=train,
        dev=dev,
        text=text,
        label=label,
        kind=kind,
        max_length=max_length,
        symbols=symbols,
        symbol_size=symbol_size,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        config=config,
        settings=settings,
        seed=seed,
        device=device,
        precision=precision,
        threads=threads,
        compile=compile,
    )
    _check(given, seeds, starts)
    peaks = _read_rates(rates, starts, given.optimizer.learning_rate)
    folder = Path(out) if resume else free_folder(out, overwrite=overwrite)
    refuse_inside(folder, [path for path in (*train, *dev, model, config) if path and Path(path).exists()])
    source = find_folder(model)
    data = read_labelled(given, progress)
    _, tokenizer, longest = open_model(given, data.problem.task, source)
    numbers = read_sizes(sizes, len(data.train))
    examples, dev_examples, notes = encode(data, tokenizer, longest, progress)
    is_by_epochs = epochs is not None
    if not is_by_epochs and given.budget.steps is None:
        biggest = _subset(examples, draw_order(strata(data.problem.task.config, data.train), given.seed)[: numbers[-1]])
        num_steps = run_length(given, len(biggest))
        given = replace(given, budget=replace(given.budget, steps=num_steps, epochs=None))
    fingerprint = hashlib.sha256((examples.fingerprint + dev_examples.fingerprint).encode()).hexdigest()
    chosen = tuple(start for start in STARTS if start in starts)
    asked = CompareConfig(chosen, numbers, seeds, is_by_epochs, fingerprint, given, peaks)
    table = _Table(examples, dev_examples, tokenizer, longest, source, data)
    done = _begin(folder, asked, progress, resume=resume)
    _run_all(asked, table, folder, done, progress)
    return _conclude(asked, table, folder, done, notes, progress)


# ------------------------------------------------------------------------------------------------------------------- what is asked for


def _check(config: FinetuneConfig, seeds: int, starts: Sequence[str]) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: expected at least 1")
    for start in starts:
        if start not in STARTS:
            raise ConfigError(f"--starts {start}: expected some of {', '.join(STARTS)}{nearest(start, STARTS)}")
    if not starts or len(set(starts)) < len(starts):
        raise ConfigError(f"--starts {','.join(starts) or '(none)'}: expected each of them once, and at least one")
    if config.fresh != "nothing":
        raise ConfigError(f"fresh is {config.fresh}: what is drawn at random is said with --starts; leave it out")
    if config.evaluation.patience is not None:
        raise ConfigError("evaluation.patience: runs that are compared keep no checkpoint to go back to; leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("compare runs in one process: start it without torchrun")


def _read_rates(rates: Sequence[str], starts: Sequence[str], usual: float) -> dict[str, float]:
    """Returns the peak learning rate of each start."""
    found = {start: usual * _RATE_FACTORS[start] for start in STARTS if start in starts}
    for rate in rates:
        start, _, number = rate.partition("=")
        if start not in found:
            raise ConfigError(f"--rate {rate}: expected START=NUMBER, the start one of {', '.join(found)}")
        try:
            found[start] = float(number)
        except ValueError:
            found[start] = math.nan
        if not 0 < found[start] < math.inf:
            raise ConfigError(f"--rate {rate}: expected START=NUMBER, such as {start}=1e-4")
    return found


# ----------------------------------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class _Table:
    """What all cells share: examples, tokenizer, longest example, folder of the model, records."""

    examples: TaskExamples
    dev: TaskExamples
    tokenizer: Tokenizer
    max_length: int
    source: Path
    data: LabelledData


def _subset(examples: TaskExamples, records: Sequence[int]) -> TaskExamples:
    """Returns the examples of some records, in their order."""
    kept = np.flatnonzero(np.isin(examples.records, records)).tolist()
    scored = [examples.scored[i] for i in kept] if len(examples.scored) else ()
    return TaskExamples([examples.examples[i] for i in kept], examples.records[kept], scored, {})


# ---------------------------------------------------------------------------------------------------------------------------- the cells


def _begin(folder: Path, asked: CompareConfig, progress: Progress, *, resume: bool) -> dict[Cell, dict[str, Any]]:
    """Makes the folder ready, and returns the cells that are finished."""
    file = folder / "config.toml"
    done: dict[Cell, dict[str, Any]] = {}
    if resume and folder.is_dir() and any(folder.iterdir()):
        if not file.is_file() or not (folder / "cells").is_dir():
            raise CheckpointError(f"{folder} holds no comparison to resume: give another --out")
        stored = from_toml(CompareConfig, file.read_text(encoding="utf-8"), source=str(file))
        changed = [(k, a, b) for k, a, b in differences(stored, asked) if not k.startswith(_MAY_CHANGE)]
        changed += [
            (f"rate of {start}", rate, asked.rates[start])
            for start, rate in stored.rates.items()
            if asked.rates.get(start, rate) != rate
        ]
        if changed:
            told = "; ".join(f"{key} was {before}, is now {after}" for key, before, after in changed)
            raise CheckpointError(
                f"this comparison cannot go on with other settings ({told}): leave them as they were, or give another --out"
            )
        lines = read_log(folder / "cells.jsonl")
        done = {Cell(line["start"], line["size"], line["seed"]): line for line in lines}
        progress.say(f"{sum(cell in done for cell in asked.cells())} of {len(asked.cells())} runs are done already")
    elif folder.is_dir():
        for path in folder.iterdir():  # that it may be replaced was asked before
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    write_file(file, [to_toml(asked).encode()])
    return done


def _run_all(
    asked: CompareConfig, table: _Table, folder: Path, done: dict[Cell, dict[str, Any]], progress: Progress
) -> None:
    """Runs each cell that is not in `done`, and puts it there and on the disk."""
    keys = strata(table.data.problem.task.config, table.data.train)
    orders = {cell.seed: draw_order(keys, cell.seed) for cell in asked.cells()}
    parts = {(cell.size, cell.seed): _subset(table.examples, orders[cell.seed][: cell.size]) for cell in asked.cells()}
    lengths = {key: run_length(asked.finetune, len(part)) for key, part in parts.items()}
    total = sum(lengths[cell.size, cell.seed] for cell in asked.cells())
    behind = sum(lengths[cell.size, cell.seed] for cell in asked.cells() if cell in done)
    progress.start(f"{len(asked.cells())} runs", total=total, unit="steps")
    progress.advance(behind)
    metric = table.data.problem.main_metric
    for number, cell in enumerate(asked.cells(), 1):
        if cell in done:
            continue
        at = f"{cell.start}, {cell.size:,} records, seed {cell.seed}"
        inner = _OfOneCell(progress, at)
        done[cell] = _run_cell(cell, asked, table, parts[cell.size, cell.seed], folder / "cells" / cell.name, inner)
        lines = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in done.values()]
        write_file(folder / "cells.jsonl", lines)
        figure = done[cell]["metrics"][metric]
        progress.say(f"run {number} of {len(asked.cells())}: {at}: {metric} {figure:.4g}")
    progress.finish()


def _run_cell(
    cell: Cell, asked: CompareConfig, table: _Table, examples: TaskExamples, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Trains a cell, and returns what is kept of it."""
    config = replace(
        asked.finetune,
        seed=cell.seed,
        fresh=STARTS[cell.start],
        optimizer=replace(asked.finetune.optimizer, learning_rate=asked.rates[cell.start]),
    )
    num_steps = run_length(config, len(examples))
    every = config.evaluation.every or math.ceil(num_steps / _NUM_EVALUATIONS)
    config = replace(
        config,
        evaluation=replace(config.evaluation, every=every),
        log_every=max(1, min(config.log_every, num_steps // _FEWEST_LINES)),
    )
    task = table.data.problem.task
    with this_rank(choose_device(config.compute.device)) as ranks:
        model, _, _ = open_model(config, task, table.source)
        setup, _ = make_setup(
            config, table.data, examples, table.dev, table.tokenizer, model, ranks, folder, table.max_length
        )
        setup = replace(setup, is_saved=False)
        folder.mkdir(parents=True, exist_ok=True)
        module, optimizer = put_on_device(model, setup)
        if setup.environment["compile"]:
            compile_blocks(model)
        at = Position(sums=StepSums(None, ranks))
        figures = train(model, module, optimizer, setup, at, progress=progress)
    metrics = {key.removeprefix("dev_"): value for key, value in figures.items()}
    losses = [line for line in read_log(folder / "log.jsonl") if line["kind"] == "train"]
    return {
        **asdict(cell),
        "steps": at.step,
        "examples": len(examples),
        "tokens": at.tokens,
        "seconds": round(at.seconds, 1),
        "training_loss": losses[-1][f"{task.config.name}_loss"],
        "metrics": metrics,
    }


class _OfOneCell:
    """The progress of a cell, as a part of that of all cells: steps move the bar, the rest is left out.

    Args:
        outer: The progress of all.
        note: Stands behind the bar.
    """

    def __init__(self, outer: Progress, note: str) -> None:
        self._outer = outer
        self._note = note

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Begins no bar: there is one for all cells."""

    def advance(self, amount: float, note: str = "") -> None:
        """Moves the bar of all cells on."""
        self._outer.advance(amount, self._note)

    def say(self, line: str) -> None:
        """Says nothing but that it was stopped: each evaluation of each cell would be too much."""
        if line.startswith("stopped"):
            self._outer.say(f"{self._note}: {line}; finished runs are kept: go on with --resume")

    def finish(self) -> None:
        """Ends nothing."""


# --------------------------------------------------------------------------------------------------------------------------- the result


def _conclude(
    asked: CompareConfig,
    table: _Table,
    folder: Path,
    done: dict[Cell, dict[str, Any]],
    notes: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """Writes `compare.json`, report and pictures, and returns what is printed."""
    problem = table.data.problem
    metric = problem.main_metric
    scale = 1.0 if problem.task.head == "span" else 100.0  # of answers in passages, figures are in percent already
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
    baseline = _baseline(table.data, metric)
    told = sentences(figures, metric=metric.replace("_", " "), baseline=baseline)
    rows = [table_row(figures, size) for size in asked.sizes]
    written = {
        "task": problem.task.config.name,
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
    logs = {(cell.start, cell.size, cell.seed): read_log(folder / "cells" / cell.name / "log.jsonl") for cell in cells}
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


def _baseline(data: LabelledData, metric: str) -> float | None:
    """Returns the accuracy in percent of always giving the most frequent label of the training data; None where that is no figure."""
    task = data.problem.task
    if metric != "accuracy" or task.head not in ("sequence", "token"):
        return None
    ((usual, _),) = data.problem.count_labels(data.train).most_common(1)
    of_dev = data.problem.count_labels(data.dev)
    return round(100 * of_dev[usual] / of_dev.total(), 2)


def _conditions(asked: CompareConfig, done: dict[Cell, dict[str, Any]], cells: Sequence[Cell]) -> list[str]:
    """Returns under which conditions the runs were made, in sentences."""
    given = asked.finetune
    numbers = sorted({done[cell]["steps"] for cell in cells})
    steps = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    passes = [
        f"{fmean(given.batch.rows * done[c]['steps'] / done[c]['examples'] for c in cells if c.size == size):.2g} over {size:,} records"
        for size in asked.sizes
    ]
    same = "as many passes over each size" if asked.is_by_epochs else "the same number for each size"
    rates = ", ".join(f"{rate:g} {start}" for start, rate in asked.rates.items())
    return [
        f"{steps} steps of {given.batch.rows} examples a run, {same}; passes: {', '.join(passes)}",
        f"peak of the learning rate: {rates}",
        "the figure of a run is that of its last step; nothing was chosen on the dev data",
        "a seed draws records (class shares kept, a smaller part within the larger ones), head, order and dropout, alike for each start",
    ]
