"""Labelled datasets: reading files, choosing labels, splitting off dev data, encoding."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from statistics import fmean, pstdev
from typing import Any

import msgspec

from stemformer.config import nearest
from stemformer.data.labelled.detect_format import TASK_FORMATS, detect_row_task, detect_task, find_columns
from stemformer.data.labelled.fasta import find_alphabet
from stemformer.data.labelled.multiple_choice import ChoiceQuestion, read_choices
from stemformer.data.labelled.question_answering import Question, read_questions
from stemformer.data.labelled.sequence_pairs import SourceTarget, choose_pair_columns, make_pairs, read_pair_table
from stemformer.data.labelled.splits import grouped_split, train_dev_split
from stemformer.data.labelled.table import Table, read_table
from stemformer.data.labelled.text_classification import (
    TextColumns,
    TextExample,
    choose_columns,
    has_usual_names,
    make_text_examples,
)
from stemformer.data.labelled.token_classification import (
    TaggedSentence,
    find_scheme,
    read_tagged,
    repair_entity_tags,
)
from stemformer.data.text.delimited import usual_name
from stemformer.data.text.files import quoted
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.huggingface.load import read_task_info
from stemformer.progress import Progress, format_count, format_list
from stemformer.tasks.dataset_notes import (
    check_columns_not_swapped,
    count_notes,
    describe_records,
    note_labels,
    note_lengths,
    note_overlap,
    text_keys,
)
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.labels import check_labels, count_labels, match_labels, respell_labels
from stemformer.tasks.registry import TASKS
from stemformer.tasks.task import Task, TaskConfig

_BROKEN_TAGS = "tags that continue an entity which has not started (kept)"
_UNMARKED = "questions without an answer and not marked is_impossible (skipped)"
_NOT_IN_PASSAGE = "questions whose answer is not in the passage (skipped)"


def read_records(
    config: TaskConfig,
    files: Sequence[str],
    *,
    counts: Counter[str],
    needs_answer: bool = True,
    like: TaskConfig | None = None,
) -> tuple[list[Any], TaskConfig]:
    """Return the records of labelled files, and the settings with the columns that were chosen.

    Args:
        config: Settings; columns that they do not name are detected.
        counts: Receives how often records were skipped or repaired, by description.
        needs_answer: Skip records without an answer; if False, answers are not read.
        like: Settings with the columns of other data, used if `config` names none and they exist.
    """
    with advise_task(config, files):
        records, config = _READERS[config.name](config, files, counts=counts, needs_answer=needs_answer, like=like)
        if needs_answer:
            records = TASKS[config.name].with_answer(records)
        check_not_empty(len(records), files, counts, needs_answer=needs_answer)
    return records, config


def check_not_empty(number: int, files: Sequence[str], counts: Counter[str], *, needs_answer: bool) -> None:
    """Raise DataError with the reasons in `counts` if no record is left."""
    if not number:
        answers = " with an answer" if needs_answer else ""
        reasons = ", ".join(_reasons(counts)) or ("none has one" if needs_answer else "the file is empty")
        raise DataError(f"{', '.join(files)}: no record{answers} is left ({reasons})")


@contextmanager
def _name_left_out(counts: Counter[str]) -> Iterator[None]:
    """Add to an error about training data which records were left out."""
    try:
        yield
    except DataError as error:
        if not counts:
            raise
        raise DataError(f"{error} Left out or changed: {', '.join(_reasons(counts))}.") from error


def _reasons(counts: Counter[str]) -> list[str]:
    return [f"{what}: {number:,}" for what, number in counts.items()]


@contextmanager
def advise_task(config: TaskConfig, files: Sequence[str]) -> Iterator[None]:
    """Add to an error the task that the files fit instead."""
    try:
        yield
    except DataError as error:
        file, detected = next(((f, task) for f in files if (task := detect_task(f)) is not None), ("", None))
        if detected in (None, config.name) or (detected == "pair" and config.text):
            raise
        columns, text = find_columns(file), str(error).rstrip(".")
        if config.name == "tag" and columns:
            # A table has other columns than CoNLL, and no line to repair.
            text = text.removesuffix(". Repair the line").partition(", expected 1,")[0]
        parts = [text, f"Task '{config.name}' expects {TASK_FORMATS[config.name]}"]
        if columns and not any(word in text for word in ("Columns", "Keys", "label column")):
            parts.insert(1, f"Columns: {quoted(columns)}")
        # A text and a label are part of what pairs have, too.
        if (detected, config.name) != ("classify", "pair") or len(columns) == 2:
            parts.append(f"The file looks like data of task '{detected}', not of '{config.name}'")
        raise DataError(f"{'. '.join(parts)}.") from error


def column_names(config: TaskConfig, like: TaskConfig | None) -> list[str]:
    """Return the columns that settings name, which prove a header."""
    return [name for x in (config, like) if x is not None for name in x.columns]


def with_columns_of(config: TaskConfig, like: TaskConfig | None, table: Table) -> TaskConfig:
    """Return settings with the columns of other data, if they name none and the table has them, in any case."""
    if like is None:
        return config
    columns = {usual_name(column): column for column in reversed(table.columns)}
    columns |= {column: column for column in table.columns}

    def find(names: Sequence[str]) -> tuple[str, ...]:
        found = [columns.get(name, columns.get(usual_name(name))) for name in names]
        return () if None in found else tuple(str(column) for column in found)

    return replace(config, text=config.text or find(like.text), label=config.label or find(like.label_columns) or None)


def _read_texts(
    config: TaskConfig, files: Sequence[str], *, counts: Counter[str], needs_answer: bool, like: TaskConfig | None
) -> tuple[list[TextExample], TaskConfig]:
    """Return the records of `classify` and `pair`, and the settings with the chosen columns."""
    table = read_table(files, names=column_names(config, like), counts=counts)
    wanted = with_columns_of(config, like, table)
    if needs_answer and like is not None and wanted.label is None and isinstance(like.label, tuple):
        expected = f"Expected the label columns {quoted(like.label)} of the training data"
        raise DataError(f"{table.source}: {expected}, found the columns {quoted(table.columns)}. Set --label-column.")
    columns, config = choose_text_columns(wanted, table, needs_answer=needs_answer)
    how: dict[str, Any] = {"kind": config.kind, "counts": counts, "keep_empty": not needs_answer}
    return make_text_examples(table, columns, **how), config


def _read_pairs(
    config: TaskConfig, files: Sequence[str], *, counts: Counter[str], needs_answer: bool, like: TaskConfig | None
) -> tuple[list[SourceTarget], TaskConfig]:
    """Return the records of `seq2seq`, and the settings with the chosen columns."""
    table = read_pair_table(files, names=column_names(config, like), counts=counts, needs_target=needs_answer)
    wanted = with_columns_of(config, like, table)
    # Of sources alone, targets are read if they are named.
    targets = wanted.label_columns if needs_answer else config.label_columns
    how: dict[str, Any] = {"needs_target": needs_answer, "languages": config.language_columns}
    source, targets = choose_pair_columns(table, next(iter(wanted.text), None), targets, **how)
    records = make_pairs(table, source, targets, counts=counts, **how)
    return records, replace(config, text=(source,), label=targets or None)


def _read_tags(
    config: TaskConfig, files: Sequence[str], *, counts: Counter[str], needs_answer: bool, like: TaskConfig | None
) -> tuple[list[TaggedSentence], TaskConfig]:
    names = config.label_columns or (like.label_columns if like else ())
    records = read_tagged(files, column=names[0] if names else None, needs_tags=needs_answer, counts=counts)
    # Count tags that continue an entity which has not started, unless the scheme is IOB1, where they start it.
    tagged = [r.tags for r in records if r.tags is not None]
    if find_scheme(tag for tags in tagged for tag in ("O", *tags)) not in (None, "IOB1"):
        counts.update([_BROKEN_TAGS] * sum(repair_entity_tags(tags)[1] for tags in tagged))
    return records, config


def _read_questions(
    config: TaskConfig, files: Sequence[str], *, counts: Counter[str], needs_answer: bool, like: TaskConfig | None
) -> tuple[list[Question], TaskConfig]:
    records = read_questions(files, counts=counts)
    if needs_answer:
        counts.update([_UNMARKED] * sum(not (r.gold or r.is_impossible) for r in records))
        records = [r for r in records if r.gold or r.is_impossible]
    return records, config


def _read_choices(
    config: TaskConfig, files: Sequence[str], *, counts: Counter[str], needs_answer: bool, like: TaskConfig | None
) -> tuple[list[ChoiceQuestion], TaskConfig]:
    return read_choices(files, counts=counts), config


_READERS: dict[str, Callable[..., tuple[list[Any], TaskConfig]]] = {
    "classify": _read_texts,
    "pair": _read_texts,
    "tag": _read_tags,
    "qa": _read_questions,
    "choice": _read_choices,
    "seq2seq": _read_pairs,
}


def choose_text_columns(config: TaskConfig, table: Table, *, needs_answer: bool) -> tuple[TextColumns, TaskConfig]:
    """Return the columns of texts and label (None if no answer is needed), and the settings with them."""
    texts, label = config.text, config.label
    num_texts = 2 if config.name == "pair" else 1
    kind = config.kind
    row_task = detect_row_task(table.rows[0])
    # Data of several tasks has usual names for this one too.
    is_named = row_task == "tag" and has_usual_names(table, num_texts=num_texts, needs_label=needs_answer)
    if not texts and row_task in ("tag", "qa", "choice") and not is_named:
        expected = f"Expected {'two texts' if num_texts == 2 else 'a text'}{' and a label' if needs_answer else ''}"
        advice = "Set their columns with --text-column and --label-column to use them for this task"
        raise DataError(f"{table.source}: {expected} in each row. Columns: {quoted(table.columns)}. {advice}.")
    columns = choose_columns(table, num_texts=num_texts, texts=texts, label=label, needs_label=needs_answer, kind=kind)
    config = replace(config, text=columns.texts, label=columns.label)
    return columns if needs_answer else replace(columns, label=None), config


def _split_dev(
    config: TaskConfig, records: Sequence[Any], *, share: float, seed: int
) -> tuple[list[Any], list[Any], str]:
    """Split records into training and dev data, equal texts into one of them; return them and how they were split."""
    grouped = TASKS[config.name].split_groups(records)
    if grouped is not None:
        owners, method = grouped
        train, dev = grouped_split(owners, share=share, seed=seed)
        return [records[i] for i in train], [records[i] for i in dev], method
    members: dict[int, list[int]] = defaultdict(list)
    for number, key in enumerate(text_keys(TASKS[config.name], records)):
        members[key].append(number)
    groups, keys = list(members.values()), stratification_keys(config, records)
    method = "stratified by class" if config.has_classes else "at random"
    parts = train_dev_split([keys[first] for first, *_ in groups], share=share, seed=seed)
    if all(parts):
        train, dev = (sorted(number for i in part for number in groups[i]) for part in parts)
        method += ", equal texts kept together" if len(groups) < len(records) else ""
    else:
        train, dev = train_dev_split(keys, share=share, seed=seed)
    return [records[i] for i in train], [records[i] for i in dev], method


def stratification_keys(config: TaskConfig, records: Sequence[Any]) -> list[Any]:
    """Return the class of each record, whose proportions subsets keep; 0 for tasks without classes."""
    return [record.label for record in records] if config.has_classes else [0] * len(records)


def make_labelled_task(config: TaskConfig, records: Sequence[Any]) -> Task:
    """Return the task of training records, with their labels and what `config` leaves to detection."""
    if config.name not in TASKS:
        raise ConfigError(f"Task {config.name!r} does not exist{nearest(config.name, list(TASKS))}")
    if config.symbols == "draw" and config.alphabet is None:
        config = replace(config, alphabet=find_alphabet(text for r in records for text in r.texts))
    if not config.has_labels:
        return TASKS[config.name].from_records(config, records)
    if config.kind == "score":
        return _make_regression(config, [record.label for record in records])
    frequencies = count_labels(config, records)
    # O first, numbers by value, then strings.
    numbers = {label: int(label) for label in frequencies if label.removeprefix("-").isdecimal()}
    labels = sorted(frequencies, key=lambda x: (x != "O", x not in numbers, numbers.get(x, 0), x))
    if len(labels) < (1 if config.kind == "labels" else 2):
        number = format_count(len(records), "record")
        found = f"only the label {labels[0]!r} in {number}" if labels else "no labels"
        expected = "expected at least two labels. Check the column (--label-column)."
        raise DataError(f"The training data has {found}: {expected}")
    return TASKS[config.name](config, labels, [frequencies[label] for label in labels], len(records))


def _make_regression(config: TaskConfig, scores: Sequence[float]) -> Task:
    mean = fmean(scores)
    std = pstdev(scores, mean)
    if std <= 1e-12 * abs(mean):
        found = f"only the score {scores[0]:g} in {format_count(len(scores), 'record')}"
        raise DataError(f"The training data has {found}: expected different ones. Check the column (--label-column).")
    task = TASKS[config.name](config)
    task.targets, task.is_standardized = (mean, std), True
    return task


def load_labelled_task(model: str) -> Task:
    """Return the task of a fine-tuned model, whether trained by stemformer or by transformers."""
    metadata = read_task_info(model)
    if not metadata:
        raise CheckpointError(f"{model} was not trained on labelled data: fine-tune it first (`stemformer finetune`)")
    names = {"sequence": "classify", "token": "tag", "span": "qa", "choice": "choice", "seq2seq_lm": "seq2seq"}
    kinds = {"multi_label_classification": "labels", "regression": "score"}
    settings = {"name": names[metadata["head"]], "kind": kinds.get(str(metadata.get("problem_type")), "class")}
    settings |= {f.name: metadata[f.name] for f in fields(TaskConfig) if f.name in metadata}
    config = msgspec.convert(settings, TaskConfig)
    task = TASKS[config.name](config, metadata["labels"])
    task.load_metadata(metadata)
    return task


@dataclass(frozen=True)
class LabelledData:
    """Training and dev records of a task, and notes about how they were read."""

    task: Task
    train: list[Any]
    dev: list[Any]
    notes: list[str]


def read_labelled(
    config: TaskConfig,
    progress: Progress,
    *,
    train: Sequence[str],
    dev: Sequence[str] = (),
    dev_fraction: float,
    seed: int,
) -> LabelledData:
    """Read labelled files; without dev files, split the share `dev_fraction` off the training data."""
    progress.start("reading labelled data")
    counts, dev_counts = Counter[str](), Counter[str]()
    requested = config
    records, config = read_records(requested, train, counts=counts)
    notes = count_notes("training data", counts)
    check_columns_not_swapped(config, records)
    dev_records: list[Any] = []
    if dev:
        dev_records, found = read_records(requested, dev, counts=dev_counts, like=config)
        if (found.text, found.label) != (config.text, config.label):
            columns = f"text: column {quoted(found.text)}; answer: column {quoted(found.label_columns)}"
            notes.append(f"dev data: {columns}")
        notes += count_notes("dev data", dev_counts)
    with _name_left_out(counts):
        if not dev:
            records, dev_records, method = _split_dev(config, records, share=dev_fraction, seed=seed)
            if not records or not dev_records:
                problem = f"Too few records to split off dev data ({method})"
                if config.has_classes and len(records) > 1:
                    problem += f": no label in column {config.label!r} occurs twice (--label-column to change it)"
                raise DataError(f"{', '.join(train)}: {problem}. Pass --dev.")
            actual = len(dev_records) / (len(dev_records) + len(records))
            split_off = format_count(len(dev_records), "training record")
            notes.append(f"no dev data: {split_off} ({actual:.0%}) split off by seed, {method}")
        # Answers that are not in the passage cannot be learned.
        if config.name == "qa":
            learned = [r for r in records if r.answers or r.is_impossible]
            notes += count_notes("training data", +Counter({_NOT_IN_PASSAGE: len(records) - len(learned)}))
            records = learned
        task = make_labelled_task(config, records)
    names, matched = match_labels(task, count_labels(config, dev_records))
    dev_records = respell_labels(task, dev_records, names)
    notes += [*matched, *check_labels(task, count_labels(config, dev_records)), *note_labels(task, records)]
    notes += note_overlap(task, records, dev_records, is_split_off=not dev)
    for line in (*describe_records(task, records), *notes):
        progress.say(line)
    return LabelledData(task, records, dev_records, notes)


def majority_baseline(data: LabelledData) -> tuple[str, float] | None:
    """Return the most frequent training label and its accuracy on dev data; None without single labels."""
    config = data.task.config
    if not data.task.labels or config.kind != "class" or not (dev := count_labels(config, data.dev)):
        return None
    ((label, _),) = count_labels(config, data.train).most_common(1)
    return label, dev[label] / dev.total()


def weak_results(
    data: LabelledData, predictions: Sequence[Any], metrics: Mapping[str, float], details: Mapping[str, Any]
) -> Iterator[str]:
    """Yield how predictions of dev data are no better than those of a model that has learned nothing."""
    majority = majority_baseline(data)
    if majority is not None and metrics.get("accuracy", 1.0) <= majority[1] < 1:
        yield f"not better than the majority baseline: {majority[0]!r} is right for {majority[1]:.1%} of the dev data"
    yield from data.task.weak_results(data.dev, predictions, metrics, details)


def encode_splits(
    data: LabelledData, tokenizer: Tokenizer, max_length: int, progress: Progress
) -> tuple[TaskExamples, TaskExamples, list[str]]:
    """Return training and dev examples, and all notes about reading and encoding."""
    progress.start("encoding")
    encoded, notes = [], []
    for name, records in (("training data", data.train), ("dev data", data.dev)):
        tokenizer.unknown.clear()
        encoded.append(data.task.encode(records, tokenizer, max_length=max_length))
        if note := tokenizer.unknown.note():
            notes.append(f"{name}: {note}")
    examples, dev = encoded
    if data.task.symbols is not None:
        words = data.task.symbols.words
        shown = format_list([f"{run} {word!r}" for run, word in words.items()], 6)
        notes.append(f"{len(words):,} words represent symbols: {shown}")
    for name, split in (("training data", examples), ("dev data", dev)):
        notes += [*count_notes(name, split.counts), *note_lengths(name, split, max_length)]
    for note in notes:
        progress.say(note)
    return examples, dev, [*data.notes, *notes]
