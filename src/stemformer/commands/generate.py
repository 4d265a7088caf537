"""What the command line and Python users call: joins the parts, holds no mathematics."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from stemformer.config import nearest
from stemformer.device import choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import ConfigError, DataError
from stemformer.generation.decoding import DecodingConfig
from stemformer.generation.text import continue_texts
from stemformer.huggingface.load import load_with_tokenizer
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.progress import Progress, Silent


def generate(
    prompts: Sequence[str],
    *,
    model: str,
    stop: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    batch_size: int = 32,
    on_text: Callable[[int, str], None] | None = None,
    on_result: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Returns how a model goes on with each prompt.

    Args:
        prompts: Texts; an empty one begins a document.
        model: A GPT-2 folder or hub id.
        stop: Strings before which a text ends.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`; weights are converted.
        threads: Processor threads.
        batch_size: Texts that are written at the same time; what becomes of each does not depend on it, but for rounding.
        on_text: Told the number of a prompt and what was just written.
        on_result: Told each result as soon as it is there, in the prompts' order.
        progress: Told how far it is.
        decoding: Fields of `generation.decode.DecodingConfig`, such as `max_new_tokens`, `temperature`, `top_p`, `num_beams`, `seed`.

    Raises:
        ConfigError: Settings out of range, or a model that does not generate.
        DataError: No prompt, one that is no text, or one that is too long for the new tokens.
    """
    if isinstance(prompts, str) or not prompts:
        raise DataError("no list of prompts was given: give [text]")
    for number, text in enumerate(prompts, start=1):
        if not isinstance(text, str):
            raise DataError(f"prompt {number} is {text!r}: expected a text")
        if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of bytes that are no text
            raise DataError(f"prompt {number} is no UTF-8: convert it first")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: expected at least 1")
    progress = progress or Silent()
    go_on = _generator(model, decoding, stop=stop, device=device, precision=precision, threads=threads, on_text=on_text)
    progress.start("writing", total=len(prompts), unit="texts")
    results = []
    for result in go_on(prompts, batch_size):
        results.append(result)
        progress.advance(1)
        if on_result is not None:
            on_result(result)
    progress.finish()
    return results


def generate_each(
    prompts: Iterable[str],
    *,
    model: str,
    stop: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    on_text: Callable[[int, str], None] | None = None,
    on_error: Callable[[DataError], None] | None = None,
    **decoding: Any,
) -> Iterator[dict[str, Any]]:
    """Yields how a model goes on with each prompt as it comes, so that a person can type them; the arguments are those of `generate`.

    Args:
        prompts: Asked for one by one.
        model: A GPT-2 folder or hub id.
        stop: Strings before which a text ends.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`.
        threads: Processor threads.
        on_text: Told 0 and what was just written.
        on_error: Told of a prompt that cannot be gone on with, such as one that is too long, and the next one is asked for.
        decoding: Fields of `generation.decode.DecodingConfig`.
    """
    go_on = _generator(
        model, decoding, stop=stop, device=device, precision=precision, threads=threads, on_text=on_text, is_kept=True
    )
    for text in prompts:
        try:
            yield from go_on([text], 1)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)


def _generator(
    model: str,
    decoding: dict[str, Any],
    *,
    stop: Sequence[str],
    device: str,
    precision: str,
    threads: int | None,
    on_text: Callable[[int, str], None] | None,
    is_kept: bool = False,
) -> Callable[[Sequence[str], int], Iterator[dict[str, Any]]]:
    """Returns what goes on with prompts, so many at a time; the model is loaded once, and if it is kept, laid out once."""
    for name in decoding:
        if name not in (known := DecodingConfig.__dataclass_fields__):
            raise ConfigError(
                f"generate has no option {name!r}{nearest(name, known)}: expected one of {', '.join(known)}"
            )
    config = DecodingConfig(**decoding)
    set_threads(threads)
    torch_device = choose_device(device)
    opened, tokenizer = load_with_tokenizer(model)
    if "causal_lm" not in opened.heads:
        raise ConfigError(f"{model} was not trained on the next word, so it cannot generate: give a GPT")
    configure_allocator(torch_device)
    opened.to(torch_device, torch.bfloat16 if choose_precision(precision, torch_device) == "bf16" else torch.float32)
    reader = GptDecoder(opened, rows=config.num_beams) if is_kept else opened
    return lambda prompts, batch_size: map(
        asdict,
        continue_texts(prompts, reader, tokenizer, config, batch_size=batch_size, stop=stop, on_text=on_text),
    )
