"""Rewrite texts: repair them, or whatever the model was trained for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any

from stemformer.commands.load import Pipeline, open_pipeline
from stemformer.data.examples.encoder_decoder import NUM_START_TOKENS, max_target_tokens
from stemformer.data.text.live_lines import LiveLines
from stemformer.errors import ConfigError, DataError, StemformerError
from stemformer.generation.beam_search import BeamConfig
from stemformer.generation.rewriting import Rewriter
from stemformer.huggingface.load import find_model_folder
from stemformer.io import PartialJsonl, hash_file, partial_path
from stemformer.objectives.denoising import DenoisingConfig
from stemformer.options import RewriteOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent, format_count
from stemformer.training.config import read_run_config

# Texts that are rewritten together, sorted by length, and written before the next ones.
_BLOCK_SIZE = 512


@accepts(RewriteOptions)
def rewrite(
    options: RewriteOptions,
    *,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]] | dict[str, Any]:
    """Rewrite texts with an encoder-decoder, by beam search.

    A model that is only pre-trained repairs texts, or writes what is lost of them, as its noise had it. Texts are
    rewritten in blocks, in order. All texts are checked before the first one is rewritten, but for those of an iterator
    or a pipe, which are checked block by block.

    Args:
        on_row: Called with each result in the place of keeping them; without `out`.

    Returns:
        With `out`, `out` and the number of `texts` written to it as JSON lines. Else for each text `text`, `rewritten`,
        `score` (log probability a token, in nats, with the length penalty), `is_complete` (false if it ran into its
        maximum length), and with several `candidates` each as `rewritten` and `score`. Of a blank text all are null.

    Raises:
        ConfigError: Options are out of range, the output file exists, or the model is not an encoder-decoder.
        DataError: There is no text, or one is too long. With `out`, the blocks before it stay in `<out>.partial`, from
            which `resume` continues.

    Example:
        >>> rewrite(["The [MASK] opened the door."], model="runs/bart")  # doctest: +SKIP
    """
    progress = progress or Silent()
    if isinstance(options.texts, str):
        raise DataError(f"Expected a list of texts, got the single text {options.texts!r:.60}. Pass [text].")
    if isinstance(options.texts, Sequence) and not options.texts:
        raise DataError("No text to work on. Pass texts to rewrite.")
    _check_output(options)
    known = BeamConfig.__dataclass_fields__
    settings = {name: value for name, value in vars(options).items() if name in known and value is not None}
    # Before the model is read; the limit of a text is known later.
    BeamConfig(**{"max_new_tokens": max(1, options.min_new_tokens), **settings})
    if options.batch_size < 1:
        raise ConfigError(f"batch_size is {options.batch_size}. Expected at least 1.")
    model = open_pipeline(options.model, options)
    rewriter = _make_rewriter(model, settings, options)
    if model.task is None and (what := _what_is_written(model.path)):
        progress.say(f"note: {model.path} {what}")

    # Check all texts that can be read again.
    if not isinstance(options.texts, Iterator | LiveLines):
        for number, text in enumerate(options.texts, start=1):
            rewriter.split(number, text)
    progress.start("rewriting", total=length_hint(options.texts) or None, unit="texts")
    blocks = _read_blocks(options.texts, max(_BLOCK_SIZE, options.batch_size))
    results: list[dict[str, Any]] = []
    number, note = 0, ""
    if options.out is None:
        keep = on_row or results.append
        for block in blocks:
            for result in rewriter.rewrite(block, first_number=number + 1, on_batch=progress.advance):
                keep(result)
            number += len(block)
    else:
        number, is_resumed = _write(options.out, blocks, rewriter, model, options, progress)
        note = " (of the texts rewritten now)" if is_resumed else ""
    progress.finish()
    if not number:
        raise DataError("No text to work on. Pass texts to rewrite.")
    for what, count in rewriter.counts.items():
        if count:
            progress.say(f"{what}: {count:,}{note}")
    return results if options.out is None else {"out": options.out, "texts": number}


def _write(
    out: str,
    blocks: Iterable[list[str]],
    rewriter: Rewriter,
    model: Pipeline,
    options: RewriteOptions,
    progress: Progress,
) -> tuple[int, bool]:
    """Write the results to a file; return the number of texts, and whether some were written before."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = [hash_file(file) for file in sorted(find_model_folder(model.path).glob("*.safetensors"))]
    header: dict[str, Any] = {"model": str(model.path), "weights": weights, "precision": options.precision}
    header |= {**asdict(rewriter.config), "max_new_tokens": options.max_new_tokens}
    header |= {"long_sources": rewriter.long_sources, "languages": list(rewriter.languages)}
    with PartialJsonl(path, header, resume=options.resume) as rows:
        before = rows.rows
        if before:
            progress.say(f"{format_count(before, 'text')} written before")
            progress.advance(before)
        try:
            for block in _skip(blocks, [row["text"] for row in rows], partial_path(path)):
                rows.append(rewriter.rewrite(block, first_number=rows.rows + 1, on_batch=progress.advance))
        except (StemformerError, OSError, KeyboardInterrupt):
            if rows.rows > before:
                progress.say(f"{partial_path(path)} keeps {format_count(rows.rows, 'text')}: continue with --resume")
            raise
        if rows.rows:
            rows.finish()
        return rows.rows, before > 0


