"""Base class of all options, and groups of options that several commands share."""

import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

from stemformer.errors import ConfigError

O = TypeVar("O", bound="Options")  # noqa: E741

ModelName = str | os.PathLike[str]
"""Model directory, run directory or hub id; or a model that was loaded by `stemformer.load`."""

TaskName = Literal["classify", "pair", "tag", "qa", "choice", "seq2seq"]

# Metadata of fields. An argument comes without its name, on the command line and in Python;
# `PYTHON_ARGUMENT` has a name on the command line. `COMMAS`: a list that is split at commas.
ARGUMENT = {"is_argument": True, "is_positional": True}
PYTHON_ARGUMENT = {"is_positional": True}
COMMAS = {"commas": True}
# Options that are text, not names; those that may not be empty are checked by their command.
_FREE_TEXT = frozenset({"texts", "prompts", "stop", "candidates"})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Options:
    """Base of all options: a subclass is a frozen dataclass whose docstring describes its fields."""

    # Names of other options of the command that may be missing if there are these.
    replaces: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        # What can be inherited is not generated, which keeps --help fast.
        dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)

    @classmethod
    def make(cls: type[O], **values: Any) -> O:
        """Return options from values as users pass them: a list, or a single value, where a tuple is expected."""
        kinds = {item.name: item.type for item in fields(cls)}
        for name, value in values.items():
            # Paths, and loaded models where a command needs the files.
            if isinstance(value, os.PathLike) and kinds[name] in (str, str | None):
                values[name] = os.fspath(value)
            origins = {typing.get_origin(kind) for kind in (kinds[name], *typing.get_args(kinds[name]))}
            if isinstance(value, Mapping):
                value = [f"{key}={item}" for key, item in value.items()]
            if tuple in origins and value is not None and not isinstance(value, tuple):
                is_list = isinstance(value, Iterable) and not isinstance(value, str)
                values[name] = tuple(value) if is_list else (value,)
            if name not in _FREE_TEXT:
                values[name] = _expand_home(values[name])
        return cls(**values)

    def __post_init__(self) -> None:
        # An empty name would be taken for the current folder.
        for item in fields(self):
            value = getattr(self, item.name)
            values = value if isinstance(value, tuple | list) else (value,)
            if item.name not in _FREE_TEXT and any(isinstance(x, str) and not x.strip() for x in values):
                flag = item.metadata.get("flag", f"--{item.name.replace('_', '-')}")
                name = f"Argument {item.name!r}" if "is_argument" in item.metadata else flag
                expected = self.docs()[item.name].partition(". ")[0].rstrip(".")
                raise ConfigError(f"{name} is empty. Expected: {expected}.")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @classmethod
    def summary(cls) -> str:
        """Return the description of the command."""
        return (cls.__doc__ or "").partition("\n\n")[0]

    @classmethod
    def docs(cls) -> dict[str, str]:
        """Return the description of each field, from the docstrings of the class and its bases."""
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            _, _, text = (base.__doc__ or "").partition("Attributes:\n")
            entries = re.findall(r"^ {8}(\w+): (.*(?:\n {10,}.*)*)", text, re.MULTILINE)
            found |= {name: " ".join(doc.split()) for name, doc in entries}
        return found


def _expand_home(value: Any) -> Any:
    """Expand ~, which shells leave as it is in --out=~/runs."""
    if isinstance(value, tuple | list):
        return type(value)(map(_expand_home, value))
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


