"""Tables of labelled data: formats, headers, quotes, and errors."""

import bz2
import gzip
import io
import json
import lzma
import sys
from collections import Counter
from pathlib import Path

import pytest

from stemformer.data.labelled.table import Table, read_table
from stemformer.errors import DataError


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def values(table: Table) -> list[tuple[object, ...]]:
    return [tuple(row[name] for name in table.columns) for row in table.rows]


def parquet_of(columns: dict[str, list[object]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


# formats


@pytest.mark.parametrize(
    ("name", "data", "columns", "rows"),
    [
        ("a.csv", 'text,label\n"one, ""1""\ntwo",x\n\nb,y\n', ("text", "label"), [('one, "1"\ntwo', "x"), ("b", "y")]),
        ("a.tsv", "text\tlabel\none\tx\n", ("text", "label"), [("one", "x")]),
        ("a.jsonl", '{"text": "one", "n": 1}\n{"text": "two"}\n', ("text", "n"), [("one", 1), ("two", None)]),
        ("a.json", '[{"text": "one"},\n {"text": "two"}]', ("text",), [("one",), ("two",)]),
        ("a.json", '{"version": 1,\n "data": [{"text": "one"}]}', ("text",), [("one",)]),
        ("a.json", '{"text": "one"}\n{"text": "two"}\n', ("text",), [("one",), ("two",)]),
        ("a.parquet", parquet_of({"text": ["one"], "tags": [["a", "b"]]}), ("text", "tags"), [("one", ["a", "b"])]),
        ("a.fa", ">s1|yes\nAC\nGT\n>s2|no\nTT\n", ("name", "sequence", "label"), [("s1", "ACGT", "yes"), ("s2", "TT", "no")]),
        ("a.txt", "one\n\ntwo\t2\n", ("text",), [("one",), ("",), ("two\t2",)]),
        # A text may hold tabs.
        ("a.txt", "one\t1\n\ntwo\t2\n", ("text",), [("one\t1",), ("",), ("two\t2",)]),
        ("a", "text\tlabel\ntwo\t2\n", ("text",), [("text\tlabel",), ("two\t2",)]),
        ("a.tab", "one\t1\n\ntwo\t2\n", ("column1", "column2"), [("one", "1"), ("two", "2")]),
        ("a.data", "one, two\nthree\n", ("text",), [("one, two",), ("three",)]),
        ("a.data", "+,\tac\n-,\tca\n", ("column1", "column2"), [("+", "\tac"), ("-", "\tca")]),
    ],
)  # fmt: skip
def test_each_format_is_read(tmp_path: Path, name: str, data: bytes | str, columns: object, rows: object) -> None:
    table = read_table(write(tmp_path / name, data))
    assert (table.columns, values(table)) == (columns, rows)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_each_format_may_be_compressed(tmp_path: Path, name: str, suffix: str, compress: object) -> None:
    data = {"a.csv": b"text\none\n", "a.parquet": parquet_of({"text": ["one"]}), "a.jsonl": b'{"text": "one"}'}[name]
    assert values(read_table(write(tmp_path / f"{name}{suffix}", compress(data)))) == [("one",)]  # type: ignore[operator]


def test_hub_data_sets_are_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "test.jsonl", '{"text": "one", "label": 1}\n')
    write(tmp_path / "set" / "train.jsonl", '{"text": "two", "label": 0}\n')
    assert values(read_table(f"hub:{tmp_path / 'set'}:test")) == [("one", 1)]


@pytest.mark.parametrize(
    ("data", "columns", "rows"),
    [
        ("one\ntwo\t2\n", ("text",), [("one",), ("two\t2",)]),
        ("one\t1\ntwo\t2\n", ("text",), [("one\t1",), ("two\t2",)]),
        ("{one}\ntwo\n", ("text",), [("{one}",), ("two",)]),
        ('{"a": 1}\n{"a": 2}\n', ("a",), [(1,), (2,)]),
        ('[{"a": 1},\n{"a": 2}]\n', ("a",), [(1,), (2,)]),
    ],
)
def test_standard_input_is_json_lines_or_texts(
    monkeypatch: pytest.MonkeyPatch, data: str, columns: object, rows: object
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
    table = read_table("-")
    assert (table.columns, values(table), table.locations[0]) == (columns, rows, "-:1")


def test_locations_are_the_first_lines_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",x\nthree,y\n')
    assert read_table(path).locations == [f"{path}:2", f"{path}:4"]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    first = write(tmp_path / "1.csv", "text,label\none,x\n")
    second = write(tmp_path / "2.jsonl", '{"label": "y", "text": "two"}')
    assert values(read_table([first, second])) == [("one", "x"), ("two", "y")]


# folders


def texts_in(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, f"The text\nof {name}\n")
    return folder


def test_folders_of_texts_are_classes(tmp_path: Path) -> None:
    folder, counts = texts_in(tmp_path / "train", "neg/1.txt pos/1.txt pos/2.txt unsup/1.txt urls.txt"), Counter[str]()
    table = read_table(folder, counts=counts)
    assert table.columns == ("file", "text", "label")
    labels = {str(Path(row["file"]).relative_to(folder)): row["label"] for row in table.rows}
    assert labels == {"neg/1.txt": "neg", "pos/1.txt": "pos", "pos/2.txt": "pos", "unsup/1.txt": None}
    assert table.rows[0]["text"] == "The text\nof neg/1.txt\n"
    expected = {"files that are one text each, labelled by their folder": 4}
    assert counts == expected | {"files outside the folders of the classes (skipped)": 1}


def test_folders_of_classes_may_be_named(tmp_path: Path) -> None:
    texts_in(tmp_path, "neg/1.txt pos/1.txt other/1.txt")
    assert [row["label"] for row in read_table([tmp_path / "pos", tmp_path / "neg"]).rows] == ["neg", "pos"]


def test_a_single_folder_holds_files_of_lines(tmp_path: Path) -> None:
    table = read_table(texts_in(tmp_path / "in", "a.txt sub/b.txt"))
    assert [row["text"] for row in table.rows] == ["The text", "of a.txt", "The text", "of sub/b.txt"]


def test_folders_of_tables_are_no_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "1.csv", f"text,label\n{name},x\n")
    assert values(read_table(tmp_path)) == [("a", "x"), ("b", "x")]


# the first line


@pytest.mark.parametrize(
    ("lines", "has_header"),
    [
        ("sentence\tlabel\nGood film\t1\n", True),
        ("satz\tart\nGuter Film\tgut\nMieser Film\tmies\n", True),
        (",text\n0,one\n1,two\n".replace(",", "\t"), True),
        ("gj04\t1\t\tOur friends won't buy this\nbc01\t0\t*\tThe box\n", False),
        ("Good\tgut\nBad\tmies\nFine\tgut\n", False),
        ("He sleeps.\tHe rests.\nShe runs.\tShe moves.\n", False),
        ("A man is walking there\tSomeone walks\nA\tB\n", False),
        ("4.2\tone\ttwo\n3\ta\tb\n", False),
        ("Superb\tFine\nDull\tPoor\n", False),
        ("kommentar\tsterne\nGut\t4\nSchlecht\t1\n", True),
        ("satz_de\tart\nGut\tx\n", True),
        ("文本\t类别\n" + "这部电影很好看\t好\n这部电影不好看\t坏\n" * 2, True),
    ],
)
def test_first_line_is_a_header_or_not(tmp_path: Path, lines: str, has_header: bool) -> None:
    table = read_table(write(tmp_path / "a.tsv", lines))
    num_lines = len(lines.splitlines())
    assert len(table.rows) == num_lines - has_header
    assert (table.columns[-1] == f"column{len(table.columns)}") == (not has_header)


def test_a_single_column_without_header_is_the_text(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    table = read_table(write(tmp_path / "a.csv", "Good film\nBad film\n"), counts=counts)
    assert (table.columns, values(table)) == (("text",), [("Good film",), ("Bad film",)])
    assert counts == {"files without a header (columns: 'text')": 1}


def test_a_requested_column_proves_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Satz,Art\nGut,x\nSchlecht,y\n")
    assert read_table(path).columns == ("column1", "column2")
    assert read_table(path, names=["Satz"]).columns == ("Satz", "Art")


def test_a_header_of_unusual_names_is_said(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    read_table(write(tmp_path / "a.csv", "satz,art\nEin guter Film,gut\n"), counts=counts)
    assert counts == {"first lines taken for a header ('satz', 'art')": 1}


def test_tabs_in_plain_text_are_said(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    read_table(write(tmp_path / "a.txt", "one\t1\ntwo\t2\n"), counts=counts)
    assert counts == {"files with tabs in each line, read as one text per line (name a table .tsv)": 1}


def test_column_without_a_name_gets_a_number(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "a.csv", ",text\n0,one\n")).columns == ("column1", "text")


# quotes in TSV


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        # characters of the text, as in GLUE
        ('text\tlabel\n" he said\t1\nshe "said" so\t0\n', [('" he said', "1"), ('she "said" so', "0")]),
        ('text\tlabel\n"All of it."\t1\nNone.\t0\n', [('"All of it."', "1"), ("None.", "0")]),
        ('text\tlabel\n"open\t1\nclose "\t0\n', [('"open', "1"), ('close "', "0")]),
        # fields in quotes, as pandas writes them
        ('text\tlabel\n"a ""b"" c"\t1\nd\t0\n', [('a "b" c', "1"), ("d", "0")]),
        ('text\tlabel\n"a\tb"\t1\nd\t0\n', [("a\tb", "1"), ("d", "0")]),
        ('text\tlabel\n"a\nb"\t1\nd\t0\n', [("a\nb", "1"), ("d", "0")]),
        ('"text"\t"label"\n"a"\t"1"\n', [("a", "1")]),
    ],
)
def test_quotes_of_tsv_are_text_unless_they_enclose_fields(tmp_path: Path, data: str, rows: object) -> None:
    assert values(read_table(write(tmp_path / "a.tsv", data))) == rows


@pytest.mark.parametrize("quoting", ["minimal", "all", "nonnumeric"])
def test_tsv_of_the_csv_library_comes_back(tmp_path: Path, quoting: str) -> None:
    import csv

    rows = [('He said "no".', "0"), ("two\nlines", "1"), ('"', "0"), ("tab\there", "1"), ("plain", "0")]
    buffer = io.StringIO()
    constant = getattr(csv, f"QUOTE_{quoting.upper()}")
    csv.writer(buffer, delimiter="\t", quoting=constant, lineterminator="\n").writerows([("text", "label"), *rows])
    assert values(read_table(write(tmp_path / "a.tsv", buffer.getvalue()))) == rows


# mistakes


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "text,label\none,x,y\n", r"a\.csv:2: 3 fields, but the first line has 2"),
        ("a.csv", "text,text\none,x\n", r"a\.csv:1: The header repeats 'text'"),
        ("a.csv", "text,label\n", r"a\.csv: The file has no rows"),
        ("a.csv", " \n", r"a\.csv: The file is blank"),
        ("a.jsonl", '{"text": "one"}\n[1]\n', r"a\.jsonl:2: Expected a JSON object .*, found list"),
        ("a.jsonl", '{"text": "one"}\n{"text\n', r"a\.jsonl:2: Bad JSON"),
        ("a.json", '{"data": [\n{"text": one}]}', r"a\.json:2: Bad JSON .*one object, one list"),
        ("a.json", '{"data": ["one"]}', r"a\.json: data\[0\]: Expected a JSON object .*, found str"),
        ("a.json", '[{"text": ["\\ud83d"]}]', r"a\.json:1: .*half of a character\. Repair it\.$"),
        ("a.tar", "x", r"a\.tar: An archive .*Unpack it"),
        # without the advice of an option that no reader of tables has
        (
            "a.csv",
            b"text\n\xff\n",
            r"a\.csv: Not UTF-8: byte 0xff at offset 5\. Convert it to UTF-8 \(iconv -f ENC.*\)\.$",
        ),
        ("a.csv.gz", "text\n", r"a\.csv\.gz: Truncated, corrupt or not \.gz"),
    ],
)
def test_mistakes_are_reported_with_their_location(tmp_path: Path, name: str, data: bytes | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / name, data))


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "1.csv", "text,label\none,x\n"), write(tmp_path / "2.csv", "text,class\ntwo,y\n")]
    with pytest.raises(
        DataError, match=r"2\.csv: The columns are 'text', 'class', but those of .*1\.csv are 'text', 'label'"
    ):
        read_table(files)


@pytest.mark.parametrize("record", [{"text": "a\ud83d"}, {"a\ud83d": "text"}, {"text": [["a\ud83d"]]}])
def test_half_characters_are_refused(tmp_path: Path, record: dict[str, object]) -> None:
    lines = json.dumps({"text": "\U0001f600"}) + "\n" + json.dumps(record)
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*half of a character"):
        read_table(write(tmp_path / "a.jsonl", lines))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_may_be_delimited_by_semicolons_or_tabs(tmp_path, mark):
    lines = [["review", "stars"], ['"a fine, old book"', "4,5"], ["bad", "1,0"]]
    (tmp_path / "a.csv").write_text("".join(mark.join(line) + "\n" for line in lines))
    table = read_table(tmp_path / "a.csv")
    assert table.columns == ("review", "stars")
    assert [row["stars"] for row in table.rows] == ["4,5", "1,0"]
