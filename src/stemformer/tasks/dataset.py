"""Labelled datasets: reading files, choosing labels, splitting off dev data, encoding."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec

from stemformer.config import nearest
from stemformer.data.labelled.detect_format import detect_row_task, detect_task
from stemformer.data.labelled.fasta import find_alphabet
from stemformer.data.labelled.multiple_choice import read_choices
from stemformer.data.labelled.question_answering import read_questions
from stemformer.data.labelled.splits import grouped_split, train_dev_split
from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.data.labelled.table import read_table
from stemformer.data.labelled.text_classification import TextExample, choose_columns, make_text_examples
from stemformer.data.labelled.token_classification import TaggedSentence, find_scheme, is_bio, read_tagged, repair_bio
from stemformer.data.text.files import HUB_PREFIX, split_suffixes
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.huggingface.load import read_task_info
from stemformer.progress import Progress
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.question_answering import QuestionAnswering, find_language
from stemformer.tasks.registry import TASKS
from stemformer.tasks.task import Task, TaskConfig

_UNMARKED = "questions without an answer and not marked is_impossible (skipped)"

_MIN_ARTICLES = 10
"""With more articles than this, questions are split by article, otherwise by passage."""


# Reading


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
        files: Files of one format.
        counts: Receives how often records were skipped or repaired, by description.
        needs_answer: Skip records without an answer; if False, answers are not read.
        like: Settings with the columns of other data, used if `config` names none and they exist.

    Raises:
        DataError: Files that cannot be read or belong to another task, missing or ambiguous columns,
            no records.
    """
    records: list[Any]
    try:
        if config.name == "tag":
            label = config.label or (like.label if like else None)
            records = read_tagged(files, column=label, needs_tags=needs_answer, counts=counts)
            records = [r for r in records if r.tags is not None] if needs_answer else records
            _count_broken_tags(records, counts)
        elif config.name == "qa":
            records = read_questions(files, counts=counts)
            if needs_answer:
                known = [r for r in records if r.gold or r.is_impossible]
                counts.update({_UNMARKED: len(records) - len(known)} if len(known) < len(records) else {})
                records = known
        elif config.name == "choice":
            records = read_choices(files, counts=counts)
            records = [r for r in records if r.answer is not None] if needs_answer else records
        else:
            records, config = _read_texts(config, files, counts=counts, needs_answer=needs_answer, like=like)
        if not records:
            answers = " with an answer" if needs_answer else ""
            reasons = ", ".join(f"{what}: {number:,}" for what, number in counts.items()) or "the file is empty"
            raise DataError(f"{', '.join(files)}: no record{answers} is left ({reasons})")
    except DataError as error:
        detected = next((task for file in files if (task := detect_task(file)) is not None), None)
        if detected is None or detected == config.name or (detected == "classify" and config.name == "pair"):
            raise
        advice = f"The file looks like data of task '{detected}', not of '{config.name}'."
        raise DataError(f"{str(error).rstrip('.')}. {advice}") from error
    return records, config


def _count_broken_tags(records: Sequence[TaggedSentence], counts: Counter[str]) -> None:
    """Count tags that continue an entity which has not started, unless the scheme is IOB1, where they start it."""
    tagged = [r.tags for r in records if r.tags is not None]
    if find_scheme(tag for tags in tagged for tag in ("O", *tags)) not in (None, "IOB1"):
        broken = sum(repair_bio(tags)[1] for tags in tagged)
        counts.update({"tags that continue an entity which has not started (kept)": broken} if broken else {})


def _read_texts(
    config: TaskConfig, files: Sequence[str], *, counts: Counter[str], needs_answer: bool, like: TaskConfig | None
) -> tuple[list[TextExample], TaskConfig]:
    """Return the records of `classify` and `pair`, and the settings with the chosen columns."""
    plain = [file for file in files if not file.startswith(HUB_PREFIX) and split_suffixes(file)[1] == ""]
    table = None if any(detect_task(file) == "tag" for file in plain) else read_table(files)
    if not config.text and (table is None or detect_row_task(table.rows[0]) in ("tag", "qa", "choice")):
        raise DataError(f"{', '.join(files)}: expected a table with a text and its label in each row")
    table = table or read_table(files)
    texts, label = config.text, config.label
    if like is not None:
        texts = texts or (like.text if set(like.text) <= set(table.columns) else ())
        label = label or (like.label if like.label in table.columns else None)
    num_texts = 2 if config.name == "pair" else 1
    columns = choose_columns(
        table, num_texts=num_texts, texts=texts, label=label, needs_label=needs_answer, kind=config.kind
    )
    config = replace(config, text=columns.texts, label=columns.label)
    if not needs_answer:
        columns = replace(columns, label=None)
    return make_text_examples(table, columns, kind=config.kind, counts=counts, keep_empty=not needs_answer), config


