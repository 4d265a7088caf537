"""The benchmarks that BERT was judged by, as data: the nine tasks of GLUE, SQuAD 1.1 and 2.0, and SWAG.

What a task asks, where its files lie, how it is scored and trained, how its leaderboard wants to be told, and what others published.

Source: Wang et al. 2019 (GLUE: tasks, metrics, files); Rajpurkar et al. 2016 and 2018 (SQuAD); Zellers et al. 2018 (SWAG); Devlin et al.
2019, sections 4.1 to 4.4 (hyper-parameters).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stemformer.data.labelled.text_classification import LabelKind, TextExample, label_text
from stemformer.data.text.files import HUB_PREFIX, read_text
from stemformer.data.text.readers import hub_rows
from stemformer.errors import DataError

_PAPER_RATES = (5e-5, 4e-5, 3e-5, 2e-5)
_ZERO_ONE = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_INFERENCE = ("entailment", "neutral", "contradiction")
_COMPRESSIONS = ("", ".xz", ".gz", ".zst")
_LARGEST_SCORE = 5.0


@dataclass(frozen=True)
class BenchmarkTask:
    """A task of a benchmark.

    Attributes:
        name: As its leaderboard spells it; the name of its folder, too.
        task: Ours: `classify`, `pair`, `qa` or `choice`.
        metrics: The official ones by the names of `evaluation.metrics`; the mean of them is what a run is chosen by.
            `accuracy_mismatched` is the accuracy on the file of `mismatched`.
        kind: What an answer is.
        texts: Columns of the texts, the same on the hub unless `hub_texts` says otherwise.
        label: Column of the answer; on the hub it is always `label`.
        labels: Words of the classes: in files, on the leaderboard, and by number on the hub.
        columns: Names of the columns of files that have no header.
        train: File in the task's folder, like the next three.
        dev: The file that figures are of.
        mismatched: A second one, of other genres.
        tests: Name of the leaderboard's file -> test file; `..` leads to another folder.
        hub_config: Name of the task on the hub; its splits are `train`, `validation`, `test`, with what follows `_` in a file's name.
        hub_texts: Columns there.
        is_small: Little training data: it gains most from a start with another task's model.
        batch_size: Of the paper, like the next two.
        epochs: Passes over the training data.
        learning_rates: Of which the best on dev is taken.
    """

    name: str
    task: Literal["classify", "pair", "qa", "choice"]
    metrics: tuple[str, ...]
    kind: LabelKind = "class"
    texts: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    labels: tuple[str, ...] = _ZERO_ONE
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
    learning_rates: tuple[float, ...] = _PAPER_RATES


GLUE: dict[str, BenchmarkTask] = {
    task.name: task
    for task in (
        BenchmarkTask(
            "CoLA",
            "classify",
            ("matthews",),
            texts=("sentence",),
            columns=("source", "label", "star", "sentence"),
            tests={"CoLA.tsv": "test.tsv"},
            hub_config="cola",
        ),
        BenchmarkTask(
            "SST-2", "classify", ("accuracy",), texts=("sentence",), tests={"SST-2.tsv": "test.tsv"}, hub_config="sst2"
        ),
        BenchmarkTask(
            "MRPC",
            "pair",
            ("accuracy", "f1"),
            texts=("#1 String", "#2 String"),
            label="Quality",
            tests={"MRPC.tsv": "test.tsv"},
            hub_config="mrpc",
            hub_texts=("sentence1", "sentence2"),
            is_small=True,
        ),
        BenchmarkTask(
            "QQP",
            "pair",
            ("accuracy", "f1"),
            texts=("question1", "question2"),
            label="is_duplicate",
            tests={"QQP.tsv": "test.tsv"},
            hub_config="qqp",
        ),
        BenchmarkTask(
            "STS-B",
            "pair",
            ("pearson", "spearman"),
            kind="score",
            label="score",
            labels=(),
            tests={"STS-B.tsv": "test.tsv"},
            hub_config="stsb",
            is_small=True,
        ),
        BenchmarkTask(
            "MNLI",
            "pair",
            ("accuracy", "accuracy_mismatched"),
            label="gold_label",
            labels=_INFERENCE,
            dev="dev_matched.tsv",
            mismatched="dev_mismatched.tsv",
            tests={
                "MNLI-m.tsv": "test_matched.tsv",
                "MNLI-mm.tsv": "test_mismatched.tsv",
                "AX.tsv": "../diagnostic/diagnostic.tsv",
            },
            hub_config="mnli",
            hub_texts=("premise", "hypothesis"),
        ),
        BenchmarkTask(
            "QNLI",
            "pair",
            ("accuracy",),
            texts=("question", "sentence"),
            labels=_ENTAILMENT,
            tests={"QNLI.tsv": "test.tsv"},
            hub_config="qnli",
        ),
        BenchmarkTask(
            "RTE",
            "pair",
            ("accuracy",),
            labels=_ENTAILMENT,
            tests={"RTE.tsv": "test.tsv"},
            hub_config="rte",
            is_small=True,
        ),
        BenchmarkTask("WNLI", "pair", ("accuracy",), tests={"WNLI.tsv": "test.tsv"}, hub_config="wnli"),
    )
}
"""The tasks of GLUE, in the order of its paper."""

_OTHERS = (
    BenchmarkTask(
        "SQuAD 1.1",
        "qa",
        ("exact_match", "f1"),
        labels=(),
        train="train-v1.1.json",
        dev="dev-v1.1.json",
        learning_rates=(5e-5,),
    ),
    BenchmarkTask(
        "SQuAD 2.0",
        "qa",
        ("exact_match", "f1"),
        labels=(),
        train="train-v2.0.json",
        dev="dev-v2.0.json",
        batch_size=48,
        epochs=2,
        learning_rates=(5e-5,),
    ),
    BenchmarkTask(
        "SWAG",
        "choice",
        ("accuracy",),
        labels=(),
        train="train.csv",
        dev="val.csv",
        batch_size=16,
        learning_rates=(2e-5,),
    ),
)

BENCHMARKS: dict[str, BenchmarkTask] = {**GLUE, **{task.name: task for task in _OTHERS}}
"""All of them by name."""


@dataclass(frozen=True)
class Published:
    """Figures that others published.

    Attributes:
        system: The model.
        part: What the figures are of: `test` (by the leaderboard) or `dev`.
        source: Where they stand.
        figures: Task -> metric -> figure in percent.
    """

    system: str
    part: Literal["test", "dev"]
    source: str
    figures: dict[str, dict[str, float]]


def _miniature(system: str, *row: float) -> Published:
    """Returns a row of the table of Google's small models, in the order of its columns."""
    tasks = ("CoLA", "SST-2", *2 * ("MRPC",), *2 * ("STS-B",), *2 * ("QQP",), *2 * ("MNLI",), "QNLI", "RTE", "WNLI")
    metrics = (
        *("matthews", "accuracy", "f1", "accuracy", "pearson", "spearman", "f1", "accuracy"),
        *("accuracy", "accuracy_mismatched", "accuracy", "accuracy", "accuracy"),
    )
    figures: dict[str, dict[str, float]] = {}
    for task, metric, figure in zip(tasks, metrics, row, strict=True):
        figures.setdefault(task, {})[metric] = figure
    source = "README of google-research/bert, models of Turc et al. 2019 (4 passes; best of 5 batch sizes and 4 rates)"
    return Published(system, "test", source, figures)


