import csv
import io
import json
from collections import Counter

import pytest

from stemformer.cli.app import main
from stemformer.data.labelled.token_classification import read_tagged


def test_samples_writes_texts_and_labelled_files(tmp_path, capsys):
    folder = tmp_path / "my_texts"
    assert main(["samples", str(folder), "--json"]) == 0
    listed = {row["file"] for row in json.loads(capsys.readouterr().out)["files"]}
    assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    splits = {
        name: list(csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text(encoding="utf-8"))))
        for name in ("books", "books_test")
    }
    assert {name: len(rows) for name, rows in splits.items()} == {"books": 400, "books_test": 100}
    books = {path.stem for path in (folder / "english").iterdir()}
    for rows in splits.values():
        assert {row["label"] for row in rows} == books
    texts = [row["text"] for rows in splits.values() for row in rows]
    texts += (folder / "books_new.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(texts)) == len(texts) == 520


def test_tags_are_the_marks_after_words(tmp_path):
    assert main(["samples", str(tmp_path), "--quiet"]) == 0
    first = read_tagged([str(tmp_path / "punctuation.conll")], counts=Counter())[0]
    assert first.words[:8] == ("The", "artist", "is", "the", "creator", "of", "beautiful", "things")
    assert first.tags[:9] == ("O",) * 7 + ("PERIOD", "O")


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_existing_files_are_replaced_only_if_wanted(tmp_path, capsys, options):
    (tmp_path / "books.csv").write_text("mine", encoding="utf-8")
    assert main(["samples", str(tmp_path), *options]) == (0 if options else 2)
    assert (tmp_path / "books.csv").read_text(encoding="utf-8").startswith("mine") == (not options)
    assert "exists. Pass another --out" in capsys.readouterr().err or options
