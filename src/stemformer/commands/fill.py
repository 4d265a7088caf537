"""Fill masks, and score texts."""

from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.options import FillOptions, ScoreOptions, accepts


@accepts(FillOptions)
def fill(options: FillOptions) -> list[dict[str, Any]]:
    """Predict the most probable tokens for each [MASK].

    Returns:
        For each text `text`, `masks` (each with `candidates`, dicts of `token` and `probability`),
        `filled`, the text with the best candidate for each mask, and `method`: `vocabulary`, or how
        candidates were scored, `within_word_l2r_sum` or `within_word_l2r_mean`. A text without [MASK] has no `masks`,
        and None for `filled`, with a warning.

    Example:
        >>> fill(["Paris is the [MASK] of France."], model="runs/quickstart")  # doctest: +SKIP
    """
    model = open_pipeline(options.model, options)
    how: dict[str, Any] = {name: getattr(options, name) for name in ("top_k", "reduction", "pieces")}
    return model.fill(options.texts, candidates=options.candidates or None, **how)


@accepts(ScoreOptions)
def score(options: ScoreOptions) -> list[dict[str, Any]]:
    """Score texts by their log-likelihood: under a masked language model the pseudo-log-likelihood.

    Returns:
        For each text `text`, `num_tokens`, `log_likelihood` in nats, its mean per token, `perplexity`
        (the exponential of minus that mean), and `method`: `causal`, or that of `pll`. A text without tokens or with
        too many has None, with a warning. Other texts of the call change a score by rounding only.

    Raises:
        DataError: No text can be scored.
    """
    return open_pipeline(options.model, options).score(options.texts, pll=options.pll)
