"""Options of every command, documented once and shared by the command line and the Python API.

Each command has a frozen dataclass, which inherits the groups of options that it shares with
others. The command line builds its parameters and help from it; `accepts` gives the Python function
of the command the same options as keywords. Names, defaults and help are defined nowhere else.
"""

import dataclasses
import difflib
import functools
import inspect
import os
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, dataclass_transform

from stemformer.errors import ConfigError

R = TypeVar("R")
T = TypeVar("T")
O = TypeVar("O", bound="Options")  # noqa: E741

ModelName = str | os.PathLike[str]
"""Model directory, run directory or hub id; or a model that was loaded by `stemformer.load`."""

TaskName = Literal["classify", "pair", "tag", "qa", "choice"]

# Metadata of fields. An argument comes without its name, on the command line and in Python;
# `_PYTHON_ARGUMENT` has a name on the command line. `_COMMAS`: a list that is split at commas.
_ARGUMENT = {"is_argument": True, "is_positional": True}
_PYTHON_ARGUMENT = {"is_positional": True}
_COMMAS = {"commas": True}

OLD_NAMES: dict[str, tuple[str, ...]] = {
    "among": ("candidates",),
    "column": ("text_column",),
    "data": ("files",),
    "documents": ("num_documents",),
    "draws": ("num_draws",),
    "examples": ("demonstrations",),
    "label": ("label_column",),
    "learning_rate": ("learning_rates",),
    "models": ("model",),
    "prompt_task": ("fewshot_tasks",),
    "prompt_tasks": ("fewshot_tasks",),
    "rate": ("learning_rates",),
    "rate_power": ("lr_width_exponent",),
    "rates": ("learning_rates",),
    "seeds": ("num_seeds",),
    "show": ("dry_run",),
    "slide": ("sliding_window",),
    "starts": ("initializations",),
    "symbol_size": ("kmer",),
    "task": ("tasks",),
    "text": ("text_column", "texts"),
    "trials": ("num_seeds",),
    "worst": ("num_worst",),
}
"""Old names of options, and the new names: the first that a command has, if it lacks the old one."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Options:
    """Base of all options."""

    @classmethod
    def make(cls: type[O], **values: Any) -> O:
        """Return options from values as users pass them: a list, or a single value, where a tuple is expected."""
        kinds = {item.name: item.type for item in dataclasses.fields(cls)}
        for name, value in values.items():
            origins = {typing.get_origin(kind) for kind in (kinds[name], *typing.get_args(kinds[name]))}
            if tuple in origins and value is not None and not isinstance(value, tuple):
                is_list = isinstance(value, Iterable) and not isinstance(value, str)
                values[name] = tuple(value) if is_list else (value,)
        return cls(**values)

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


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def options(cls: type[T]) -> type[T]:
    """Make a frozen dataclass of options; what can be inherited is not generated, which keeps --help fast."""
    return dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)


# ------------------------------------------------------------------------------------------ shared


@options
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


@options
class InferenceOptions(ComputeOptions):
    """Compute options of commands that compare exact scores or generate: fp32 by default."""

    precision: str = "fp32"


@options
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


@options
class OutputOptions(Options):
    """Where a command writes.

    Attributes:
        out: Output directory.
        overwrite: Replace the contents of the output directory.
    """

    out: str
    overwrite: bool = False


@options
class ResumableOptions(OutputOptions):
    """Where a command that can be resumed writes.

    Attributes:
        resume: Resume from the output directory, which keeps what is finished.
    """

    resume: bool = False


@options
class FileOutputOptions(Options):
    """Where a command writes a file, if it writes one.

    Attributes:
        out: Output file.
        overwrite: Replace existing output.
    """

    out: str | None = None
    overwrite: bool = False


@options
class SettingsOptions(Options):
    """Overrides of the config.

    Attributes:
        settings: Override a config value, for example optimizer.learning_rate=1e-3.
    """

    settings: tuple[str, ...] = field(default=(), metadata={"flag": "--set"})


@options
class TrainSettings(SettingsOptions, TrainComputeOptions):
    """Overrides of the config of a training run."""


@options
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


@options
class BudgetOptions(Options):
    """How long to train; one of these.

    Attributes:
        steps: Training budget in optimizer steps.
        tokens: Training budget in tokens.
        time: Training budget in wall-clock time, such as 90s, 30m or 1h30m; interruptions do not count.
    """

    steps: int | None = None
    tokens: int | None = None
    time: str | float | None = None


@options
class TextFileOptions(Options):
    """How text files are read.

    Attributes:
        files: Text files (also .jsonl, .csv, .parquet, .gz, .xz, .zst, .tar), directories, globs, or hub:NAME datasets.
        documents: Where a document of plain text ends: at each line, at blank lines, or at the end of the file. auto:
            a file of a directory or archive is one document; a named file is split at blank lines, or at line ends
            if it has none.
        text_column: Column that holds the text, in tables and JSON lines.
        errors: Bytes that are not UTF-8: strict raises an error, replace writes U+FFFD.
    """

    files: Sequence[str] = field(metadata=_ARGUMENT)
    documents: Literal["auto", "line", "blank", "file"] = "auto"
    text_column: str = "text"
    errors: Literal["strict", "replace"] = "strict"


@options
class LabelledDataOptions(Options):
    """Labelled data of a task, and how it is read.

    Attributes:
        train: Labelled files: .csv, .tsv, .jsonl, .parquet, CoNLL, CoNLL-U, SQuAD .json, multiple-choice files, hub:NAME.
        dev: Labelled files for evaluation. Default: a tenth of the training data.
        text_column: Column of the text; two columns for pair. Default: guessed from the names.
        label_column: Column of the label. Default: guessed from the names.
        kind: Kind of label, for classify and pair: class is one class, labels any number of classes (multi-label),
            score a number (regression).
        max_length: Maximum length of an example in tokens. Default: what the model supports.
        symbols: The texts are sequences of symbols, such as DNA, and each symbol is mapped to a word of the vocabulary:
            draw maps them at random, a file has a symbol, a tab and a word on each line.
        kmer: Number of symbols that are mapped to one word, with symbols=draw.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...] = ()
    text_column: tuple[str, ...] = ()
    label_column: str | None = None
    kind: Literal["class", "labels", "score"] = "class"
    max_length: int | None = None
    symbols: str | None = None
    kmer: int = 1


