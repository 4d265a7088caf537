"""Prompts with zero, one or a few examples: tasks as data, templates, drawn examples, and what fits into a model.

A task is a small TOML file (`PromptTask`); those that come with the package are in the folder `prompt_tasks`.

Source: Brown et al. 2020, section 2.4 (examples drawn for each question, answers compared by their likelihood).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

from stemformer.config import from_toml, nearest
from stemformer.data.text.files import HUB_PREFIX
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.synthetic import find_synthetic

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
class FewShotExample:
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

    def parts(self, item: "FewShotExample", *, for_masked: bool = False) -> tuple[str, str, str]:
        """Returns what stands before the answer to a question, the space between, and what stands behind."""
        template = self.cloze if for_masked and self.cloze else self.template
        before, after = (render(part, item.fields, name=self.name) for part in template.split(_ANSWER))
        bare = before.rstrip(" ")
        return bare, before[len(bare) :], after

    def text(self, item: "FewShotExample", *, for_masked: bool = False) -> str:
        """Returns a question with its right answer."""
        before, space, after = self.parts(item, for_masked=for_masked)
        return before + space + item.answers[item.gold] + after

    def before(self, examples: Sequence["FewShotExample"], item: "FewShotExample", *, for_masked: bool = False) -> str:
        """Returns all that stands before the answer to a question: instruction, examples with answers, the question."""
        shown = [self.instruction] if self.instruction else []
        shown += [self.text(example, for_masked=for_masked) for example in examples]
        return self.separator.join([*shown, self.parts(item, for_masked=for_masked)[0]])


_NO_ANSWER = "how = complete and generate need answer, the template of the right one"


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
    folder = package_files("stemformer") / "evaluation" / "few_shot" / "tasks"
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
