"""Generate text from prompts."""

from collections.abc import Callable, Sequence
from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.errors import DataError
from stemformer.generation.decoding import DecodingConfig
from stemformer.options import GenerateOptions, accepts
from stemformer.progress import Progress, Silent


@accepts(GenerateOptions)
def generate(
    options: GenerateOptions,
    *,
    on_text: Callable[[int, str], None] | None = None,
    on_result: Callable[[dict[str, Any]], None] | None = None,
    on_error: Callable[[DataError], None] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Generate text from prompts with a causal language model.

    A sequence of prompts is checked first and decoded in batches; what is generated for a prompt does not
    depend on the batch size, but for rounding. Any other iterable is read one prompt at a time, so that
    prompts can be typed.

    Args:
        on_text: Called with the number of a prompt and each new piece of its text; not with beams.
        on_result: Called with each result as soon as it is complete, in the order of the prompts.
        on_error: Called with the error of a prompt that is read one at a time; by default it is raised.

    Returns:
        For each prompt `prompt`, `text` (without the prompt), `num_tokens`, `log_probability` in nats, and
        `ended` (`eos`, `stop` or `length`).

    Raises:
        ConfigError: Options are out of range, or the model is not causal.
        DataError: No prompt, one that is not text, or one that is too long for the new tokens.
    """
    prompts = options.prompts
    progress = progress or Silent()
    model = open_pipeline(options.model, options)
    known = DecodingConfig.__dataclass_fields__
    decoding: dict[str, Any] = {name: value for name, value in vars(options).items() if name in known}
    decoding |= {"overflow": "slide" if options.sliding_window else "error", "stop": options.stop, "on_text": on_text}

    def report(result: dict[str, Any]) -> None:
        progress.advance(1)
        if on_result is not None:
            on_result(result)

    progress.start("generating", total=len(prompts) if isinstance(prompts, Sequence) else None, unit="texts")
    results: list[dict[str, Any]] = []
    if isinstance(prompts, Sequence):
        results = model.generate(prompts, batch_size=options.batch_size, on_result=report, **decoding)
    else:
        for text in prompts:
            try:
                results += model.generate([text], on_result=report, reuse_decoder=True, **decoding)
            except DataError as error:
                if on_error is None:
                    raise
                on_error(error)
    progress.finish()
    return results
