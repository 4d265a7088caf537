"""Notes about labelled data: columns, records and labels, what was skipped, and what looks like a mistake."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from stemformer.data.labelled.token_classification import has_entity_tags
from stemformer.data.text.files import quoted
from stemformer.errors import DataError
from stemformer.progress import format_count, format_list
from stemformer.tasks.labels import similar_labels
from stemformer.tasks.task import Task, TaskConfig

# Fewer records are too few to judge their labels.
_MIN_RECORDS = 10


def text_keys(task: Task | type[Task], records: Sequence[Any]) -> list[int]:
    """Return a hash of the texts of each record, up to white space."""

    def key(record: Any) -> int:
        values = [getattr(record, name) for name in task.input_fields]
        parts = chain.from_iterable([value] if isinstance(value, str) else value for value in values)
        return hash(tuple(" ".join(unicodedata.normalize("NFC", part).split()) for part in parts))

    return list(map(key, records))


def note_overlap(task: Task, train: Sequence[Any], dev: Sequence[Any], *, is_split_off: bool) -> Iterator[str]:
    """Yield a note on the dev records with the same texts as a training record."""
    advice = "Pass --dev: the data has too few different texts for a split." if is_split_off else "Remove them."
    known = set(text_keys(task, train))
    if number := sum(key in known for key in text_keys(task, dev)):
        share = f"{number:,} of {format_count(len(dev), 'record')} ({number / len(dev):.1%})"
        are = "is" if number == 1 else "are"
        yield f"dev data: {share} {are} also in the training data: the metrics show what was memorized. {advice}"


def check_columns_not_swapped(config: TaskConfig, records: Sequence[Any]) -> None:
    """Raise DataError if the labels look like texts: nearly all different and long; and the texts like labels."""
    if not config.has_classes or len(records) < _MIN_RECORDS:
        return
    labels, texts = ([r.label for r in records], [r.texts[0] for r in records])
    num_labels, num_texts = len(set(labels)), len(set(texts))
    if num_labels < 0.9 * len(records) or num_texts > len(records) / 2 or _mean_length(labels) <= _mean_length(texts):
        return
    text, label = config.text[0], config.label
    values = f"{num_labels:,} different values in {len(records):,} records, '{text}' only {num_texts:,}"
    advice = f"Pass --text-column {label} --label-column {text}."
    raise DataError(f"Text and label columns look swapped: the label column '{label}' holds {values}. {advice}")


def _mean_length(texts: Sequence[str]) -> float:
    return fmean(map(len, texts))


def count_notes(name: str, counts: Mapping[str, int]) -> list[str]:
    """Return a note for each description of skipped or repaired records, with their number."""
    return [f"{name}: {what}: {number:,}" for what, number in counts.items()]


def note_labels(task: Task, records: Sequence[Any]) -> Iterator[str]:
    """Yield a note if a few tags are no entities, or if the answers look like free text or numbers."""
    labels = [label for label in task.labels if label != "O"]
    odd = [label for label in labels if not has_entity_tags([label])]
    if task.config.name == "tag" and not task.has_entities and "O" in task.labels and 2 * len(odd) < len(labels):
        location = next(r.location for r in records if odd[0] in r.tags)
        others = ", ".join(label for label in labels if label != odd[0])[:40]
        yield (
            f"tag {odd[0]!r} (sentence at {location}) marks no entity, unlike the others ({others}): "
            "entities are not scored. Repair it."
        )
    for group in similar_labels(task.labels):
        yield f"labels {quoted(group)} differ only in case or number form; make them equal if they mean the same"
    if task.config.has_classes and _MIN_RECORDS <= len(records) <= 2 * len(task.labels):
        yield (
            f"{len(task.labels):,} different answers in {len(records):,} records, so most cannot be learned. "
            f"Check whether {task.config.label!r} is the right column (--label-column); use --kind score for numbers."
        )


def describe_records(task: Task, records: Sequence[Any]) -> Iterator[str]:
    """Yield the chosen columns, and the number of records and labels."""
    num_records = format_count(len(records), "record")
    if task.head == "sequence":
        texts, labels = (" and ".join(map(repr, names)) for names in (task.config.text, task.config.label_columns))
        yield f"text: column {texts}; answer: column {labels} (--text-column, --label-column to change)"
    if task.config.name == "qa":
        num_impossible = sum(r.is_impossible for r in records)
        yield format_count(len(records), "question") + (
            f", {num_impossible:,} without an answer" if num_impossible else ""
        )
    elif task.labels:
        yield f"{num_records}, {format_count(len(task.labels), 'label')}: {format_list(task.labels, 10)}"
    elif task.targets is not None:
        scores = [record.label for record in records]
        mean, std = task.targets
        bounds = f"from {min(scores):g} to {max(scores):g}"
        yield f"{num_records}, scores {bounds}, mean {mean:.4g}, standard deviation {std:.4g}"
    else:
        yield num_records