def _bert(system: str, *row: float) -> Published:
    """Returns a row of the BERT paper's table of GLUE, in the order of its columns."""
    tasks = (*2 * ("MNLI",), "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE")
    metrics = (
        *("accuracy", "accuracy_mismatched", "f1", "accuracy", "accuracy"),
        *("matthews", "spearman", "f1", "accuracy"),
    )
    figures: dict[str, dict[str, float]] = {}
    for task, metric, figure in zip(tasks, metrics, row, strict=True):
        figures.setdefault(task, {})[metric] = figure
    return Published(system, "test", "Devlin et al. 2019, table 1 (GLUE; WNLI left out)", figures)


_ANSWERS = "Devlin et al. 2019, tables 2 to 4 (single models, trained on the task's data alone)"

PUBLISHED: tuple[Published, ...] = (
    _miniature("BERT-Tiny", 0.0, 83.2, 81.1, 71.1, 74.3, 73.6, 62.2, 83.4, 70.2, 70.3, 81.5, 57.2, 62.3),
    _miniature("BERT-Mini", 0.0, 85.9, 81.1, 71.8, 75.4, 73.3, 66.4, 86.2, 74.8, 74.3, 84.1, 57.9, 62.3),
    _miniature("BERT-Small", 27.8, 89.7, 83.4, 76.2, 78.8, 77.0, 68.1, 87.0, 77.6, 77.0, 86.4, 61.8, 62.3),
    _miniature("BERT-Medium", 38.0, 89.6, 86.6, 81.6, 80.4, 78.4, 69.6, 87.9, 80.0, 79.1, 87.7, 62.2, 62.3),
    _bert("BERT-Base", 84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4),
    _bert("BERT-Large", 86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1),
    Published(
        "BERT-Base",
        "dev",
        _ANSWERS,
        {"SQuAD 1.1": {"exact_match": 80.8, "f1": 88.5}, "SWAG": {"accuracy": 81.6}},
    ),
    Published(
        "BERT-Large",
        "dev",
        _ANSWERS,
        {
            "SQuAD 1.1": {"exact_match": 84.1, "f1": 90.9},
            "SQuAD 2.0": {"exact_match": 78.7, "f1": 81.9},
            "SWAG": {"accuracy": 86.6},
        },
    ),
    Published(
        "BERT-Large",
        "test",
        _ANSWERS,
        {"SQuAD 2.0": {"exact_match": 80.0, "f1": 83.1}, "SWAG": {"accuracy": 86.3}},
    ),
)
"""From the smallest model to the largest."""


