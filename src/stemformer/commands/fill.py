"""Fill masks, and score texts."""

from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.options import FillOptions, ScoreOptions, accepts


@accepts(FillOptions)
def fill(options: FillOptions) -> list[dict[str, Any]]:
    """Predict the most probable tokens for each [MASK].

    Returns:
        For each text `text`, `masks` (each with `candidates`, dicts of `token` and `probability`), and
        `filled`, the text with the best candidate for each mask.

    Example:
        >>> fill(["Paris is the [MASK] of France."], model="runs/quickstart")  # doctest: +SKIP
    """
    model = open_pipeline(options.model, options)
    return model.fill(options.texts, top_k=options.top_k, candidates=options.candidates or None)


@accepts(ScoreOptions)
def score(options: ScoreOptions) -> list[dict[str, Any]]:
    """Score texts by their log-likelihood: under a masked language model the pseudo-log-likelihood.

    Returns:
        For each text `text`, `num_tokens`, `log_likelihood` in nats, and `perplexity` per token.
    """
    return open_pipeline(options.model, options).score(options.texts)
