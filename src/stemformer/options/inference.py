"""Options of the commands that use a model, and that look at directories."""

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Literal

from stemformer.options.groups import (
    ARGUMENT,
    ComputeOptions,
    FileOutputOptions,
    InferenceOptions,
    ModelName,
    Options,
    SeedOptions,
    options,
)


@options
class FillOptions(InferenceOptions):
    """Predict the most probable tokens for each [MASK].

    Attributes:
        texts: Sentences with [MASK].
        model: Model directory, run directory or hub id of a masked language model.
        top_k: Number of candidates for each mask.
        candidates: Word to choose from; the full vocabulary by default.
    """

    texts: Sequence[str] = field(metadata=ARGUMENT)
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

    texts: Sequence[str] = field(metadata=ARGUMENT)
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

    prompts: Iterable[str] = field(metadata=ARGUMENT)
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

    path: str = field(metadata=ARGUMENT)


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

    texts: Sequence[str] = field(metadata=ARGUMENT)
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

    files: Sequence[str] = field(metadata=ARGUMENT)
    model: ModelName
    text_column: tuple[str, ...] = ()


@options
class EvaluateOptions(PredictOptions):
    """Evaluate a fine-tuned model on labelled files.

    Attributes:
        files: Labelled files in the formats that finetune reads; - is standard input.
        out: Output file for all results as JSON.
        label_column: Column of the label. Default: as in the training data.
        report: Output directory for an HTML report with confusion matrix and examples.
        num_worst: Number of wrong predictions to show, those with the lowest probability of the label first.
    """

    label_column: str | None = None
    report: str | None = None
    num_worst: int = 20


@options
class InspectOptions(Options):
    """Describe a directory: model, tokenizer, tokenized data or run.

    Attributes:
        path: Directory, or hub id of a model.
    """

    path: str = field(metadata=ARGUMENT)


@options
class ReportOptions(Options):
    """Write the report of a run again, also while it is running.

    Attributes:
        path: Run directory.
    """

    path: str = field(metadata=ARGUMENT)


@options
class EnvOptions(Options):
    """Describe the environment: versions, processor, threads, bf16 units and GPUs."""


@options
class RunsOptions(Options):
    """List the runs below a directory with their kind, state and best metric.

    Attributes:
        folder: Directory to search.
    """

    folder: str = field(default="runs", metadata=ARGUMENT)
