"""Grid of runs: a resumable directory with its config and a line for each finished run."""

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from stemformer.config import parse_toml, to_toml
from stemformer.errors import CheckpointError, ConfigError
from stemformer.io import append_jsonl, read_jsonl, write_file, write_json, write_jsonl
from stemformer.options import FewShotOptions, ResumableOptions
from stemformer.output_dir import check_not_inside_inputs, clear_dir, prepare_output_dir
from stemformer.progress import Progress, SubProgress
from stemformer.training.config import RUN_CONFIGS, RunConfig, run_config_class
from stemformer.training.resume import check_config_unchanged

FINISHED = "finished.jsonl"
CONFIG = "config.toml"
FAILED = "failed"
"""Key of a record for the error that ended its run; such a run is made again on resume."""
EXIT_CODE = "exit_code"
"""Key of such a record, and of a result with failed runs, for the exit code of the command line."""

C = TypeVar("C")
K = TypeVar("K", bound=Hashable)
Record = dict[str, Any]
"""Result of a run, as stored in `finished.jsonl`."""


class PlannedRun(NamedTuple):
    """Run of a grid: name for messages, function that makes it, and share of the progress bar in the bar's unit."""

    label: str
    make: Callable[[Progress], Record]
    weight: float = 1.0


class RunGrid(Generic[K]):
    """Runs of an experiment and the directory that holds their records.

    Args:
        folder: Output directory, as checked by `prepare_experiment_dir`; None keeps the records in memory only.
        what: Name of the experiment for messages, such as "comparison".
        resume: Keep the finished runs of the directory; otherwise it is emptied.
        stored_config: Reads a stored config from its text and file name; None accepts any.
        may_change: Prefixes of config keys that may differ on resume.
        former: Glob patterns by which earlier versions marked such a directory. A `.jsonl` file among them is read if
            there is no `finished.jsonl`.
        renamed: New names of keys that earlier versions wrote into records.
    """

    def __init__(
        self,
        folder: Path | None,
        config: Any,
        *,
        key: Callable[[Record], K],
        what: str,
        resume: bool,
        stored_config: Callable[[str, str], Any] | None = None,
        may_change: tuple[str, ...] = (),
        former: Sequence[str] = (),
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        # In the order in which they finished.
        self.finished: dict[K, Record] = {}
        if folder is None:
            return
        file = folder / CONFIG
        if resume and folder.is_dir() and any(folder.iterdir()):
            marks = [path for pattern in (FINISHED, *former) for path in folder.glob(pattern)]
            if not marks:
                raise CheckpointError(f"{folder} holds no {what} to resume. Pass another --out.")
            if stored_config is not None and file.is_file():
                stored = stored_config(file.read_text(encoding="utf-8"), str(file))
                check_config_unchanged(stored, config, may_change=may_change, what=f"this {what}")
            records = next((path for path in marks if path.suffix == ".jsonl"), folder / FINISHED)
            current = (rename_keys(record, renamed) for record in read_jsonl(records))
            self.finished = {key(record): record for record in current if FAILED not in record}
        else:
            clear_dir(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Written first: it marks the directory.
        write_jsonl(folder / FINISHED, self.finished.values())
        write_file(file, [to_toml(config).encode()])

    def run(
        self,
        runs: Mapping[K, PlannedRun],
        progress: Progress,
        *,
        describe: Callable[[Record], str],
        name: str = "run",
        unit: str = "",
        phase: str = "training",
    ) -> list[Record]:
        """Make the runs that are not finished, and return the records of all, in the order of `runs`.

        Messages call a run `name` and show `describe(record)`. `phase` of a run moves the bar, see `SubProgress`.
        """
        skipped = [run for key, run in runs.items() if key in self.finished]
        if skipped:
            progress.say(f"{len(skipped)} of {len(runs)} {name}s were finished before")
        progress.start(f"{len(runs)} {name}s", total=sum(run.weight for run in runs.values()), unit=unit or f"{name}s")
        progress.advance(sum(run.weight for run in skipped))
        for number, (key, run) in enumerate(runs.items(), start=1):
            if key in self.finished:
                continue
            record = run.make(SubProgress(progress, run.label, share=run.weight, phase=phase))
            self.finished[key] = record
            if self.folder is not None:
                append_jsonl(self.folder / FINISHED, record)
            progress.say(f"{name} {number} of {len(runs)}: {run.label}: {describe(record)}")
        progress.finish()
        return [self.finished[key] for key in runs]


def failure_fields(records: Mapping[str, Record]) -> dict[str, Any]:
    """Return what a result says of failed runs, by their names: each error, and the exit code of the first; {} if none failed."""
    failed = {name: record for name, record in records.items() if FAILED in record}
    if not failed:
        return {}
    code = next(iter(failed.values()))[EXIT_CODE]
    return {FAILED: [f"{name}: {record[FAILED]}" for name, record in failed.items()], EXIT_CODE: code}


def with_run_config(base: type[C]) -> dict[type[RunConfig], type[C]]:
    """Return a subclass of an experiment's config for each class of its field `run`, a config of pre-training."""
    made: Any = make_dataclass
    return {
        run: made(base.__name__, [("run", run, field(default_factory=run))], bases=(base,), frozen=True)
        for run in RUN_CONFIGS.values()
    }


def stored_run_class(text: str, source: str) -> type[RunConfig]:
    """Return the class of the field `run` of an experiment's stored config."""
    return run_config_class(parse_toml(text, source).get("run", {}), source)


def rename_keys(record: Record, renamed: Mapping[str, str]) -> Record:
    """Replace the keys of earlier versions in a record."""
    return {renamed.get(key, key): value for key, value in record.items()}


def prepare_experiment_dir(
    options: ResumableOptions | FewShotOptions, inputs: Iterable[str | None], *, command: str = ""
) -> Path:
    """Return the output directory of an experiment, and check that it holds none of the inputs that exist.

    If `command` is named, check also that it was not started with several ranks.
    """
    if command and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{command} runs in one process. Start it without torchrun.")
    folder = prepare_output_dir(str(options.out), resume=options.resume, overwrite=options.overwrite)
    check_not_inside_inputs(folder, [path for path in inputs if path and Path(path).exists()])
    return folder


def conclude(
    folder: Path,
    name: str,
    content: Mapping[str, Any],
    table: Sequence[Record],
    write_report: Callable[[Path, dict[str, Any]], Path],
    progress: Progress,
) -> dict[str, Any]:
    """Write `<name>.json` and a report that also shows the table, and return what the command prints of both."""
    write_json(folder / f"{name}.json", content)
    progress.start("plotting")
    write_report(folder, {**content, "title": folder.resolve().name, "table": table})
    progress.finish()
    return {"table": table, "summary": content["summary"], "notes": content["notes"]}
