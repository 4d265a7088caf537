"""HTML reports: one self-contained page of tiles, plots, tables and notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from stemformer.io import write_file


def metric_title(name: str) -> str:
    """Return the name of a metric as people write it."""
    names = {"f1": "F1", "bleu": "BLEU", "gleu": "GLEU", "chrf": "chrF", "sari": "SARI", "rouge": "ROUGE-"}
    title = name.replace("_", " ")
    for plain, written in names.items():
        title = title.replace(plain, written)
    return title


class Tile(NamedTuple):
    """Number at the top of a page."""

    title: str
    value: str
    remark: str = ""


class Cell(NamedTuple):
    """Table cell with a second, smaller text; `style` is `good` (green), `strong` (bold), or none."""

    text: str
    detail: str = ""
    style: str = ""


@dataclass(frozen=True)
class ReportTable:
    """Table of rows with the same keys; values are text, integers or `Cell`."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    # Headings of the columns whose key is not shown as it is.
    headings: Mapping[str, str] = field(default_factory=dict)
    caption: str = ""
    # Columns on the left that are not aligned like numbers.
    num_text_columns: int = 0


@dataclass(frozen=True)
class Report:
    """One HTML page, which loads nothing and runs no scripts. All text is escaped.

    Attributes:
        kind: What the page reports, for the browser's title.
        title: Name of the run; default: the last two parts of its path.
        plots: SVG elements by title, below the sentences of `summary`.
        plots_per_row: 1 for wide plots; None for as many as fit.
        notes: Lines by heading; headings without lines are left out.
        examples: Collapsed texts: title, preformatted text, and its highlighted end.
        config: TOML text; None for `config.toml` of the directory.
        template: `page.html` or a template that extends it, with the further variables `content`.
    """

    kind: str
    lead: str
    title: str = ""
    tiles: Sequence[Tile] = ()
    summary: Sequence[str] = ()
    plots: Mapping[str, str] = field(default_factory=dict)
    plots_per_row: int | None = None
    tables: Sequence[ReportTable] = ()
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    examples: Sequence[tuple[str, str, str]] = ()
    config: str | None = None
    template: str = "page.html"
    content: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write `report.html` atomically and return its path."""
        import jinja2

        templates = files("stemformer") / "reports" / "templates"
        loader = jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8"))
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        title = self.title or "/".join(folder.resolve().parts[-2:])
        config = (folder / "config.toml").read_text(encoding="utf-8") if self.config is None else self.config
        page = environment.get_template(self.template).render(report=self, title=title, config=config, **self.content)
        path = folder / "report.html"
        write_file(path, [page.encode()])
        return path
