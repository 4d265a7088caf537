"""Predicting and evaluating in blocks of records, which change no answer and lose none."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from labelled_files import FILES

import stemformer
from stemformer.commands import load as loading
from stemformer.data.labelled.table import read_table
from stemformer.errors import DataError
from stemformer.tasks import dataset_notes, record_blocks

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
    monkeypatch.setattr(record_blocks, "BLOCK_SIZE", 4)
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
    monkeypatch.setattr(record_blocks, "BLOCK_SIZE", 2)
    monkeypatch.setattr(loading, "predict_scores", None)
    lines = [json.dumps({"review": "The old king."})] * 9 + [json.dumps({"review": {"no": "text"}})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:10: Column 'review' holds dict"):
        stemformer.predict([str(tmp_path / "a.jsonl")], model=str(finetuned("class")), out=str(tmp_path / "b.csv"))
    assert not (tmp_path / "b.csv").exists()


def test_columns_of_later_rows_are_written_too(finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr(record_blocks, "BLOCK_SIZE", 2)
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


@pytest.mark.parametrize("kind", ["class", "pair", "qa"])
def test_records_of_the_training_data_are_counted(finetuned, labelled, tmp_path, kind):
    def notes(model, split):
        files = [str(labelled / split / FILES[kind])]
        found = stemformer.evaluate(files, model=str(model), precision="fp32")
        return [note for note in found["notes"] if "also in the training data" in note], found["records"]

    [note], number = notes(finetuned(kind), "train")
    assert note.startswith(f"evaluated data: {number} of {number} records (100.0%) are also in the training data")
    assert notes(finetuned(kind), "dev")[0] == []
    # The folder of a model from elsewhere does not know.
    shutil.copytree(finetuned(kind) / "final", tmp_path / "model")
    (tmp_path / "model" / "training_texts.npy").unlink()
    assert notes(tmp_path / "model", "train")[0] == []


def test_saved_model_knows_its_training_texts_too(finetuned, tmp_path):
    stemformer.load(str(finetuned("class"))).save(tmp_path / "copy")
    before, after = (
        dataset_notes.load_training_texts(path) for path in (finetuned("class") / "final", tmp_path / "copy")
    )
    assert after.size > 0 and after.tolist() == before.tolist()
    shutil.copytree(tmp_path / "copy", tmp_path / "without")
    (tmp_path / "without" / "training_texts.npy").unlink()
    stemformer.load(str(tmp_path / "without")).save(tmp_path / "again")
    assert not (tmp_path / "again" / "training_texts.npy").exists()


def test_saved_model_has_its_renamed_labels(finetuned, tmp_path):
    model = stemformer.load(str(finetuned("class")))
    names = [f"class {number}" for number in range(len(model.task.labels))]
    entries = [f"{old}={new}" for old, new in zip(model.task.labels, names, strict=True)]
    model.with_labels(entries).save(tmp_path / "copy")
    assert list(stemformer.load(str(tmp_path / "copy")).task.labels) == names


def test_too_many_training_texts_are_not_stored(finetuned, labelled, tmp_path, monkeypatch):
    from stemformer.tasks.dataset import load_labelled_task, read_records

    task = load_labelled_task(str(finetuned("class")))
    records, _ = read_records(task.config, [str(labelled / "train" / FILES["class"])], counts=Counter())
    assert dataset_notes.save_training_texts(tmp_path, task, records) == []
    assert len(dataset_notes.load_training_texts(tmp_path)) == len({r.texts for r in records})
    (tmp_path / "training_texts.npy").unlink()
    monkeypatch.setattr(dataset_notes, "_MOST_TRAINING_TEXTS", 3)
    assert "are too many to store" in dataset_notes.save_training_texts(tmp_path, task, records)[0]
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import sys
from pathlib import Path
import stemformer
folder, model, precision, number = sys.argv[1:]
file = Path(folder, number + ".csv")
words = "the old king sees a green river under the bridge".split()
rows = (" ".join(words[(i * j) % 9] for j in range(1, 2 + i * 7919 % 40)) for i in range(int(number)))
file.write_text("review,sentiment\\n" + "".join(f"{text},good\\n" for text in rows))
how = dict(model=model, precision=precision, threads=1)
stemformer.predict([str(file)], out=str(file.with_suffix(".jsonl")), overwrite=True, **how)
stemformer.evaluate([str(file)], **how)
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peak_memory_does_not_grow_with_the_number_of_records(finetuned, tmp_path, precision):
    if not Path("/proc/self/status").is_file():
        pytest.skip("no peak of the resident memory on this system")

    def peak(number):
        words = [sys.executable, "-c", MEMORY, str(tmp_path), str(finetuned("class")), precision, str(number)]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1024

    # Outcomes of 30,000 records, and scattered allocations; without a limit of shapes, bf16 took 150 MiB more.
    # Where freed memory lies differs between runs by tens of MiB (48 seen); a growth is in each of them.
    assert any(peak(40_000) - peak(10_000) < 40 for _ in range(3))