@options
class SeedOptions(Options):
    """Randomness.

    Attributes:
        seed: Random seed.
    """

    seed: int = 0


# ------------------------------------------------------------------------------------------- start


@options
class QuickstartOptions(SeedOptions, TrainComputeOptions):
    """Train a small BERT on the built-in texts in a few minutes: tokenizer, data, pre-training, filled masks, report.

    Attributes:
        out: Output directory.
        overwrite: Replace the contents of the output directory.
    """

    out: str = "runs/quickstart"
    overwrite: bool = False


@options
class PlanOptions(TrainSettings):
    """Estimate time and memory of a recipe on this machine, from a few steps.

    Attributes:
        recipe: Recipe, such as bert_mini; see the command recipes.
        data: Directory of tokenized data (output of prepare). Default: full rows of random ids.
    """

    recipe: str = field(metadata=_ARGUMENT)
    data: str | None = None


@options
class RecipesOptions(Options):
    """List the recipes with their sizes and purpose."""


# -------------------------------------------------------------------------------------------- data


@options
class TrainTokenizerOptions(TextFileOptions, SeedOptions, OutputOptions):
    """Train a tokenizer on text files.

    Attributes:
        init: Model or tokenizer whose vocabulary is kept and extended with words of the files, up to the vocabulary size.
        kind: WordPiece as in BERT, or byte-level BPE as in GPT-2.
        vocab_size: Vocabulary size, special tokens included.
        lowercase: Lowercase the text and strip accents.
        max_characters: Maximum number of characters to train on; more text is sampled.
    """

    init: str | None = None
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    vocab_size: int = 30522
    lowercase: bool = False
    max_characters: int = 100_000_000


