"""Labels of records and of a task: counting, checking, matching spellings, and other names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from stemformer.data.labelled.token_classification import has_entity_tags
from stemformer.data.text.files import quoted
from stemformer.errors import ConfigError, DataError
from stemformer.progress import format_count, format_list
from stemformer.tasks.task import Task, TaskConfig

# Labels that a message lists.
_MOST = 10
# Of a number such as 1.0.
_DECIMALS = re.compile(r"^([-+]?\d+)\.0+$")


def count_labels(config: TaskConfig, records: Iterable[Any]) -> Counter[str]:
    """Return how often each label occurs in the records, which have answers; nothing if these are no labels."""
    if config.kind == "score" or not config.has_labels:
        return Counter()
    labels = (r.tags if config.name == "tag" else r.label if config.kind == "labels" else [r.label] for r in records)
    return Counter(chain.from_iterable(labels))


def check_labels(
    task: Task, found: Mapping[str, int], *, advice: str = "Check the column (--label-column)."
) -> list[str]:
    """Return a note about labels, with their counts, that the task does not have; raise if it has none of them."""
    unknown = {label: n for label, n in found.items() if label not in task.labels}
    if not unknown:
        return []
    shown = format_list((f"{label!r} ({n:,})" for label, n in sorted(unknown.items())), _MOST)
    if len(unknown) == len(found):
        known = quoted(task.labels, _MOST)
        raise DataError(f"None of the labels occur in the training data: found {shown}, trained on {known}. {advice}")
    treatment = "ignored" if task.config.kind == "labels" else "counted as wrong"
    do, are = ("do", "are") if len(unknown) > 1 else ("does", "is")
    number = format_count(len(unknown), "label")
    note = f"{number} {do} not occur in the training data and {are} {treatment}: {shown}"
    if task.has_entities and any(not has_entity_tags([label]) for label in unknown):
        note += "; tags without B-, I- or the like mark no entity, unlike those of the model"
    return [note]


def similar_labels(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of several labels that differ only in case or number form (`1` and `1.0`)."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_plain_form(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def match_labels(task: Task, found: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the task's spelling of labels that differ from its own only in case or number form, and a note."""
    ours = {_plain_form(label): label for label in task.labels}
    is_ambiguous = len(ours) < len(task.labels)
    unknown = sorted((label for label in found if label not in task.labels), key=str.casefold)
    names = {label: ours[form] for label in unknown if (form := _plain_form(label)) in ours}
    if not names or is_ambiguous:
        return {}, []
    shown = format_list((f"{theirs!r} as {name!r}" for theirs, name in names.items()), _MOST)
    note = f"labels that differ from those of the model only in case or number form are taken as the same: {shown}"
    return names, [note]


def respell_labels(task: Task, records: Sequence[Any], names: Mapping[str, str]) -> list[Any]:
    """Return records whose labels have other names, as `match_labels` found."""

    def rename(record: Any) -> Any:
        if task.config.name == "tag":
            return replace(record, tags=tuple(names.get(tag, tag) for tag in record.tags))
        if task.config.kind == "labels":
            return replace(record, label=tuple(dict.fromkeys(names.get(label, label) for label in record.label)))
        return replace(record, label=names.get(record.label, record.label))

    return [rename(record) for record in records] if names else list(records)


def rename_labels(task: Task, label_map: Sequence[str], found: Iterable[str] = ()) -> Task:
    """Return a task whose labels have the names of `label_map`, entries `OLD=NEW`; `found` are those of files, if any."""
    names: dict[str, str] = {}
    for entry in (part for item in label_map for part in re.split(r",(?=[^,=]+=)", item)):
        old, _, new = (part.strip() for part in entry.partition("="))
        if not old or not new or old in names:
            problem = "names a label twice" if old in names else "has no label on one side"
            raise ConfigError(f"--label-map {entry!r} {problem}. Expected OLD=NEW, such as LABEL_0=negative.")
        names[old] = new
    labels = [names.get(label, label) for label in task.labels]
    found = sorted(found) if task.labels else []
    sides = f"Labels of the model: {quoted(task.labels, _MOST) or 'none'}."
    sides += f" Labels of the files: {quoted(found, _MOST)}." if found else ""
    if unknown := [name for name in names if name not in task.labels]:
        raise ConfigError(f"--label-map names {quoted(unknown, _MOST)}, which the model does not have. {sides}")
    if len(set(labels)) < len(labels):
        raise ConfigError(f"--label-map gives two labels of the model one name. Expected different ones. {sides}")
    forms = {_plain_form(label) for label in found}
    absent = [name for name in names.values() if _plain_form(name) not in forms]
    if found and absent and forms - {_plain_form(label) for label in labels}:
        raise ConfigError(f"--label-map names {quoted(absent, _MOST)}, which the files do not have. {sides}")
    renamed = type(task)(task.config, labels)
    renamed.load_metadata(task.metadata())
    return renamed


def _plain_form(label: str) -> str:
    return _DECIMALS.sub(r"\1", label.strip().casefold())
