"""From labelled files to a task with its records: what is asked, which labels there are, what was skipped."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import msgspec

from stemformer.config import nearest
from stemformer.data.labelled.detect_format import looks_like, row_looks_like
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
from stemformer.huggingface.load import read_task
from stemformer.progress import Progress
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import Language, main_metric, score_predictions
from stemformer.tasks.question_answering import QuestionAnswering
from stemformer.tasks.registry import TASKS
from stemformer.tasks.sequence_classification import Classify
from stemformer.tasks.task import Task, TaskConfig
from stemformer.training.config import FinetuneConfig

_HAN = re.compile(r"[\u4e00-\u9fff]")


_KANA = re.compile(r"[\u3040-\u30ff]")


@dataclass(frozen=True)
class LabelledTask:
    """A task and what else must be known to score it.

    Attributes:
        task: Encodes, scores and decodes.
        entities: Tags mark entities.
        language: Of answers in passages.
    """

    task: Task
    entities: bool = False
    language: Language = "en"

    @property
    def main_metric(self) -> str:
        """Name of the figure that the task is judged by."""
        return main_metric(self.task, entities=self.entities)

    def score(self, predictions: Sequence[Any], records: Sequence[Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Returns the official figures of predictions, and what stands behind them: confusion, scores of each label and the like.

        Args:
            predictions: One for each record.
            records: With their answers.

        Raises:
            DataError: No record has an answer.
        """
        told = score_predictions(self.task, predictions, records, entities=self.entities, language=self.language)
        figures = {key: value for key, value in told.items() if isinstance(value, float)}
        return figures, {key: value for key, value in told.items() if key not in figures}

    def count_labels(self, records: Sequence[Any]) -> Counter[str]:
        """Returns how often each label stands in records of a task that has labels."""
        return _count_labels(self.task.config, records)

    def told(self) -> dict[str, Any]:
        """Returns what a saved model says about it; `load_labelled_task` reads it."""
        problem_type = getattr(self.task, "problem_type", None)
        more: dict[str, Any] = {"threshold": self.task.threshold} if isinstance(self.task, QuestionAnswering) else {}
        if (symbols := getattr(self.task, "symbols", None)) is not None:
            more["symbol_map"] = asdict(symbols)
        settings = {**asdict(self.task.config), "entities": self.entities, "language": self.language, **more}
        return {"labels": list(self.task.labels), "problem_type": problem_type, **settings}


def read_records(
    config: TaskConfig,
    files: Sequence[str],
    *,
    counted: Counter[str],
    needs_answer: bool = True,
    like: TaskConfig | None = None,
) -> tuple[list[Any], TaskConfig]:
    """Returns the records of labelled files, and the settings with the columns that were chosen.

    Args:
        config: Name and kind of the task; columns that are not given are guessed.
        files: Of one form.
        counted: Receives what was skipped or repaired, and how often.
        needs_answer: Records without an answer are skipped. If not, answers are not read.
        like: Settings of other data: where `config` does not name the columns, these are taken if they are there.

    Raises:
        DataError: Files that cannot be read or are of another task, columns that do not exist or cannot be guessed, no records.
    """
    records: list[Any]
    try:
        if config.name == "tag":
            label = config.label or (like.label if like else None)
            records = read_tagged(files, column=label, needs_tags=needs_answer, counted=counted)
            records = [r for r in records if r.tags is not None] if needs_answer else records
            _count_broken(records, counted)
        elif config.name == "qa":
            records = read_questions(files, counted=counted)
            if needs_answer:
                known = [r for r in records if r.gold or r.is_impossible]
                counted.update({_UNANSWERED: len(records) - len(known)} if len(known) < len(records) else {})
                records = known
        elif config.name == "choice":
            records = read_choices(files, counted=counted)
            records = [r for r in records if r.answer is not None] if needs_answer else records
        else:
            records, config = _read_texts(config, files, counted=counted, needs_answer=needs_answer, like=like)
        if not records:
            answers = " with an answer" if needs_answer else ""
            raise DataError(f"{', '.join(files)}: no record{answers} is left ({_told(counted)})")
    except DataError as error:
        found = next((task for file in files if (task := looks_like(file)) is not None), None)
        if found is None or found == config.name or (found == "classify" and config.name == "pair"):
            raise
        raise DataError(f"{error}; the file looks like data of the task '{found}', not of '{config.name}'") from error
    return records, config


