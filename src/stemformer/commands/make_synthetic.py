"""Write synthetic in-context tasks."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stemformer.config import check_seed
from stemformer.evaluation.few_shot.synthetic import find_synthetic, synthetic_documents
from stemformer.io import write_file
from stemformer.options import MakeSyntheticOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent


@accepts(MakeSyntheticOptions)
def make_synthetic(options: MakeSyntheticOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write documents of synthetic in-context tasks, to mix into the pre-training text.

    Returns:
        File, number of documents, size in bytes, and for each task its number of documents and chance accuracy.

    Raises:
        ConfigError: The file exists or does not end with .jsonl, a task does not exist, or there are no documents.
    """
    progress = progress or Silent()
    path, number = Path(options.out), options.num_documents
    check_seed(options.seed)
    check_output_file(options.out, overwrite=options.overwrite, suffixes=(".jsonl",))
    tasks = find_synthetic(options.tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress.start("writing", total=number, unit="documents")
    counts: Counter[str] = Counter()

    def lines() -> Iterator[bytes]:
        for document in synthetic_documents(number, seed=options.seed, tasks=options.tasks):
            counts[document["task"]] += 1
            yield (json.dumps(document) + "\n").encode()
            progress.advance(1)

    write_file(path, lines())
    progress.finish()
    rows = [
        {"task": t.name, "documents": counts[t.name], "chance": round(t.chance, 3), "what": t.description}
        for t in tasks
    ]
    return {"file": options.out, "documents": number, "bytes": path.stat().st_size, "tasks": rows}
