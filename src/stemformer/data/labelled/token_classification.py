"""Tagged sentences (CoNLL, CoNLL-U, records with lists of words) and entity schemes."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stemformer.data.labelled.table import Table, parse_cell, read_table
from stemformer.data.text.delimited import usual_name
from stemformer.data.text.files import HUB_PREFIX, STANDARD_INPUT, Inputs, find_sources, read_text, split_suffixes
from stemformer.data.text.readers import starts_as_json, unknown_column
from stemformer.errors import DataError
from stemformer.progress import format_count

WORD_COLUMNS = ("tokens", "words", "token", "word", "characters")
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels", "tag", "label", "upos", "ner", "pos")
CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
CONLLU_TAG_COLUMNS = ("upos", "xpos", "feats", "deprel")
CONLLU_LINE = re.compile(r"\d+([-.]\d+)?(\t[^\t]*){9}")
_CONLLU_NUMBER = re.compile(r"(\d+)(?:-(\d+)|\.\d+)?")
# Other white space is part of words in some corpora.
_BLANKS = re.compile(r"[ \t]+")
_COMMENT = re.compile(r"#\s*(id\s|[\w.]+\s*=)")
_LANGUAGE = re.compile(r"[a-z]{2,3}:")
_ENTITY_TAG = re.compile(r"([BIESMLU])-(.+)", re.DOTALL)
# What starts an entity instead of what continues it.
_STARTS = {"I": "B", "M": "B", "E": "S", "L": "U"}
_AS_BIOES = {"U-": "S-", "L-": "E-", "M-": "I-"}


@dataclass(frozen=True)
class TaggedSentence:
    """Sentence of words with a tag each (or no tags), and each word's start and end in the text."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    location: str
    text: str
    offsets: tuple[tuple[int, int], ...]


def join_tokens(words: Sequence[str], joiners: str | Sequence[str] = " ") -> tuple[str, tuple[tuple[int, int], ...]]:
    """Join words; return the text and the start and end of each word in it.

    `joiners` is the text between all words, or one string after each word; the last one is ignored.
    """
    separators = [joiners] * len(words) if isinstance(joiners, str) else joiners
    text, offsets = "", []
    for word, separator in zip(words, ["", *separators][: len(words)], strict=True):
        text += separator + word
        offsets.append((len(text) - len(word), len(text)))
    return text, tuple(offsets)


def read_tagged(
    files: Inputs, *, column: str | None = None, needs_tags: bool = True, counts: Counter[str]
) -> list[TaggedSentence]:
    """Read tagged sentences.

    JSON, parquet and hub data sets have a column with a list of words and, if tagged, one with a
    list of tags (numbers become strings), as have tables with lists in JSON or Python. Other files
    are CoNLL-U if a line has its ten columns, else CoNLL: one word per line, columns separated by
    tabs or spaces, the last one the tag. Blank lines separate sentences; `-DOCSTART-` and comments
    are skipped. A language prefix of every word (`en:Paris`) is removed.

    Args:
        column: Name of the tag column, in CoNLL its number (from 1). Default: the last, or `upos`.
        needs_tags: If not, a missing `column` means no tags, and lines may be sentences.
        counts: Receives what is skipped.
    """
    sources = find_sources(files, counts)
    sentences = [s for source in sources for s in _read_source(source, column, counts, needs_tags=needs_tags)]
    if not sentences:
        expected = "Expected one word per line, followed by a tab or space and its tag."
        raise DataError(f"{', '.join(sources)}: No sentences. {expected}")
    return sentences


def _read_source(
    source: str, column: str | None, counts: Counter[str], *, needs_tags: bool
) -> Iterable[TaggedSentence]:
    kind = split_suffixes(source)[1]
    if source.startswith(HUB_PREFIX) or kind in (".json", ".jsonl", ".parquet"):
        return _read_records(read_table([source], counts=counts), column, counts, needs_tags=needs_tags)
    text = read_text(source)
    if source == STANDARD_INPUT and starts_as_json(text):
        return _read_records(read_table([source], counts=counts), column, counts, needs_tags=needs_tags)
    lines = text.split("\n")
    if kind in (".csv", ".tsv") and _holds_lists(lines):
        return _read_records(read_table([source], counts=counts), column, counts, needs_tags=needs_tags)
    if not needs_tags and kind in (".csv", ".tsv"):
        expected = "one word per line, one sentence per line in a .txt file, or JSON lines with 'words'"
        raise DataError(f"{source}: Found a table. Expected {expected}.")
    if not needs_tags and _are_sentences(lines):
        numbered = [(number, line.split()) for number, line in enumerate(lines, 1)]
        sentences = [_make_sentence(words, None, f"{source}:{number}") for number, words in numbered if words]
        if num_blank := len(text.rstrip().split("\n")) - len(sentences):
            counts["blank lines (skipped)"] += num_blank
        return sentences
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    read = _read_conllu if CONLLU_LINE.fullmatch(first) else _read_conll
    return read(lines, source, column, counts, needs_tags=needs_tags)