@options
class PrepareOptions(TextFileOptions, ResumableOptions):
    """Tokenize text files into shards, with a held-out split.

    Attributes:
        tokenizer: Directory of the tokenizer.
        held_out: Fraction of the documents to hold out, chosen by a hash of their bytes. Default: 0.01, more for less than
            10 MB of text, 0.1 at most.
        words: Word boundaries for whole-word masking: the tokenizer's, or jieba for Chinese.
        num_workers: Number of processes; the output does not depend on it. Default: one for each core.
    """

    tokenizer: str
    held_out: float | None = None
    words: Literal["tokenizer", "jieba"] = "tokenizer"
    num_workers: int | None = None


@options
class MakeSyntheticOptions(SeedOptions):
    """Write documents of synthetic in-context tasks, to mix into the pre-training text.

    Attributes:
        out: Output file (.jsonl), one document on each line.
        num_documents: Number of documents; each has 8 to 40 examples of one rule.
        tasks: Names of tasks, such as copy,reverse, which take turns. Default: all.
        overwrite: Replace an existing file.
    """

    out: str
    num_documents: int = 20_000
    tasks: tuple[str, ...] = field(default=(), metadata=_COMMAS)
    overwrite: bool = False


# ------------------------------------------------------------------------------------------- train


@options
class PretrainOptions(BudgetOptions, ConfigOptions, ResumableOptions):
    """Pre-train a model on tokenized data.

    Attributes:
        recipe: Recipe, such as bert_mini; see the command recipes. A resumed run knows its recipe.
        data: Directory of tokenized data (output of prepare).
        init: Model directory or hub id to start from, instead of random weights; its vocabulary is transferred to that of the data.
        epochs: Training budget in epochs over the data.
        batch_size: Sequences in an optimizer step, over all ranks. Default: from the config.
        learning_rate: Peak learning rate. Default: from the config.
    """

    recipe: str | None = field(default=None, metadata=_PYTHON_ARGUMENT)
    data: str
    init: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


@options
class TaskTrainingOptions(LabelledDataOptions, ConfigOptions, ResumableOptions):
    """Options that finetune and compare share.

    Attributes:
        task: classify: class of a text; pair: class of two texts; tag: a tag for each word; qa: the answer's span in a passage;
            choice: the right one of several options.
        model: Model directory, run directory or hub id to start from.
        epochs: Number of epochs over the training data. Default: 3.
        steps: Number of optimizer steps, instead of epochs.
        batch_size: Examples in an optimizer step. Default: from the config, or 32.
        learning_rate: Peak learning rate. Default: from the config, or 3e-5.
        num_seeds: Number of runs with consecutive random seeds; from two on, mean and standard deviation are reported.
    """

    task: TaskName = field(metadata=_ARGUMENT)
    model: str
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    num_seeds: int = 1


@options
class FinetuneOptions(TaskTrainingOptions):
    """Fine-tune a model on labelled data."""


# --------------------------------------------------------------------------------------------- use


@options
class FillOptions(InferenceOptions):
    """Predict the most probable tokens for each [MASK].

    Attributes:
        texts: Sentences with [MASK].
        model: Model directory, run directory or hub id of a masked language model.
        top_k: Number of candidates for each mask.
        candidates: Word to choose from; the full vocabulary by default.
    """

    texts: Sequence[str] = field(metadata=_ARGUMENT)
    model: ModelName
    top_k: int = 5
    candidates: tuple[str, ...] | None = None


@options
class ScoreOptions(InferenceOptions):
    """Score texts by their log-likelihood: under a masked language model the pseudo-log-likelihood.

    Attributes:
        texts: Sentences, without [MASK].
        model: Model directory, run directory or hub id.
    """

    texts: Sequence[str] = field(metadata=_ARGUMENT)
    model: ModelName


