"""What the command line and Python users call: joins the parts, holds no mathematics."""

from pathlib import Path
from typing import Any

from stemformer.commands.inspect import is_finetuned
from stemformer.reports.finetuning import report_of_run
from stemformer.reports.pretraining import write_report


def report(path: str) -> dict[str, Any]:
    """Writes the report of a run anew, also while it is going on, and returns where it is; that of a fine-tuned model stays as it is.

    Args:
        path: The run folder.

    Raises:
        DataError: It holds no run.
    """
    folder = Path(path)
    if (folder / "report.html").is_file() and not (
        folder / "log.jsonl"
    ).is_file():  # of a comparison, a benchmark, several sizes
        return {"report": str(folder / "report.html")}
    return {"report": str(report_of_run(folder) if is_finetuned(folder) else write_report(folder))}
