"""Folders with a text in each file, and the name of the folder as its label, as IMDB is published."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stemformer.data.labelled.fasta import FASTA_SUFFIXES
from stemformer.data.text.files import files_below, read_text, split_suffixes
from stemformer.errors import DataError

UNLABELED_FOLDERS = ("unsup", "unsupervised", "unlabeled", "unlabelled")
# Suffixes of CoNLL, which no table is read from.
TAGGED_SUFFIXES = (".conll", ".conllu", ".conllup", ".iob", ".iob2", ".bio", ".bioes")


def find_class_folders(folders: Iterable[Path], counts: Counter[str]) -> list[Path]:
    """Return the innermost folders with text files, if there are at least two and nothing else is in them.

    Raises:
        DataError: Folders of one name lie in several folders: training and test sets must not be mixed.
    """
    found: set[Path] = set()
    num_texts = num_outside = 0
    for folder in folders:
        files = files_below(folder, Counter())
        outer = {parent for file in files for parent in file.parent.parents}
        texts = [file for file in files if file.parent not in outer]
        if not all(map(_is_plain_text, texts)):
            return []
        found |= {file.parent for file in texts}
        num_texts, num_outside = num_texts + len(texts), num_outside + len(files) - len(texts)
    if len(found) < 2:
        return []
    repeated = [path for path in sorted(found) if sum(path.name == other.name for other in found) > 1]
    if repeated:
        shown = ", ".join(repr(str(path)) for path in repeated[:4])
        raise DataError(
            f"Class folders of one name lie in several folders ({shown}), as in a training and a test set. "
            "Pass the folder of one set."
        )
    counts["files that are one text each, labelled by their folder"] += num_texts
    counts.update({"files outside the folders of the classes (skipped)": num_outside} if num_outside else {})
    return sorted(found)


def read_class_folder(folder: Path, counts: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield locations and rows with `file`, `text` and `label`; the label of unlabelled texts is None."""
    label = None if folder.name in UNLABELED_FOLDERS else folder.name
    for file in files_below(folder, counts):
        yield str(file), {"file": str(file), "text": read_text(str(file), allow_blank=True), "label": label}


def _is_plain_text(file: Path) -> bool:
    stem, kind, _ = split_suffixes(file.name)
    return kind == "" and not stem.lower().endswith((*FASTA_SUFFIXES, *TAGGED_SUFFIXES, ".data"))
