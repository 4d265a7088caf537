"""Mistakes in labelled data: one line that names the fault and what to do, or a note with a count."""

import json
import shutil
from collections import Counter

import pytest

import stemformer
from stemformer.cli.app import main
from stemformer.data.labelled.detect_format import TASK_FORMATS, detect_task
from stemformer.errors import DataError
from stemformer.progress import Silent
from stemformer.tasks.dataset import read_records
from stemformer.tasks.task import TaskConfig

pytestmark = pytest.mark.usefixtures("no_timing")


@pytest.fixture
def fails(capsys):
    """Run the command line; check its exit code and the essential words of its one-line message."""

    def run(arguments, *words, code=2):
        assert main([*(str(argument) for argument in arguments), "-q"]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        missing = [word for word in words if str(word) not in captured.err]
        assert not missing, (missing, captured.err)

    return run


@pytest.fixture
def finetune(tiny_bert, tmp_path):
    """Return the arguments of a `finetune` command of one step."""

    def words(task, train, *more):
        usual = ["--model", tiny_bert, "--out", tmp_path / "run", "--steps", "1", "--batch-size", "4"]
        return ["finetune", task, "--train", train, *usual, *more]

    return words


@pytest.fixture
def train_once(tiny_bert, tmp_path):
    """Fine-tune for one step and return the result."""

    def run(task, train, dev, **options):
        files = {"train": [str(train)], "dev": [str(dev)]}
        usual = {"out": str(tmp_path / "run"), "steps": 1, "batch_size": 4, "precision": "fp32", "progress": Silent()}
        return stemformer.finetune(task, model=str(tiny_bert), **files, **(usual | options))

    return run


class Said(Silent):
    """Progress that keeps the lines that are said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Columns


def test_column_that_does_not_exist(fails, finetune, labelled):
    file = labelled / "train" / "reviews.csv"
    fails(finetune("classify", file, "--label-column", "sentimnt"), file, "'sentimnt'", "'sentiment', 'review', 'id'")
    fails(finetune("classify", file, "--text-column", "reviews"), "No column 'reviews'", "nearest first): 'review'")


def test_column_of_tags_that_does_not_exist(fails, finetune, labelled):
    fails(finetune("tag", labelled / "train" / "tags.conll", "--label-column", "5"), "'5' is not a number from 2 to 2")


def test_ambiguous_columns(fails, finetune, tmp_path):
    file = write(
        tmp_path / "a.csv", "note,kind,colour", *[f"note {i} on it,{'uv'[i % 2]},{'rgb'[i % 3]}" for i in range(12)]
    )
    fails(finetune("classify", file), file, "Cannot tell which column is the label", "--label")


def test_one_column_for_a_pair(fails, finetune, labelled):
    file = labelled / "train" / "pairs.jsonl"
    fails(finetune("pair", file, "--text-column", "premise"), "Found 1 text column, expected 2")


def test_score_that_is_no_number(fails, finetune, labelled):
    fails(
        finetune("classify", labelled / "train" / "reviews.csv", "--kind", "score"),
        "reviews.csv:2",
        "expected a number",
    )


def test_dev_data_with_other_columns(fails, finetune, labelled, tmp_path):
    dev = write(tmp_path / "dev.csv", "x,y,z", "a,b,c")
    wrong = "None of the labels occur in the training data: found 'b' (1), trained on 'bad', 'good'."
    fails(finetune("classify", labelled / "train" / "reviews.csv", "--dev", dev), wrong, "--label-column")


# Labels


def test_single_class(fails, finetune, tmp_path):
    file = write(tmp_path / "a.csv", "text,label", *[f"text {i},same" for i in range(20)])
    fails(finetune("classify", file), "expected at least two labels", "only the label 'same' in 18 records", "--label")


def test_labels_of_dev_data_that_training_lacks(train_once, tmp_path):
    train = write(tmp_path / "train.csv", "text,label", "a king,good", "a river,bad", "the king,good", "x,bad")
    dev = write(tmp_path / "dev.csv", "text,label", "a king,good", "a river,awful", "the house,awful", "a,bad")
    found = train_once("classify", train, dev)
    assert "1 label does not occur in the training data and is counted as wrong: 'awful' (2)" in found["notes"]
    assert found["accuracy"] <= 0.5
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["labels"] == ["bad", "good", "awful"]


def test_tags_of_dev_data_that_training_lacks(train_once, tmp_path):
    train = write(tmp_path / "train.conll", "king\tA", "river\tB", "", "the\tA")
    dev = write(tmp_path / "dev.conll", "king\tA", "river\tC")
    found = train_once("tag", train, dev)
    assert "1 label does not occur in the training data and is counted as wrong: 'C' (1)" in found["notes"]
    assert found["accuracy"] <= 0.5


def test_labels_of_several_that_training_lacks(train_once, tmp_path):
    train = write(tmp_path / "train.csv", "text,labels", 'a king,"a,b"', "a river,b", "the king,a", "x,b")
    dev = write(tmp_path / "dev.csv", "text,labels", 'a king,"a,c"', "a river,b")
    found = train_once("classify", train, dev, kind="labels")
    assert "1 label does not occur in the training data and is ignored: 'c' (1)" in found["notes"]


def test_records_without_a_label_are_counted(train_once, tmp_path):
    train = write(tmp_path / "train.csv", "text,label", "a king,good", "a river,", "the king,bad", "x,-")
    found = train_once("classify", train, train)
    assert {"training data: no label: 1", "training data: no gold label: 1"} <= set(found["notes"])
    assert found["train"] == 2


def test_no_labels_at_all(fails, finetune, tmp_path):
    file = write(tmp_path / "a.csv", "text,label", "a king,", "a river,")
    fails(finetune("classify", file), file, "no record with an answer is left (no label: 2)")


def test_too_few_records_to_set_some_aside(fails, finetune, tmp_path):
    file = write(tmp_path / "a.csv", "text,label", "a king,good", "a river,bad")
    fails(finetune("classify", file), "Too few records", "no label in column", "--dev")


def test_records_without_a_label_are_named_where_one_label_is_left(fails, finetune, tmp_path):
    file = write(tmp_path / "a.csv", "text,label", *[f"text {i},same" for i in range(20)], "a king,", ",other")
    fails(finetune("classify", file), "only the label 'same' in 18 records", "no label: 1", "empty text: 1")


def test_swapped_columns_are_refused(fails, finetune, tmp_path):
    rows = [f"{'good' if i % 2 else 'bad'},The king number {i} sees the river" for i in range(20)]
    file = write(tmp_path / "a.csv", "text,label", *rows)
    fails(
        finetune("classify", file),
        "'label' holds 20 different values in 20 records, 'text' only 2",
        "--text-column label --label-column text",
    )


def test_long_lists_of_labels_are_cut(train_once, tmp_path):
    lines = [f"text {i},label{i:02}" for i in range(20)]
    said = Said()
    train = write(tmp_path / "train.csv", "text,label", *lines, *lines)
    dev = write(tmp_path / "dev.csv", "text,label", *[line.replace("label1", "other") for line in lines])
    train_once("classify", train, dev, progress=said)
    labels = ", ".join(f"label0{i}" for i in range(10))
    assert f"40 records, 20 labels: {labels}, ... (20 in all)" in said.lines


@pytest.mark.parametrize("kind", ["class", "score"])
@pytest.mark.parametrize("score", ["{},5", "1,{:03}"])
def test_scores_with_commas(fails, finetune, tmp_path, score, kind):
    rows = [f'text {i},"{score.format(i)}"' for i in range(20)]
    file = write(tmp_path / "a.csv", "text,value", *rows)
    words = ["--kind score"] if kind == "class" else [f"holds '{score.format(0)}'", "decimal point and without commas"]
    fails(finetune("classify", file, "--kind", kind), *words)


# Texts


def test_empty_texts_are_counted(train_once, tmp_path):
    train = write(tmp_path / "train.csv", "text,label", "a king,good", ",bad", '"  ",bad', "the king,bad")
    found = train_once("classify", train, train)
    assert "training data: empty text: 2" in found["notes"]
    assert found["train"] == 2


def test_text_without_a_token_is_no_crash(train_once, tmp_path):
    train = write(tmp_path / "train.csv", "text,label", "a king,good", "\u200b,bad", "the king,bad")
    assert train_once("classify", train, train)["train"] == 3


def test_sequence_that_is_shorter_than_a_word(fails, finetune, tmp_path):
    file = write(tmp_path / "a.csv", "sequence,label", *[f"ACGT,{i % 2}" for i in range(20)], "AC,1")
    fails(finetune("classify", file, "--symbols", "draw", "--kmer", "3"), "a.csv:22", "2 symbols", "a word is for 3")


def test_symbols_that_the_vocabulary_has_no_words_for(fails, finetune, tmp_path):
    file = write(tmp_path / "a.csv", "sequence,label", *[f"ACGTACGT,{i % 2}" for i in range(20)])
    fails(finetune("classify", file, "--symbols", "draw", "--kmer", "8"), "65,536 runs of 8", "smaller size")


def test_symbols_that_a_file_lacks(fails, finetune, tmp_path):
    file = write(tmp_path / "a.csv", "sequence,label", *[f"ACGTN,{i % 2}" for i in range(20)])
    words = write(tmp_path / "map.tsv", "A\tking", "C\triver", "G\tchild", "T\tgarden")
    fails(finetune("classify", file, "--symbols", words), "no word for 'N'", "under '*'")
    fails(finetune("classify", file, "--symbols", tmp_path / "none.tsv"), "none.tsv")
    fails(finetune("classify", file, "--symbols", words, "--kmer", "2"), "add symbols=draw")


def test_symbols_of_another_task(fails, finetune, labelled):
    fails(finetune("tag", labelled / "train" / "tags.conll", "--symbols", "draw"), "not to tag")


# Tags


def test_ragged_rows(fails, finetune, tmp_path):
    file = write(tmp_path / "a.conll", "The\tO", "king\tB-X", "sees", "", "a\tO")
    fails(finetune("tag", file), f"{file}:3", "1 column ('sees'), expected 2")
    file = write(tmp_path / "b.conll", "The\tO", "king\tB-X\tmore")
    fails(finetune("tag", file), f"{file}:2", "3 columns", "expected 2")


def test_tags_that_break_their_scheme_are_counted(train_once, tmp_path):
    train = write(
        tmp_path / "train.conll", "the\tO", "king\tB-X", "a\tI-X", "", "king\tI-X", "the\tO", "king\tI-X", "a\tI-Y"
    )
    found = train_once("tag", train, train)
    assert "training data: tags that continue an entity which has not started (kept): 3" in found["notes"]
    assert "dev data: tags that continue an entity which has not started (kept): 3" in found["notes"]


def test_tags_without_entities_are_no_scheme(train_once, tmp_path):
    train = write(tmp_path / "train.conll", "king\tNOUN", "sees\tVERB", "", "the\tDET")
    assert not any("entity" in note for note in train_once("tag", train, train)["notes"])


def test_file_without_tags(fails, finetune, tmp_path):
    file = write(tmp_path / "a.txt", "The", "king", "", "sees")
    fails(finetune("tag", file), file, "no record with an answer is left")


# Questions


def squad(path, *answers, context="The old king sees the king."):
    qas = [
        {"id": str(i), "question": "who?", "answers": [{"text": text, "answer_start": start}]}
        for i, (text, start) in enumerate(answers)
    ]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}))
    return path


def test_answers_at_wrong_offsets_are_moved_and_counted(train_once, tmp_path):
    file = squad(tmp_path / "a.json", ("king", 8), ("king", 20), ("old", 99), ("queen", 3))
    found = train_once("qa", file, file)
    assert "training data: answer offset corrected: 2" in found["notes"]
    assert "training data: answer not in its passage: 1" in found["notes"]


def test_question_whose_answer_is_lost_is_not_trained(train_once, tmp_path):
    file = squad(tmp_path / "a.json", ("king", 8), ("old", 4), ("queen", 3))
    found = train_once("qa", file, file)
    assert found["train"] == 2
    assert found["dev"] == 3
    assert "training data: questions whose answer is not in the passage (skipped): 1" in found["notes"]


# Choices


def test_answer_that_is_no_choice(fails, finetune, tmp_path):
    rows = [{"prompt": "a", "choice1": "b", "choice2": "c", "label": label} for label in ("A", "E")]
    file = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    fails(finetune("choice", file), "a.jsonl:2", "The answer is 'E'")


# Models and folders


def test_model_that_does_not_exist(fails, labelled, tmp_path):
    file = labelled / "train" / "reviews.csv"
    fails(
        ["finetune", "classify", "--train", file, "--model", "./none", "--out", tmp_path / "r"], "none does not exist"
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_model_that_was_only_pretrained(fails, command, tiny_bert, labelled):
    fails([command, labelled / "dev" / "reviews.csv", "--model", tiny_bert], "only pre-trained", "stemformer finetune")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_folder_without_weights(fails, command, finetuned, labelled, tmp_path):
    shutil.copytree(finetuned("class") / "final", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    fails([command, labelled / "dev" / "reviews.csv", "--model", tmp_path / "model"], tmp_path / "model", "safetensors")


def test_folder_without_a_model(fails, labelled, tmp_path):
    fails(["predict", labelled / "dev" / "reviews.csv", "--model", tmp_path], tmp_path, "no config.json")


def test_weights_without_the_head_of_their_config(fails, tiny_bert, finetuned, labelled, tmp_path):
    shutil.copytree(finetuned("class") / "final", tmp_path / "model")
    shutil.copy(tiny_bert / "model.safetensors", tmp_path / "model" / "model.safetensors")
    fails(
        ["predict", labelled / "dev" / "reviews.csv", "--model", tmp_path / "model"], "the weights have no head for it"
    )


def test_length_beyond_the_positions(fails, finetune, labelled):
    file = labelled / "train" / "reviews.csv"
    fails(finetune("classify", file, "--max-length", "65"), "--max-length 65", "64 positions")
    fails(finetune("classify", file, "--max-length", "7"), "max_length is 7", "at least 8")


def test_folder_that_is_not_empty(fails, finetune, labelled, tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "mine.txt", "mine")
    file = labelled / "train" / "reviews.csv"
    fails(finetune("classify", file), tmp_path / "run", "is not empty", "--overwrite")
    fails(finetune("classify", file, "--overwrite"), "nothing that stemformer made")
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine\n"


def test_output_that_holds_the_input(fails, tiny_bert, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "config.toml", "")
    file = write(folder / "a.csv", "text,label", "a,b")
    arguments = ["finetune", "classify", "--train", file, "--model", tiny_bert, "--out", folder, "--overwrite"]
    fails(arguments, "lies in the output folder")


def test_predictions_over_a_file_that_exists(fails, finetuned, labelled, tmp_path):
    write(tmp_path / "a.csv", "mine")
    arguments = [
        "predict",
        labelled / "dev" / "reviews.csv",
        "--model",
        finetuned("class"),
        "--out",
        tmp_path / "a.csv",
    ]
    fails(arguments, "a.csv exists", "--overwrite")


def test_file_that_does_not_exist(fails, finetune, tmp_path):
    fails(finetune("classify", tmp_path / "none.csv"), "does not exist", "none.csv")


def test_task_that_does_not_exist(fails, finetune, labelled):
    fails(finetune("clasify", labelled / "train" / "reviews.csv"), "clasify", "classify")


def test_setting_that_does_not_exist(fails, finetune, labelled):
    fails(
        finetune("classify", labelled / "train" / "reviews.csv", "--set", "task.strid=3"), "task.strid", "task.stride"
    )


# A file of another task

FILES = {
    "classify": "reviews.csv",
    "pair": "pairs.jsonl",
    "tag": "tags.conll",
    "qa": "squad.json",
    "choice": "choices.jsonl",
}


@pytest.mark.parametrize(("task", "name"), FILES.items())
def test_task_of_a_file_is_detected(labelled, task, name):
    assert detect_task(str(labelled / "train" / name)) == task


def test_tagged_words_are_detected_in_text_files(labelled, tmp_path):
    shutil.copy(labelled / "train" / "tags.conll", tmp_path / "tags.txt")
    assert detect_task(str(tmp_path / "tags.txt")) == "tag"
    assert detect_task(str(write(tmp_path / "plain.txt", "The old king sees.", "", "The river."))) is None
    rows = [json.dumps({"tokens": ["a"], "tags": ["O"]})]
    assert detect_task(str(write(tmp_path / "tags.jsonl", *rows))) == "tag"


@pytest.mark.parametrize(
    ("task", "file"),
    [(task, file) for task in FILES for file in FILES if task != file and (task, file) != ("classify", "pair")],
)
def test_file_of_another_task(fails, finetune, labelled, task, file):
    path = labelled / "train" / FILES[file]
    if (task, file) == ("pair", "classify"):
        fails(finetune(task, path), path, "Cannot tell which 2 of the columns are the text")
        return
    fails(finetune(task, path), path, f"looks like data of task '{file}', not of '{task}'")


@pytest.mark.parametrize("task", ["pair", "tag", "qa", "choice"])
def test_table_without_the_columns_of_a_task(fails, finetune, tmp_path, task):
    file = write(tmp_path / "a.csv", "sentence,kind", *[f"The king number {i} sees,{i % 2}" for i in range(20)])
    looks = f"looks like data of task 'classify', not of '{task}'"
    fails(finetune(task, file), "sentence", "kind", f"Task '{task}' expects {TASK_FORMATS[task]}", looks)


def test_table_as_data_of_tag_has_no_line_to_repair(tmp_path):
    file = write(tmp_path / "a.csv", "text,label", '"The king, old",x', "A river,y")
    with pytest.raises(DataError, match=r"Columns: 'text', 'label'.*looks like data of task 'classify'") as caught:
        read_records(TaskConfig("tag"), [str(file)], counts=Counter())
    assert "Repair" not in str(caught.value) and "expected 1" not in str(caught.value)


def test_pairs_as_data_of_classify(fails, finetune, labelled):
    file = labelled / "train" / "pairs.jsonl"
    fails(finetune("classify", file), "look like the two texts of a pair", "looks like data of task 'pair'")


def test_file_of_another_task_to_evaluate(fails, finetuned, labelled):
    file = labelled / "dev" / "squad.json"
    fails(["evaluate", file, "--model", finetuned("class")], file, "looks like data of task 'qa', not of 'classify'")