@options
class GenerateOptions(InferenceOptions, SeedOptions):
    """Generate text from prompts with a causal language model.

    Attributes:
        prompts: Prompts; an empty one starts a new document.
        model: Model directory, run directory or hub id of a GPT.
        max_new_tokens: Maximum number of tokens to generate.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_k: Sample from the k most probable tokens; 0 disables it.
        top_p: Nucleus sampling: smallest set of tokens with cumulative probability >= top_p; 1 disables it.
        min_p: Sample from tokens with at least this fraction of the highest probability; 0 disables it.
        repetition_penalty: Divide the scores of tokens that occurred before by this; 1 disables it.
        num_beams: Number of beams; above 1, beam search instead of sampling.
        length_penalty: Exponent of the length by which the log-probability of a beam is divided.
        stop: Stop before this string.
        sliding_window: Continue beyond the last position of the model, with the second half of the window as context.
        batch_size: Number of prompts that are decoded together.
    """

    prompts: Iterable[str] = field(metadata=_ARGUMENT)
    model: ModelName
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    sliding_window: bool = False
    batch_size: int = 32


@options
class LoadOptions(InferenceOptions):
    """Load a model with its tokenizer and task, ready to predict.

    Attributes:
        path: Model directory, run directory or hub id.
    """

    path: str = field(metadata=_ARGUMENT)


@options
class EmbedOptions(InferenceOptions, FileOutputOptions):
    """Compute an embedding for each text.

    Attributes:
        texts: Texts.
        model: Model directory, run directory or hub id.
        out: Output file: .npy for an array with a row for each text, .jsonl for JSON lines.
        pooling: Mean of the last hidden states, or the state of [CLS] (of the last token in a causal model).
        normalize: Scale each embedding to length 1, so that dot products are cosine similarities.
        max_length: Maximum length of a text in tokens; longer ones are truncated. Default: what the model supports.
    """

    texts: Sequence[str] = field(metadata=_ARGUMENT)
    model: ModelName
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_length: int | None = None


@options
class PredictOptions(ComputeOptions, FileOutputOptions):
    """Predict with a fine-tuned model on files.

    Attributes:
        files: Files in the formats that finetune reads, labels not needed; - is standard input.
        model: Directory of the fine-tuned model or of its run.
        out: Output file: .jsonl, .csv or .tsv; .conll for tags; .json for answers in the format of SQuAD. Default: JSON
            lines on standard output.
        text_column: Column of the text; two columns for pair. Default: as in the training data.
    """

    files: Sequence[str] = field(metadata=_ARGUMENT)
    model: ModelName
    text_column: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------- measure


@options
class EvaluateOptions(ComputeOptions, FileOutputOptions):
    """Evaluate a fine-tuned model on labelled files.

    Attributes:
        files: Labelled files in the formats that finetune reads; - is standard input.
        model: Directory of the fine-tuned model or of its run.
        out: Output file for all results as JSON.
        text_column: Column of the text; two columns for pair. Default: as in the training data.
        label_column: Column of the label. Default: as in the training data.
        report: Output directory for an HTML report with confusion matrix and examples.
        num_worst: Number of wrong predictions to show, those with the lowest probability of the label first.
    """

    files: Sequence[str] = field(metadata=_ARGUMENT)
    model: ModelName
    text_column: tuple[str, ...] = ()
    label_column: str | None = None
    report: str | None = None
    num_worst: int = 20


@options
class ShowPromptsOptions(SeedOptions):
    """Return the prompt of the first example of each few-shot task; no model is needed.

    Attributes:
        tasks: Built-in tasks, .toml files, or synthetic:NAME; NAME=FILE sets the data of a task.
        num_shots: Numbers of demonstrations in the prompt, such as 0,1,4. Default: those of each task.
        demonstrations: TASK=FILE: take the demonstrations from this file, not from the evaluated examples.
    """

    tasks: tuple[str, ...] = field(metadata=_ARGUMENT)
    num_shots: tuple[int, ...] = field(default=(), metadata=_COMMAS)
    demonstrations: tuple[str, ...] = ()


