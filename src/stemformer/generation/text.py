"""Texts that a model goes on with: prompts to ids, decoding, and ids to text again, also while it is being written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stemformer.data.examples.sampling import permuted
from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError
from stemformer.generation.decoding import Decoded, DecodingConfig, beam_search, check_lengths, decode
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import Model

_HALF_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Continuation:
    """How a model goes on with a prompt.

    Attributes:
        prompt: As it was given.
        text: What follows, without the stop string.
        num_tokens: New tokens.
        log_probability: Of them, by the model's own scores, in nats.
        ended: `eos` by the model, `stop` by a stop string, `length` otherwise.
    """

    prompt: str
    text: str
    num_tokens: int
    log_probability: float
    ended: Literal["eos", "stop", "length"]


def continue_texts(
    prompts: Sequence[str],
    model: Model | GptDecoder,
    tokenizer: Tokenizer,
    config: DecodingConfig,
    *,
    batch_size: int = 32,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
) -> Iterator[Continuation]:
    """Yields a continuation for each prompt, in their order.

    Args:
        prompts: Texts; an empty one begins a document.
        model: See `generation.decode.decode`.
        tokenizer: Of the model.
        config: How the next token is chosen.
        batch_size: Texts that are written at the same time.
        stop: A text ends before the first of these strings that it comes to; one that never comes ends nothing.
        on_text: Told the number of a prompt and what was just written, as it is written; not with beams.

    Raises:
        ConfigError: An empty stop string, or stop strings with beams.
        DataError: A prompt that with the new tokens is longer than the model has positions.
    """
    ids = tokenizer.encode_ids(prompts)
    found = continue_ids(ids, model, tokenizer, config, batch_size=batch_size, stop=stop, on_text=on_text)
    for prompt, (text, decoded) in zip(prompts, found, strict=True):
        yield Continuation(prompt, text, len(decoded.ids), decoded.log_probability, decoded.ended)


def continue_ids(
    prompts: Sequence[Int[np.ndarray, "_"]],
    model: Model | GptDecoder,
    tokenizer: Tokenizer,
    config: DecodingConfig,
    *,
    batch_size: int | None = None,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    begin: bool = True,
) -> Iterator[tuple[str, Decoded]]:
    """Yields the text that follows each prompt, without the stop string, and how it came about.

    Args:
        prompts: Ids; an empty one begins a document.
        model: As for `continue_texts`, like the others.
        tokenizer: Of the model.
        config: How the next token is chosen.
        batch_size: Texts that are written at the same time; None writes all at once.
        stop: Where a text ends.
        on_text: Told what was written.
        begin: Put the token that ends a document before each prompt, as it stands before each piece that a model is trained on; before an
            empty one it stands anyway.
    """
    if any(not text for text in stop):
        raise ConfigError("a stop string is empty: leave it out")
    if stop and config.num_beams > 1:
        raise ConfigError("stop strings have no effect on beams: leave --stop or --num-beams out")
    end = np.array([getattr(model.config, "eos_token_id", 0)])
    ids = [torch.from_numpy(np.append(end, prompt) if begin or not len(prompt) else prompt) for prompt in prompts]
    check_lengths(ids, config, model.config.max_position_embeddings)  # of all, before the first is written
    size = 1 if config.num_beams > 1 else batch_size or max(1, len(ids))
    if len(ids) > size and not isinstance(model, GptDecoder):
        model = GptDecoder(model, rows=max(size, config.num_beams), steps=config.max_new_tokens * len(ids) // size)
    for first in range(0, len(ids), size):
        yield from _continue_batch(ids[first : first + size], first, model, tokenizer, config, stop, on_text)


def _continue_batch(
    ids: Sequence[Int[Tensor, "_"]],
    first: int,
    model: Model | GptDecoder,
    tokenizer: Tokenizer,
    config: DecodingConfig,
    stop: Sequence[str],
    on_text: Callable[[int, str], None] | None,
) -> Iterator[tuple[str, Decoded]]:
    writers = {number: _Writer(tokenizer, stop) for number in range(first, first + len(ids))}

    def on_token(number: int, token: int) -> bool:
        new = writers[number].add(token)
        if new and on_text is not None:
            on_text(number, new)
        return writers[number].is_stopped

    if config.num_beams > 1:
        told = beam_search(model, ids, config)
        for writer, decoded in zip(writers.values(), told, strict=True):
            for token in decoded.ids:
                writer.add(token)
    else:
        told = decode(model, ids, config, on_token=on_token, first=first)
    for (number, writer), decoded in zip(writers.items(), told, strict=True):
        rest = writer.finish()
        if rest and on_text is not None:
            on_text(number, rest)
        yield writer.text, decoded


def choose_beginnings(shards: Shards, tokenizer: Tokenizer, *, number: int, is_backward: bool = False) -> list[str]:
    """Returns the first words of some documents, the same ones each time, to see how a model goes on with them.

    Args:
        shards: Of the held-out split.
        tokenizer: Of the data.
        number: How many, at most.
        is_backward: The last words, from which a model that reads backwards begins.
    """
    starts, words = shards.document_starts, _BEGINNING * _letters(tokenizer)
    long = np.flatnonzero(np.diff(starts) >= 3 * words)
    if not len(long):
        return []
    chosen = long[permuted(np.arange(min(number, len(long))), len(long), seed=0, epoch=0)]
    firsts = starts[chosen + 1] - words if is_backward else starts[chosen]
    return [tokenizer.decode(shards.tokens(first, first + words)) for first in firsts.tolist()]


_BEGINNING = 8
"""Tokens of a document that a sample goes on from."""


def write_samples(
    model: Model, tokenizer: Tokenizer, beginnings: Sequence[str], *, longest: int, is_backward: bool = False
) -> list[dict[str, str]]:
    """Returns how a model goes on with beginnings: `prompt` and `text`, drawn with the same random numbers each time.

    Args:
        model: A GPT; it is in evaluation mode afterwards.
        tokenizer: Of it.
        beginnings: See `choose_beginnings`.
        longest: Tokens of a text that it was trained on; of no place behind does it know anything.
        is_backward: It writes from the end on: `text` is what it puts before `prompt`, in reading order, and `direction` says so.
    """
    model.eval()
    letters = _letters(tokenizer)
    most = min(_SAMPLE * letters, longest - 2 * _BEGINNING * letters)
    if not beginnings or most < 1:
        return []
    config = DecodingConfig(max_new_tokens=most, temperature=0.8, top_p=0.95, overflow="slide")
    if is_backward:
        ids = [torch.from_numpy(row[::-1].copy()) for row in tokenizer.encode_ids(beginnings)]
        told = [tokenizer.decode(decoded.ids[::-1]) for decoded in decode(model, ids, config)]
        return [{"prompt": a, "text": b, "direction": "backward"} for a, b in zip(beginnings, told, strict=True)]
    found = continue_texts(beginnings, model, tokenizer, config)
    return [{"prompt": x.prompt, "text": x.text} for x in found]


_SAMPLE = 48
"""Tokens of a sample."""


def _letters(tokenizer: Tokenizer) -> int:
    """Returns how many times as many tokens a text of the same length has, about, as in words: more than one where each is a byte."""
    return 4 if tokenizer.vocab_size < _WITH_WORDS else 1


_WITH_WORDS = 300
"""Ids below which a vocabulary holds little but single bytes."""


class _Writer:
    """The text of tokens that come one by one; what may still change or become a stop string is held back.

    Args:
        tokenizer: Turns ids into text.
        stop: Strings before which the text ends.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._whole = ""  # of all ids up to `_known`
        self._begin, self._known = 0, 0  # the last ids of it, by which it is seen how the next ones join on
        self.text = ""  # told so far
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Returns what can be told after another token."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._begin : self._known])
        now = self._tokenizer.decode(self._ids[self._begin :])
        joins_on = now.startswith(before)
        whole = self._whole + now[len(before) :] if joins_on else self._tokenizer.decode(self._ids)
        if not whole.endswith(_HALF_CHARACTER):
            self._whole, self._begin, self._known = whole, self._known, len(self._ids)
        return self._tell(whole, is_last=False)

    def finish(self) -> str:
        """Returns what was held back."""
        return "" if self.is_stopped else self._tell(self._tokenizer.decode(self._ids), is_last=True)

    def _tell(self, whole: str, *, is_last: bool) -> str:
        ends = [at for text in self._stop if (at := whole.find(text)) >= 0]
        if ends:
            self.is_stopped, whole = True, whole[: min(ends)]
        elif not is_last:
            sure = len(whole.rstrip(_HALF_CHARACTER))  # of a character of several tokens, the first are none yet
            held = max(
                (n for text in self._stop for n in range(1, len(text)) if whole[:sure].endswith(text[:n])), default=0
            )
            whole = whole[: sure - held]
        if not whole.startswith(self.text):  # a tokenizer whose text changes with what follows: told at the end
            whole = self.text if not (is_last or self.is_stopped) else whole
        new = whole[len(self.text) :]
        self.text = whole
        return new
