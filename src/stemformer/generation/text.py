"""Text generation: prompts to token ids, decoding, and token ids to text, also while generating."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from stemformer.data.examples.sampling import permuted
from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError
from stemformer.generation.decoding import Decoded, DecodingConfig, beam_search, check_lengths, decode
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import Model

_REPLACEMENT_CHARACTER = "\ufffd"

# Tokens of a prompt for samples, and new tokens of a sample.
_PROMPT_TOKENS, _SAMPLE_TOKENS = 8, 48


def generate_texts(
    prompts: Sequence[str], model: Model | GptDecoder, tokenizer: Tokenizer, config: DecodingConfig, **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield `prompt`, `text` and facts of each continuation, in order; `options` as in `generate_from_ids`."""
    outputs = generate_from_ids(tokenizer.encode_ids(prompts), model, tokenizer, config, **options)
    for prompt, (text, decoded) in zip(prompts, outputs, strict=True):
        facts = {"num_tokens": len(decoded.ids), "log_probability": decoded.log_probability, "ended": decoded.ended}
        yield {"prompt": prompt, "text": text, **facts}


def generate_from_ids(
    prompts: Sequence[Int[np.ndarray, "_"]],
    model: Model | GptDecoder,
    tokenizer: Tokenizer,
    config: DecodingConfig,
    *,
    batch_size: int | None = None,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    add_prefix: bool = True,
) -> Iterator[tuple[str, Decoded]]:
    """Yield the text that follows each prompt, without the stop string, and its tokens.

    Args:
        prompts: Token ids; an empty prompt starts a document.
        model: See `decode`.
        batch_size: Number of prompts that are decoded together, each with all its beams; None for all.
        stop: Stop before the first of these strings that occurs; not supported with beam search.
        on_text: Called with the number of a prompt and its new text; with beam search, at the end.
        add_prefix: Put the tokenizer's prefix before each prompt: the end-of-text token, as in our training, or what
            the folder of another model says. An empty prompt always gets a token.
    """
    if not all(stop):
        raise ConfigError("A stop string is empty: remove it.")
    if stop and config.num_beams > 1:
        raise ConfigError("--stop is not supported with beam search: remove --stop or --num-beams.")
    eos = getattr(model.config, "eos_token_id", 0)
    started = [tokenizer.start_prompt(x, eos) if add_prefix or not len(x) else x for x in prompts]
    ids = list(map(torch.from_numpy, started))
    # Check all prompts before generating the first text.
    check_lengths(ids, config, model.max_length)
    size = batch_size or max(1, len(ids))
    if len(ids) > size and not isinstance(model, GptDecoder):
        model = GptDecoder(model, rows=size * config.num_beams, steps=config.max_new_tokens * len(ids) // size)
    streamers = [_TextStreamer(tokenizer, stop) for _ in ids]

    def release(number: int, new: str) -> None:
        if new and on_text is not None:
            on_text(number, new)

    def on_token(number: int, token: int) -> bool:
        release(number, streamers[number].add(token))
        return streamers[number].is_stopped

    for first in range(0, len(ids), size):
        batch = ids[first : first + size]
        if config.num_beams > 1:
            outputs = beam_search(model, batch, config)
            for number, decoded in enumerate(outputs, start=first):
                streamers[number].ids = decoded.ids
        else:
            outputs = decode(model, batch, config, on_token=on_token, first=first)
        for number, decoded in enumerate(outputs, start=first):
            release(number, streamers[number].finish())
            yield streamers[number].text, decoded


def sample_prompts(shards: Shards, tokenizer: Tokenizer, *, number: int, is_backward: bool = False) -> list[str]:
    """Return the first words (`is_backward`: the last) of some documents as prompts, the same in each call."""
    starts, length = shards.document_starts, _PROMPT_TOKENS * _tokens_per_word(tokenizer)
    long = np.flatnonzero(np.diff(starts) >= 3 * length)
    if not len(long):
        return []
    chosen = long[permuted(np.arange(min(number, len(long))), len(long), seed=0, epoch=0)]
    firsts = starts[chosen + 1] - length if is_backward else starts[chosen]
    return [tokenizer.decode(shards.tokens(first, first + length)) for first in firsts.tolist()]


def generate_samples(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[str], *, max_length: int, is_backward: bool = False
) -> list[dict[str, str]]:
    """Return samples of a model as `prompt` and `text`, with the same random numbers in each call.

    With `is_backward`, `text` precedes `prompt`. `max_length` is the maximum training length in tokens.
    """
    model.eval()
    factor = _tokens_per_word(tokenizer)
    num_tokens = min(_SAMPLE_TOKENS * factor, max_length - 2 * _PROMPT_TOKENS * factor)
    if not prompts or num_tokens < 1:
        return []
    config = DecodingConfig(max_new_tokens=num_tokens, temperature=0.8, top_p=0.95, overflow="slide")
    ids = tokenizer.encode_ids(prompts)
    if is_backward:
        backward = decode(model, [torch.from_numpy(row[::-1].copy()) for row in ids], config)
        texts = [tokenizer.decode(decoded.ids[::-1]) for decoded in backward]
        return [{"prompt": a, "text": b, "direction": "backward"} for a, b in zip(prompts, texts, strict=True)]
    texts = [text for text, _ in generate_from_ids(ids, model, tokenizer, config, batch_size=32)]
    return [{"prompt": a, "text": b} for a, b in zip(prompts, texts, strict=True)]


def _tokens_per_word(tokenizer: Tokenizer) -> int:
    # Small vocabularies hold mostly single bytes.
    return 4 if tokenizer.vocab_size < 300 else 1


class _TextStreamer:
    """Incremental detokenizer that holds back text which may still change or become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self.ids: list[int] = []
        # Text of ids[:_end]; ids[_start:_end] are decoded again with new ids, to see how they join.
        self._decoded, self._start, self._end = "", 0, 0
        # Text that was released.
        self.text, self.is_stopped = "", False

    def add(self, token: int) -> str:
        """Add a token and return the text that can be released."""
        self.ids.append(token)
        before = self._tokenizer.decode(self.ids[self._start : self._end])
        after = self._tokenizer.decode(self.ids[self._start :])
        joins = after.startswith(before)
        decoded = self._decoded + after[len(before) :] if joins else self._tokenizer.decode(self.ids)
        if not decoded.endswith(_REPLACEMENT_CHARACTER):
            self._decoded, self._start, self._end = decoded, self._end, len(self.ids)
        return self._release(decoded, is_last=False)

    def finish(self) -> str:
        """Return the text that was held back."""
        return "" if self.is_stopped else self._release(self._tokenizer.decode(self.ids), is_last=True)

    def _release(self, decoded: str, *, is_last: bool) -> str:
        stops = [start for text in self._stop if (start := decoded.find(text)) >= 0]
        if stops:
            self.is_stopped, decoded = True, decoded[: min(stops)]
        elif not is_last:
            # Hold back an incomplete character, and a suffix that may become a stop string.
            complete = decoded.rstrip(_REPLACEMENT_CHARACTER)
            prefixes = (text[:n] for text in self._stop for n in range(1, len(text)))
            held = max((len(prefix) for prefix in prefixes if complete.endswith(prefix)), default=0)
            decoded = complete[: len(complete) - held]
        # Some tokenizers change earlier text: release the rest at the end.
        if not decoded.startswith(self.text) and not (is_last or self.is_stopped):
            decoded = self.text
        released, self.text = self.text, decoded
        return decoded[len(released) :]
