"""FASTA files."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from stemformer.data.labelled.symbol_map import ANY_SYMBOL
from stemformer.errors import DataError

FASTA_SUFFIXES = (".fasta", ".fa", ".fna", ".faa", ".ffn")
# Letters for uncertain bases of DNA (N, R, Y ...) are rarer.
MIN_SYMBOL_SHARE = 0.001
_LABEL = re.compile(r"(?:^|[\s|;])label=([^\s|;]+)", re.IGNORECASE)


def read_fasta(text: str, source: str) -> list[tuple[str, dict[str, Any]]]:
    """Return locations and rows of FASTA: `name`, `sequence` and, if present, `label`.

    The name is the first word of a header, the label follows `label=`; if no header has that and
    none has several bars, it follows the bar, as in `>seq7|1`. Lines from `;` are comments.
    """
    records: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith(">"):
            records.append((number, line[1:].strip(), []))
        elif line.strip() and not line.startswith(";"):
            if not records:
                raise DataError(f"{source}:{number}: Found a sequence before any header. Expected '>' and a name.")
            records[-1][2].append("".join(line.split()))
    if empty := next((number for number, _, parts in records if not parts), 0):
        raise DataError(f"{source}:{empty}: Found a header without a sequence. Add its lines or remove the header.")
    has_named = any(_LABEL.search(header) for _, header, _ in records)
    bars = {header.count("|") for _, header, _ in records}
    has_bars = not has_named and bars in ({1}, {0, 1})
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, header, parts in records:
        name, _, label = header.partition("|") if has_bars else ((header.split() or [""])[0], "", "")
        if found := _LABEL.search(header):
            label = found[1]
        row = {"name": name.strip(), "sequence": "".join(parts), "label": label.strip()}
        rows.append((f"{source}:{number}", row))
    if any(row["label"] for _, row in rows):
        return rows
    return [(location, {"name": row["name"], "sequence": row["sequence"]}) for location, row in rows]


def find_alphabet(texts: Iterable[str]) -> str:
    """Return the sorted symbols that make up at least 0.1% of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update("".join(text.split()))
    smallest = MIN_SYMBOL_SHARE * counts.total()
    return "".join(sorted(s for s, number in counts.items() if number >= smallest and s != ANY_SYMBOL))
