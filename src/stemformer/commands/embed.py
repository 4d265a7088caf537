"""Compute embeddings of texts."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from stemformer.commands.load import open_pipeline
from stemformer.errors import ConfigError
from stemformer.io import write_file
from stemformer.options import EmbedOptions, accepts
from stemformer.output_dir import check_not_existing
from stemformer.progress import Progress


@accepts(EmbedOptions)
def embed(options: EmbedOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Compute an embedding for each text.

    Returns:
        `embeddings`, an array with a row for each text; or `out`, `texts` and `dimensions` if they were written to a file.

    Raises:
        ConfigError: The output file exists, or is neither .npy nor .jsonl.

    Example:
        >>> embed(["a fine film"], model="runs/reviews")["embeddings"].shape  # doctest: +SKIP
        (1, 256)
    """
    suffix = None if options.out is None else Path(options.out).suffix
    if suffix not in (None, ".npy", ".jsonl"):
        raise ConfigError(f"--out is {options.out}. Expected a name that ends with .npy or .jsonl.")
    if options.out is not None:
        check_not_existing(options.out, overwrite=options.overwrite)
    model = open_pipeline(options.model, options)
    vectors = model.embed(
        options.texts,
        pooling=options.pooling,
        normalize=options.normalize,
        max_length=options.max_length,
        progress=progress,
    )
    if options.out is None:
        return {"embeddings": vectors}
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_file(Path(options.out), [_npy(vectors) if suffix == ".npy" else _jsonl(options.texts, vectors)])
    return {"out": options.out, "texts": len(vectors), "dimensions": vectors.shape[1]}


def _npy(vectors: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    return buffer.getvalue()


def _jsonl(texts: Any, vectors: np.ndarray) -> bytes:
    rows = zip(texts, vectors.tolist(), strict=True)
    return "".join(json.dumps({"text": t, "embedding": v}, ensure_ascii=False) + "\n" for t, v in rows).encode()
