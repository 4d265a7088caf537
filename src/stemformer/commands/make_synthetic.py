"""What the command line and Python users call: joins the parts, holds no mathematics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemformer.config import check_seed
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.synthetic import find_synthetic, write_synthetic
from stemformer.output_dir import check_not_existing
from stemformer.progress import Progress, Silent


def synthetic(
    *,
    out: str,
    documents: int = 20_000,
    tasks: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes synthetic in-context tasks as JSON lines, to be mixed into the texts of pre-training, and returns what they are.

    Args:
        out: The file, .jsonl: a line a document, with `text` and `task`.
        documents: How many; each is an episode of 8 to 40 pairs that follow one rule.
        tasks: Names in `data.synthetic.SYNTHETIC_TASKS`, which take turns; all by default.
        seed: Of everything that is drawn.
        overwrite: Replace the file.
        progress: Told how far it is.

    Raises:
        ConfigError: The file exists or is not named .jsonl, a task that does not exist, or no document is asked for.
    """
    progress = progress or Silent()
    path = Path(out)
    if path.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: the documents are JSON lines: give a name that ends with .jsonl")
    check_seed(seed)
    check_not_existing(out, overwrite=overwrite)
    chosen = find_synthetic(tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress.start("drawing", total=documents, unit="documents")
    counted = write_synthetic(path, documents, seed=seed, tasks=tasks, on_document=progress.advance)
    progress.finish()
    rows = [
        {"task": t.name, "documents": counted.get(t.name, 0), "chance": round(t.chance, 3), "what": t.description}
        for t in chosen
    ]
    return {"file": out, "documents": documents, "bytes": path.stat().st_size, "tasks": rows}
