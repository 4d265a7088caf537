"""What the command line and Python users call: joins the parts, holds no mathematics."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stemformer.device import autocast, choose_device, choose_precision, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.fill_mask import fill_masks, pseudo_log_likelihood
from stemformer.huggingface.load import load_with_tokenizer


def fill(
    text: Sequence[str],
    *,
    model: str,
    top_k: int = 5,
    among: Sequence[str] | None = None,
    score: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Returns the likeliest words for each `[MASK]`, or with `score` how likely each text is as a whole.

    Args:
        text: Texts.
        model: A Hugging Face folder, a run folder, or a hub id.
        top_k: Words a blank.
        among: Words to choose from.
        score: Pseudo-log-likelihoods instead.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`.
        threads: Processor threads.
    """
    if not text:
        raise DataError("no text was given: give sentences with [MASK] in them")
    if score and (among is not None or any("[MASK]" in t for t in text)):
        raise ConfigError(
            "--score rates whole sentences: leave out --among, and put a word in the place of each [MASK]"
        )
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}: expected at least 1")
    set_threads(threads)
    torch_device = choose_device(device)
    opened, tokenizer = load_with_tokenizer(model)
    if "masked_lm" not in opened.heads:
        raise CheckpointError(
            f"{model} has no masked-LM head, so it cannot fill blanks: give a model pre-trained with masked words"
        )
    opened.to(torch_device)
    with autocast(torch_device, choose_precision(precision, torch_device)):
        if score:
            return [asdict(result) for result in pseudo_log_likelihood(text, opened, tokenizer)]
        found = fill_masks(text, opened, tokenizer, top_k=top_k, among=among)
    return [
        {"text": f.text, "masks": [{"candidates": [asdict(c) for c in mask]} for mask in f.masks], "filled": f.filled}
        for f in found
    ]
