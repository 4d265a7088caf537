"""Columns of JSON, CSV, TSV, parquet and hub data sets, and errors in them."""

import io
import json
from collections import Counter
from pathlib import Path

import pytest

from stemformer.data.text.documents import read_documents
from stemformer.errors import DataError


def texts(path: Path | str, **options: object) -> list[str]:
    return [document.text for document in read_documents([path], **options)]  # type: ignore[arg-type]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def parquet_of(columns: dict[str, list[object]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer, row_group_size=2)
    return buffer.getvalue()


# JSON


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '{"text": "one"}\n\n{"id": 1, "text": "two\\nlines"}\n')
    assert [(d.text, d.source) for d in read_documents([path])] == [("one", f"{path}:1"), ("two\nlines", f"{path}:3")]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_list(tmp_path: Path, indent: int | None) -> None:
    records = [{"text": f'text ] }} {number} " \\'} for number in range(20_000)]
    path = write(tmp_path / "a.json", "\n " + json.dumps(records, indent=indent))
    assert texts(path) == [record["text"] for record in records]


def test_items_of_a_json_list_have_their_lines_as_sources(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n{"text": "one"},\n{"text":\n"two"}\n,{"text": "three"}]')
    assert [document.source for document in read_documents([path])] == [f"{path}:{line}" for line in (2, 3, 5)]


def test_json_list_may_be_empty(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.json", "[ ]\n")) == []


def test_json_null_and_empty_texts_are_counted(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    path = write(tmp_path / "a.jsonl", '{"text": null}\n{"text": " \\n"}\n{"text": "one"}')
    assert texts(path, skipped=skipped) == ["one"]
    assert skipped == {"empty documents": 2}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_object_may_hold_the_records_under_data(tmp_path: Path, indent: int | None) -> None:
    path = write(
        tmp_path / "a.json", json.dumps({"version": 1, "data": [{"text": "one"}, {"text": "two"}]}, indent=indent)
    )
    assert [(d.text, d.source) for d in read_documents([path])] == [
        ("one", f"{path}: data[0]"),
        ("two", f"{path}: data[1]"),
    ]


def test_a_json_object_over_several_lines_is_a_document(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.json", '\n{\n"text": "one"\n}\n')) == ["one"]


def test_json_lists_of_strings_are_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"paragraphs": ["one", "two"]}]')
    assert texts(path, column="paragraphs") == ["one\ntwo"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"text": "one"}\n{"text": "two}\n', r"a\.json:2: Bad JSON"),
        ('{\n"text": one\n}', r"a\.json:2: Bad JSON.*one object, one list of objects or one object per line"),
        ('"text"\n', r"a\.json:1: Expected a JSON object with key 'text', found str"),
        ('[{"text": "one"}\n', r"a\.json:2: Bad JSON \(the list is not closed"),
        ('[{"text": "one"}\n{"text": "two"}]', r"a\.json:2: Bad JSON \(',' or '\]' is missing"),
        ('[{"text": "one"},\n{"text": "tw', r"a\.json:2: Bad JSON \(Unterminated"),
        ('[{"text": "one"},\n]', r"a\.json:2: Bad JSON \(Expecting value"),
        ('[{"text": nul}]', r"a\.json:1: Bad JSON"),
        ('[{"text": "one"}] x', r"a\.json:1: Bad JSON \(text after"),
        ('[{"text": "one"}, 5]', r"a\.json:1: Expected a JSON object.*found int"),
        ("[" * 100_000, r"a\.json:1: Bad JSON"),
        ('{"text": 5}', r"a\.json:1: Column 'text' holds int, expected text"),
        ('{"id": 5, "txt": "one"}', r"a\.json:1: No column 'text'\. Columns \(nearest first\): 'txt', 'id'"),
    ],
)
def test_bad_json_is_reported_with_its_line(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / "a.json", data))


def test_lone_surrogates_raise_or_are_replaced(tmp_path: Path) -> None:
    path, skipped = write(tmp_path / "a.jsonl", '{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}'), Counter[str]()
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*half of a character"):
        texts(path)
    assert texts(path, errors="replace", skipped=skipped) == ["a\ufffd", "😀"]
    assert skipped == {"lone surrogates replaced": 1}


# CSV and TSV


def test_csv_fields_may_be_quoted_over_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffid,text\r\n1,"one, ""two""\r\nthree"\r\n\r\n2,four\r\n3,\r\n')
    skipped: Counter[str] = Counter()
    documents = list(read_documents([path], skipped=skipped))
    assert [(d.text, d.source) for d in documents] == [('one, "two"\nthree', f"{path}:2"), ("four", f"{path}:5")]
    assert skipped == {"empty documents": 1}


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.csv", "text\n" + "x" * 300_000)) == ["x" * 300_000]


