"""Labelled records as a run sees them: read, divided into training and dev, encoded; and all of it told."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stemformer.data.symbols import SymbolMap
from stemformer.data.tagged import is_bio
from stemformer.data.tokenizer import Tokenizer
from stemformer.errors import DataError
from stemformer.problems import Problem, new_problem, read_records, split_dev
from stemformer.progress import Progress
from stemformer.tasks.classify import Classify
from stemformer.tasks.task import TaskExamples
from stemformer.training.run import FinetuneConfig

__all__ = ["LabelledData", "encode", "most_frequent", "read_labelled", "unknown_labels"]


@dataclass(frozen=True)
class LabelledData:
    """Labelled records, what they ask, and what was done to them on the way, in sentences."""

    problem: Problem
    train: list[Any]
    dev: list[Any]
    notes: list[str]


def read_labelled(config: FinetuneConfig, progress: Progress) -> LabelledData:
    """Reads the labelled files, and sets a part aside for dev where no dev file was given."""
    progress.start("reading labelled data")
    counted: Counter[str] = Counter()
    records, of_task = read_records(config.task, config.train, counted=counted)
    notes = [f"training data: {what}: {number:,}" for what, number in counted.items()]
    if config.dev:
        counted = Counter()
        dev, _ = read_records(of_task, config.dev, counted=counted)
        notes += [f"dev data: {what}: {number:,}" for what, number in counted.items()]
    else:
        records, dev = split_dev(of_task, records, share=config.dev_share, seed=config.seed)
        is_class = of_task.name in ("classify", "pair") and of_task.kind == "class"
        together = "each class in the same share" if is_class else "drawn at random"
        together = "articles or passages kept whole" if of_task.name == "qa" else together
        real = len(dev) / max(1, len(dev) + len(records))
        notes.append(f"no dev data given: {len(dev):,} records ({real:.0%}) set aside by seed, {together}")
        if not records or not dev:
            raise DataError(f"{', '.join(config.train)}: too few records to set some aside for dev: give --dev")
    if of_task.name == "qa":  # what the passage does not hold cannot be learned from it
        found = [r for r in records if r.answers or r.is_impossible]
        if len(found) < len(records):
            notes.append(
                f"training data: questions left out, their answer not in the passage: {len(records) - len(found):,}"
            )
        records = found
    problem = new_problem(of_task, records)
    notes += [*unknown_labels(problem, dev), *_odd_tags(problem, records), *_rare_labels(problem, records)]
    for line in (_told_of_columns(problem), _told_of_labels(problem, records), *notes):
        if line:
            progress.say(line)
    return LabelledData(problem, records, dev, notes)


def most_frequent(data: LabelledData) -> tuple[str, float] | None:
    """Returns the most frequent label of the training data and for which share of the dev data it is right.

    None where an answer is not one label, or the dev data has none.
    """
    task = data.problem.task
    if task.head not in ("sequence", "token") or not task.labels or getattr(task.config, "kind", "class") != "class":
        return None
    of_dev = data.problem.count_labels(data.dev)
    if not of_dev:
        return None
    ((label, _),) = data.problem.count_labels(data.train).most_common(1)
    return label, of_dev[label] / of_dev.total()


def unknown_labels(problem: Problem, records: Sequence[Any]) -> list[str]:
    """Returns a sentence about the labels of records that the model does not know; nothing where it knows all.

    Raises:
        DataError: It knows none of them.
    """
    config = problem.task.config
    if not problem.task.labels:
        return []
    there = problem.count_labels(records)
    unknown = {label: n for label, n in there.items() if label not in problem.task.labels}
    if not unknown:
        return []
    shown = ", ".join(f"{label!r} ({n:,})" for label, n in sorted(unknown.items())[:5])
    if len(unknown) == len(there):
        known = ", ".join(map(repr, problem.task.labels[:5]))
        raise DataError(
            f"none of the labels was trained: there are {shown}, trained were {known}: is it the right column (--label)?"
        )
    treated = "are left out" if config.kind == "labels" else "count as wrong"
    return [f"{len(unknown)} labels were not trained, and {treated}: {shown}"]


def _odd_tags(problem: Problem, records: Sequence[Any]) -> list[str]:
    """Returns a sentence about tags that keep the others, which mark entities, from being scored as such."""
    labels = [label for label in problem.task.labels if label != "O"]
    odd = [label for label in labels if not is_bio([label])]
    if (
        problem.task.head != "token"
        or problem.entities
        or "O" not in problem.task.labels
        or 2 * len(odd) >= len(labels)
    ):
        return []
    place = next(r.place for r in records if odd[0] in r.tags)
    others = ", ".join(label for label in labels if label not in odd[:1])[:40]
    return [
        f"the tag {odd[0]!r} (sentence at {place}) marks no entity as the others do ({others}): entities are not scored; repair it"
    ]


def _rare_labels(problem: Problem, records: Sequence[Any]) -> list[str]:
    """Returns a sentence about a column of answers that looks like free text or numbers rather than classes."""
    config, number = problem.task.config, len(problem.task.labels)
    if (
        config.name not in ("classify", "pair")
        or config.kind != "class"
        or len(records) < 10
        or 2 * number < len(records)
    ):
        return []
    return [
        f"{number:,} different answers in {len(records):,} records, so most cannot be learned: is {config.label!r} the right column "
        "(--label)? Numbers are learned with --regression"
    ]


def _told_of_columns(problem: Problem) -> str:
    config = problem.task.config
    if problem.task.head != "sequence":
        return ""
    texts = " and ".join(repr(name) for name in config.text)
    return f"text: column {texts}; answer: column {config.label!r} (--text, --label to change)"


def _told_of_labels(problem: Problem, records: Sequence[Any]) -> str:
    task = problem.task
    if task.head == "span":
        none = sum(r.is_impossible for r in records)
        return f"{len(records):,} questions, {none:,} without an answer" if none else f"{len(records):,} questions"
    if not task.labels:
        return f"{len(records):,} records"
    shown = ", ".join(task.labels[:12]) + (", ..." if len(task.labels) > 12 else "")
    return f"{len(records):,} records, {len(task.labels)} labels: {shown}"


def encode(
    data: LabelledData, tokenizer: Tokenizer, max_length: int, progress: Progress
) -> tuple[TaskExamples, TaskExamples, list[str]]:
    """Returns training and dev examples, and all that was done to the data on the way, in sentences."""
    task = data.problem.task
    progress.start("encoding")
    examples = task.encode(data.train, tokenizer, max_length=max_length)
    dev = task.encode(data.dev, tokenizer, max_length=max_length)
    notes = [_told_of_symbols(task.symbols)] if isinstance(task, Classify) and task.symbols is not None else []
    notes += [f"training data: {what}: {n:,}" for what, n in examples.counted.items()]
    notes += [f"dev data: {what}: {n:,}" for what, n in dev.counted.items()]
    for note in notes:
        progress.say(note)
    return examples, dev, [*data.notes, *notes]


def _told_of_symbols(symbols: SymbolMap) -> str:
    shown = ", ".join(f"{run} {word!r}" for run, word in [*symbols.words.items()][:6])
    return f"{len(symbols.words):,} words stand for symbols: {shown}" + (", ..." if len(symbols.words) > 6 else "")