class ComputeOptions(Options):
    """Options of every command that runs a model.

    Attributes:
        device: Device: cpu, cuda, cuda:1, ..., or auto for the best one available.
        precision: Number format of the computation: fp32, bf16, or auto (bf16 where the device has units for it).
        threads: Number of processor threads; PyTorch's choice by default.
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None


class InferenceOptions(ComputeOptions):
    """Compute options of commands that compare exact scores or generate: fp32 by default."""

    precision: str = "fp32"


class TrainComputeOptions(Options):
    """Compute options of training; each overrides the value in the config, section `compute`.

    Attributes:
        device: Device: cpu, cuda, cuda:1, ..., or auto for the best one available. Default: from the config, or auto.
        precision: Number format of the computation: fp32, bf16 (weights stay in fp32), or auto (bf16 where the
            device has units for it). Default: from the config, or auto.
        threads: Number of processor threads. Default: from the config, or PyTorch's choice.
        compile: Compile the blocks of the model with torch.compile. Default: from the config, or only on CUDA.
    """

    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    compile: bool | None = None

    def compute(self) -> dict[str, Any]:
        """Return the options that override the config, by their key in its section `compute`."""
        return {name: getattr(self, name) for name in ("device", "precision", "threads", "compile")}


class OutputOptions(Options):
    """Where a command writes.

    Attributes:
        out: Output directory.
        overwrite: Replace the contents of the output directory.
    """

    out: str
    overwrite: bool = False


class ResumableOptions(OutputOptions):
    """Where a command that can be resumed writes.

    Attributes:
        resume: Resume from the output directory, which keeps what is finished.
    """

    resume: bool = False


class FileOutputOptions(Options):
    """Where a command writes a file, if it writes one.

    Attributes:
        out: Output file.
        overwrite: Replace existing output.
    """

    out: str | None = None
    overwrite: bool = False


class TrainSettings(TrainComputeOptions):
    """Overrides of the config of a training run.

    Attributes:
        settings: Override a config value, for example optimizer.learning_rate=1e-3.
    """

    settings: tuple[str, ...] = field(default=(), metadata={"flag": "--set"})


class ConfigOptions(TrainSettings):
    """The config of a run: a TOML file, overrides, and the random seed.

    Attributes:
        config: TOML file with config values; it overrides the defaults, --set and other options override it.
        show_config: Print the resolved config as TOML, and exit.
        seed: Random seed. Default: from the config, or 0.
    """

    config: str | None = None
    show_config: bool = False
    seed: int | None = None


class BudgetOptions(Options):
    """How long to train; one of these.

    Attributes:
        steps: Training budget in optimizer steps.
        tokens: Training budget in tokens.
        time: Training budget in wall-clock time, such as 90s, 30m or 1h30m. Interruptions do not count; the evaluation
            after the last step comes on top.
    """

    steps: int | None = None
    tokens: int | None = None
    time: str | float | None = None


class SeedOptions(Options):
    """Randomness.

    Attributes:
        seed: Random seed.
    """

    seed: int = 0


class LanguageOptions(Options):
    """Languages of an encoder-decoder, whose tokens precede source and target.

    Attributes:
        source_language: Language of the sources, such as en. Default: that of the training, if it had one.
        target_language: Language of the targets, such as fr. Default: that of the training, if it had one.
    """

    source_language: str | None = None
    target_language: str | None = None


class LanguageColumnOptions(LanguageOptions):
    """Languages of an encoder-decoder, one for all sources or targets, or of each in a column.

    Attributes:
        source_language_column: Column with the language of each source. Default: that of the training, if it had one.
        target_language_column: Column with the language of each target. Default: that of the training, if it had one.
    """

    source_language_column: str | None = None
    target_language_column: str | None = None

    def languages(self) -> dict[str, Any]:
        """Return the options by their name, which is that of the setting too."""
        return {item.name: getattr(self, item.name) for item in fields(LanguageColumnOptions)}


class TextsOptions(InferenceOptions):
    """A model and the texts that it reads.

    Attributes:
        texts: Texts.
        model: Model directory, run directory or hub id.
    """

    texts: Sequence[str] = field(metadata=ARGUMENT)
    model: ModelName


class TextFileOptions(Options):
    """How text files are read.

    Attributes:
        files: Text files (also .jsonl, .csv, .parquet, .gz, .xz, .zst, .tar), directories, globs, hub:NAME datasets, or -
            for standard input.
        documents: Where a document of plain text ends: at each line, at blank lines, or at the end of the file. auto:
            a file of a directory or archive is one document; a named file is split at blank lines, or at line ends
            if it has none.
        text_column: Column that holds the text, in tables and JSON lines.
        errors: Bytes that are not UTF-8: strict raises an error, replace writes U+FFFD.
    """

    files: Sequence[str] = field(metadata=ARGUMENT)
    documents: Literal["auto", "line", "blank", "file"] = "auto"
    text_column: str = "text"
    errors: Literal["strict", "replace"] = "strict"


class TaskTrainingOptions(LanguageColumnOptions, ConfigOptions, ResumableOptions):
    """A labelled task, its data and its training: options that finetune and compare share.

    Attributes:
        train: Labelled files: .csv, .tsv, .jsonl, .parquet, CoNLL, CoNLL-U, SQuAD .json, multiple-choice files, hub:NAME,
            - for standard input (a text on each line, or JSON), or a directory with a directory of texts for each class.
            Of seq2seq also two text files whose lines belong together: train.en,train.fr.
        dev: Labelled files for evaluation. Default: a tenth of the training data.
        text_column: Column of the text, of seq2seq the source; two columns for pair. Default: guessed from the names.
        label_column: Column of the label, of seq2seq the target. Several columns of 0 and 1 make multi-label data,
            labelled by their names; several columns of seq2seq are references. Default: guessed from the names.
        kind: Kind of label, for classify and pair: class is one class, labels any number of classes (multi-label),
            score a number (regression).
        source_language: Of seq2seq, language of the sources, such as en, whose token precedes each. Default: none.
        target_language: Of seq2seq, language of the targets, such as fr, whose token precedes each. Default: none.
        source_language_column: Of seq2seq, column with the language of each source.
        target_language_column: Of seq2seq, column with the language of each target.
        max_length: Maximum length of an example in tokens. Default: the longest that the model was trained on.
        symbols: The texts are sequences of symbols, such as DNA, and each symbol is mapped to a word of the vocabulary:
            draw maps them at random, a file has a symbol, a tab and a word on each line.
        kmer: Number of symbols that are mapped to one word, with symbols=draw.
        task: classify: class of a text; pair: class of two texts; tag: a tag for each word; qa: the answer's span in a
            passage; choice: the right one of several options; seq2seq: a text, such as a translation or a summary.
        model: Model directory, run directory or hub id to start from. Of seq2seq also a recipe of a BART, such as
            bart_mini, for a new model.
        epochs: Number of epochs over the training data. Default: 3.
        steps: Number of optimizer steps, instead of epochs.
        batch_size: Examples in an optimizer step. Default: from the config, or 32.
        learning_rate: Peak learning rate. Default: from the config, or by the model's number of hidden
            units: 1e-3 for 128, 2.7e-4 for 256, 1.2e-4 for 384, 3e-5 for 768 and more.
        num_seeds: Number of runs with consecutive random seeds; from two on, mean and standard deviation are reported.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...] = ()
    text_column: tuple[str, ...] = ()
    label_column: tuple[str, ...] = ()
    kind: Literal["class", "labels", "score"] = "class"
    max_length: int | None = None
    symbols: str | None = None
    kmer: int = 1
    task: TaskName = field(metadata=ARGUMENT)
    model: str
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    num_seeds: int = 1


class BenchmarkOptions(TrainSettings, SeedOptions, ResumableOptions):
    """Options that the benchmarks share.

    Attributes:
        model: Model directory, run directory or hub id to start from.
        num_seeds: Number of runs of each task with consecutive random seeds; from two on, mean and standard deviation
            are reported.
        learning_rates: Peak learning rates to try; the best on the dev set is used. Default: those of the BERT paper.
        epochs: Number of epochs over the training data. Default: 3, for SQuAD 2.0 2.
        batch_size: Examples (for SQuAD, windows) in an optimizer step. Default: 32, for SQuAD 2.0 48.
        max_length: Maximum length of an example in tokens. Default: the longest that the model was trained on,
            for SQuAD 384 at most.
    """

    model: str
    num_seeds: int = 1
    learning_rates: tuple[float, ...] = field(default=(), metadata=COMMAS)
    epochs: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
