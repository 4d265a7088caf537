"""Rewrite texts: repair them, or whatever the model was trained for."""

import re
from collections import Counter
from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.data.examples.encoder_decoder import NUM_START_TOKENS, max_target_tokens
from stemformer.errors import ConfigError, DataError
from stemformer.generation.beam_search import BeamConfig
from stemformer.generation.rewriting import rewrite_texts
from stemformer.options import RewriteOptions, accepts
from stemformer.progress import Progress, Silent, format_count

# A language of a published mBART.
_LANGUAGE_CODE = re.compile("[a-z]{2,3}_[A-Z]{2}")


@accepts(RewriteOptions)
def rewrite(options: RewriteOptions, *, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Rewrite texts with an encoder-decoder, by beam search.

    A model that is only pre-trained repairs texts.

    Returns:
        For each text `text`, `rewritten`, `score` (log probability a token, in nats, with the length penalty),
        `is_complete` (false if it ran into its maximum length), and with several `candidates` each as
        `rewritten` and `score`.

    Raises:
        ConfigError: Options are out of range, or the model is no encoder-decoder.
        DataError: No text, or one that is empty or too long.

    Example:
        >>> rewrite(["The [MASK] opened the door."], model="runs/bart")  # doctest: +SKIP
    """
    progress = progress or Silent()
    if isinstance(options.texts, str):
        raise DataError(f"Expected a list of texts, got the single text {options.texts!r:.60}. Pass [text].")
    if not options.texts:
        raise DataError("No text to work on. Pass texts to rewrite.")
    names = ("num_beams", "length_penalty", "num_return_sequences", "max_new_tokens")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    BeamConfig(**settings)
    if options.batch_size < 1:
        raise ConfigError(f"batch_size is {options.batch_size}. Expected at least 1.")
    model = open_pipeline(options.model, options)
    if "seq2seq_lm" not in model.model.heads:
        raise ConfigError(f"{model.path} is no encoder-decoder, so it cannot rewrite texts. Pass a BART.")
    task: Any = model.task
    max_length = model.model.max_length
    # Those of training, unless others are named.
    trained = {} if task is None else {name: getattr(task.config, name) for name in ("num_beams", "length_penalty")}
    config = BeamConfig(**{**trained, **settings})
    room = model.model.config.max_position_embeddings - NUM_START_TOKENS
    if options.max_new_tokens is not None and options.max_new_tokens > room:
        problem = f"max_new_tokens is {options.max_new_tokens}: expected at most {room}"
        raise ConfigError(f"{problem}, the positions of {model.path} but two.")
    if task is None and (code := next(filter(_LANGUAGE_CODE.fullmatch, model.tokenizer.tokens), None)):
        problem = f"{model.path} has language codes such as {code}, one of which precedes each text"
        raise ConfigError(f"{problem}. Such models are not supported yet: pass a BART, or an mBART of this package.")
    progress.start("rewriting", total=len(options.texts), unit="texts")

    def limit_of(length: int) -> int:
        if options.max_new_tokens is not None:
            return options.max_new_tokens
        if task is not None:
            return task.max_new_tokens(length, model.model.config.max_position_embeddings)
        return max_target_tokens(length, max_length)

    counts = Counter[str]()
    results = rewrite_texts(
        options.texts,
        model.model,
        model.tokenizer,
        config,
        batch_size=options.batch_size,
        limit_of=limit_of,
        parse_special_tokens=task is None,
        long_sources=options.long_sources,
        max_sentences=None if task is None else task.max_source_sentences,
        counts=counts,
        on_batch=progress.advance,
    )
    progress.finish()
    for line in (f"{what}: {number:,}" for what, number in counts.items() if number):
        progress.say(line)
    if cut := sum(not result["is_complete"] for result in results):
        progress.say(f"note: {format_count(cut, 'text')} ran into the maximum length and may lack an end")
    return results
