"""HTML reports: one self-contained page of tiles, plots, tables and notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from stemformer.io import write_file


class Tile(NamedTuple):
    """A number at the top of a page."""

    title: str
    value: str
    remark: str = ""


class Plot(NamedTuple):
    """A plot as an SVG element."""

    title: str
    svg: str


class Cell(NamedTuple):
    """Table cell with a second, smaller text.

    Attributes:
        style: CSS class: `good` (green), `strong` (bold), or none.
    """

    text: str
    detail: str = ""
    style: str = ""


@dataclass(frozen=True)
class ReportTable:
    """Table of a page.

    Attributes:
        rows: All with the same keys. Values are text, integers or `Cell`.
        headings: Heading of a column; default: its key.
        caption: Small text below the table.
        num_text_columns: Columns on the left that are not aligned like numbers.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    headings: Mapping[str, str] = field(default_factory=dict)
    caption: str = ""
    num_text_columns: int = 0


class ReportExample(NamedTuple):
    """Collapsed preformatted text with a highlighted end."""

    title: str
    text: str
    highlighted: str = ""


@dataclass(frozen=True)
class Report:
    """One HTML page, which loads nothing and runs no scripts. All text is escaped.

    Attributes:
        title: Name of the run.
        kind: What the page reports, for the browser's title.
        lead: First paragraph.
        summary: Sentences above the plots.
        plots_per_row: 1 for wide plots; None for as many as fit.
        notes: Lines by heading; headings without lines are left out.
        config: TOML text.
        template: `page.html` or a template that extends it.
        content: Further variables of the template.
    """

    title: str
    kind: str
    lead: str
    tiles: Sequence[Tile] = ()
    summary: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    plots_per_row: int | None = None
    tables: Sequence[ReportTable] = ()
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    examples: Sequence[ReportExample] = ()
    config: str = ""
    template: str = "page.html"
    content: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write `report.html` atomically and return its path."""
        import jinja2

        templates = files("stemformer") / "reports" / "templates"
        loader = jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8"))
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        page = environment.get_template(self.template).render(report=self, **self.content)
        path = folder / "report.html"
        write_file(path, [page.encode()])
        return path


def run_name(folder: Path) -> str:
    """Return the last two parts of the path of a run directory."""
    return "/".join(folder.resolve().parts[-2:])