_UNANSWERED = "questions that have no answer and are not marked is_impossible (left out)"


def _count_broken(records: Sequence[TaggedSentence], counted: Counter[str]) -> None:
    """Counts tags that go on with an entity that has not begun; in IOB1, they begin it."""
    given = [r.tags for r in records if r.tags is not None]
    if find_scheme(tag for tags in given for tag in ("O", *tags)) not in (None, "IOB1"):
        broken = sum(repair_bio(tags)[1] for tags in given)
        counted.update({"tags that continue an entity that has not begun (kept as they are)": broken} if broken else {})


def _read_texts(
    config: TaskConfig, files: Sequence[str], *, counted: Counter[str], needs_answer: bool, like: TaskConfig | None
) -> tuple[list[TextExample], TaskConfig]:
    """Returns the records of `classify` and `pair`, and the settings with the columns that were chosen."""
    plain = [file for file in files if not file.startswith(HUB_PREFIX) and split_suffixes(file)[1] == ""]
    table = None if any(looks_like(file) == "tag" for file in plain) else read_table(files)
    if not config.text and (table is None or row_looks_like(table.rows[0]) in ("tag", "qa", "choice")):
        raise DataError(f"{', '.join(files)}: expected a table with a text and its label in each row")
    table = table or read_table(files)
    num_texts = 2 if config.name == "pair" else 1
    texts, label = config.text, config.label
    if like is not None:
        texts = texts or (like.text if set(like.text) <= set(table.columns) else ())
        label = label or (like.label if like.label in table.columns else None)
    columns = choose_columns(
        table, num_texts=num_texts, texts=texts, label=label, needs_label=needs_answer, kind=config.kind
    )
    config = replace(config, text=columns.texts, label=columns.label)
    if not needs_answer:
        columns = replace(columns, label=None)
    return make_text_examples(table, columns, kind=config.kind, counted=counted, keep_empty=not needs_answer), config