def split_dev(config: TaskConfig, records: Sequence[Any], *, share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Split records into training and dev data, stratified by class, or grouped by article or passage."""
    if config.name == "qa":
        titles = [r.title or r.context for r in records]
        groups = titles if len(set(titles)) > _MIN_ARTICLES else [r.context for r in records]
        train, dev = grouped_split(groups, share=share, seed=seed)
    else:
        train, dev = train_dev_split(stratification_keys(config, records), share=share, seed=seed)
    return [records[i] for i in train], [records[i] for i in dev]


def stratification_keys(config: TaskConfig, records: Sequence[Any]) -> list[Any]:
    """Return the class of each record, whose proportions subsets keep; 0 for tasks without classes."""
    is_class = _has_classes(config)
    return [record.label if is_class else 0 for record in records]


def _has_classes(config: TaskConfig) -> bool:
    return config.name in ("classify", "pair") and config.kind == "class"


# Tasks


def make_labelled_task(config: TaskConfig, records: Sequence[Any]) -> Task:
    """Return the task of training records, with their labels and what `config` leaves to detection.

    Raises:
        ConfigError: Unknown task.
        DataError: Fewer than two classes, or no label.
    """
    if config.name not in TASKS:
        raise ConfigError(f"Task {config.name!r} does not exist{nearest(config.name, list(TASKS))}")
    if config.symbols == "draw" and config.alphabet is None:
        config = replace(config, alphabet=find_alphabet(text for r in records for text in r.texts))
    if config.name == "qa":
        if config.no_answer is None:
            config = replace(config, no_answer=any(r.is_impossible for r in records))
        return QuestionAnswering(config, language=find_language(records))
    if config.name == "choice" or config.kind == "score":
        return TASKS[config.name](config)
    frequencies = count_labels(config, records)
    labels = sorted(frequencies, key=_label_order)
    if (len(labels) < 2 and config.kind != "labels") or not labels:
        found = f"only the label {labels[0]!r} in {len(records):,} records" if labels else "no labels"
        raise DataError(
            f"The training data has {found}: expected at least two labels. Check the column (--label-column)."
        )
    return TASKS[config.name](config, labels, [frequencies[label] for label in labels])


def count_labels(config: TaskConfig, records: Sequence[Any]) -> Counter[str]:
    """Return the frequency of each label in the records of a task that has labels."""
    if config.name == "tag":
        return Counter(tag for r in records for tag in r.tags)
    if config.kind == "labels":
        return Counter(label for r in records for label in r.label)
    return Counter(r.label for r in records)


def _label_order(label: str) -> tuple[Any, ...]:
    """Sort key: O first, numbers by value, then strings."""
    is_number = label.removeprefix("-").isdecimal()
    return (label != "O", not is_number, int(label) if is_number else 0, label)


def load_labelled_task(model: str) -> Task:
    """Return the task of a fine-tuned model, whether trained by stemformer or by transformers.

    Raises:
        CheckpointError: The model was not fine-tuned.
    """
    metadata = read_task_info(model)
    if not metadata:
        raise CheckpointError(
            f"{model} was not trained on labelled data: pass a folder made by `stemformer finetune`, or fine-tune it first"
        )
    names = {"sequence": "classify", "token": "tag", "span": "qa", "choice": "choice"}
    kinds = {"multi_label_classification": "labels", "regression": "score"}
    settings = {"name": names[metadata["head"]], "kind": kinds.get(str(metadata.get("problem_type")), "class")}
    settings |= {f.name: metadata[f.name] for f in fields(TaskConfig) if f.name in metadata}
    config = msgspec.convert(settings, TaskConfig)
    task = TASKS[config.name](config, metadata["labels"])
    task.load_metadata(metadata)
    return task


# Training and dev data


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
    """Read labelled files; without dev files, split dev data off the training data.

    Args:
        config: Settings of the task.
        progress: Progress reporter; receives the notes.
        train: Files of training data.
        dev: Files of dev data.
        dev_fraction: Share of the training data to use as dev data if `dev` is empty.
        seed: Random seed of the split.

    Raises:
        DataError: Files that cannot be read or belong to another task, or too few records to split.
    """
    progress.start("reading labelled data")
    counts: Counter[str] = Counter()
    records, config = read_records(config, train, counts=counts)
    notes = _count_notes("training data", counts)
    if dev:
        counts = Counter()
        dev_records, _ = read_records(config, dev, counts=counts)
        notes += _count_notes("dev data", counts)
    else:
        records, dev_records = split_dev(config, records, share=dev_fraction, seed=seed)
        method = "stratified by class" if _has_classes(config) else "at random"
        method = "grouped by article or passage" if config.name == "qa" else method
        actual = len(dev_records) / max(1, len(dev_records) + len(records))
        notes.append(f"no dev data: {len(dev_records):,} training records ({actual:.0%}) split off by seed, {method}")
        if not records or not dev_records:
            raise DataError(f"{', '.join(train)}: too few records to split off dev data. Pass --dev.")
    # Answers that are not in the passage cannot be learned.
    if config.name == "qa":
        learnable = [r for r in records if r.answers or r.is_impossible]
        if len(learnable) < len(records):
            num_skipped = len(records) - len(learnable)
            notes.append(f"training data: questions whose answer is not in the passage (skipped): {num_skipped:,}")
        records = learnable
    task = make_labelled_task(config, records)
    notes += [*check_labels(task, dev_records), *_odd_tag_notes(task, records), *_rare_label_notes(task, records)]
    for line in (_describe_columns(task), _describe_labels(task, records), *notes):
        if line:
            progress.say(line)
    return LabelledData(task, records, dev_records, notes)


def majority_baseline(data: LabelledData) -> tuple[str, float] | None:
    """Return the most frequent training label and its accuracy on the dev data.

    None for tasks whose answer is not one label, and for dev data without labels.
    """
    config = data.task.config
    if not data.task.labels or config.kind != "class":
        return None
    dev = count_labels(config, data.dev)
    if not dev:
        return None
    ((label, _),) = count_labels(config, data.train).most_common(1)
    return label, dev[label] / dev.total()


def check_labels(task: Task, records: Sequence[Any]) -> list[str]:
    """Return a note about the labels of records that the task does not have, if there are any.

    Raises:
        DataError: The task has none of their labels.
    """
    if not task.labels:
        return []
    found = count_labels(task.config, records)
    unknown = {label: n for label, n in found.items() if label not in task.labels}
    if not unknown:
        return []
    shown = ", ".join(f"{label!r} ({n:,})" for label, n in sorted(unknown.items())[:5])
    if len(unknown) == len(found):
        known = ", ".join(map(repr, task.labels[:5]))
        raise DataError(
            f"None of the labels occur in the training data: found {shown}, trained on {known}. Check the column (--label-column)."
        )
    treatment = "ignored" if task.config.kind == "labels" else "counted as wrong"
    return [f"{len(unknown)} labels do not occur in the training data and are {treatment}: {shown}"]


def encode_splits(
    data: LabelledData, tokenizer: Tokenizer, max_length: int, progress: Progress
) -> tuple[TaskExamples, TaskExamples, list[str]]:
    """Return training and dev examples, and all notes about reading and encoding."""
    progress.start("encoding")
    examples = data.task.encode(data.train, tokenizer, max_length=max_length)
    dev = data.task.encode(data.dev, tokenizer, max_length=max_length)
    notes = [] if data.task.symbols is None else [_describe_symbols(data.task.symbols)]
    notes += [*_count_notes("training data", examples.counts), *_count_notes("dev data", dev.counts)]
    for note in notes:
        progress.say(note)
    return examples, dev, [*data.notes, *notes]


# Notes


def _count_notes(name: str, counts: dict[str, int]) -> list[str]:
    return [f"{name}: {what}: {number:,}" for what, number in counts.items()]


def _odd_tag_notes(task: Task, records: Sequence[Any]) -> list[str]:
    """Return a note if a few tags keep the others from being scored as entities."""
    labels = [label for label in task.labels if label != "O"]
    odd = [label for label in labels if not is_bio([label])]
    if task.config.name != "tag" or task.has_entities or "O" not in task.labels or 2 * len(odd) >= len(labels):
        return []
    location = next(r.location for r in records if odd[0] in r.tags)
    others = ", ".join(label for label in labels if label != odd[0])[:40]
    return [
        f"tag {odd[0]!r} (sentence at {location}) marks no entity, unlike the others ({others}): "
        "entities are not scored. Repair it."
    ]


def _rare_label_notes(task: Task, records: Sequence[Any]) -> list[str]:
    """Return a note if the answers look like free text or numbers instead of classes."""
    num_labels = len(task.labels)
    if not _has_classes(task.config) or len(records) < 10 or 2 * num_labels < len(records):
        return []
    return [
        f"{num_labels:,} different answers in {len(records):,} records, so most cannot be learned. "
        f"Check whether {task.config.label!r} is the right column (--label-column); use --kind score for numbers."
    ]


def _describe_columns(task: Task) -> str:
    if task.head != "sequence":
        return ""
    texts = " and ".join(map(repr, task.config.text))
    return f"text: column {texts}; answer: column {task.config.label!r} (--text-column, --label-column to change)"


def _describe_labels(task: Task, records: Sequence[Any]) -> str:
    if task.config.name == "qa":
        num_impossible = sum(r.is_impossible for r in records)
        return f"{len(records):,} questions" + (f", {num_impossible:,} without an answer" if num_impossible else "")
    if not task.labels:
        return f"{len(records):,} records"
    shown = ", ".join(task.labels[:12]) + (", ..." if len(task.labels) > 12 else "")
    return f"{len(records):,} records, {len(task.labels)} labels: {shown}"


def _describe_symbols(symbols: SymbolMap) -> str:
    shown = ", ".join(f"{run} {word!r}" for run, word in [*symbols.words.items()][:6])
    return f"{len(symbols.words):,} words represent symbols: {shown}" + (", ..." if len(symbols.words) > 6 else "")