@options
class FewShotOptions(ShowPromptsOptions, InferenceOptions):
    """Evaluate models zero-, one- and few-shot, without fine-tuning.

    Attributes:
        model: GPT, or masked language model for tasks with choices: model directory, run directory or hub id.
        num_questions: Maximum number of examples of a task to evaluate.
        num_draws: Number of random draws of the demonstrations; results are means over them.
        calibrate: Also report accuracy calibrated by the probability of each answer without the question.
        out: Output directory for table, plots and report.
        resume: Keep the results in the output directory and add the missing ones.
        overwrite: Replace the contents of the output directory.
    """

    model: tuple[ModelName, ...]
    num_questions: int = 200
    num_draws: int = 1
    calibrate: bool = False
    out: str | None = None
    resume: bool = False
    overwrite: bool = False


@options
class CompareOptions(TaskTrainingOptions):
    """Compare fine-tuning from pre-trained and from random weights, over training-set sizes and seeds.

    Attributes:
        epochs: Number of epochs of each size over its own examples, instead of the same number of steps for each size.
        steps: Number of optimizer steps of every run. Default: that of 3 epochs over the largest size.
        sizes: Training-set sizes, as numbers of examples or, up to 1, as fractions.
        initializations: pretrained: the model; random: the same architecture with random weights; reembedded: the model with
            random word embeddings.
        learning_rates: Peak learning rate of one initialization, such as random=3e-4. Default: random has ten times the
            learning rate of the others.
    """

    num_seeds: int = 3
    sizes: tuple[str | float, ...] = field(default=("0.01", "0.1", "1"), metadata=_COMMAS)
    initializations: tuple[str, ...] = field(default=("pretrained", "random", "reembedded"), metadata=_COMMAS)
    learning_rates: tuple[str, ...] = field(default=(), metadata=_COMMAS)


@options
class ScalingLawsOptions(BudgetOptions, ConfigOptions, ResumableOptions):
    """Pre-train a recipe at several model sizes and fit scaling laws to the validation loss.

    Attributes:
        recipe: Recipe, such as gpt_mini; see the command recipes.
        data: Directory of tokenized data (output of prepare) with a held-out split.
        sizes: Model sizes: number of layers x hidden size.
        tokens_per_parameter: Training budget of each size in tokens for each parameter, embeddings included.
        lr_width_exponent: The learning rate is scaled by (hidden size of the recipe / hidden size) to this power.
        fewshot_tasks: Task as for fewshot; its accuracy is plotted against model size.
        num_shots: Numbers of demonstrations in the prompts of these tasks.
    """

    recipe: str = field(metadata=_PYTHON_ARGUMENT)
    data: str
    sizes: tuple[str, ...] = field(default=("2x64", "2x128", "4x128", "4x256"), metadata=_COMMAS)
    tokens_per_parameter: float | None = None
    lr_width_exponent: float = 0.5
    fewshot_tasks: tuple[str, ...] = ()
    num_shots: tuple[int, ...] = field(default=(0, 1, 8), metadata=_COMMAS)


@options
class BenchmarkOptions(TrainSettings, SeedOptions, ResumableOptions):
    """Options that the benchmarks share.

    Attributes:
        model: Model directory, run directory or hub id to start from.
        num_seeds: Number of runs of each task with consecutive random seeds; from two on, mean and standard deviation are
            reported.
        learning_rates: Peak learning rates to try; the best on the dev set is used. Default: those of the BERT paper.
        epochs: Number of epochs over the training data. Default: 3, for SQuAD 2.0 2.
        batch_size: Examples (for SQuAD, windows) in an optimizer step. Default: 32, for SQuAD 2.0 48.
        max_length: Maximum length of an example in tokens. Default: what the model supports, for SQuAD 384.
    """

    model: str
    num_seeds: int = 1
    learning_rates: tuple[float, ...] = field(default=(), metadata=_COMMAS)
    epochs: float | None = None
    batch_size: int | None = None
    max_length: int | None = None


