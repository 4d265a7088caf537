"""Prompts with zero, one or a few examples: tasks as data, templates, drawn examples, and what fits into a model.

A task is a small TOML file (`PromptTask`); those that come with the package are in the folder `prompt_tasks`.

Source: Brown et al. 2020, section 2.4 (examples drawn for each question, answers compared by their likelihood).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from stemformer.config import nearest
from stemformer.data.examples.sampling import example_generator
from stemformer.data.labelled.table import read_table
from stemformer.errors import ConfigError, DataError
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask, render


@dataclass(frozen=True)
class PromptData:
    """The questions of a task, and where examples come from.

    Attributes:
        items: Questions.
        pool: Examples; the questions themselves where there are no others.
        own: For each question its own examples, where those of another would not fit (synthetic tasks); else empty.
        how: `draw` of the task.
    """

    items: Sequence[FewShotExample]
    pool: Sequence[FewShotExample]
    own: Sequence[Sequence[FewShotExample]] = ()
    how: Literal["balanced", "random", "first"] = "balanced"

    def draw(self, number: int, num_shots: int, *, seed: int) -> list[FewShotExample]:
        """Returns the examples for a question, never the question itself; the first of more are those of fewer.

        Args:
            number: Of the question.
            num_shots: How many.
            seed: Each question and seed has examples of its own.

        Raises:
            DataError: There are not so many.
        """
        if self.own:
            _check_number(num_shots, len(self.own[number]))
            return list(self.own[number][:num_shots])
        rng = example_generator(seed, 0, number)
        itself = self.items[number].fields
        groups = self._by_label if self.how == "balanced" else [np.arange(len(self.pool))]
        orders = [
            [i for i in order.tolist() if self.pool[i].fields != itself]
            for order in (group if self.how == "first" else rng.permutation(group) for group in groups)
        ]
        _check_number(num_shots, sum(map(len, orders)))
        drawn: list[FewShotExample] = []
        for turn in range(num_shots):
            for label in rng.permutation(len(orders)).tolist():
                drawn += [self.pool[i] for i in orders[label][turn : turn + 1]]
            if len(drawn) >= num_shots:
                break
        return drawn[:num_shots]

    @cached_property
    def _by_label(self) -> list[np.ndarray]:
        labels = np.array([item.label for item in self.pool])
        return [np.flatnonzero(labels == label) for label in sorted(set(labels.tolist()))]


def _check_number(num_shots: int, there: int) -> None:
    if num_shots > there:
        raise DataError(f"{num_shots} examples were asked for, there are {there}: give more data, or fewer shots")


def read_few_shot_examples(files: str, task: PromptTask) -> list[FewShotExample]:
    """Returns the questions of a file.

    Args:
        files: A labelled file or hub id; see `data.tables.read_table`.
        task: Says which columns are what.

    Raises:
        DataError: A file that cannot be read, a label that the task does not know, a choice without text.
        ConfigError: The task names a column that is not there.
    """
    table = read_table([files])
    if missing := sorted(set(task.words) - set(table.columns)):
        raise ConfigError(
            f"task {task.name}: words: the data has no column {missing[0]!r}{nearest(missing[0], table.columns)}"
        )
    items = []
    asked = task.columns
    for row, place in zip(table.rows, table.places, strict=True):
        fields = {name: _as_text(value) for name, value in row.items()}
        for column, values in task.words.items():
            if column in fields:
                fields[column] = values.get(fields[column], fields[column])
        if asked & fields.keys() and not any(fields.get(name, "").strip() for name in asked):
            raise DataError(f"{place}: nothing is asked: {', '.join(sorted(asked))} is empty or not there")
        items.append(_item(task, row, fields, place))
    if not items:
        raise DataError(f"{files}: no question is in it")
    task.parts(items[0])  # names a column that is not there
    return items


def _item(task: PromptTask, row: Mapping[str, Any], fields: dict[str, str], place: str) -> FewShotExample:
    if task.answer:
        answer = render(task.answer, fields, name=task.name).strip()
        if not answer or (task.how == "generate" and task.stop and task.stop in answer):
            raise DataError(
                f"{place}: the right answer is {answer!r}: expected a text without {task.stop!r}, where it ends"
            )
        return FewShotExample(fields, (answer,), 0)
    label = fields.get(task.label, "").strip()
    if task.correct is None and task.label not in fields:
        known = f"expected one of {', '.join(fields)}"
        raise ConfigError(
            f"task {task.name}: the data has no column {task.label!r}{nearest(task.label, fields)}: {known}"
        )
    if task.answers:
        if label not in task.answers:
            raise DataError(f"{place}: label {label!r}: task {task.name} knows {', '.join(task.answers)}")
        return FewShotExample(fields, tuple(task.answers.values()), list(task.answers).index(label), label)
    listed = row.get(task.choices_column) if task.choices_column else None
    if task.choices_column and (isinstance(listed, str) or not isinstance(listed, Sequence | np.ndarray)):
        raise DataError(f"{place}: column {task.choices_column!r} holds no list of answers")
    options = (
        [_as_text(x) for x in listed]
        if listed is not None
        else [render(c, fields, name=task.name) for c in task.choices]
    )
    options = [option.strip() for option in options]
    if len(options) < 2 or not all(options):
        raise DataError(f"{place}: expected two answers at least, none of them empty: {options}")
    gold = task.correct if task.correct is not None else _which(row[task.label], options, task.first_label, place)
    if gold is None or not 0 <= gold < len(options):
        raise DataError(
            f"{place}: the right answer is {label!r}: expected the number, the letter or the text of one of {len(options)}"
        )
    return FewShotExample(fields, tuple(options), gold)


def _which(value: Any, options: Sequence[str], first: int, place: str) -> int | None:
    """Returns which option is meant by its number, its letter or its text.

    Raises:
        DataError: It may be meant by its number and by its text, and these are of two options.
    """
    label = _as_text(value).strip()
    by_text = options.index(label) if label in options else None
    by_number = int(label) - first if label.removeprefix("-").isdecimal() else None
    if by_number is None and len(label) == 1 and label.isascii() and label.isalpha():
        by_number = ord(label.upper()) - ord("A")
    if isinstance(value, int) or by_text is None:
        return by_number
    if by_number in (None, by_text) or not 0 <= by_number < len(options):
        return by_text
    raise DataError(
        f"{place}: {label!r} may be the number or the text of an answer of {options}: give it as a JSON number or a text"
    )


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    return str(value)
