"""`report.html` of a pre-training run: one file that needs nothing else, made from `config.toml` and `log.jsonl` alone."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from stemformer.io import write_file


def write_page(folder: Path, template: str, **shown: Any) -> Path:
    """Writes `report.html` into a folder, whole or not at all, and returns where it is.

    Args:
        folder: Where it goes.
        template: Name of a file beside this one.
        shown: What stands in it; all text is escaped.
    """
    import jinja2

    here = files("stemformer") / "reports" / "templates"
    loader = jinja2.FunctionLoader(lambda name: (here / name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = folder / "report.html"
    write_file(page, [environment.get_template(template).render(shown).encode()])
    return page