def published_figures(name: str) -> list[Published]:
    """Returns what was published for a task, each cut down to its figures.

    Example:
        >>> [(p.system, p.figures["SQuAD 1.1"]["f1"]) for p in published_figures("SQuAD 1.1")]
        [('BERT-Base', 88.5), ('BERT-Large', 90.9)]
    """
    found = [p for p in PUBLISHED if name in p.figures]
    return [Published(p.system, p.part, p.source, {name: p.figures[name]}) for p in found]


def find_split(task: BenchmarkTask, folder: str, file: str) -> str | None:
    """Returns where a part of a task is, or None if a local folder lacks it.

    Args:
        task: Of the table.
        folder: That holds a folder for each task, the files maybe compressed; or a data set of the hub, as `hub:nyu-mll/glue`.
        file: One of the task's file names.
    """
    if not folder.startswith(HUB_PREFIX):
        path = Path(folder) / task.name / file
        found = (path.with_name(path.name + suffix) for suffix in _COMPRESSIONS)
        return next((str(candidate) for candidate in found if candidate.is_file()), None)
    if task.hub_config is None:
        return None
    if file.endswith("diagnostic.tsv"):
        return f"{folder}:ax:test"
    part, _, rest = file.removesuffix(".tsv").partition("_")
    return f"{folder}:{task.hub_config}:{'_'.join(filter(None, [part.replace('dev', 'validation'), rest]))}"


def read_rows(
    task: BenchmarkTask, source: str, *, counted: Counter[str], is_test: bool = False
) -> list[dict[str, Any]]:
    """Returns the rows of a part: the texts under `task.texts`, the answer under `task.label` unless it is a test.

    In the files tabs part fields and quotes are ordinary characters. Lines of the training and dev files that are cut in two, as a few
    of QQP's are, are left out.

    Args:
        task: One of texts.
        source: What `find_split` gave.
        counted: Receives "damaged rows left out" and "rows with an empty text left out".
        is_test: A test file, where no row may be left out.

    Raises:
        DataError: A column that is not there, a damaged row of a test, a label that the task does not have.
    """
    is_hub = source.startswith(HUB_PREFIX)
    texts = task.hub_texts if is_hub and task.hub_texts else task.texts
    label = "label" if is_hub else task.label
    rows = []
    for place, row in hub_rows(source) if is_hub else _lines(task, source, counted, is_test=is_test):
        lacking = [name for name in (*texts, *(() if is_test else (label,))) if name not in row]
        if lacking:
            raise DataError(f"{place}: no column {lacking[0]!r} for {task.name}; there are {', '.join(row)}")
        out: dict[str, Any] = {name: str(row[at]).strip() for name, at in zip(task.texts, texts, strict=True)}
        if not is_test:
            if not all(out.values()):
                counted["rows with an empty text left out"] += 1
                continue
            out[task.label] = _answer(task, row[label], place)
        rows.append(out)
    return rows


def _lines(
    task: BenchmarkTask, source: str, counted: Counter[str], *, is_test: bool
) -> list[tuple[str, dict[str, str]]]:
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
            raise DataError(f"{source}:{number}: {len(fields)} fields, expected {len(names)}: every test row is scored")
        else:
            counted["damaged rows left out"] += 1
    return rows


def _answer(task: BenchmarkTask, value: Any, place: str) -> str | float:
    text = label_text(value, place)
    if task.kind == "score":
        try:
            return float(text)
        except ValueError as error:
            raise DataError(f"{place}: the answer is {text!r}, expected a number") from error
    if isinstance(value, int) and 0 <= value < len(task.labels):  # of the hub
        return task.labels[value]
    if text not in task.labels and text != "-":
        raise DataError(f"{place}: the answer is {text!r}; {task.name} has {', '.join(task.labels)}")
    return text


def make_records(task: BenchmarkTask, rows: Sequence[dict[str, Any]]) -> list[TextExample]:
    """Returns an example for each row, empty texts included, so that none is left out of a submission."""
    return [
        TextExample(tuple(row[name] for name in task.texts), row.get(task.label), row, f"row {i}")
        for i, row in enumerate(rows)
    ]


def submission_text(task: BenchmarkTask, answers: Sequence[str | float]) -> str:
    """Returns a file for the leaderboard of GLUE: the number of each test row with its class, or its score from 0 to 5.

    Example:
        >>> print(submission_text(GLUE["STS-B"], [5.2, 1.0]).expandtabs(), end="")
        index	prediction
        0	5.000
        1	1.000
    """
    shown = [f"{min(max(a, 0.0), _LARGEST_SCORE):.3f}" if isinstance(a, float) else a for a in answers]
    return "index\tprediction\n" + "".join(f"{number}\t{answer}\n" for number, answer in enumerate(shown))