def _holds_lists(lines: Sequence[str]) -> bool:
    """Return whether a table has a header with a column of words, and lists below it."""
    header = [usual_name(field.strip('"')) for field in re.split("[,;\t]", lines[0])]
    return not set(header).isdisjoint(WORD_COLUMNS) and "[" in next(filter(str.strip, lines[1:]), "")


def _are_sentences(lines: Sequence[str]) -> bool:
    """Return whether lines are sentences: without tabs, of unequal lengths or all apart."""
    widths = {len(line.split()) for line in lines if line.strip()}
    follows = any(a.strip() and b.strip() for a, b in pairwise(lines))
    has_tabs = any("\t" in line for line in lines)
    return not has_tabs and (len(widths) > 1 or (not follows and widths != {1}))


def _make_sentence(
    words: Sequence[str], tags: Sequence[str] | None, location: str, joiners: str | Sequence[str] = " "
) -> TaggedSentence:
    text, offsets = join_tokens(words, joiners)
    return TaggedSentence(tuple(words), None if tags is None else tuple(tags), location, text, offsets)


def _read_records(
    table: Table, column: str | None, counts: Counter[str], *, needs_tags: bool
) -> Iterator[TaggedSentence]:
    names = {usual_name(name): name for name in reversed(table.columns)}
    words_column = next((names[name] for name in WORD_COLUMNS if name in names), None)
    if words_column is None:
        columns = ", ".join(table.columns)
        raise DataError(f"{table.source}: No column of words. Columns: {columns}. Name the column 'tokens'.")
    if column is not None and column not in table.columns:
        if needs_tags:
            raise unknown_column(table.source, column, table.columns, option="--label-column")
        names, column = {}, None
    tags_column = column or next((names[name] for name in TAG_COLUMNS if name in names), None)
    for row, location in zip(table.rows, table.locations, strict=True):
        words, tags = parse_cell(row[words_column]), parse_cell(row[tags_column]) if tags_column else None
        for name, value in ((words_column, words), (tags_column, tags)):
            if not isinstance(value, list) and not (value is None and name == tags_column):
                found = type(value).__name__
                raise DataError(f"{location}: Column '{name}' holds {found}, expected a list with an item per word.")
        if tags is not None and len(tags) != len(words):
            found = f"Found {format_count(len(words), 'word')}, but {format_count(len(tags), 'tag')}"
            raise DataError(f"{location}: {found}. Expected one tag per word.")
        if not words:
            counts["sentences without words (skipped)"] += 1
            continue
        tags = None if tags is None or None in tags else [*map(str, tags)]
        yield _make_sentence([*map(str, words)], tags, location)


def _blocks(lines: Sequence[str], is_skipped: Callable[[str, bool], bool]) -> Iterator[list[int]]:
    """Yield the line numbers of each sentence; `is_skipped(line, is_first)` filters lines."""
    block: list[int] = []
    for number, line in enumerate([*lines, ""]):
        if line.strip(" \t"):
            if not is_skipped(line, not block):
                block.append(number)
        elif block:
            yield block
            block = []


def _read_conll(
    lines: Sequence[str], source: str, column: str | None, counts: Counter[str], *, needs_tags: bool
) -> Iterator[TaggedSentence]:
    """Yield the sentences of CoNLL; a sentence whose lines hold only a word has no tags."""
    has_tabs = any("\t" in line.strip(" \t") for line in lines)

    def split(line: str) -> list[str]:
        return line.split("\t") if has_tabs else _BLANKS.split(line.strip(" \t"))

    def is_comment(line: str, is_first: bool) -> bool:
        return bool(is_first and _COMMENT.match(line) and not (has_tabs and "\t" in line))

    # Document marks separate sentences.
    if num_marks := sum(line.startswith("-DOCSTART-") for line in lines):
        counts["-DOCSTART- lines"] += num_marks
    blocks = list(_blocks(["" if line.startswith("-DOCSTART-") else line for line in lines], is_comment))

    prefixes = {match and match[0] for block in blocks for i in block for match in [_LANGUAGE.match(lines[i])]}
    prefix = (prefixes.pop() if len(prefixes) == 1 else None) or ""
    num_columns = max((len(split(lines[block[0]])) for block in blocks), default=1)
    tag_index = None
    if column is None or (column.isdecimal() and 2 <= int(column) <= num_columns):
        tag_index = int(column or num_columns) - 1
    elif needs_tags:
        what = f"The columns have no names, and '{column}' is not a number from 2 to {num_columns}"
        raise DataError(f"{source}: {what}. Pass the number of the column with the tags.")
    for block in blocks:
        rows = [split(lines[i].removeprefix(prefix)) for i in block]
        expected = len(rows[0]) if len(rows[0]) == 1 else num_columns
        for i, row in zip(block, rows, strict=True):
            if len(row) != expected or not row[0]:
                found = f"{format_count(len(row), 'column')} ({lines[i]!r})"
                what = f"Found {found}, expected {expected}, beginning with a word"
                advice = "Separate them by one tab." if has_tabs else "Repair the line."
                raise DataError(f"{source}:{i + 1}: {what}. {advice}")
        tags = [row[tag_index].strip() for row in rows] if tag_index is not None and expected > 1 else None
        yield _make_sentence([row[0] for row in rows], tags, f"{source}:{block[0] + 1}")


