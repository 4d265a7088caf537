"""Detection of the task of a file."""

import json

import pytest

from stemformer.data.labelled.detect_format import detect_row_task, detect_task


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "lines", "task"),
    [
        ("a.csv", ["text,label", "a king,1"], "classify"),
        ("a.tsv", ["sentence1\tsentence2\tlabel", "a\tb\t1"], "pair"),
        ("a.csv", ["question,context,answers", "a,b,c"], "qa"),
        ("a.csv", ["prompt,choice1,choice2,label", "a,b,c,A"], "choice"),
        ("a.jsonl", ['{"tokens": ["a"], "tags": ["O"]}'], "tag"),
        ("a.json", ['{"data": [{"paragraphs": []}]}'], "qa"),
        ("a.json", ['[[["line"], [], "id"]]'], "choice"),
        ("a.json", ['{"article": "a", "questions": [], "options": []}'], "choice"),
        ("a.conll", ["a O"], "tag"),
        ("a.txt", ["a O", "king B-X", "", "the O", "river O"], "tag"),
        ("a.txt", ["1\ta\ta\tDET\t_\t_\t2\tdet\t_\t_"], "tag"),
        ("a.txt", ["The old king.", "", "A river."], None),
        ("a.txt", ["a\t1", "king\t0"], None),
        ("a.json", ["{bad"], None),
    ],
)
def test_task_is_detected_by_name_and_content(tmp_path, name, lines, task):
    assert detect_task(write(tmp_path / name, *lines)) == task


@pytest.mark.parametrize("source", ["-", "hub:owner/name", "no-such-file.csv"])
def test_only_files_are_read(source):
    assert detect_task(source) is None


def test_task_of_a_row_is_detected():
    assert detect_row_task(json.loads('{"qas": []}')) == "qa"
    assert detect_row_task(3) is None
