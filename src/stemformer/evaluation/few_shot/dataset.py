"""Few-shot datasets: reading of examples, and sampling of demonstrations.

Source: Brown et al. 2020, section 2.4 (demonstrations sampled for each example).
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
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask, render, unknown_name


@dataclass(frozen=True)
class FewShotDataset:
    """Evaluation examples, and where the demonstrations in their prompts come from.

    `demonstrations` is the pool to choose from, and may be `items` itself; in place of a pool, each
    example may have its own ones (`demonstrations_per_item`), as those of synthetic tasks have.
    """

    items: Sequence[FewShotExample]
    demonstrations: Sequence[FewShotExample]
    demonstrations_per_item: Sequence[Sequence[FewShotExample]] = ()
    sampler: Literal["balanced", "random", "first"] = "balanced"

    def sample_demonstrations(self, index: int, num_shots: int, *, seed: int) -> list[FewShotExample]:
        """Choose the demonstrations for the prompt of `items[index]`, which is never one of them.

        The sampler `first` takes the pool in its order. `random` shuffles the pool. `balanced`
        shuffles the demonstrations of each label, then takes one of each label per round, the
        labels in random order. The generator depends on seed and index: each example has
        demonstrations of its own, and those of 2 shots are the first 2 of 4 shots.
        """
        if self.demonstrations_per_item:
            queues = [self.demonstrations_per_item[index]]
        else:
            pool, example = self.demonstrations, self.items[index]
            rng = example_generator(seed, 0, index)
            groups = self._by_label if self.sampler == "balanced" else [np.arange(len(pool))]
            orders = groups if self.sampler == "first" else [rng.permutation(group) for group in groups]
            queues = [[pool[i] for i in order.tolist() if pool[i].fields != example.fields] for order in orders]
        if num_shots > (available := sum(map(len, queues))):
            problem = f"{num_shots} demonstrations requested, {available} available."
            raise DataError(f"{problem} Pass more data or fewer shots.")
        if len(queues) == 1:
            return list(queues[0][:num_shots])
        # In each round, one of each label that has any left.
        chosen = []
        for turn in range(num_shots):
            chosen += [queues[i][turn] for i in rng.permutation(len(queues)).tolist() if turn < len(queues[i])]
        return chosen[:num_shots]

    @cached_property
    def _by_label(self) -> list[np.ndarray]:
        labels = np.array([item.label for item in self.demonstrations])
        return [np.flatnonzero(labels == label) for label in sorted(set(labels.tolist()))]


def read_few_shot_examples(file: str, task: PromptTask) -> list[FewShotExample]:
    """Read the examples of a labelled file or hub id."""
    table = read_table([file], names=task.columns)
    if missing := sorted(set(task.words) - set(table.columns)):
        hint = nearest(missing[0], table.columns)
        raise ConfigError(f"Task {task.name}: words: The data has no column {missing[0]!r}{hint}.")
    items, used = [], task.columns
    for row, location in zip(table.rows, table.locations, strict=True):
        fields = {name: _to_text(value) for name, value in row.items()}
        for column, values in task.words.items():
            if column in fields:
                fields[column] = values.get(fields[column], fields[column])
        if used & fields.keys() and not any(fields.get(name, "").strip() for name in used):
            raise DataError(f"{location}: Empty example: {', '.join(sorted(used))} missing or empty.")
        items.append(_make_example(task, row, fields, location))
    if not items:
        raise DataError(f"{file} contains no examples.")
    # Raises for a missing column.
    task.split_template(items[0])
    return items


def _make_example(task: PromptTask, row: Mapping[str, Any], fields: dict[str, str], location: str) -> FewShotExample:
    # A single correct answer.
    if task.answer:
        answer = render(task.answer, fields, name=task.name).strip()
        if not answer or (task.output_type == "generate_until" and task.stop and task.stop in answer):
            expected = f"Expected a text without the stop string {task.stop!r}."
            raise DataError(f"{location}: The correct answer is {answer!r}. {expected}")
        return FewShotExample(fields, (answer,), 0)

    # Answers shared by all examples.
    label = fields.get(task.label, "").strip()
    if task.correct is None and task.label not in fields:
        raise unknown_name(f"Task {task.name}: The data has no column", task.label, fields, "Columns")
    if task.answers:
        if label not in task.answers:
            known = f"Labels of task {task.name}: {', '.join(task.answers)}."
            raise DataError(f"{location}: Unknown label {label!r}{nearest(label, task.answers)}. {known}")
        return FewShotExample(fields, tuple(task.answers.values()), list(task.answers).index(label), label)

    # Answers of this example.
    if task.choices_column:
        values = row.get(task.choices_column)
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise DataError(f"{location}: Column {task.choices_column!r} contains no list of answers.")
        options = [_to_text(value).strip() for value in values]
    else:
        options = [render(choice, fields, name=task.name).strip() for choice in task.choices]
    if len(options) < 2 or not all(options):
        raise DataError(f"{location}: Expected at least two answers, none of them empty, got {options}.")
    gold = task.correct if task.correct is not None else _gold(row[task.label], options, task.first_label, location)
    if gold is None or not 0 <= gold < len(options):
        expected = f"Expected the number, letter or text of one of {len(options)}."
        raise DataError(f"{location}: The correct answer is {label!r}. {expected}")
    return FewShotExample(fields, tuple(options), gold)


def _gold(value: Any, options: Sequence[str], first: int, location: str) -> int | None:
    """Return the index of an option from its number, letter or text."""
    label = _to_text(value).strip()
    by_text = options.index(label) if label in options else None
    by_number = int(label) - first if label.removeprefix("-").isdecimal() else None
    if by_number is None and len(label) == 1 and label.isascii() and label.isalpha():
        by_number = ord(label.upper()) - ord("A")
    if isinstance(value, int) or by_text is None:
        return by_number
    if by_number in (None, by_text) or not 0 <= by_number < len(options):
        return by_text
    advice = "Use a JSON number for a number, or the text."
    raise DataError(f"{location}: {label!r} is both the number and the text of an answer in {options}. {advice}")


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
