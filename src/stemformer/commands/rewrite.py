"""Rewrite texts: repair them, or whatever the model was trained for."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from pathlib import Path
from typing import Any

from stemformer.commands.load import Pipeline, open_pipeline
from stemformer.data.examples.encoder_decoder import NUM_START_TOKENS, max_target_tokens
from stemformer.errors import ConfigError, DataError
from stemformer.generation.beam_search import BeamConfig
from stemformer.generation.rewriting import rewrite_texts
from stemformer.huggingface.load import find_model_folder
from stemformer.io import write_jsonl
from stemformer.objectives.denoising import DenoisingConfig
from stemformer.options import RewriteOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent, format_count
from stemformer.training.config import read_run_config


@accepts(RewriteOptions)
def rewrite(
    options: RewriteOptions,
    *,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]] | dict[str, Any]:
    """Rewrite texts with an encoder-decoder, by beam search.

    A model that is only pre-trained repairs texts, or writes what is lost of them, as its noise had it. Texts are
    rewritten and written in blocks, in order; a sequence of them is checked first, any other iterable is read block by
    block.

    Args:
        on_row: Called with each result in the place of keeping them; without `out`.

    Returns:
        With `out`, `out` and the number of `texts` written to it as JSON lines. Else
        For each text `text`, `rewritten`, `score` (log probability a token, in nats, with the length penalty),
        `is_complete` (false if it ran into its maximum length), and with several `candidates` each as
        `rewritten` and `score`.

    Raises:
        ConfigError: Options are out of range, the output file exists, or the model is no encoder-decoder.
        DataError: No text, or one that is empty or too long.

    Example:
        >>> rewrite(["The [MASK] opened the door."], model="runs/bart")  # doctest: +SKIP
    """
    progress = progress or Silent()
    if isinstance(options.texts, str):
        raise DataError(f"Expected a list of texts, got the single text {options.texts!r:.60}. Pass [text].")
    if isinstance(options.texts, Sequence) and not options.texts:
        raise DataError("No text to work on. Pass texts to rewrite.")
    check_output_file(options.out, overwrite=options.overwrite, suffixes=(".jsonl",))
    known = BeamConfig.__dataclass_fields__
    settings = {name: value for name, value in vars(options).items() if name in known and value is not None}
    # Before the model is read; the limit of a text is known later.
    BeamConfig(**{"max_new_tokens": max(1, options.min_new_tokens), **settings})
    if options.batch_size < 1:
        raise ConfigError(f"batch_size is {options.batch_size}. Expected at least 1.")
    model = open_pipeline(options.model, options)
    if "seq2seq_lm" not in model.model.heads:
        raise ConfigError(f"{model.path} is no encoder-decoder, so it cannot rewrite texts. Pass a BART.")
    task: Any = model.task
    max_length = model.model.max_length
    # Those of training, unless others are named.
    trained = {} if task is None else {name: getattr(task.config, name) for name in ("num_beams", "length_penalty")}
    room = model.model.config.max_position_embeddings - NUM_START_TOKENS
    for name in ("max_new_tokens", "min_new_tokens"):
        if (value := getattr(options, name)) is not None and value > room:
            raise ConfigError(f"{name} is {value}: expected at most {room}, the positions of {model.path} but two.")
    config = BeamConfig(**{**trained, "max_new_tokens": room, **settings})
    languages = _language_ids(model, options)
    if task is None and (what := _what_is_written(model.path)):
        progress.say(f"note: {model.path} {what}")
    progress.start("rewriting", total=length_hint(options.texts) or None, unit="texts")
    number = num_cut = 0

    def limit_of(length: int) -> int:
        if options.max_new_tokens is not None:
            return options.max_new_tokens
        if task is not None:
            usual = task.max_new_tokens(length, model.model.config.max_position_embeddings)
        else:
            usual = max_target_tokens(length, max_length)
        return max(usual, options.min_new_tokens)

    counts = Counter[str]()
    how: dict[str, Any] = {
        "batch_size": options.batch_size,
        "limit_of": limit_of,
        "parse_special_tokens": task is None,
        "long_sources": options.long_sources,
        "max_sentences": None if task is None else task.max_source_sentences,
        "languages": languages,
        "counts": counts,
        "on_batch": progress.advance,
    }

    def rewritten() -> Iterator[dict[str, Any]]:
        nonlocal number, num_cut
        for result in rewrite_texts(options.texts, model.model, model.tokenizer, config, **how):
            number, num_cut = number + 1, num_cut + (not result["is_complete"])
            yield result

    results: list[dict[str, Any]] = []
    if options.out is None:
        keep = on_row or results.append
        for result in rewritten():
            keep(result)
    else:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(Path(options.out), rewritten())
    progress.finish()
    for what, found in counts.items():
        if found:
            progress.say(f"{what}: {found:,}")
    if num_cut:
        progress.say(f"note: {format_count(num_cut, 'text')} ran into the maximum length and may lack an end")
    return results if options.out is None else {"out": options.out, "texts": number}


def _language_ids(model: Pipeline, options: RewriteOptions) -> tuple[int | None, int | None]:
    """Return the tokens of the languages of texts and targets: those of the options, else of the training."""
    codes: list[str | None] = [options.source_language, options.target_language]
    is_needed = [model.tokenizer.requires_languages] * 2
    if model.task is not None:
        config = model.with_languages(*codes).require_task().config
        codes = [config.source_language, config.target_language]
        is_needed = [column is not None for column in config.language_columns]
    for side, code, needs_code in zip(("source", "target"), codes, is_needed, strict=True):
        if code is None and needs_code:
            known = ", ".join(model.tokenizer.known_languages())
            raise ConfigError(f"{model.path} needs the {side} language. Pass --{side}-language: one of {known}.")
    source, target = (None if code is None else model.tokenizer.language_id(code) for code in codes)
    return source, target


def _what_is_written(path: str) -> str | None:
    """Return what a model writes by the noise of its pre-training, if it is not a repaired text and its run is there."""
    folder = find_model_folder(path)
    runs = [run for run in (folder.parent, folder.parent.parent) if (run / "log.jsonl").is_file()]
    try:
        text = (runs[0] / "config.toml").read_text(encoding="utf-8") if runs else ""
        objective = read_run_config(text, source=path).objective if text else None
    except (OSError, ConfigError):
        # Another kind of run, or that of an earlier version: what it wrote is not known.
        return None
    return objective.writes if isinstance(objective, DenoisingConfig) else None
