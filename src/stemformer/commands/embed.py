"""Compute embeddings of texts."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from stemformer.commands.load import open_pipeline
from stemformer.io import write_file, write_jsonl
from stemformer.options import EmbedOptions, accepts
from stemformer.output_dir import check_output_file
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
    check_output_file(options.out, overwrite=options.overwrite, suffixes=(".npy", ".jsonl"))
    model = open_pipeline(options.model, options)
    how: dict[str, Any] = {name: getattr(options, name) for name in ("pooling", "normalize", "max_length")}
    vectors = model.embed(options.texts, **how, progress=progress)
    if options.out is None:
        return {"embeddings": vectors}
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(buffer := io.BytesIO(), vectors)
        write_file(out, [buffer.getvalue()])
    else:
        rows = zip(options.texts, vectors.tolist(), strict=True)
        write_jsonl(out, ({"text": text, "embedding": vector} for text, vector in rows))
    return {"out": options.out, "texts": len(vectors), "dimensions": vectors.shape[1]}
