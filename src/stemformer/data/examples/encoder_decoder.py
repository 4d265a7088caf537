"""Examples of an encoder-decoder."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from stemformer.data.examples.batch import Example


def make_encoder_decoder_example(
    sources: Sequence[Int[np.ndarray, "_"]],
    targets: Sequence[Int[np.ndarray, "_"]],
    *,
    cls: int,
    sep: int,
    is_copied: Sequence[Bool[np.ndarray, "_"]] | None = None,
    num_dropped_tokens: int = 0,
) -> Example:
    """Return an example of pairs of texts, without targets that of sources alone.

    Source `<s> source </s>`, decoder inputs `</s> <s> target`, labels `<s> target </s>`, as in BART.

    Args:
        is_copied: Of each target, whether each token is one that the source has; the special tokens around it always are.
    """
    inputs = [np.concatenate([[cls], source, [sep]]) for source in sources]
    ids, lengths = _joined(inputs)
    if not targets:
        return Example(ids, lengths, np.empty(0, np.int64), np.empty(0, np.int64))
    labels, _ = _joined([np.concatenate([[cls], target, [sep]]) for target in targets])
    decoder_ids, decoder_lengths = _joined([np.concatenate([[sep, cls], target]) for target in targets])
    copied = None if is_copied is None else np.concatenate([[True, *part, True] for part in is_copied])
    return Example(
        ids,
        lengths=lengths,
        label_positions=np.arange(len(labels)),
        labels=labels,
        num_dropped_tokens=num_dropped_tokens,
        decoder_input_ids=decoder_ids,
        decoder_lengths=decoder_lengths,
        is_copied=copied,
    )


def _joined(texts: Sequence[np.ndarray]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "s"]]:
    return np.concatenate(texts).astype(np.int64), np.array([len(text) for text in texts], np.int64)
