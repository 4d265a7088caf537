"""Predicting and evaluating in blocks of records, which change no answer and lose none."""

import json
import re
import shutil

import pytest
from labelled_files import FILES

import stemformer
from stemformer.commands import load as loading
from stemformer.data.labelled.table import read_table
from stemformer.errors import DataError
from stemformer.tasks import dataset

pytestmark = pytest.mark.usefixtures("no_timing")


@pytest.mark.parametrize("kind", FILES)
def test_blocks_of_records_change_no_answer(finetuned, labelled, tmp_path, monkeypatch, kind):
    model, suffix = str(finetuned(kind)), {"tag": "conll", "qa": "json"}.get(kind, "jsonl")
    files = [str(labelled / "dev" / FILES[kind])]

    def everything(folder):
        result = stemformer.predict(files, model=model, precision="fp32")
        stemformer.predict(files, model=model, precision="fp32", out=str(folder / f"a.{suffix}"))
        found = stemformer.evaluate(files, model=model, precision="fp32", report=str(folder / "page"))
        page = (folder / "page" / "report.html").read_text()
        return result, (folder / f"a.{suffix}").read_text(), found, re.findall(r"\d+ of \d+", page)

    result, text, found, numbers = everything(tmp_path / "one")
    monkeypatch.setattr(dataset, "BLOCK_SIZE", 4)
    result_in_blocks, text_in_blocks, found_in_blocks, numbers_in_blocks = everything(tmp_path / "many")
    assert (result["counts"], numbers) == (result_in_blocks["counts"], numbers_in_blocks)
    for row, other in zip(result["predictions"], result_in_blocks["predictions"], strict=True):
        for name, value in row.items():
            # The order of sums may differ in the last digits.
            assert other[name] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else other[name])
            assert isinstance(value, float | list | tuple | dict) or other[name] == value
    assert text == text_in_blocks or suffix == "jsonl"
    main = found["main_metric"]
    assert found[main] == pytest.approx(found_in_blocks[main], rel=1e-5)
    assert len(found["wrong"]) == len(found_in_blocks["wrong"])


def test_bad_row_after_many_is_found_before_anything_is_predicted(finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BLOCK_SIZE", 2)
    monkeypatch.setattr(loading, "predict_scores", None)
    lines = [json.dumps({"review": "The old king."})] * 9 + [json.dumps({"review": {"no": "text"}})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:10: Column 'review' holds dict"):
        stemformer.predict([str(tmp_path / "a.jsonl")], model=str(finetuned("class")), out=str(tmp_path / "b.csv"))
    assert not (tmp_path / "b.csv").exists()


def test_columns_of_later_rows_are_written_too(finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BLOCK_SIZE", 2)
    lines = [json.dumps({"review": "The old king."})] * 3 + [json.dumps({"review": "The river.", "late": "yes"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    stemformer.predict([str(tmp_path / "a.jsonl")], model=str(finetuned("class")), out=str(tmp_path / "b.csv"))
    assert [row["late"] for row in read_table(str(tmp_path / "b.csv")).rows] == ["", "", "", "yes"]


def test_answers_of_two_files_with_the_same_ids_are_not_lost(finetuned, labelled, tmp_path):
    shutil.copy(labelled / "dev" / "squad.json", tmp_path / "other.json")
    files, model = [str(labelled / "dev" / "squad.json"), str(tmp_path / "other.json")], str(finetuned("qa"))
    with pytest.raises(DataError, match="occurs more than once"):
        stemformer.predict(files, model=model, out=str(tmp_path / "p.json"))
    assert len(stemformer.predict(files, model=model)["predictions"]) == 30
