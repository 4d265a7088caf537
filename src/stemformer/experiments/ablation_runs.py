"""The runs of an ablation: pre-training of a variant, and fine-tuning on a task."""

import os
import shutil
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stemformer.commands.finetune import run_finetuning
from stemformer.commands.pretrain import pretrain
from stemformer.device import is_out_of_memory
from stemformer.errors import StemformerError, TrainingError
from stemformer.experiments.ablation_plan import RANDOM, AblationConfig, AblationData, AblationRun
from stemformer.experiments.run_grid import EXIT_CODE, FAILED, Record
from stemformer.io import read_json_object, read_jsonl, write_json
from stemformer.options import AblateOptions
from stemformer.progress import Progress, format_count
from stemformer.tasks.metrics import format_metric
from stemformer.training.log import held_out_loss

RESULT = "result.json"
"""File of a finished run in its directory."""

_PRETRAINING_ADVICE = (
    "Instead of it, pass a variant of another name with a lower optimizer.learning_rate, and --resume."
)
_FINETUNING_ADVICE = (
    "Lower it with --finetune-set optimizer.learning_rate=... and another --out, or pass the task with --resume under "
    "another name as a .toml file with a lower one."
)


@dataclass(frozen=True)
class AblationRuns:
    """Makes the runs of an ablation in its output directory."""

    config: AblationConfig
    data: AblationData
    options: AblateOptions
    folder: Path
    # Records of the runs that have failed by now.
    failed: dict[AblationRun, Record] = field(default_factory=dict)

    @property
    def random_model(self) -> Path:
        """Directory of the model with random weights."""
        return self.folder / "variants" / RANDOM / "model"

    def run(self, cell: AblationRun, progress: Progress) -> Record:
        """Make or resume a run, keep its log, and return its record, with the error if it failed."""
        folder = self.folder / cell.folder
        file = folder / RESULT
        if not file.is_file():
            if (pretraining := self.failed.get(self._pretraining_of(cell))) is not None:
                return self._fail(cell, f"Its pre-training failed: {pretraining[FAILED]}", pretraining[EXIT_CODE])
            try:
                result = self._finetune(cell, progress) if cell.task else self._pretrain(cell, progress)
            # A full disk (OSError) would end every other run too; what else is raised is our bug.
            except StemformerError as error:
                return self._fail(cell, _message(cell, error), error.exit_code)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = " ".join(str(error).split()) or type(error).__name__
                return self._fail(cell, f"Out of memory: {problem.rstrip('.')}. Free memory and pass --resume.", 2)
            # Before checkpoints are removed, without which the run cannot be made again.
            write_json(file, {**cell._asdict(), **result})
        for name in ("checkpoints", *(["final"] if cell.task else [])):
            shutil.rmtree(folder / name, ignore_errors=True)
        return read_json_object(file)

    def _fail(self, cell: AblationRun, message: str, exit_code: int) -> Record:
        self.failed[cell] = {**cell._asdict(), FAILED: message, EXIT_CODE: exit_code}
        return self.failed[cell]

    def _pretraining_of(self, cell: AblationRun) -> AblationRun:
        """Return the pre-training that a fine-tuning starts from."""
        return AblationRun(cell.variant, "", self.config.pretraining_seed(cell.seed))

    def describe(self, record: Record) -> str:
        """Return the result of a run for messages."""
        if FAILED in record:
            return f"failed: {record[FAILED]}"
        if not record["task"]:
            loss = "" if record["loss"] is None else f", held-out loss {record['loss']:.4g}"
            return f"{format_count(record['steps'], 'step')}{loss}"
        task, metric = self.data.labelled[record["task"]].task, record["metric"]
        return f"{metric} {format_metric(metric, record['metrics'][metric], is_percent=task.head == 'span')}"

    def _pretrain(self, cell: AblationRun, progress: Progress) -> Record:
        options, out = self.options, self.folder / cell.folder
        with warnings.catch_warnings():
            # The ablation has warned of it for all variants.
            warnings.filterwarnings("ignore", message=r"schedule\.kind = \w+ has no effect")
            result = pretrain(
                self.config.run.recipe,
                data=options.data,
                out=str(out),
                config=options.config,
                settings=[*options.settings, *self.config.variants[cell.variant]],
                steps=self.data.plans[cell.variant].steps or options.steps,
                tokens=options.tokens,
                time=options.time,
                seed=cell.seed,
                **options.compute(),
                resume=True,
                progress=progress,
            )
        log = read_jsonl(out / "log.jsonl")
        last: dict[str, Any] = next((line for line in reversed(log) if line["kind"] == "evaluation"), {})
        metrics = {name: value for name, value in last.items() if name.startswith("held_out_")}
        gain = metrics.get("held_out_source_gain")
        return {
            **{key: result[key] for key in ("steps", "tokens", "seconds")},
            "flops": sum(line["flops"] for line in log if line["kind"] == "train"),
            "loss": held_out_loss(metrics),
            **({} if gain is None else {"source_gain": gain}),
        }

    def _finetune(self, cell: AblationRun, progress: Progress) -> Record:
        base, data = self.config.tasks[cell.task], self.data.labelled[cell.task]
        if cell.variant == RANDOM:
            model = self.random_model
            optimizer = replace(base.optimizer, learning_rate=self.data.random_rates[cell.task])
            base = replace(base, reinitialize="all", optimizer=optimizer)
        else:
            model = self.folder / self._pretraining_of(cell).folder / "final"
        run = replace(base, model=os.fspath(model), seed=cell.seed)
        result = run_finetuning(run, data, self.folder / cell.folder, resume=True, progress=progress)
        metrics = {name: value for name, value in result.items() if isinstance(value, float) and "seconds" not in name}
        metric = data.task.main_metric
        # Of rewriting several texts that need no model, of which the best counts.
        weak = [*result.get("baselines", ()), *([result["baseline"]] if "baseline" in result else [])]
        baseline = max((row[metric] for row in weak if metric in row), default=None)
        return {
            "steps": result["steps"],
            "seconds": result["seconds"],
            "metric": metric,
            "metrics": metrics,
            **({"baseline": baseline} if baseline is not None else {}),
        }


def _message(cell: AblationRun, error: StemformerError) -> str:
    """Return the message of a failed run, with advice for an ablation instead of that for a single run."""
    message = " ".join(str(error).split())
    if isinstance(error, TrainingError):
        return f"{' '.join(error.cause.split())} {_FINETUNING_ADVICE if cell.task else _PRETRAINING_ADVICE}"
    return message
