"""Few-shot tasks: TOML files that describe prompts, answers and scoring; built-in ones are in `tasks`.

Source: Brown et al. 2020, section 2.4 (few-shot prompts, comparison of answers by likelihood).
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import tomli_w

from stemformer.config import from_toml, nearest, parse_toml
from stemformer.data.text.files import HUB_PREFIX
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.synthetic import find_synthetic

_VARIABLE = re.compile(r"\{([^{}|\n]+)((?:\|[^{}|\n]+)*)\}")
_OPEN_BRACE = re.compile(r"\{\w+")
_ANSWER = "{answer}"
_SYNTHETIC = "synthetic:"
_ANSWER_KEYS = ("answers", "choices", "choices_column", "answer", "synthetic")

_RENAMED_KEYS = {"how": "output_type", "draw": "sampler", "examples": "demonstrations"}
_RENAMED_OUTPUT_TYPES = {"choose": "multiple_choice", "complete": "loglikelihood", "generate": "generate_until"}

FILTERS: dict[str, Callable[[str], str]] = {
    # Only the first letter.
    "lower": lambda text: text[:1].lower() + text[1:],
    # No final punctuation.
    "open": lambda text: text.rstrip().rstrip(".。!?"),
    "strip": lambda text: text.strip(),
    "last": lambda text: "".join(text.split()[-1:]),
    "before_last": lambda text: text.rsplit(maxsplit=1)[0] if len(text.split()) > 1 else "",
}
"""Template filters, used as `{column|filter}`."""


@dataclass(frozen=True)
class FewShotExample:
    """Example of a few-shot task: the columns of its record, its answer choices, and the correct one."""

    fields: Mapping[str, str]
    # Only the correct answer if there are no choices.
    answers: tuple[str, ...]
    # Index of the correct answer.
    gold: int
    # Demonstrations are balanced by it.
    label: str = ""


@dataclass(frozen=True)
class PromptTask:
    """Few-shot task: prompts and scoring. A task file has these keys.

    Attributes:
        template: Example with its answer: columns as `{column}` or `{column|filter}` (see
            `FILTERS`), and `{answer}`.
        name: Name in tables; defaults to the file name.
        data: Evaluation examples: path relative to the TOML file, or hub id.
        demonstrations: Their data: path or hub id; defaults to the other evaluation examples.
        synthetic: Name in `synthetic.SYNTHETIC_TASKS`, instead of data.
        instruction: Text at the start of the prompt.
        separator: Text between demonstrations and after the instruction.
        cloze: Template for masked models; defaults to `template`.
        label: Column of the correct answer.
        answers: Text of each label, if all examples share their answers.
        choices: Templates of the answers, if each example has its own.
        choices_column: Column with the list of answers, instead of `choices`.
        first_label: Number of the first answer, for numeric labels.
        correct: Index of the correct answer, if it is always the same.
        answer: Template of the correct answer, if there are no choices.
        output_type: `multiple_choice`: select the most likely answer. `loglikelihood`: the answer
            is correct if each of its tokens is the most likely one. `generate_until`: generate
            `max_new_tokens` at most, up to the string `stop`, and compare.
        words: Replacements of values, by column.
        score: Compare answers by the `sum` of token log-probabilities, or by their `mean` per
            character.
        metric: Metric of generated answers: `accuracy` (exact match), `chrf` or `bleu`.
        num_shots: Default numbers of demonstrations.
        sampler: Choice of demonstrations: `balanced` (random, as many of each label as possible),
            `random`, or `first` (always the first ones).
    """

    template: str
    name: str = ""
    about: str = ""
    source: str = ""
    data: str = ""
    demonstrations: str = ""
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
    output_type: Literal["multiple_choice", "loglikelihood", "generate_until"] = "multiple_choice"
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    score: Literal["sum", "mean"] = "sum"
    max_new_tokens: int = 24
    stop: str = "\n"
    metric: Literal["accuracy", "chrf", "bleu"] = "accuracy"
    num_shots: tuple[int, ...] = (0, 1, 4)
    sampler: Literal["balanced", "random", "first"] = "balanced"

    def __post_init__(self) -> None:
        for name in ("template", "cloze", "answer"):
            text = getattr(self, name)
            if name != "answer" and text.count(_ANSWER) != 1 and (text or name == "template"):
                raise ConfigError(f"{name} {text!r}: Expected {{answer}} exactly once.")
            if found := _OPEN_BRACE.search(_VARIABLE.sub("", text)):
                raise ConfigError(f"{name} {text!r}: {found[0]!r} lacks a closing brace.")
        keys = [name for name in _ANSWER_KEYS if getattr(self, name)]
        if len(keys) != 1:
            expected = f"Expected exactly one of the keys {', '.join(_ANSWER_KEYS)}"
            raise ConfigError(f"{expected}, found {' and '.join(keys) or 'none'}.")
        is_choice = self.output_type == "multiple_choice"
        if is_choice and self.answer:
            raise ConfigError("answer is only valid for output_type = loglikelihood or generate_until.")
        if not is_choice and not self.answer and not self.synthetic:
            raise ConfigError(f"output_type = {self.output_type} requires answer, the template of the correct one.")
        if self.answers and (len(self.answers) < 2 or not all(words.strip() for words in self.answers.values())):
            raise ConfigError("answers: Expected at least two labels, each with a text.")
        if (self.choices or self.choices_column or self.answers) and not self.label and self.correct is None:
            raise ConfigError("Expected label (column of the correct answer) or correct (its index).")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}. Expected at least 1.")
        if self.metric != "accuracy" and self.output_type != "generate_until":
            raise ConfigError(f"metric = {self.metric} requires output_type = generate_until.")
        if not self.num_shots or min(self.num_shots) < 0:
            raise ConfigError(f"num_shots is {list(self.num_shots)}. Expected numbers from 0 on, such as [0, 1, 4].")

    @property
    def columns(self) -> set[str]:
        """Columns that the templates use."""
        return {match[1].strip() for match in _VARIABLE.finditer(self.template + self.cloze)} - {"answer"}

    def split_template(self, item: FewShotExample, *, for_masked: bool = False) -> tuple[str, str, str]:
        """Return the text before the answer, the spaces before it, and the text after it."""
        template = self.cloze if for_masked and self.cloze else self.template
        before, after = (render(part, item.fields, name=self.name) for part in template.split(_ANSWER))
        stripped = before.rstrip(" ")
        return stripped, before[len(stripped) :], after

    def render_example(self, item: FewShotExample, *, for_masked: bool = False) -> str:
        """Return an example with its correct answer."""
        before, space, after = self.split_template(item, for_masked=for_masked)
        return before + space + item.answers[item.gold] + after

    def render_prompt(
        self, demonstrations: Sequence[FewShotExample], item: FewShotExample, *, for_masked: bool = False
    ) -> str:
        """Return the prompt: instruction, demonstrations, and the example up to its answer."""
        parts = [self.instruction] if self.instruction else []
        parts += [self.render_example(example, for_masked=for_masked) for example in demonstrations]
        return self.separator.join([*parts, self.split_template(item, for_masked=for_masked)[0]])


def render(template: str, fields: Mapping[str, str], *, name: str = "") -> str:
    """Insert the columns of a record into a template.

    Example:
        >>> render("{a|lower}-{b}", {"a": "One", "b": "2"})
        'one-2'
    """
    task = f"Task {name}: " if name else ""

    def substitute(match: re.Match[str]) -> str:
        column, *filters = (part.strip() for part in match[0][1:-1].split("|"))
        if column not in fields:
            raise unknown_name(f"{task}The data has no column", column, fields, "Columns")
        text = fields[column]
        for filter_name in filters:
            if filter_name not in FILTERS:
                raise unknown_name(f"{task}Unknown filter", filter_name, FILTERS, "Filters")
            text = FILTERS[filter_name](text)
        return text

    return _VARIABLE.sub(substitute, template)


def unknown_name(problem: str, name: str, known: Iterable[str], title: str) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest one and all that do."""
    return ConfigError(f"{problem} {name!r}{nearest(name, known)}. {title}: {', '.join(known)}.")


