"""Prompts with zero, one or a few examples: tasks as data, templates, drawn examples, and what fits into a model.

A task is a small TOML file (`PromptTask`); those that come with the package are in the folder `prompt_tasks`.

Source: Brown et al. 2020, section 2.4 (examples drawn for each question, answers compared by their likelihood).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stemformer.config import from_toml, nearest
from stemformer.data.batches import example_generator
from stemformer.data.files import HUB_PREFIX
from stemformer.data.synthetic import find_synthetic
from stemformer.data.tables import read_table
from stemformer.errors import ConfigError, DataError

__all__ = ["FILTERS", "Item", "PromptData", "PromptTask", "built_in_tasks", "open_task", "read_items", "render"]

_VARIABLE = re.compile(r"\{([^{}|\n]+)((?:\|[^{}|\n]+)*)\}")
_OPEN_BRACE = re.compile(r"\{\w+")
_ANSWER = "{answer}"

FILTERS: dict[str, Callable[[str], str]] = {
    "lower": lambda text: text[:1].lower() + text[1:],
    "open": lambda text: text.rstrip().rstrip(".。!?"),
    "strip": lambda text: text.strip(),
    "last": lambda text: "".join(text.split()[-1:]),
    "before_last": lambda text: text.rsplit(maxsplit=1)[0] if len(text.split()) > 1 else "",
}
"""What a template may do to a column, as `{column|filter}`: first letter in lower case, no mark at the end, no space around it, its last
word, all but its last word."""


@dataclass(frozen=True)
class PromptTask:
    """What is asked, and how it is scored: a TOML file with these keys.

    Attributes:
        template: A question with its answer: columns of the data as `{column}` or `{column|filter}` (see `FILTERS`), and `{answer}`.
        name: For tables; that of the file by default.
        about: What it is, in a line.
        source: Where it comes from.
        data: Its questions: a file beside the TOML file, or a hub id.
        examples: The same for the examples in the prompt; by default they are drawn from the other questions.
        synthetic: Instead of data, a name of `data.synthetic.SYNTHETIC_TASKS`.
        instruction: Stands before everything.
        separator: Between examples, and behind the instruction.
        cloze: The template for masked models, if it is another one.
        label: Column of the right answer.
        answers: Words of each label, where all questions have the same answers.
        choices: Templates of the answers, where each question has its own.
        choices_column: Or the column that holds a list of them.
        first_label: Number of the first of them, where the label is a number.
        correct: Number of the right one, where it is always the same.
        answer: Template of the right answer, where there is no choice.
        how: `choose` the likeliest answer; `complete`: the right one is the likeliest text, token by token; `generate` it, and compare.
        words: For a column, what its values become.
        score: How answers of a choice are compared: by the `sum` of their log-probabilities, or by their `mean` a character.
        max_new_tokens: Of a generated answer, at most.
        stop: Where a generated answer ends.
        metric: Of a generated answer: `accuracy`, how often it is the right text; or how near it comes to that, by `chrf` or `bleu`.
        num_shots: Numbers of examples in the prompt, where the command does not say.
        draw: Examples of each label alike, in random order (`balanced`), any (`random`), or always the `first` ones of their data.
    """

    template: str
    name: str = ""
    about: str = ""
    source: str = ""
    data: str = ""
    examples: str = ""
    synthetic: str = ""
    instruction: str = ""
    separator: str = "\n\n"
    cloze: str = ""
    label: str = ""
    answers: dict[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    choices_column: str = ""
    first_label: int = 0
    correct: int | None = None
    answer: str = ""
    how: Literal["choose", "complete", "generate"] = "choose"
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    score: Literal["sum", "mean"] = "sum"
    max_new_tokens: int = 24
    stop: str = "\n"
    metric: Literal["accuracy", "chrf", "bleu"] = "accuracy"
    num_shots: tuple[int, ...] = (0, 1, 4)
    draw: Literal["balanced", "random", "first"] = "balanced"

    def __post_init__(self) -> None:
        for name in ("template", *(["cloze"] if self.cloze else [])):
            if getattr(self, name).count(_ANSWER) != 1:
                raise ConfigError(f"{name} {getattr(self, name)!r}: expected {{answer}} in it, once")
        for name in ("template", "cloze", "answer"):
            if found := _OPEN_BRACE.search(_VARIABLE.sub("", getattr(self, name))):
                raise ConfigError(f"{name} {getattr(self, name)!r}: {found[0]!r} lacks the brace that closes it")
        given = [self.answers, self.choices, self.choices_column, self.answer, self.synthetic]
        if sum(map(bool, given)) != 1:
            raise ConfigError("expected one of answers, choices, choices_column, answer and synthetic")
        if (self.how == "choose") == bool(self.answer) and not self.synthetic:
            raise ConfigError(
                "answer goes with how = complete or generate, and with these alone" if self.answer else _NO_ANSWER
            )
        if self.answers and (len(self.answers) < 2 or not all(words.strip() for words in self.answers.values())):
            raise ConfigError("answers: expected two labels at least, and words for each")
        if (self.choices or self.choices_column or self.answers) and not self.label and self.correct is None:
            raise ConfigError("expected label, the column of the right answer (or correct, its number)")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}: expected at least 1")
        if self.metric != "accuracy" and self.how != "generate":
            raise ConfigError(f"metric = {self.metric} is of texts that are written: it goes with how = generate alone")
        if not self.num_shots or min(self.num_shots) < 0:
            raise ConfigError(f"num_shots is {list(self.num_shots)}: expected numbers from 0 on, such as [0, 1, 4]")

    @property
    def columns(self) -> set[str]:
        """Columns of the data that a question shows."""
        return {match[1].strip() for match in _VARIABLE.finditer(self.template + self.cloze)} - {"answer"}

    def parts(self, item: "Item", *, for_masked: bool = False) -> tuple[str, str, str]:
        """Returns what stands before the answer to a question, the space between, and what stands behind."""
        template = self.cloze if for_masked and self.cloze else self.template
        before, after = (render(part, item.fields, name=self.name) for part in template.split(_ANSWER))
        bare = before.rstrip(" ")
        return bare, before[len(bare) :], after

    def text(self, item: "Item", *, for_masked: bool = False) -> str:
        """Returns a question with its right answer."""
        before, space, after = self.parts(item, for_masked=for_masked)
        return before + space + item.answers[item.gold] + after

    def before(self, examples: Sequence["Item"], item: "Item", *, for_masked: bool = False) -> str:
        """Returns all that stands before the answer to a question: instruction, examples with answers, the question."""
        shown = [self.instruction] if self.instruction else []
        shown += [self.text(example, for_masked=for_masked) for example in examples]
        return self.separator.join([*shown, self.parts(item, for_masked=for_masked)[0]])


_NO_ANSWER = "how = complete and generate need answer, the template of the right one"


@dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        fields: Columns of its record.
        answers: To choose among; the right one alone where there is no choice.
        gold: Number of the right one.
        label: By which examples are balanced; "" where nothing is.
    """

    fields: Mapping[str, str]
    answers: tuple[str, ...]
    gold: int
    label: str = ""


