"""Sentences of tagged words: CoNLL, CoNLL-U and records with lists of words; schemes of tags that mark entities."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from stemformer.data.labelled.table import Table, read_table, table_of_stream, usual_name
from stemformer.data.text.files import (
    HUB_PREFIX,
    STANDARD_INPUT,
    find_sources,
    nearest_first,
    read_text,
    split_suffixes,
)
from stemformer.errors import DataError

WORD_COLUMNS = ("tokens", "words", "token", "word", "characters")
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels", "tag", "label", "upos", "ner", "pos")
CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
TAGS_OF_CONLLU = ("upos", "xpos", "feats", "deprel")
_CONLLU_LINE = re.compile(r"\d+([-.]\d+)?(\t[^\t]*){9}")
_CONLLU_NUMBER = re.compile(r"(\d+)(?:-(\d+)|\.\d+)?")
_BLANKS = re.compile(r"[ \t]+")  # other white space is part of words in some corpora
_COMMENT = re.compile(r"#\s*(id\s|[\w.]+\s*=)")
_LANGUAGE = re.compile(r"[a-z]{2,3}:")
_ENTITY_TAG = re.compile(r"([BIESMLU])-(.+)", re.DOTALL)


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence divided into words, each with a tag.

    Args:
        words: As the file has them.
        tags: One a word; None where the file has none.
        place: Where the sentence begins.
        text: The words joined.
        offsets: Where each word begins and ends in `text`.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    place: str
    text: str
    offsets: tuple[tuple[int, int], ...]


def join_tokens(words: Sequence[str], joiners: str | Sequence[str] = " ") -> tuple[str, tuple[tuple[int, int], ...]]:
    """Returns a text made of words, and where each begins and ends in it.

    Args:
        words: The words.
        joiners: What stands between two words; of a sequence, what stands behind each.

    Example:
        >>> join_words(["do", "n't", "!"], ["", " ", ""])
        ("don't !", ((0, 2), (2, 5), (6, 7)))
    """
    behind = [joiners] * len(words) if isinstance(joiners, str) else joiners
    text = ""
    offsets = []
    for number, word in enumerate(words):
        offsets.append((len(text), len(text) + len(word)))
        text += word + (behind[number] if number + 1 < len(words) else "")
    return text, tuple(offsets)


def read_tagged(
    files: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    joiner: str = " ",
    errors: str = "strict",
    needs_tags: bool = True,
    counted: Counter[str],
) -> list[TaggedSentence]:
    """Returns the sentences of tagged files.

    JSON, parquet and hub data sets have a column with a list of words and, if they are tagged, one with a list of tags;
    numbers are read as their digits. Any other file is CoNLL-U where a line has its ten columns; else a word a line, then
    columns divided by tabs or spaces, of which the last is the tag. Blank lines part sentences; `-DOCSTART-` and comments
    are skipped. A language before every word (`en:Paris`) is taken off.

    Args:
        files: Files, folders, patterns, hub data sets.
        column: Which column is the tag: its name, or its number (from 1) in files whose columns have no names. By default
            the last, in CoNLL-U `upos`.
        joiner: What stands between two words of a text, where the file does not say; nothing for Chinese characters.
        errors: "strict", or "replace" to go on where bytes are not UTF-8.
        needs_tags: If not, a `column` that is not there leaves the sentences without tags, and lines that are no columns are
            sentences: lines without tabs that differ in their number of words, or of which none follows another.
        counted: Receives what is passed over.

    Raises:
        DataError: A line with another number of columns than those before it, or a column that is not there.

    Example:
        >>> read_tagged("train.conll", counted=Counter())[0].tags  # doctest: +SKIP
        ('B-PER', 'O', 'O')
    """
    sentences: list[TaggedSentence] = []
    sources = find_sources(files)
    for source in sources:
        if source.startswith(HUB_PREFIX) or split_suffixes(source)[1] in (".json", ".jsonl", ".parquet"):
            sentences.extend(
                _sentences_of_table(read_table([source], errors=errors), column, joiner, needs_tags=needs_tags)
            )
            continue
        text = read_text(source, errors=errors)
        if source == STANDARD_INPUT and text.lstrip().startswith("{"):
            sentences.extend(_sentences_of_table(table_of_stream(text), column, joiner, needs_tags=needs_tags))
            continue
        lines = text.split("\n")
        first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
        if not needs_tags and split_suffixes(source)[1] in (".csv", ".tsv"):
            raise DataError(
                f"{source}: a table, expected a word a line, a sentence a line in a .txt, or JSON lines with 'words'"
            )
        if not needs_tags and _are_sentences(lines):
            sentences.extend(_sentences_of_lines(lines, source))
            continue
        read = _read_conllu if _CONLLU_LINE.fullmatch(first) else _read_conll
        sentences.extend(read(lines, source, column, joiner, counted, needs_tags=needs_tags))
    if not sentences:
        raise DataError(
            f"{', '.join(sources)}: there are no sentences: expected a word a line, with its tag behind a tab or space"
        )
    return sentences


def _are_sentences(lines: Sequence[str]) -> bool:
    """Returns whether lines are sentences, and not words with their tags (see `read_tagged`)."""
    if any("\t" in line for line in lines):
        return False
    widths = {len(line.split()) for line in lines if line.strip()}
    follows = any(a.strip() and b.strip() for a, b in pairwise(lines))
    return len(widths) > 1 or (not follows and widths != {1})


def _sentences_of_lines(lines: Sequence[str], source: str) -> Iterator[TaggedSentence]:
    """Yields a sentence for each line of text, its words divided at white space."""
    for number, line in enumerate(lines, 1):
        if words := tuple(line.split()):
            text, offsets = join_tokens(words)
            yield TaggedSentence(words, None, f"{source}:{number}", text, offsets)


def _sentences_of_table(table: Table, column: str | None, joiner: str, *, needs_tags: bool) -> Iterator[TaggedSentence]:
    """Yields the sentences of records with lists of words and tags."""
    names = {usual_name(name): name for name in reversed(table.columns)}
    words_column = next((names[name] for name in WORD_COLUMNS if name in names), None)
    if words_column is None:
        raise DataError(f"{table.source}: no column of words; there are {', '.join(table.columns)}: name one 'tokens'")
    if column is not None and column not in table.columns:
        if needs_tags:
            raise _no_column(table.source, column, table.columns)
        names, column = {}, None
    tags_column = column or next((names[name] for name in TAG_COLUMNS if name in names), None)
    for row, place in zip(table.rows, table.places, strict=True):
        words, tags = row[words_column], row[tags_column] if tags_column else None
        for name, value in ((words_column, words), (tags_column, tags)):
            if not isinstance(value, list) and not (value is None and name == tags_column):
                raise DataError(
                    f"{place}: column '{name}' holds {type(value).__name__}, expected a list, an item a word"
                )
        if tags is not None and len(tags) != len(words):
            raise DataError(f"{place}: {len(words)} words, but {len(tags)} tags: expected as many")
        if words:
            words = tuple(map(str, words))
            is_tagged = tags is not None and None not in tags
            text, offsets = join_tokens(words, joiner)
            yield TaggedSentence(words, tuple(map(str, tags or ())) if is_tagged else None, place, text, offsets)


def _blocks(lines: Sequence[str], is_skipped: Callable[[str, bool], bool]) -> Iterator[list[int]]:
    """Yields the numbers of the lines of each sentence, less those that are skipped, given whether one would be its first."""
    block: list[int] = []
    for number, line in enumerate(lines):
        if not line.strip(" \t"):
            if block:
                yield block
            block = []
        elif not is_skipped(line, not block):
            block.append(number)
    if block:
        yield block


def _read_conll(
    lines: Sequence[str], source: str, column: str | None, joiner: str, counted: Counter[str], *, needs_tags: bool
) -> Iterator[TaggedSentence]:
    """Yields the sentences of a file with a word a line; a sentence whose lines hold a word alone has no tags."""
    separator: Callable[[str], list[str]]
    has_tabs = any("\t" in line.strip(" \t") for line in lines)
    separator = (lambda line: line.split("\t")) if has_tabs else (lambda line: _BLANKS.split(line.strip(" \t")))

    counted.update(["-DOCSTART- lines"] * sum(line.startswith("-DOCSTART-") for line in lines))
    blank_marks = ["" if line.startswith("-DOCSTART-") else line for line in lines]
    blocks = list(
        _blocks(
            blank_marks,
            lambda line, is_first: bool(is_first and _COMMENT.match(line) and not (has_tabs and "\t" in line)),
        )
    )
    prefixes = {match and match[0] for block in blocks for i in block for match in [_LANGUAGE.match(lines[i])]}
    prefix = next(iter(prefixes)) if len(prefixes) == 1 else None
    num_columns = max((len(separator(lines[block[0]])) for block in blocks), default=1)
    at = _column_number(column, num_columns, source, needs_tags=needs_tags)
    for block in blocks:
        rows = [separator(lines[i].removeprefix(prefix or "")) for i in block]
        expected = len(rows[0]) if len(rows[0]) == 1 else num_columns
        for i, row in zip(block, rows, strict=True):
            if len(row) != expected or not row[0]:
                raise DataError(
                    f"{source}:{i + 1}: {len(row)} columns ({lines[i]!r}), expected {expected}, the first of them a word:"
                    f" {'divide them by one tab' if has_tabs else 'repair the line'}"
                )
        words = tuple(row[0] for row in rows)
        text, offsets = join_tokens(words, joiner)
        tags = tuple(row[at].strip() for row in rows) if at is not None and expected > 1 else None
        yield TaggedSentence(words, tags, f"{source}:{block[0] + 1}", text, offsets)


def _column_number(column: str | None, num_columns: int, source: str, *, needs_tags: bool) -> int | None:
    """Returns at which column the tags of a file without names are; None where it is not there and need not be."""
    if column is None:
        return num_columns - 1
    if not column.isdecimal() or not 2 <= int(column) <= num_columns:
        if not needs_tags:
            return None
        raise DataError(
            f"{source}: its columns have no names, and '{column}' is not a number from 2 to {num_columns}:"
            " give the number of the column with the tags"
        )
    return int(column) - 1


def _read_conllu(
    lines: Sequence[str], source: str, column: str | None, joiner: str, counted: Counter[str], *, needs_tags: bool
) -> Iterator[TaggedSentence]:
    """Yields the sentences of CoNLL-U: its words, not its ranges of words (1-2) and empty nodes (1.1)."""
    name = (column or "upos").lower()
    if name not in TAGS_OF_CONLLU and needs_tags:
        raise _no_column(source, name, TAGS_OF_CONLLU)
    at = CONLLU_COLUMNS.index(name) if name in TAGS_OF_CONLLU else None
    for block in _blocks(lines, lambda line, _: line.startswith("#")):
        words: list[str] = []
        tags: list[str] = []
        behind: list[str] = []
        surface, end = "", 0
        for i in block:
            row = lines[i].split("\t")
            number = _CONLLU_NUMBER.fullmatch(row[0])
            if len(row) != len(CONLLU_COLUMNS) or number is None:
                raise DataError(
                    f"{source}:{i + 1}: {len(row)} columns, the first {row[0]!r}: expected the 10 of CoNLL-U,"
                    " the first the number of a word"
                )
            space = "" if "SpaceAfter=No" in row[9].split("|") else joiner
            if number[2]:
                counted["ranges of words"] += 1
                surface, end, space_behind, first = row[1], int(number[2]), space, len(words)
            elif "." in row[0]:
                counted["empty nodes"] += 1
            else:
                words.append(row[1])
                tags.append("_" if at is None else row[at])
                behind.append(space)
                if int(number[1]) == end:
                    if "".join(words[first:]) == surface:
                        behind[first:] = [""] * (len(words) - first)
                    behind[-1] = space_behind
        if words:
            is_tagged = name == "feats" or any(tag != "_" for tag in tags)
            text, offsets = join_tokens(words, behind)
            yield TaggedSentence(
                tuple(words), tuple(tags) if is_tagged else None, f"{source}:{block[0] + 1}", text, offsets
            )


def _no_column(source: str, column: str, names: Sequence[str]) -> DataError:
    there = ", ".join(repr(name) for name in nearest_first(column, names))
    return DataError(
        f"{source}: no column '{column}' for tags; there are (nearest first): {there}: name it with --label"
    )


def repair_bio(tags: Sequence[str]) -> tuple[list[str], int]:
    """Returns tags in which every entity begins with a tag that begins one, and how many had to be changed.

    An entity begins with `B-` (or `S-`, if it is one word); a tag that continues one (`I-X`, `M-X`, `E-X`) behind `O`,
    behind another type or behind the end of an entity is broken.

    Example:
        >>> repair_bio(["I-PER", "I-PER", "I-LOC", "O"])
        (['B-PER', 'I-PER', 'B-LOC', 'O'], 2)
    """
    repaired: list[str] = []
    num_broken = 0
    inside = ""
    for tag in tags:
        found = _ENTITY_TAG.fullmatch(tag)
        mark, kind = found.groups() if found else ("O", "")
        if mark in "IMEL" and kind != inside:
            num_broken += 1
            tag = f"{'B' if mark in 'IM' else 'S' if mark == 'E' else 'U'}-{kind}"
        inside = kind if mark in "BIM" else ""
        repaired.append(tag)
    return repaired, num_broken


_AS_BIOES = {"U": "S", "L": "E", "M": "I"}


def as_bioes(tags: Sequence[str]) -> list[str]:
    """Returns tags of BILOU and BMES with the marks of BIOES, which those who count entities know.

    Example:
        >>> as_bioes(["U-PER", "O", "B-LOC", "L-LOC"])
        ['S-PER', 'O', 'B-LOC', 'E-LOC']
    """
    return [f"{_AS_BIOES.get(tag[:1], tag[:1])}{tag[1:]}" if tag[1:2] == "-" else tag for tag in tags]


def is_bio(tags: Iterable[str]) -> bool:
    """Returns whether tags mark entities: all are `O`, or a letter of a scheme with a type behind it (`B-PER`).

    Example:
        >>> is_bio({"O", "B-PER", "I-PER"}), is_bio({"NOUN", "VERB", "O"}), is_bio({"O"})
        (True, False, False)
    """
    return find_scheme(tags) is not None


def find_scheme(tags: Iterable[str]) -> str | None:
    """Returns the scheme by which tags mark entities: "BIO", "IOB1", "BIOES", "BMES" or "BILOU"; None if they do not.

    Args:
        tags: Those of all sentences in order, or the set of them, which cannot tell IOB1 from BIO.

    Example:
        >>> find_scheme(["I-PER", "O", "I-PER", "I-PER", "B-PER"]), find_scheme(["B-PER", "E-PER", "O", "S-LOC"])
        ('IOB1', 'BIOES')
    """
    marks: set[str] = set()
    has_late_start = has_early_start = False
    previous = ""
    for tag in tags:
        found = _ENTITY_TAG.fullmatch(tag)
        if not found and tag != "O":
            return None
        mark, kind = found.groups() if found else ("O", "")
        marks.add(mark)
        has_early_start |= mark == "B" and kind != previous
        has_late_start |= mark == "I" and kind != previous
        previous = kind
    if marks <= {"O"}:
        return None
    if marks & {"L", "U"}:
        return "BILOU"
    if "M" in marks:
        return "BMES"
    if marks & {"E", "S"}:
        return "BIOES"
    return "IOB1" if has_late_start and not has_early_start else "BIO"
