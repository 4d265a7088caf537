"""Benchmark tasks: the nine tasks of GLUE, SQuAD 1.1 and 2.0, SWAG, and published results.

Their tables are in `benchmarks.toml`.

Source: Wang et al. 2019 (GLUE: tasks, metrics, files); Rajpurkar et al. 2016 and 2018 (SQuAD);
Zellers et al. 2018 (SWAG); Devlin et al. 2019, sections 4.1 to 4.4 (hyper-parameters).
"""

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from stemformer.data.labelled.text_classification import LabelKind, TextExample, label_text
from stemformer.data.text.files import HUB_PREFIX, read_text
from stemformer.data.text.readers import hub_rows
from stemformer.errors import DataError

_COMPRESSIONS = ("", ".xz", ".gz", ".zst")


@dataclass(frozen=True)
class BenchmarkTask:
    """Task of a benchmark.

    Attributes:
        name: Spelling of the leaderboard; also the name of the task's folder.
        metrics: Official metrics, named as in `tasks.metrics`; the mean of them selects the best
            run. `accuracy_mismatched` is the accuracy on the file `mismatched`.
        labels: Class names in files and on the leaderboard; the hub stores their indices.
        columns: Column names of training and dev files without a header.
        mismatched: Second dev file, of other genres.
        tests: Test file of each leaderboard file; `..` leads to another folder.
        hub_config: Config name on the hub. Its splits are `train`, `validation` and `test`, with
            the suffix after `_` of the file name.
        hub_texts: Text columns on the hub, if others than `texts`; its label column is `label`.
        is_small: Little training data: gains most from intermediate training on another task.
        batch_size, epochs, learning_rates: Values of the paper; the best rate on dev is selected.
    """

    name: str
    task: Literal["classify", "pair", "qa", "choice"]
    metrics: tuple[str, ...]
    kind: LabelKind = "class"
    texts: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    columns: tuple[str, ...] = ()
    train: str = "train.tsv"
    dev: str = "dev.tsv"
    mismatched: str | None = None
    tests: dict[str, str] = field(default_factory=dict)
    hub_config: str | None = None
    hub_texts: tuple[str, ...] = ()
    is_small: bool = False
    batch_size: int = 32
    epochs: float = 3
    learning_rates: tuple[float, ...] = (5e-5, 4e-5, 3e-5, 2e-5)


@dataclass(frozen=True)
class PublishedResult:
    """Published results of a model on `test` (leaderboard) or `dev`: percent by task and metric."""

    system: str
    part: Literal["test", "dev"]
    source: str
    metrics: dict[str, dict[str, float]]


def _make_tasks(table: Mapping[str, Mapping[str, Any]]) -> dict[str, BenchmarkTask]:
    values: dict[str, dict[str, Any]] = {
        name: {key: tuple(value) if isinstance(value, list) else value for key, value in task.items()}
        for name, task in table.items()
    }
    return {name: BenchmarkTask(name, **task) for name, task in values.items()}


_TABLES = tomllib.loads((files("stemformer.evaluation") / "benchmarks.toml").read_text(encoding="utf-8"))

# By name; GLUE in the order of its paper, published results from the smallest model to the largest.
GLUE = _make_tasks(_TABLES["glue"])
BENCHMARKS = {**GLUE, **_make_tasks(_TABLES["other"])}
PUBLISHED = tuple(PublishedResult(**entry) for entry in _TABLES["published"])


def published_results(name: str) -> list[PublishedResult]:
    """Return the published results of one task."""
    return [replace(p, metrics={name: p.metrics[name]}) for p in PUBLISHED if name in p.metrics]


def find_split(task: BenchmarkTask, folder: str, file: str) -> str | None:
    """Return the path or hub id of a split of a task, or None if a local folder lacks it.

    `folder` has a subfolder for each task, files possibly compressed; or is a hub dataset such as
    `hub:nyu-mll/glue`. `file` is one of the task's file names.
    """
    if not folder.startswith(HUB_PREFIX):
        path = Path(folder) / task.name / file
        candidates = (path.with_name(path.name + suffix) for suffix in _COMPRESSIONS)
        return next((str(candidate) for candidate in candidates if candidate.is_file()), None)
    if task.hub_config is None:
        return None
    if file.endswith("diagnostic.tsv"):
        return f"{folder}:ax:test"
    part, *suffix = file.removesuffix(".tsv").split("_", 1)
    return f"{folder}:{task.hub_config}:{'_'.join([part.replace('dev', 'validation'), *suffix])}"


