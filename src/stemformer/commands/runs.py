"""List the runs below a directory."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from stemformer.commands.inspect import EXPERIMENTS, is_finetuned
from stemformer.errors import DataError
from stemformer.io import read_json_object, read_jsonl
from stemformer.options import RunsOptions, accepts


@accepts(RunsOptions)
def list_runs(options: RunsOptions) -> list[dict[str, Any]]:
    """List the runs below a directory with their kind, state and best metric.

    Returns:
        `run`, `kind`, `state`, `metric` and `best` of each. The runs of a comparison, benchmark or scaling
        study count as one.

    Raises:
        DataError: The directory does not exist.
    """
    folder = Path(options.folder)
    if not folder.is_dir():
        raise DataError(f"Directory {options.folder!r} does not exist. Pass one that holds run directories.")
    return [{"run": str(path), **_describe(path)} for path in _find(folder)]


def _find(folder: Path) -> Iterator[Path]:
    """Yield the run directories below a directory, not those within another run."""
    if (folder / "config.toml").is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _find(path)


def _describe(folder: Path) -> dict[str, Any]:
    """Return kind and state of a run, and its best held-out loss, or main metric on dev data (the final one if finished)."""
    kind = next((kind for name, kind in EXPERIMENTS.items() if (folder / name).is_file()), None)
    # A run that was stopped early may have no log; a grid of runs has a file of finished ones.
    is_grid = (folder / "finished.jsonl").is_file() and not (folder / "log.jsonl").is_file()
    if kind or is_grid:
        state = "finished" if kind else "unfinished"
        return {"kind": kind or "experiment", "state": state, "metric": "", "best": ""}
    lines = read_jsonl(folder / "log.jsonl")
    saved = (int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-????????"))
    step = max(chain((line["step"] for line in lines if "step" in line), saved), default=0)
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    names = evaluations[0] if evaluations else {}
    losses = [name for name in names if name.startswith("held_out") and name.endswith("lm_loss")]
    scores = [name for name in names if name.startswith("dev_") and name != "dev_loss"]
    metric = next(iter(losses + scores), "")
    best = (min if losses else max)(line[metric] for line in evaluations) if metric else ""
    if scores and (folder / "metrics.json").is_file():
        # Of the finished run, whose decision may have been tuned after its last evaluation.
        best = read_json_object(folder / "metrics.json")["metrics"].get(metric.removeprefix("dev_"), best)
    return {
        "kind": "finetuning" if is_finetuned(folder) else "pretraining",
        "state": "finished" if (folder / "final" / "config.json").is_file() else f"at step {step}",
        "metric": metric,
        "best": best,
    }
