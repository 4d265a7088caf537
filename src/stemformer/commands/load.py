"""One object for any model: load it once, then fill, score, generate, embed and predict."""

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float

from stemformer.commands.inspect import describe_model
from stemformer.config import nearest
from stemformer.data.text.readers import check_decoded
from stemformer.device import autocast, choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.few_shot.scoring import WITHIN_WORD_L2R, check_pll, score_texts
from stemformer.evaluation.fill_mask import MASK, fill_masks, make_score
from stemformer.evaluation.inference import pooled_states, predict_scores
from stemformer.generation.decoding import DecodingConfig
from stemformer.generation.text import generate_texts
from stemformer.huggingface.load import find_model_folder, load_model_and_tokenizer, read_task_info
from stemformer.huggingface.save import save_model
from stemformer.io import write_folder
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import Model
from stemformer.objectives.objective import LossModule
from stemformer.options import ComputeOptions, LoadOptions, accepts
from stemformer.progress import Progress, Silent, format_count
from stemformer.tasks.dataset import load_labelled_task
from stemformer.tasks.dataset_notes import copy_training_texts
from stemformer.tasks.examples import TaskExamples, make_example, num_special_tokens
from stemformer.tasks.labels import rename_labels
from stemformer.tasks.record_blocks import blocks_of
from stemformer.tasks.task import Task

# Texts without a score that a warning names.
_NUM_FAULTS = 5
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _warns_of_unknown_words(method: _Method) -> _Method:
    """Make a method warn if the vocabulary cannot write the words of its texts."""

    @wraps(method)
    def checked(pipeline: "Pipeline", *args: Any, **keywords: Any) -> Any:
        pipeline.tokenizer.unknown.clear()
        result = method(pipeline, *args, **keywords)
        if note := pipeline.tokenizer.unknown.note():
            warnings.warn(note, stacklevel=2)
        return result

    return cast(_Method, checked)


@accepts(LoadOptions)
def load(options: LoadOptions) -> "Pipeline":
    """Load a model with its tokenizer and task.

    Functions that take a model by its path, such as `stemformer.predict`, take the result too, and
    do not load it again.

    Raises:
        CheckpointError: The directory holds no model, or one that is damaged or not supported.

    Example:
        >>> model = load("runs/sst2")  # doctest: +SKIP
        >>> model.predict(["a fine film"])[0].label  # doctest: +SKIP
        'positive'
    """
    set_threads(options.threads)
    return Pipeline(options.path, device=options.device, precision=options.precision)


def _first(faults: Sequence[str]) -> str:
    return ", ".join(faults[:_NUM_FAULTS]) + (", ..." if len(faults) > _NUM_FAULTS else "")


def _advance(progress: Progress, scale: float, number: int) -> None:
    progress.advance(scale * number)


@dataclass(frozen=True)
class PredictedBlock:
    """Records with their predictions, and the scores and examples that these were decoded from."""

    records: Sequence[Any]
    predictions: list[Any]
    scores: list[Any]
    examples: TaskExamples