def test_tsv_quotes_are_ordinary_characters(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.tsv", 'id\ttext\n1\t"one, two\n2\tthree"\n')) == ['"one, two', 'three"']


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_may_be_delimited_by_semicolons_or_tabs(tmp_path: Path, mark: str) -> None:
    data = f"id{mark}text\n1{mark}one, 1\n2{mark}two\n"
    assert texts(write(tmp_path / "a.csv", data)) == ["one, 1", "two"]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.csv", "A first text here.,x\nThe other one.,y\n", ["A first text here.", "The other one."]),
        ("a.tsv", "x\tA first text here.\ny\tThe other one.\n", ["A first text here.", "The other one."]),
        ("a.csv", "Good film\nBad film\n", ["Good film", "Bad film"]),
    ],
)
def test_a_table_without_header_loses_no_row(tmp_path: Path, name: str, data: str, expected: list[str]) -> None:
    skipped: Counter[str] = Counter()
    assert texts(write(tmp_path / name, data), skipped=skipped) == expected
    [(reason, number)] = skipped.items()
    assert reason.startswith("files without a header") and number == 1


def test_the_longest_text_of_a_table_without_header_must_be_clear(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "A first text here.,Another one there.\nThe third text.,The fourth text.\n")
    with pytest.raises(DataError, match=r"No column 'text'\. .*'column1'.*--text-column"):
        texts(path)
    assert texts(path, column="column2") == ["Another one there.", "The fourth text."]


def test_header_and_quotes_are_found_in_a_long_table(tmp_path: Path) -> None:
    row = '"one, ""1"" ' + "x" * 100 + '",y\n'
    path = write(tmp_path / "a.csv", "text,label\n" + row * 10_000)
    found = texts(path)
    assert len(found) == 10_000 and set(found) == {'one, "1" ' + "x" * 100}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("id,body,texts\n1,a,b\n", r"a\.csv: No column 'text'\. Columns \(nearest first\): 'texts', 'body', 'id'"),
        ("id,text\n1,one\n2,two,three\n", r"a\.csv:3: 3 fields, but the first line has 2"),
        ('id,text\n1,one\n2,"two\n3,three\n', r"a\.csv:3: Bad CSV"),
    ],
)
def test_bad_csv_is_reported_with_its_line(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / "a.csv", data))


# parquet


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet_of({"id": [1, 2, 3], "text": ["one", None, "three"]}))
    assert [(d.text, d.source) for d in read_documents([path])] == [("one", f"{path}:1"), ("three", f"{path}:3")]


def test_parquet_without_the_column_lists_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet_of({"id": [1], "body": ["one"]}))
    with pytest.raises(DataError, match=r"No column 'text'\. Columns \(nearest first\): 'body', 'id'|'id', 'body'"):
        texts(path)


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_damaged_parquet_raises(tmp_path: Path, damage: str) -> None:
    data = parquet_of({"text": [f"text {number}" for number in range(2000)]})
    data = {"cut": data[:-50], "changed": data[:4] + bytes(400) + data[404:], "other": b"plain text"}[damage]
    with pytest.raises(DataError, match=r"a\.parquet: Truncated, corrupt or not parquet") as raised:
        texts(write(tmp_path / "a.parquet", data))
    assert raised.value.exit_code == 3


# hub data sets, from a local folder


@pytest.fixture
def local_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", '{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    write(folder / "test.jsonl", '{"text": "three"}\n')
    return folder


def test_hub_data_sets_are_read_by_split(local_data_set: Path) -> None:
    skipped: Counter[str] = Counter()
    assert texts(f"hub:{local_data_set}", skipped=skipped) == ["one", "two"]
    assert texts(f"hub:{local_data_set}:test") == texts(f"hub:{local_data_set}:default:test") == ["three"]
    assert skipped == {"empty documents": 1}


def test_hub_data_sets_without_the_column_list_the_columns(local_data_set: Path) -> None:
    with pytest.raises(DataError, match=r"No column 'body'\. Columns \(nearest first\): 'text'"):
        texts(f"hub:{local_data_set}", column="body")


@pytest.mark.parametrize("name", ["hub:{}:nonsense", "hub:{}/missing", "hub:a:b:c:d"])
def test_hub_data_sets_that_cannot_be_loaded_raise(local_data_set: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"Cannot be read|not a hub data set"):
        texts(name.format(local_data_set))