@options
class GlueOptions(BenchmarkOptions):
    """Fine-tune a model on each task of GLUE and list the results next to published ones.

    Attributes:
        folder: Directory of GLUE as it is published (CoLA/train.tsv, ...), or hub:nyu-mll/glue.
        tasks: Names of tasks, such as CoLA,RTE; SWAG is accepted too. Default: all of GLUE.
        from_task: Start the small tasks (RTE, MRPC, STS-B) from the model of this task, such as MNLI, or from a
            fine-tuned model.
        submission: Write the files for a submission to the leaderboard.
    """

    folder: str = field(metadata=_ARGUMENT)
    tasks: tuple[str, ...] = field(default=(), metadata=_COMMAS)
    from_task: str | None = None
    submission: bool = False


@options
class SquadOptions(BenchmarkOptions):
    """Fine-tune a model on SQuAD 1.1 or 2.0 and list exact match and F1 next to published ones.

    Attributes:
        train: Training files in the format of SQuAD; it is SQuAD 2.0 if some questions have no answer.
        dev: Files in the format of SQuAD for evaluation.
    """

    train: tuple[str, ...] = field(metadata=_PYTHON_ARGUMENT)
    dev: tuple[str, ...]


# -------------------------------------------------------------------------------------------- keep


@options
class InspectOptions(Options):
    """Describe a directory: model, tokenizer, tokenized data or run.

    Attributes:
        path: Directory, or hub id of a model.
    """

    path: str = field(metadata=_ARGUMENT)


@options
class ReportOptions(Options):
    """Write the report of a run again, also while it is running.

    Attributes:
        path: Run directory.
    """

    path: str = field(metadata=_ARGUMENT)


@options
class EnvOptions(Options):
    """Describe the environment: versions, processor, threads, bf16 units and GPUs."""


@options
class RunsOptions(Options):
    """List the runs below a directory with their kind, state and best metric.

    Attributes:
        folder: Directory to search.
    """

    folder: str = field(default="runs", metadata=_ARGUMENT)


# ------------------------------------------------------------------------- options as keyword arguments


def accepts(
    options_class: type[Options],
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a function that takes an options object be called with the options as keywords.

    The decorated function takes the fields of `options_class` as keywords (some also without a
    name), or an object as `options=`, which further keywords override. Its signature and docstring
    list every option with type, default and description.

    Args:
        options_class: Dataclass of the options, the first argument of the function. The function's
            other parameters, such as `progress`, stay keywords.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        parameters = list(inspect.signature(function).parameters.values())
        own = {parameter.name for parameter in parameters[1:]}

        @functools.wraps(function)
        def call(*args: Any, options: Options | None = None, **keywords: Any) -> R:
            rest = {name: keywords.pop(name) for name in own & keywords.keys()}
            return function(_build(options_class, function.__name__, args, options, keywords), **rest)

        call.__signature__ = _signature(options_class, function, parameters)  # type: ignore[attr-defined]
        call.__doc__ = _with_docs(function.__doc__ or "", options_class, own)
        call.options_class = options_class  # type: ignore[attr-defined]
        del call.__wrapped__
        return call

    return decorate


def renamed(names: Iterable[str], old: str) -> str | None:
    """Return the new name of an option under its old name, for a command with these options; None if it has none."""
    names = set(names)
    return None if old in names else next((new for new in OLD_NAMES.get(old, ()) if new in names), None)


def read_duration(text: str | float) -> float:
    """Return the seconds of a duration such as 90s, 30m, 1h30m or 2d; a plain number is in seconds.

    Raises:
        ConfigError: The text is no duration.

    Example:
        >>> read_duration("1h30m")
        5400.0
    """
    compact = str(text).strip().lower()
    number = r"(\d+\.?\d*|\.\d+)"
    if re.fullmatch(number, compact) or isinstance(text, int | float):
        return float(text)
    if not re.fullmatch(f"({number}[smhd])+", compact):
        raise ConfigError(f"--time {text}: expected a duration such as 90s, 30m, 1h30m or 2d.")
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(amount) * units[unit] for amount, unit in re.findall(f"{number}([smhd])", compact))


