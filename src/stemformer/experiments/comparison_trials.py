"""The runs of a comparison: one for each start, number of training records and seed; which there are, and how one is made.

What a seed draws (records, head, order, dropout) it draws for every start alike, so differences are taken over paired seeds.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stemformer.commands.finetune import make_finetuning_context, run_length
from stemformer.config import from_toml, to_toml
from stemformer.data.labelled.splits import subset_order
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import choose_device
from stemformer.errors import CheckpointError
from stemformer.io import read_jsonl, write_file
from stemformer.output_dir import clear_dir
from stemformer.progress import Progress, SubProgress
from stemformer.tasks.dataset import LabelledData, stratification_keys
from stemformer.tasks.examples import TaskExamples
from stemformer.training.config import FinetuneConfig
from stemformer.training.distributed import init_distributed
from stemformer.training.initialization import load_initial_model, put_on_device
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import TrainState, train
from stemformer.training.resume import check_config_unchanged
from stemformer.training.throughput import compile_blocks

INITIALIZATIONS: dict[str, Literal["nothing", "embeddings", "all"]] = {
    "pretrained": "nothing",
    "random": "all",
    "reembedded": "embeddings",
}
"""What a run starts from -> what of the model is drawn at random (`FinetuneConfig.fresh`)."""

_NUM_EVALUATIONS = 10
_FEWEST_LINES = 20
"""Of a cell's log, however short it is: a curve needs points."""


@dataclass(frozen=True)
class Trial:
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
        starts: Names of `INITIALIZATIONS`.
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

    def cells(self) -> list[Trial]:
        """Returns all runs, those of a seed together, so that each seed adds to the whole picture."""
        seeds = range(self.finetune.seed, self.finetune.seed + self.num_seeds)
        return [Trial(start, size, seed) for seed in seeds for size in self.sizes for start in self.starts]


_MAY_CHANGE = ("starts", "sizes", "num_seeds", "rates", "finetune.compute.")
"""Keys of a comparison that goes on; rates are checked for the starts that it has."""


@dataclass(frozen=True)
class TrialTable:
    """What all cells share: examples, tokenizer, longest example, folder of the model, records."""

    examples: TaskExamples
    dev: TaskExamples
    tokenizer: Tokenizer
    max_length: int
    source: Path
    data: LabelledData


def subset(examples: TaskExamples, records: Sequence[int]) -> TaskExamples:
    """Returns the examples of some records, in their order."""
    kept = np.flatnonzero(np.isin(examples.records, records)).tolist()
    scored = [examples.scored[i] for i in kept] if len(examples.scored) else ()
    return TaskExamples([examples.examples[i] for i in kept], examples.records[kept], scored, {})


def prepare_comparison(
    folder: Path, asked: CompareConfig, progress: Progress, *, resume: bool
) -> dict[Trial, dict[str, Any]]:
    """Makes the folder ready, and returns the cells that are finished."""
    file = folder / "config.toml"
    done: dict[Trial, dict[str, Any]] = {}
    if resume and folder.is_dir() and any(folder.iterdir()):
        if not file.is_file() or not (folder / "cells").is_dir():
            raise CheckpointError(f"{folder} holds no comparison to resume: give another --out")
        stored = from_toml(CompareConfig, file.read_text(encoding="utf-8"), source=str(file))
        rates = [
            (f"rate of {start}", rate, asked.rates[start])
            for start, rate in stored.rates.items()
            if asked.rates.get(start, rate) != rate
        ]
        check_config_unchanged(stored, asked, may_change=_MAY_CHANGE, more=rates, what="this comparison")
        lines = read_jsonl(folder / "cells.jsonl")
        done = {Trial(line["start"], line["size"], line["seed"]): line for line in lines}
        progress.say(f"{sum(cell in done for cell in asked.cells())} of {len(asked.cells())} runs are done already")
    else:
        clear_dir(folder)  # that it may be replaced was asked before
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    write_file(file, [to_toml(asked).encode()])
    return done


def run_trials(
    asked: CompareConfig, table: TrialTable, folder: Path, done: dict[Trial, dict[str, Any]], progress: Progress
) -> None:
    """Runs each cell that is not in `done`, and puts it there and on the disk."""
    keys = stratification_keys(table.data.problem.task.config, table.data.train)
    orders = {cell.seed: subset_order(keys, cell.seed) for cell in asked.cells()}
    parts = {(cell.size, cell.seed): subset(table.examples, orders[cell.seed][: cell.size]) for cell in asked.cells()}
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
        inner = SubProgress(progress, at, share=lengths[cell.size, cell.seed])
        done[cell] = _run_cell(cell, asked, table, parts[cell.size, cell.seed], folder / "cells" / cell.name, inner)
        lines = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in done.values()]
        write_file(folder / "cells.jsonl", lines)
        figure = done[cell]["metrics"][metric]
        progress.say(f"run {number} of {len(asked.cells())}: {at}: {metric} {figure:.4g}")
    progress.finish()


def _run_cell(
    cell: Trial, asked: CompareConfig, table: TrialTable, examples: TaskExamples, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Trains a cell, and returns what is kept of it."""
    config = replace(
        asked.finetune,
        seed=cell.seed,
        fresh=INITIALIZATIONS[cell.start],
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
    with init_distributed(choose_device(config.compute.device)) as ranks:
        model, _, _ = load_initial_model(config, task, table.source)
        setup, _ = make_finetuning_context(
            config, table.data, examples, table.dev, table.tokenizer, model, ranks, folder, table.max_length
        )
        setup = replace(setup, is_saved=False)
        folder.mkdir(parents=True, exist_ok=True)
        module, optimizer = put_on_device(model, setup)
        if setup.environment["compile"]:
            compile_blocks(model)
        at = TrainState(sums=MetricAccumulator(None, ranks))
        figures = train(model, module, optimizer, setup, at, progress=progress)
    metrics = {key.removeprefix("dev_"): value for key, value in figures.items()}
    losses = [line for line in read_jsonl(folder / "log.jsonl") if line["kind"] == "train"]
    return {
        **asdict(cell),
        "steps": at.step,
        "examples": len(examples),
        "tokens": at.tokens,
        "seconds": round(at.seconds, 1),
        "training_loss": losses[-1][f"{task.config.name}_loss"],
        "metrics": metrics,
    }