@dataclass(frozen=True)
class PromptData:
    """The questions of a task, and where examples come from.

    Attributes:
        items: Questions.
        pool: Examples; the questions themselves where there are no others.
        own: For each question its own examples, where those of another would not fit (synthetic tasks); else empty.
        how: `draw` of the task.
    """

    items: Sequence[Item]
    pool: Sequence[Item]
    own: Sequence[Sequence[Item]] = ()
    how: Literal["balanced", "random", "first"] = "balanced"

    def draw(self, number: int, num_shots: int, *, seed: int) -> list[Item]:
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
        drawn: list[Item] = []
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


def render(template: str, fields: Mapping[str, str], *, name: str = "") -> str:
    """Returns a template with the columns of a record put in.

    Raises:
        ConfigError: A column or filter that does not exist.

    Example:
        >>> render("{a|lower}-{b}", {"a": "One", "b": "2"})
        'one-2'
    """
    where = f"task {name}: " if name else ""

    def put(match: re.Match[str]) -> str:
        column, *filters = (part.strip() for part in match[0][1:-1].split("|"))
        if column not in fields:
            known = ", ".join(fields)
            raise ConfigError(
                f"{where}the data has no column {column!r}{nearest(column, fields)}: expected one of {known}"
            )
        text = fields[column]
        for one in filters:
            if one not in FILTERS:
                raise ConfigError(
                    f"{where}there is no filter {one!r}{nearest(one, FILTERS)}: expected one of {', '.join(FILTERS)}"
                )
            text = FILTERS[one](text)
        return text

    return _VARIABLE.sub(put, template)