def _build(
    options_class: type[O], function: str, args: Sequence[Any], options: O | None, keywords: Mapping[str, Any]
) -> O:
    fields = {item.name: item for item in dataclasses.fields(options_class)}
    positional = [name for name, item in fields.items() if "is_positional" in item.metadata]
    if len(args) > len(positional):
        raise TypeError(f"{function}() takes {len(positional)} arguments without a name, got {len(args)}")
    values = dict(zip(positional, args, strict=False))
    for name, value in _new_names(function, fields, keywords):
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{function}() has no option {name!r}.{hint}")
        if name in values:
            raise TypeError(f"{function}() got several values for {name!r}")
        values[name] = value
    if options is not None:
        return options_class.make(**vars(options) | values)
    required = [name for name, item in fields.items() if _default(item) is inspect.Parameter.empty]
    if missing := [name for name in required if name not in values]:
        raise TypeError(f"{function}() lacks {' and '.join(f'{name}=' for name in missing)}")
    return options_class.make(**values)


def _new_names(function: str, fields: Iterable[str], keywords: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keywords under their new names, with a warning for each old one."""
    for name, value in keywords.items():
        new = renamed(fields, name)
        if name == "overflow" and "sliding_window" in set(fields):
            new, value = "sliding_window", value == "slide"
        if new is not None:
            warnings.warn(f"{function}(): {name} is now {new}.", FutureWarning, stacklevel=4)
        yield new or name, value


def _default(item: "dataclasses.Field[Any]") -> Any:
    return inspect.Parameter.empty if item.default is dataclasses.MISSING else item.default


def _signature(
    options_class: type, function: Callable[..., Any], parameters: Sequence[inspect.Parameter]
) -> inspect.Signature:
    positional: list[inspect.Parameter] = []
    required: list[inspect.Parameter] = []
    rest: list[inspect.Parameter] = []
    for item in dataclasses.fields(options_class):
        is_positional = "is_positional" in item.metadata
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if is_positional else inspect.Parameter.KEYWORD_ONLY
        parameter = inspect.Parameter(item.name, kind, default=_default(item), annotation=item.type)
        (positional if is_positional else required if parameter.default is parameter.empty else rest).append(parameter)
    options = inspect.Parameter(
        "options", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=options_class | None
    )
    last = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters[1:]]
    result = inspect.signature(function).return_annotation
    return inspect.Signature([*positional, *required, *rest, options, *last], return_annotation=result)


def _with_docs(doc: str, options_class: type[Options], own: Iterable[str]) -> str:
    """Return a docstring whose `Args:` lists every option, before the function's own arguments."""
    names = [item.name for item in dataclasses.fields(options_class)]
    docs = options_class.docs()
    lines = [f"{name}: {docs[name]}" for name in names]
    lines.append(f"options: All of the above as one {options_class.__name__}; other keywords override its fields.")
    doc = inspect.cleandoc(doc)
    if "progress" in own and "    progress:" not in doc:
        lines.append("progress: Progress reporter; silent by default.")
    block = "Args:\n" + "\n".join(f"    {line}" for line in lines)
    if "\nArgs:\n" in doc:
        return doc.replace("Args:", block, 1)
    section = re.search(r"^(Returns|Yields|Raises|Example):", doc, re.MULTILINE)
    position = section.start() if section else len(doc)
    return f"{doc[:position].rstrip()}\n\n{block}\n\n{doc[position:]}".rstrip() + "\n"