class Pipeline:
    """A loaded model in evaluation mode, with its tokenizer and, if it was fine-tuned, its task.

    Each method raises `CheckpointError` if the model has no head for it. `precision` is that of the
    computation; the weights stay in float32.
    """

    def __init__(self, path: str, *, device: str = "auto", precision: str = "fp32") -> None:
        self.path = path
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model, self.tokenizer = load_model_and_tokenizer(path)
        self.model.to(self.device)
        self.task: Task | None = load_labelled_task(path) if read_task_info(path) else None
        if self.task is not None and self.task.head not in self.model.heads:
            raise CheckpointError(
                f"{path}: config.json names the task {self.task.config.name!r}, but the weights have no head for it. "
                "Pass the directory that `stemformer finetune` wrote."
            )
        self._decoders: dict[int, GptDecoder] = {}
        configure_allocator(self.device)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        task = f", task={self.task.config.name!r}" if self.task else ""
        return f"Pipeline({self.path!r}, heads={list(self.model.heads)}{task}, device={str(self.device)!r})"

    @_warns_of_unknown_words
    def fill(
        self,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        candidates: Sequence[str] | None = None,
        reduction: str = "sum",
        pieces: bool = False,
    ) -> list[dict[str, Any]]:
        """Return the most probable words for each `[MASK]`; keywords and result as of `stemformer.fill`."""
        self._check_texts(texts, expected="sentences with [MASK] in them")
        is_bart = "seq2seq_lm" in self.model.heads
        advice = "Use rewrite" if is_bart else "Pass a model pre-trained with masked tokens"
        self._require("masked_lm", f"cannot fill masks. {advice}.")
        with autocast(self.device, self.precision):
            how: dict[str, Any] = {"top_k": top_k, "candidates": candidates, "reduction": reduction, "pieces": pieces}
            found = fill_masks(texts, self.model, self.tokenizer, **how)
        rows = map(asdict, found)
        return [{**row, "masks": [{"candidates": mask} for mask in row["masks"]]} for row in rows]

    @_warns_of_unknown_words
    def score(self, texts: Sequence[str], *, pll: str = WITHIN_WORD_L2R) -> list[dict[str, Any]]:
        """Return the log-likelihood of each text; keyword and result as of `stemformer.score`."""
        self._check_texts(texts, expected="sentences")
        is_causal = "masked_lm" not in self.model.heads
        if is_causal:
            self._require("causal_lm", "cannot score texts. Pass a pre-trained model.")
        elif any(mask in text for text in texts for mask in (MASK, self.tokenizer.mask_token)):
            raise ConfigError("A text to score contains [MASK]. Replace each [MASK] by a word.")
        check_pll(pll, is_causal=is_causal)

        # Texts that have no score.
        num_special = 0 if is_causal else 2
        limit = self.model.config.max_position_embeddings - num_special
        encodings = [self.tokenizer.encode(text, parse_special_tokens=not is_causal) for text in texts]
        faults = [
            f"text {number} ({text!r:.60}) has {format_count(len(encoding.ids), 'token')}"
            for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True), start=1)
            if not 0 < len(encoding.ids) <= limit
        ]
        if faults:
            problem = f"{format_count(len(faults), 'text')} without a score: {_first(faults)}"
            problem += f". Expected 1 to {limit:,} tokens."
            if len(faults) == len(texts):
                raise DataError(problem)
            warnings.warn(problem, stacklevel=3)

        scored = [encoding for encoding in encodings if 0 < len(encoding.ids) <= limit]
        self.model.warn_beyond_training(max(len(encoding.ids) for encoding in scored) + num_special)
        with autocast(self.device, self.precision):
            scores = iter(score_texts(self.model, self.tokenizer, scored, pll=pll))
        method = "causal" if is_causal else pll
        return [
            asdict(make_score(text, n, next(scores) if 0 < n <= limit else None, method))
            for text, n in zip(texts, (len(encoding.ids) for encoding in encodings), strict=True)
        ]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str] = (),
        batch_size: int = 32,
        on_text: Callable[[int, str], None] | None = None,
        on_result: Callable[[dict[str, Any]], None] | None = None,
        reuse_decoder: bool = False,
        **decoding: Any,
    ) -> list[dict[str, Any]]:
        """Generate a completion of each prompt.

        Keywords, result and errors are those of `stemformer.generate`, and:

        Args:
            reuse_decoder: Keep the weights that are laid out for decoding, for the next call. It
                takes memory, and saves time where prompts come one at a time.
            decoding: Fields of `DecodingConfig`, such as `max_new_tokens`, `temperature`, `top_p`.
        """
        self._check_texts(prompts, expected="prompts")
        for number, text in enumerate(prompts, start=1):
            if not isinstance(text, str):
                raise DataError(f"Prompt {number} is {text!r}. Expected text.")
            check_decoded(text, f"Prompt {number}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}. Expected at least 1.")
        known = DecodingConfig.__dataclass_fields__
        for name in (name for name in decoding if name not in known):
            expected = f"Expected one of {', '.join(known)}."
            raise ConfigError(f"Decoding has no option {name!r}{nearest(name, known)}. {expected}")
        config = DecodingConfig(**decoding)
        self._require("causal_lm", "cannot generate text. Pass a GPT.", error=ConfigError)
        decoder = self._decoder(config.num_beams) if reuse_decoder else self._generation_model
        how: dict[str, Any] = {"batch_size": batch_size, "stop": stop, "on_text": on_text}
        # Warn before the first text is shown.
        self.tokenizer.unknown.clear()
        self.tokenizer.encode_ids(prompts)
        if note := self.tokenizer.unknown.note():
            warnings.warn(note, stacklevel=2)
        results = []
        for completion in generate_texts(prompts, decoder, self.tokenizer, config, **how):
            results.append(completion)
            if on_result is not None:
                on_result(results[-1])
        return results

    @cached_property
    def _generation_model(self) -> Model:
        """The model, with converted weights if the precision is bf16: decoding is bound by memory bandwidth."""
        return self.model if self.precision != "bf16" else copy.deepcopy(self.model).to(torch.bfloat16)

    def _decoder(self, rows: int) -> GptDecoder:
        if rows not in self._decoders:
            self._decoders = {rows: GptDecoder(self._generation_model, rows=rows)}
        return self._decoders[rows]

    @_warns_of_unknown_words
    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "n D"]:
        """Return one vector for each text, in order.

        The keywords are the options of `stemformer.embed`.

        Example:
            >>> load("sentence-transformers/all-MiniLM-L6-v2").embed(["a fine film"]).shape  # doctest: +SKIP
            (1, 384)
        """
        progress = progress or Silent()
        self._check_texts(texts)
        limit = self.model.check_max_length(max_length)
        room = limit - num_special_tokens(self.tokenizer, num_texts=1)
        ids = self.tokenizer.encode_ids(texts)
        if empty := [f"text {i} ({text!r:.60})" for i, text in enumerate(texts, 1) if not len(ids[i - 1])]:
            vectors_of = "The embedding is that of an empty text; its row is kept"
            warnings.warn(
                f"{format_count(len(empty), 'text')} without a token: {_first(empty)}. {vectors_of}.", stacklevel=3
            )
        examples = [make_example([row[:room]], self.tokenizer) for row in ids]
        inputs = TaskExamples(examples, np.arange(len(texts)), (), {})
        progress.start("embedding", total=len(texts), unit="texts")
        with autocast(self.device, self.precision):
            vectors = pooled_states(
                self.model, inputs, pooling=pooling, device=self.device, on_examples=progress.advance
            )
        progress.finish()
        if num_truncated := sum(len(row) > room for row in ids):
            progress.say(f"Texts truncated to {limit} tokens: {num_truncated:,}")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors

    @_warns_of_unknown_words
    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Return a prediction for each input, in order; batches are grouped by length.

        Args:
            inputs: For `classify` texts; for `pair` (text, text); for `tag` sentences as text, with
                words separated by spaces, or as lists of words; for `qa` (question, passage); for
                `choice` (text, options).

        Returns:
            `TextPrediction`, `TagPrediction`, `AnswerPrediction` or `ChoicePrediction`.

        Raises:
            DataError: An input is empty or of another form.
        """
        self._check_texts(inputs)
        task = self.require_task()
        return self.predict_records([task.make_record(x, f"input {i}") for i, x in enumerate(inputs)])

    def predict_records(self, records: Sequence[Any], progress: Progress | None = None) -> list[Any]:
        """Return a prediction for each record of labelled data (`tasks.dataset.read_records`)."""
        blocks = self.predict_blocks(blocks_of(records), total=len(records), progress=progress)
        return [prediction for block in blocks for prediction in block.predictions]

    def predict_blocks(
        self, blocks: Iterable[Sequence[Any]], *, total: int, progress: Progress | None = None
    ) -> Iterator[PredictedBlock]:
        """Yield the predictions of each block of records, with one block in memory; `total` is of records."""
        progress = progress or Silent()
        task = self.require_task()
        limit = self.model.check_max_length(task.config.max_length)
        module = LossModule(self.model, task)
        progress.start("predicting", total=total, unit="records")
        for records in blocks:
            examples = task.encode(records, self.tokenizer, max_length=limit)
            advance = partial(_advance, progress, len(records) / max(1, len(examples)))
            with autocast(self.device, self.precision):
                scores, _ = predict_scores(module, task, examples, device=self.device, on_examples=advance)
            yield PredictedBlock(records, task.decode(scores, examples, records), scores, examples)
        progress.finish()

    def with_labels(self, label_map: Sequence[str], found: Iterable[str] = ()) -> "Pipeline":
        """Return this model with other names of labels, see `tasks.labels.rename_labels`."""
        model = copy.copy(self)
        model.task = rename_labels(self.require_task(), label_map, found)
        return model

    def with_long_sources(self, how: Literal["cut", "split"]) -> "Pipeline":
        """Return this model, which cuts long sources or splits them at sentence ends; raise ConfigError of other tasks."""
        task = copy.copy(self.require_task())
        if how != "cut" and not task.writes_texts:
            name = task.config.name
            raise ConfigError(f"--long-sources {how} applies to seq2seq, but {self.path} was trained for {name}.")
        model = copy.copy(self)
        model.task, task.long_sources = task, how
        return model

    def with_languages(
        self, source_language: str | None = None, target_language: str | None = None, **columns: str | None
    ) -> "Pipeline":
        """Return this model, which rewrites texts of other languages; `columns` as in `Seq2Seq.with_languages`.

        Raises:
            CheckpointError: The model was only pre-trained.
            ConfigError: The model was trained for another task, or without languages.
        """
        if not any((source_language, target_language, *columns.values())):
            return self
        if self.task is None and "seq2seq_lm" in self.model.heads:
            problem = f"{self.path} was only pre-trained, so it has no languages of a training to change"
            advice = "Pass source_language and target_language to `rewrite`, or fine-tune the model first"
            raise CheckpointError(f"{problem}. {advice}.")
        task: Any = self.require_task()
        if not task.writes_texts:
            raise ConfigError(f"Languages apply to seq2seq, but {self.path} was trained for {task.config.name}.")
        model = copy.copy(self)
        model.task = task.with_languages(source_language, target_language, **columns)
        return model

    def require_task(self) -> Task:
        """Return the task; raise CheckpointError if the model was only pre-trained."""
        if self.task is None:
            raise CheckpointError(
                f"{self.path} was only pre-trained, so it cannot predict. "
                "Fine-tune it first with `stemformer finetune`."
            )
        return self.task

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, without special tokens.

        Example:
            >>> load("runs/books").tokenize("unbelievable")  # doctest: +SKIP
            ['un', '##believ', '##able']
        """
        return [self.tokenizer.tokens[token] for token in self.tokenizer.encode(text).ids]

    def info(self) -> dict[str, Any]:
        """Describe model, task and tokenizer, as `stemformer.inspect` does."""
        return describe_model(self.path, self.model)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a Hugging Face directory with weights, config, tokenizer, task and hashes of training texts, atomically.

        Raises:
            ConfigError: The directory exists and is not empty.
        """
        target = Path(folder)
        # The task of this object, which may have other labels or languages than that of `path`.
        task = None if self.task is None else self.task.metadata() | {"max_length": self.model.max_length}
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{folder} is not empty. Pass another directory.")

        def write(temporary: Path) -> None:
            save_model(self.model, temporary, self.tokenizer, task=task)
            copy_training_texts(find_model_folder(self.path), temporary)

        write_folder(target, write)

    def _require(self, head: str, fault: str, *, error: type[Exception] = CheckpointError) -> None:
        if head not in self.model.heads:
            name = {"causal_lm": "language-modeling", "masked_lm": "masked-language-modeling"}.get(head, head)
            raise error(f"{self.path} has no {name} head, so it {fault}")

    @staticmethod
    def _check_texts(texts: Sequence[Any], *, expected: str | None = None) -> None:
        """Check that inputs are a list, and if `expected` says of what, that it is not empty."""
        if isinstance(texts, str):
            raise DataError(f"Expected a list of texts, got the single text {texts!r:.60}. Pass [text].")
        if expected is not None and not texts:
            raise DataError(f"No text to work on. Pass {expected}.")


def open_pipeline(model: str | os.PathLike[str], options: ComputeOptions) -> Pipeline:
    """Return a loaded model as it is; load one that is named by its path."""
    if isinstance(model, Pipeline):
        return model
    return load(os.fspath(model), device=options.device, precision=options.precision, threads=options.threads)
