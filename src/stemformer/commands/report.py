"""Write the report of a run again."""

from pathlib import Path
from typing import Any

from stemformer.commands.inspect import is_finetuned
from stemformer.options import ReportOptions, accepts
from stemformer.reports.finetuning import report_of_run
from stemformer.reports.pretraining import write_report


@accepts(ReportOptions)
def report(options: ReportOptions) -> dict[str, Any]:
    """Write the report of a run again, also while it is running.

    The report of a comparison, a benchmark or a scaling study is not written again; its path is returned.

    Raises:
        DataError: The directory holds no run.
    """
    folder = Path(options.path)
    page = folder / "report.html"
    if page.is_file() and not (folder / "log.jsonl").is_file():
        return {"report": str(page)}
    return {"report": str(report_of_run(folder) if is_finetuned(folder) else write_report(folder))}