def read_rows(task: BenchmarkTask, source: str, *, counts: Counter[str], is_test: bool = False) -> list[dict[str, Any]]:
    """Read a split: texts under `task.texts`, the label under `task.label` (not of tests).

    Fields are separated by tabs; quotes are ordinary characters. Broken lines of training and dev
    files (a few in QQP) are skipped.

    Of a test file, every row is kept, as the leaderboard scores all of them. `counts` is incremented
    for "damaged rows left out" and "rows with an empty text left out".

    Raises:
        DataError: A missing column, a broken row of a test file, or an unknown label.
    """
    is_hub = source.startswith(HUB_PREFIX)
    texts = task.hub_texts if is_hub and task.hub_texts else task.texts
    label = "label" if is_hub else task.label
    rows = []
    for location, row in hub_rows(source) if is_hub else _read_tsv(task, source, counts, is_test=is_test):
        if missing := [name for name in (texts if is_test else (*texts, label)) if name not in row]:
            raise DataError(f"{location}: {task.name} needs column {missing[0]!r}. Found: {', '.join(row)}.")
        out: dict[str, Any] = {name: str(row[key]).strip() for name, key in zip(task.texts, texts, strict=True)}
        if not is_test:
            if not all(out.values()):
                counts["rows with an empty text left out"] += 1
                continue
            out[task.label] = _parse_label(task, row[label], location)
        rows.append(out)
    return rows


def _read_tsv(task: BenchmarkTask, source: str, counts: Counter[str], *, is_test: bool) -> list[tuple[str, Any]]:
    lines = [line.removesuffix("\r") for line in read_text(source).removeprefix("\ufeff").split("\n")]
    numbered = [(number, line.split("\t")) for number, line in enumerate(lines, 1) if line]
    names = list(task.columns)
    if is_test or not names:
        names = [name.strip() for name in numbered.pop(0)[1]]
    rows = []
    for number, fields in numbered:
        if len(fields) == len(names):
            rows.append((f"{source}:{number}", dict(zip(names, fields, strict=True))))
        elif is_test:
            problem = f"Expected {len(names)} fields, got {len(fields)}. Test rows are required."
            raise DataError(f"{source}:{number}: {problem}")
        else:
            counts["damaged rows left out"] += 1
    return rows


def _parse_label(task: BenchmarkTask, value: Any, location: str) -> str | float:
    text = label_text(value, location)
    if task.kind == "score":
        try:
            return float(text)
        except ValueError as error:
            raise DataError(f"{location}: Label {text!r} is not a number.") from error
    # Class index of the hub.
    if isinstance(value, int) and 0 <= value < len(task.labels):
        return task.labels[value]
    if text not in task.labels and text != "-":
        expected = f"Expected one of {', '.join(task.labels)}."
        raise DataError(f"{location}: Unknown label {text!r} for {task.name}. {expected}")
    return text


def make_records(task: BenchmarkTask, rows: Sequence[dict[str, Any]]) -> list[TextExample]:
    """Make an example of each row, including empty texts, so that a submission is complete."""
    texts = [tuple(row[name] for name in task.texts) for row in rows]
    return [TextExample(texts[i], row.get(task.label), row, f"row {i}") for i, row in enumerate(rows)]


def submission_text(task: BenchmarkTask, answers: Sequence[str | float]) -> str:
    """Return a GLUE submission: index and class (or score from 0 to 5) of each test row."""
    values = [f"{min(max(a, 0.0), 5.0):.3f}" if isinstance(a, float) else a for a in answers]
    return "index\tprediction\n" + "".join(f"{number}\t{value}\n" for number, value in enumerate(values))
