"""Options of the commands that prepare data, pre-train and fine-tune."""

from dataclasses import field
from typing import Literal

from stemformer.options.groups import (
    ARGUMENT,
    COMMAS,
    PYTHON_ARGUMENT,
    BudgetOptions,
    ConfigOptions,
    LabelledDataOptions,
    Options,
    OutputOptions,
    ResumableOptions,
    SeedOptions,
    TaskName,
    TextFileOptions,
    TrainComputeOptions,
    TrainSettings,
    options,
)


@options
class QuickstartOptions(SeedOptions, TrainComputeOptions, OutputOptions):
    """Train a small BERT on the built-in texts in a few minutes: tokenizer, data, pre-training, filled masks, report."""

    out: str = "runs/quickstart"


@options
class PlanOptions(TrainSettings):
    """Estimate time and memory of a recipe on this machine, from a few steps.

    Attributes:
        recipe: Recipe, such as bert_mini; see the command recipes.
        data: Directory of tokenized data (output of prepare). Default: full rows of random ids.
    """

    recipe: str = field(metadata=ARGUMENT)
    data: str | None = None


@options
class RecipesOptions(Options):
    """List the recipes with their sizes and purpose."""


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
    tasks: tuple[str, ...] = field(default=(), metadata=COMMAS)
    overwrite: bool = False


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

    recipe: str | None = field(default=None, metadata=PYTHON_ARGUMENT)
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

    task: TaskName = field(metadata=ARGUMENT)
    model: str
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    num_seeds: int = 1


@options
class FinetuneOptions(TaskTrainingOptions):
    """Fine-tune a model on labelled data."""