def built_in_tasks() -> dict[str, str]:
    """Return the TOML text of each built-in task."""
    folder = package_files("stemformer") / "evaluation" / "few_shot" / "tasks"
    found = {path.name.removesuffix(".toml"): path for path in folder.iterdir() if path.name.endswith(".toml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def open_task(spec: str, *, demonstrations: str = "") -> PromptTask:
    """Load a task and resolve its data.

    Args:
        spec: Built-in name or TOML file, optionally followed by `=` and the data (`sst2=dev.tsv`,
            `my_task.toml`); or `synthetic:` and a name in `synthetic.SYNTHETIC_TASKS`.
        demonstrations: Data of the demonstrations; overrides the task's.
    """
    name, data = _split_spec(spec)
    if name.startswith(_SYNTHETIC):
        if data or demonstrations:
            raise ConfigError(f"{name} generates its own examples. Remove the file.")
        [kind] = find_synthetic([name.removeprefix(_SYNTHETIC)])
        task = PromptTask("{input} -> {answer}", name=kind.name, synthetic=kind.name, separator="\n")
        return task if kind.num_candidates else replace(task, output_type="generate_until")
    known = built_in_tasks()
    is_file = name.endswith(".toml")
    if is_file and not Path(name).is_file():
        raise ConfigError(f"Task file {name} does not exist.")
    if not is_file and name not in known:
        hint = nearest(name, known)
        raise ConfigError(f"Unknown task {name!r}{hint}. Expected a .toml file or one of {', '.join(known)}.")
    try:
        task = _parse_task(Path(name).read_text(encoding="utf-8-sig") if is_file else known[name], name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(name) else f"Task {name}: {error}") from error
    folder = Path(name).parent if is_file else Path()
    data = data or _resolve(folder, task.data)
    if not data:
        raise ConfigError(f"Task {name} has no data. Pass it as {name}=FILE.")
    demonstrations = demonstrations or _resolve(folder, task.demonstrations)
    return replace(task, name=task.name or Path(name).stem, data=data, demonstrations=demonstrations)


def _parse_task(text: str, source: str) -> PromptTask:
    """Parse a task file; former keys and values are accepted with a warning."""
    table: dict[str, Any] = {}
    changes = []
    for key, value in parse_toml(text, source).items():
        name = _RENAMED_KEYS.get(key, key)
        table[name] = _RENAMED_OUTPUT_TYPES.get(str(value), value) if name == "output_type" else value
        if (name, table[name]) != (key, value):
            changes.append(f"{key} = {value!r} is now {name} = {table[name]!r}")
    if changes:
        warnings.warn(f"{source}: {'; '.join(changes)}.", stacklevel=3)
    return from_toml(PromptTask, tomli_w.dumps(table), source=source)


def _split_spec(spec: str) -> tuple[str, str]:
    """Split a task and its data at `=`, which paths may contain too."""
    name, end, data = spec.partition(".toml=")
    if end:
        return f"{name}.toml", data
    return (spec, "") if spec.endswith(".toml") else (spec.partition("=")[0], spec.partition("=")[2])


def _resolve(folder: Path, data: str) -> str:
    return data if not data or data.startswith(HUB_PREFIX) else str(folder / data)