def built_in_tasks() -> dict[str, str]:
    """Returns the tasks that come with the package: name -> TOML text."""
    folder = package_files("stemformer") / "prompt_tasks"
    found = {path.name.removesuffix(".toml"): path for path in folder.iterdir() if path.name.endswith(".toml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def open_task(given: str, *, examples: str = "") -> PromptTask:
    """Returns a task with its data.

    Args:
        given: A built-in name or a TOML file, and `=` with its data where that is not said there: `sst2=dev.tsv`, `my_task.toml`; or
            `synthetic:` and a name of `data.synthetic.SYNTHETIC_TASKS`.
        examples: Data for the examples in the prompt, if it is not what the task says.

    Raises:
        ConfigError: No such task, keys that do not fit, or no data.
    """
    name, data = _split(given)
    if name.startswith(_SYNTHETIC):
        if data or examples:
            raise ConfigError(f"{name} draws its questions and examples itself: leave the file out")
        [kind] = find_synthetic([name.removeprefix(_SYNTHETIC)])
        how: Literal["choose", "generate"] = "choose" if kind.is_closed else "generate"
        return PromptTask("{input} -> {answer}", name=kind.name, synthetic=kind.name, separator="\n", how=how)
    known = built_in_tasks()
    folder = Path()
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: there is no such task file")
        folder = Path(name).parent
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name} is not UTF-8 ({error}): save it as UTF-8") from error
    elif name in known:
        text = known[name]
    else:
        raise ConfigError(
            f"there is no task {name!r}{nearest(name, known)}: expected a .toml file, or one of {', '.join(known)}"
        )
    try:
        task = from_toml(PromptTask, text, source=name)
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(name) else f"task {name}: {error}") from error
    changes: dict[str, Any] = {"name": task.name or Path(name).stem}
    changes["data"] = data or _beside(folder, task.data)
    changes["examples"] = examples or _beside(folder, task.examples)
    if not changes["data"]:
        raise ConfigError(f"task {name} has no data of its own: give it as {name}=FILE")
    return _replaced(task, changes)


_SYNTHETIC = "synthetic:"


def _split(given: str) -> tuple[str, str]:
    """Returns the name of a task and its data; a path may hold `=` too."""
    name, end, data = given.partition(".toml=")
    if end:
        return f"{name}.toml", data
    return (given, "") if given.endswith(".toml") else (given.partition("=")[0], given.partition("=")[2])


def _replaced(task: PromptTask, changes: Mapping[str, Any]) -> PromptTask:
    return PromptTask(**{**{f: getattr(task, f) for f in task.__dataclass_fields__}, **changes})


def _beside(folder: Path, data: str) -> str:
    return data if not data or data.startswith(HUB_PREFIX) else str(folder / data)


def read_items(files: str, task: PromptTask) -> list[Item]:
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


def _item(task: PromptTask, row: Mapping[str, Any], fields: dict[str, str], place: str) -> Item:
    if task.answer:
        answer = render(task.answer, fields, name=task.name).strip()
        if not answer or (task.how == "generate" and task.stop and task.stop in answer):
            raise DataError(
                f"{place}: the right answer is {answer!r}: expected a text without {task.stop!r}, where it ends"
            )
        return Item(fields, (answer,), 0)
    label = fields.get(task.label, "").strip()
    if task.correct is None and task.label not in fields:
        known = f"expected one of {', '.join(fields)}"
        raise ConfigError(
            f"task {task.name}: the data has no column {task.label!r}{nearest(task.label, fields)}: {known}"
        )
    if task.answers:
        if label not in task.answers:
            raise DataError(f"{place}: label {label!r}: task {task.name} knows {', '.join(task.answers)}")
        return Item(fields, tuple(task.answers.values()), list(task.answers).index(label), label)
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
    return Item(fields, tuple(options), gold)


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