def _read_conllu(
    lines: Sequence[str], source: str, column: str | None, counts: Counter[str], *, needs_tags: bool
) -> Iterator[TaggedSentence]:
    """Yield the sentences of CoNLL-U without multiword ranges (1-2) and empty nodes (1.1)."""
    name = (column or "upos").lower()
    if name not in CONLLU_TAG_COLUMNS and needs_tags:
        raise unknown_column(source, name, CONLLU_TAG_COLUMNS, option="--label-column")
    tag_index = CONLLU_COLUMNS.index(name) if name in CONLLU_TAG_COLUMNS else None
    for block in _blocks(lines, lambda line, _: line.startswith("#")):
        words: list[str] = []
        tags: list[str] = []
        joiners: list[str] = []
        surface, range_end = "", 0
        for i in block:
            row = lines[i].split("\t")
            number = _CONLLU_NUMBER.fullmatch(row[0])
            if len(row) != len(CONLLU_COLUMNS) or number is None:
                what = f"Found {format_count(len(row), 'column')}, the first {row[0]!r}"
                raise DataError(f"{source}:{i + 1}: {what}. Expected the 10 of CoNLL-U, the first a word's number.")
            space = "" if "SpaceAfter=No" in row[9].split("|") else " "
            if number[2]:
                counts["ranges of words"] += 1
                surface, range_end, range_space, range_start = row[1], int(number[2]), space, len(words)
            elif "." in row[0]:
                counts["empty nodes"] += 1
            else:
                words.append(row[1])
                tags.append("_" if tag_index is None else row[tag_index])
                joiners.append(space)
                if int(number[1]) == range_end:
                    # Join the words of a range without spaces if they spell its surface form.
                    if "".join(words[range_start:]) == surface:
                        joiners[range_start:] = [""] * (len(words) - range_start)
                    joiners[-1] = range_space
        if words:
            is_tagged = name == "feats" or any(tag != "_" for tag in tags)
            yield _make_sentence(words, tags if is_tagged else None, f"{source}:{block[0] + 1}", joiners)


def repair_entity_tags(tags: Sequence[str]) -> tuple[list[str], int]:
    """Begin an entity where a tag only continues one; return tags and number of changes."""
    repaired: list[str] = []
    inside = ""
    for tag in tags:
        found = _ENTITY_TAG.fullmatch(tag)
        mark, kind = found.groups() if found else ("O", "")
        is_broken = mark in _STARTS and kind != inside
        repaired.append(f"{_STARTS[mark]}-{kind}" if is_broken else tag)
        inside = kind if mark in "BIM" else ""
    return repaired, sum(old != new for old, new in zip(tags, repaired, strict=True))


def as_bioes(tags: Sequence[str]) -> list[str]:
    """Convert BILOU and BMES tags to BIOES, and tags that mark no entity to O."""
    return [_AS_BIOES.get(tag[:2], tag[:2]) + tag[2:] if _ENTITY_TAG.fullmatch(tag) else "O" for tag in tags]


def has_entity_tags(tags: Iterable[str]) -> bool:
    """Return whether tags mark entities: `O`, or a letter of a scheme and a type (`B-PER`)."""
    return find_scheme(tags) is not None


def find_scheme(tags: Iterable[str]) -> str | None:
    """Return the entity scheme of tags, "BIO", "IOB1", "BIOES", "BMES" or "BILOU", or None.

    Only the tags of all sentences in order tell IOB1 from BIO; of their set it is BIO.
    """
    # Marks with whether they follow a word of another type.
    marks: set[tuple[str, bool]] = set()
    previous = ""
    for tag in tags:
        found = _ENTITY_TAG.fullmatch(tag)
        if not found and tag != "O":
            return None
        mark, kind = found.groups() if found else ("O", "")
        marks.add((mark, kind != previous))
        previous = kind
    letters = {mark for mark, _ in marks}
    for scheme, own in (("BILOU", "LU"), ("BMES", "M"), ("BIOES", "ES")):
        if not letters.isdisjoint(own):
            return scheme
    if letters <= {"O"}:
        return None
    return "IOB1" if ("I", True) in marks and ("B", True) not in marks else "BIO"
