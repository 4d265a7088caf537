"""Labels: those that differ only in form are the same, others can be named, and mistakes show both sides."""

import pytest

from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.labelled.token_classification import TaggedSentence
from stemformer.errors import ConfigError, DataError
from stemformer.tasks.labels import (
    check_labels,
    count_labels,
    match_labels,
    rename_labels,
    respell_labels,
    similar_labels,
)
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TokenClassification


def classes(*labels, kind="class"):
    return SequenceClassification(TaskConfig("classify", kind=kind), labels)


def matched(task, records):
    names, notes = match_labels(task, count_labels(task.config, records))
    return respell_labels(task, records, names), notes


def records(*labels):
    return [TextExample(("a text",), label, {}, "here") for label in labels]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(("NEG", "POS"), ("neg", "Pos")), (("0", "1"), ("0.0", "1.0")), (("-1.0", "1.0"), ("-1", "1"))]
)
def test_labels_that_differ_only_in_form_are_the_same_and_that_is_said(ours, theirs):
    found, (note,) = matched(classes(*ours), records(*theirs, *ours))
    assert [r.label for r in found] == [*ours, *ours]
    assert f"{theirs[0]!r} as {ours[0]!r}, {theirs[1]!r} as {ours[1]!r}" in note


@pytest.mark.parametrize("theirs", [("positive", "0"), ("1.5", "01"), ("v1.0", "1 0")])
def test_other_labels_are_left_alone(theirs):
    left = records(*theirs)
    assert matched(classes("POS", "1", "v1"), left) == (left, [])


def test_labels_of_the_model_that_differ_only_in_form_are_not_guessed():
    found, notes = matched(classes("Pos", "pos"), records("POS"))
    assert (found[0].label, notes) == ("POS", [])
    assert similar_labels(["Pos", "neg", "pos", "1", "1.0"]) == [["Pos", "pos"], ["1", "1.0"]]


def test_sets_of_labels_and_tags_are_matched():
    found, _ = matched(classes("A", "B", kind="labels"), records(("a", "B"), ()))
    assert [r.label for r in found] == [("A", "B"), ()]
    sentence = TaggedSentence(("x", "y"), ("b-per", "O"), "here", "x y", ((0, 1), (2, 3)))
    ([found], _) = matched(TokenClassification(TaskConfig("tag"), ("O", "B-PER")), [sentence])
    assert found.tags == ("B-PER", "O")


@pytest.mark.parametrize(
    "label_map", [["LABEL_0=negative,LABEL_1=positive"], ["LABEL_0=negative", "LABEL_1 = positive"]]
)
def test_labels_get_the_names_of_the_map(label_map):
    task = rename_labels(classes("LABEL_0", "LABEL_1"), label_map, ["positive"])
    assert task.labels == ("negative", "positive")
    assert task._target(records("positive")[0]) == 1


def test_name_may_hold_a_comma():
    task = rename_labels(classes("LABEL_0", "LABEL_1"), ["LABEL_0=home, garden,LABEL_1=sports"])
    assert task.labels == ("home, garden", "sports")


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (
            "LABEL_2=neg",
            r"names 'LABEL_2', which the model does not have\. .*'LABEL_0', 'LABEL_1'.*files: 'neg', 'pos'",
        ),
        ("LABEL_0=negative", r"names 'negative', which the files do not have\. .*'LABEL_0'.*files: 'neg', 'pos'"),
        ("LABEL_0=pos,LABEL_1=pos", r"gives two labels of the model one name"),
        ("LABEL_0", r"'LABEL_0' has no label on one side\. Expected OLD=NEW"),
        ("LABEL_0=neg,LABEL_0=pos", r"'LABEL_0=pos' names a label twice"),
    ],
)
def test_wrong_map_is_an_error_that_lists_both_sides(label_map, message):
    with pytest.raises(ConfigError, match=message):
        rename_labels(classes("LABEL_0", "LABEL_1"), [label_map], ["neg", "pos"])


def test_map_of_a_class_that_the_file_lacks_is_accepted():
    task = rename_labels(classes("LABEL_0", "LABEL_1"), ["LABEL_0=neg,LABEL_1=pos"], ["neg"])
    assert task.labels == ("neg", "pos")


def test_unknown_labels_are_noted_or_refused():
    assert "1 label does not occur in the training data" in check_labels(classes("a", "b"), {"a": 1, "c": 1})[0]
    with pytest.raises(DataError, match=r"found 'c' \(1\), trained on 'a', 'b'\. Try that\."):
        check_labels(classes("a", "b"), {"c": 1}, advice="Try that.")


def test_tags_that_mark_no_entity_are_noted():
    task = TokenClassification(TaskConfig("tag"), ("O", "B-PER", "I-PER"))
    [note] = check_labels(task, {"O": 1, "PER": 1})
    assert "'PER' (1); tags without B-, I- or the like mark no entity" in note
