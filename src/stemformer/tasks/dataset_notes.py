"""Notes about labelled data: columns, records and labels, what was skipped, and what looks like a mistake."""

import hashlib
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import UInt64

from stemformer.data.labelled.token_classification import has_entity_tags
from stemformer.data.text.files import quoted
from stemformer.errors import DataError
from stemformer.progress import format_count, format_list
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.labels import similar_labels
from stemformer.tasks.task import Task, TaskConfig

# Fewer records are too few to judge their labels.
_MIN_RECORDS = 10
# Sorted 64-bit hashes of the texts of training records, at most 8 MB, in the folder of a fine-tuned model.
_TRAINING_TEXTS, _MOST_TRAINING_TEXTS = "training_texts.npy", 10**6
REMOVE_ADVICE = "Remove them."


def plain_text(text: str) -> str:
    """Return a text up to white space and composed characters, by which equal texts are found."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_keys(task: Task | type[Task], records: Sequence[Any]) -> list[int]:
    """Return a hash of 64 bits of the texts of each record, up to white space."""

    def key(record: Any) -> int:
        values = [getattr(record, name) for name in task.input_fields]
        parts = chain.from_iterable([value] if isinstance(value, str) else value for value in values)
        # The separator is white space, so no part holds it.
        text = "\x1f".join(map(plain_text, parts))
        return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

    return list(map(key, records))


def save_training_texts(folder: Path, task: Task, records: Sequence[Any]) -> list[str]:
    """Write the hashes of training records next to their model, for `evaluate`; return a note if they are too many."""
    keys = np.unique(np.array(text_keys(task, records), np.uint64))
    if len(keys) > _MOST_TRAINING_TEXTS:
        number = format_count(len(keys), "training text")
        return [f"{number} are too many to store with the model: evaluate will not say which records it has seen"]
    np.save(folder / _TRAINING_TEXTS, keys, allow_pickle=False)
    return []


def load_training_texts(folder: Path) -> UInt64[np.ndarray, "n"]:
    """Return what `save_training_texts` wrote; nothing if the folder does not have it."""
    file = folder / _TRAINING_TEXTS
    return np.load(file, allow_pickle=False) if file.is_file() else np.empty(0, np.uint64)


def copy_training_texts(source: Path, target: Path) -> None:
    """Copy what `save_training_texts` wrote, if the folder `source` has it."""
    if (source / _TRAINING_TEXTS).is_file():
        shutil.copyfile(source / _TRAINING_TEXTS, target / _TRAINING_TEXTS)


class TrainingOverlap:
    """Counts records whose texts are in the training data, by the ascending hashes `known`."""

    def __init__(self, task: Task, known: UInt64[np.ndarray, "n"]) -> None:
        self._task, self._known, self.number = task, known, 0

    def add(self, records: Sequence[Any]) -> None:
        """Count the records of a block."""
        if len(self._known):
            keys = np.array(text_keys(self._task, records), np.uint64)
            nearest = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
            self.number += int((self._known[nearest] == keys).sum())

    def note(self, name: str, total: int, advice: str) -> list[str]:
        """Return a note if there are such records among a total of the data `name`."""
        if not self.number:
            return []
        share = f"{self.number:,} of {format_count(total, 'record')} ({self.number / total:.1%})"
        are = "is" if self.number == 1 else "are"
        return [f"{name}: {share} {are} also in the training data: the metrics show what was memorized. {advice}"]


def note_overlap(task: Task, train: Sequence[Any], dev: Sequence[Any], *, is_split_off: bool) -> Iterator[str]:
    """Yield a note on the dev records with the same texts as a training record."""
    advice = "Pass --dev: the data has too few different texts for a split." if is_split_off else REMOVE_ADVICE
    overlap = TrainingOverlap(task, known=np.unique(np.array(text_keys(task, train), np.uint64)))
    overlap.add(dev)
    yield from overlap.note("dev data", len(dev), advice)


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


def note_lengths(name: str, examples: TaskExamples, max_length: int) -> Iterator[str]:
    """Yield a note on the lengths before cutting if some texts were cut."""
    if any("truncated" in what or "windows" in what for what in examples.counts):
        mean, longest = fmean(examples.lengths), max(examples.lengths)
        length = f"mean {mean:,.0f} tokens, longest {longest:,}"
        yield f"{name}: length before cutting: {length}; max length {max_length:,} with special tokens"


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
    if task.column_titles is not None:
        names = (task.config.text, task.config.label_columns)
        columns = (f"{x}: column {' and '.join(map(repr, y))}" for x, y in zip(task.column_titles, names, strict=True))
        yield f"{'; '.join(columns)} (--text-column, --label-column to change)"
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