def _check_output(options: RewriteOptions) -> None:
    if options.out is None:
        if options.resume:
            raise ConfigError("--resume continues a file of --out. Name it.")
        return
    partial = partial_path(Path(options.out))
    is_resumed = options.resume and partial.exists()
    # What --overwrite of the command that was interrupted replaces in the end.
    check_output_file(options.out, overwrite=options.overwrite or is_resumed, suffixes=(".jsonl",))
    if partial.exists() and not (options.resume or options.overwrite):
        problem = f"{partial} holds the texts of a command that was interrupted"
        raise ConfigError(f"{problem}. Continue it with --resume, or start again with --overwrite.")


def _make_rewriter(model: Pipeline, settings: dict[str, Any], options: RewriteOptions) -> Rewriter:
    """Return the model with the options of the command, and for others those of its training.

    Raises:
        ConfigError: The model is not an encoder-decoder, or has too few positions.
    """
    if "seq2seq_lm" not in model.model.heads:
        raise ConfigError(f"{model.path} is not an encoder-decoder, so it cannot rewrite texts. Pass a BART.")
    task: Any = model.task
    trained = {} if task is None else {name: getattr(task.config, name) for name in ("num_beams", "length_penalty")}
    positions = model.model.config.max_position_embeddings
    room = positions - NUM_START_TOKENS
    for name in ("max_new_tokens", "min_new_tokens"):
        if (value := getattr(options, name)) is not None and value > room:
            problem = f"{name} is {value}: expected at most {room}"
            raise ConfigError(
                f"{problem}, the positions of {model.path} without {NUM_START_TOKENS} for special tokens."
            )

    def limit_of(length: int) -> int:
        if options.max_new_tokens is not None:
            return options.max_new_tokens
        if task is not None:
            usual = task.max_new_tokens(length, positions)
        else:
            usual = max_target_tokens(length, model.model.max_length)
        return max(usual, options.min_new_tokens)

    return Rewriter(
        model.model,
        model.tokenizer,
        BeamConfig(**{**trained, "max_new_tokens": room, **settings}),
        options.batch_size,
        limit_of,
        parse_special_tokens=task is None,
        long_sources=options.long_sources or ("split" if task is not None and task.long_sources == "split" else None),
        max_sentences=None if task is None else task.max_source_sentences,
        languages=_language_ids(model, options),
    )


def _read_blocks(texts: Iterable[str] | LiveLines, size: int) -> Iterator[list[str]]:
    if isinstance(texts, LiveLines):
        yield from texts.blocks(size)
        return
    rest = iter(texts)
    while block := list(islice(rest, size)):
        yield block


def _skip(blocks: Iterable[list[str]], done: Sequence[str], partial: Path) -> Iterator[list[str]]:
    """Yield the blocks without the texts that were written before, which must be the first ones."""
    number = 0
    for block in blocks:
        expected = done[number : number + len(block)]
        pairs = zip(block, expected, strict=False)
        for different in (i for i, (text, written) in enumerate(pairs, number + 1) if text != written):
            problem = f"Text {different} is not the one that {partial} has"
            raise DataError(f"{problem}. Pass the same texts, or --overwrite in the place of --resume to start again.")
        number += len(block)
        if rest := block[len(expected) :]:
            yield rest
    if number < len(done):
        problem = f"There are {format_count(number, 'text')}, and {partial} has {len(done):,}"
        raise DataError(f"{problem}. Pass the same texts, or --overwrite in the place of --resume to start again.")


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