def split_dev(config: TaskConfig, records: Sequence[Any], *, share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Returns training and dev records: classes in the same shares in both, and all questions about a passage in one.

    Args:
        config: Of the task.
        records: All there are.
        share: Of them for dev.
        seed: Of the draw.
    """
    if config.name == "qa":
        titles = [r.title or r.context for r in records]
        keys = titles if len(set(titles)) > _FEW_GROUPS else [r.context for r in records]
        train, dev = grouped_split(keys, share=share, seed=seed)
    else:
        train, dev = train_dev_split(stratification_keys(config, records), share=share, seed=seed)
    return [records[i] for i in train], [records[i] for i in dev]


def stratification_keys(config: TaskConfig, records: Sequence[Any]) -> list[Any]:
    """Returns, for each record, the class whose share a part of the records should keep; 0 for all where there are no classes."""
    is_class = config.name in ("classify", "pair") and config.kind == "class"
    return [record.label if is_class else 0 for record in records]


_FEW_GROUPS = 10
"""Articles of which a part can be set aside; with fewer, passages are."""


def make_labelled_task(config: TaskConfig, records: Sequence[Any]) -> LabelledTask:
    """Returns the problem that labelled records pose: their labels, and whether tags mark entities or answers may be missing.

    Raises:
        ConfigError: No such task.
        DataError: There is a single class, or no label.
    """
    if config.name not in TASKS:
        raise ConfigError(f"task {config.name!r} does not exist: {nearest(config.name, list(TASKS))}")
    kind = TASKS[config.name]
    if config.symbols == "draw" and config.alphabet is None:
        config = replace(config, alphabet=find_alphabet(text for r in records for text in r.texts))
    if config.name == "qa":
        if config.no_answer is None:
            config = replace(config, no_answer=any(r.is_impossible for r in records))
        return LabelledTask(kind(config), language=find_language(records))
    if config.name == "choice" or config.kind == "score":
        return LabelledTask(kind(config))
    frequencies = _count_labels(config, records)
    labels = sorted(frequencies, key=_natural)
    if (len(labels) < 2 and config.kind != "labels") or not labels:
        found = f"{labels[0]!r} for all {len(records):,} records" if labels else "none"
        raise DataError(
            f"the training data has a single label, {found}: expected two at least; is it the right column (--label)?"
        )
    problem = kind(config, labels, [frequencies[label] for label in labels])
    return LabelledTask(problem, entities=config.name == "tag" and is_bio(labels))


def _count_labels(config: TaskConfig, records: Sequence[Any]) -> Counter[str]:
    if config.name == "tag":
        return Counter(tag for r in records for tag in r.tags)
    if config.kind == "labels":
        return Counter(label for r in records for label in r.label)
    return Counter(r.label for r in records)


def load_labelled_task(model: str) -> LabelledTask:
    """Returns the problem that a saved model was trained for, also one that transformers trained.

    Raises:
        CheckpointError: It was not trained for one.
    """
    told = read_task(model)
    if not told:
        raise CheckpointError(
            f"{model} was not trained on labelled data: give a folder that `stemformer finetune` made, or fine-tune it first"
        )
    names = {"sequence": "classify", "token": "tag", "span": "qa", "choice": "choice"}
    kinds = {"multi_label_classification": "labels", "regression": "score"}
    settings: dict[str, Any] = {"name": names[told["head"]], "kind": kinds.get(str(told.get("problem_type")), "class")}
    known = {f.name for f in fields(TaskConfig)}
    settings |= {key: value for key, value in told.items() if key in known}
    config = msgspec.convert(settings, TaskConfig)
    labels = told["labels"]
    task = TASKS[config.name](config, labels)
    if isinstance(task, QuestionAnswering):
        task.threshold = float(told.get("threshold", 0.0))
    if "symbol_map" in told:
        task.symbols = SymbolMap(**told["symbol_map"])
    return LabelledTask(
        task,
        entities=bool(told.get("entities", config.name == "tag" and is_bio(labels))),
        language=told.get("language", "en"),
    )


def find_language(records: Sequence[Any]) -> Language:
    """Returns how answers are compared, by the script of the first passages."""
    text = "".join(r.context for r in records[:50])
    if len(_KANA.findall(text)) > 0.1 * len(text):
        return "ja"
    return "zh" if len(_HAN.findall(text)) > 0.2 * len(text) else "en"


def _natural(label: str) -> tuple[Any, ...]:
    """Orders labels as people do: O first, numbers by value, then by letters."""
    is_number = label.removeprefix("-").isdecimal()
    return (label != "O", not is_number, int(label) if is_number else 0, label)


def _told(counted: Counter[str]) -> str:
    return ", ".join(f"{what}: {number:,}" for what, number in counted.items()) or "the file is empty"


@dataclass(frozen=True)
class LabelledData:
    """Labelled records, what they ask, and what was done to them on the way, in sentences."""

    problem: LabelledTask
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
    problem = make_labelled_task(of_task, records)
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


def unknown_labels(problem: LabelledTask, records: Sequence[Any]) -> list[str]:
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


def _odd_tags(problem: LabelledTask, records: Sequence[Any]) -> list[str]:
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


def _rare_labels(problem: LabelledTask, records: Sequence[Any]) -> list[str]:
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


def _told_of_columns(problem: LabelledTask) -> str:
    config = problem.task.config
    if problem.task.head != "sequence":
        return ""
    texts = " and ".join(repr(name) for name in config.text)
    return f"text: column {texts}; answer: column {config.label!r} (--text, --label to change)"


def _told_of_labels(problem: LabelledTask, records: Sequence[Any]) -> str:
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
