"""Tasks as data: templates, which answer is right, which examples are drawn, and what is wrong with a file."""

import json
from collections import Counter

import pytest

from stemformer.errors import ConfigError, DataError
from stemformer.evaluation.few_shot.dataset import PromptData, read_few_shot_examples
from stemformer.evaluation.few_shot.synthetic import SYNTHETIC_TASKS
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask, built_in_tasks, open_task, render

SENTIMENT = PromptTask("Text: {text}\nIt is {answer}", name="s", label="label", answers={"0": "bad", "1": "good"})


def items(number):
    return [FewShotExample({"text": f"t{i}"}, ("bad", "good"), i % 2, str(i % 2)) for i in range(number)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_examples_stand_before_the_question():
    asked = items(3)
    prompt = SENTIMENT.before(asked[:2], asked[2])
    assert prompt == "Text: t0\nIt is bad\n\nText: t1\nIt is good\n\nText: t2\nIt is"
    assert SENTIMENT.parts(asked[2]) == ("Text: t2\nIt is", " ", "")


def test_an_instruction_comes_first():
    task = PromptTask("{a} => {answer}", answer="{b}", how="generate", instruction="Translate:", separator="\n")
    assert (
        task.before([FewShotExample({"a": "x"}, ("y",), 0)], FewShotExample({"a": "z"}, ("w",), 0))
        == "Translate:\nx => y\nz =>"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [("{a|lower}", "the end."), ("{a|open}", "The end"), ("{a|before_last}", "The"), ("{a|last|open}", "end")],
)
def test_filters(template, text):
    assert render(template, {"a": "The end."}) == text


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no column 'txt' \(did you mean 'text'\?\): expected one of text, label"):
        render("{txt}", {"text": "", "label": ""})
    with pytest.raises(ConfigError, match="no filter 'uper'"):
        render("{text|uper}", {"text": ""})


def test_draws_are_balanced_and_nested_and_leave_the_question_out():
    asked = items(20)
    data = PromptData(asked, asked)
    for number in range(20):
        eight = data.draw(number, 8, seed=0)
        assert Counter(item.label for item in eight[:6]).most_common()[0][1] <= 4
        assert asked[number] not in eight and len({item.fields["text"] for item in eight}) == 8
        assert data.draw(number, 3, seed=0) == eight[:3]
    assert data.draw(0, 8, seed=0) != data.draw(0, 8, seed=1) != data.draw(1, 8, seed=1)


def test_draws_may_be_any_or_always_the_first():
    pool = [FewShotExample({"text": f"t{i}"}, ("bad", "good"), int(i > 17), str(int(i > 17))) for i in range(20)]
    first = PromptData(pool, pool, how="first")
    assert [item.fields["text"] for item in first.draw(1, 3, seed=0)] == ["t0", "t2", "t3"]  # not the question itself
    assert first.draw(5, 4, seed=0) == first.draw(6, 4, seed=1) == pool[:4]
    drawn = [PromptData(pool, pool, how="random").draw(i, 4, seed=0) for i in range(20)]
    shares = Counter(item.label for four in drawn for item in four)
    assert len({str(four) for four in drawn}) == 20 and shares["0"] > 3 * shares["1"]  # as in the data, 9 to 1


def test_examples_from_elsewhere_may_all_be_taken():
    data = PromptData(items(2), items(6)[2:])
    assert len(data.draw(0, 4, seed=0)) == 4
    with pytest.raises(DataError, match="5 examples were asked for, there are 4"):
        data.draw(0, 5, seed=0)


@pytest.mark.parametrize("label", ["1", "B", "b", "second"])
def test_the_right_choice_by_number_letter_or_text(tmp_path, label):
    file = written(tmp_path / "c.jsonl", [{"a": "first", "b": "second", "label": label}])
    task = PromptTask("{answer}", choices=("{a}", "{b}"), label="label")
    assert read_few_shot_examples(file, task)[0].gold == 1


def test_choices_may_be_a_column(tmp_path):
    file = written(tmp_path / "c.jsonl", [{"x": "q", "endings": ["one", "two", "three"], "label": 2}])
    [item] = read_few_shot_examples(
        file, PromptTask("{x} {answer}", choices_column="endings", label="label", first_label=1)
    )
    assert (item.answers, item.gold) == (("one", "two", "three"), 1)


def test_labels_that_the_task_does_not_know_are_refused(tmp_path):
    file = written(tmp_path / "s.jsonl", [{"text": "x", "label": "2"}])
    with pytest.raises(DataError, match=r"s.jsonl:1: label '2': task s knows 0, 1"):
        read_few_shot_examples(file, SENTIMENT)
    file = written(tmp_path / "t.jsonl", [{"text": "x", "lable": "1"}])
    with pytest.raises(ConfigError, match=r"no column 'label' \(did you mean 'lable'\?\)"):
        read_few_shot_examples(file, SENTIMENT)


def test_every_built_in_task_can_be_opened():
    for name in built_in_tasks():
        task = open_task(f"{name}=data.tsv")
        assert task.name == name and task.about and task.source


def test_synthetic_tasks_can_be_opened():
    for name, kind in SYNTHETIC_TASKS.items():
        assert open_task(f"synthetic:{name}").how == ("choose" if kind.is_closed else "generate")


def test_a_file_says_where_its_data_is(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'template = "{a} {answer}"\nanswer = "{b}"\nhow = "complete"\ndata = "q.tsv"\nexamples = "e.tsv"\n'
    )
    task = open_task(str(tmp_path / "mine.toml"))
    assert (task.name, task.data, task.examples) == ("mine", str(tmp_path / "q.tsv"), str(tmp_path / "e.tsv"))
    assert open_task(f"{tmp_path / 'mine.toml'}=other.tsv").data == "other.tsv"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("sst", r"no task 'sst' \(did you mean 'sst2'\?\)"),
        ("sst2", "no data of its own: give it as sst2=FILE"),
        ("none.toml", "there is no such task file"),
        ("synthetic:copi", r"did you mean 'copy'\?"),
    ],
)
def test_tasks_that_do_not_exist(given, told):
    with pytest.raises(ConfigError, match=told):
        open_task(given)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"template": "no answer", "answer": "x"}, r"expected \{answer\} in it, once"),
        ({"template": "{answer}"}, "expected one of answers, choices"),
        ({"template": "{answer}", "answer": "{a}"}, "answer goes with how = complete or generate"),
        ({"template": "{answer}", "choices": ("a", "b")}, "expected label"),
        ({"template": "{answer}", "answers": {"0": "", "1": "x"}, "label": "l"}, "words for each"),
        ({"template": "{answer}", "choices": ("a", "b"), "label": "l", "how": "generate"}, "need answer"),
        ({"template": "{answer}", "choices": ("a", "b"), "label": "l", "metric": "chrf"}, "with how = generate alone"),
        ({"template": "{answer}", "answer": "{a}", "how": "generate", "num_shots": ()}, "expected numbers from 0 on"),
        ({"template": "{answer}", "answer": "{a}", "how": "generate", "num_shots": (-1,)}, r"num_shots is \[-1\]"),
    ],
)
def test_tasks_that_do_not_fit_together(settings, told):
    with pytest.raises(ConfigError, match=told):
        PromptTask(**settings)


def test_a_column_called_answer_can_be_the_answer(tmp_path):
    file = written(tmp_path / "q.jsonl", [{"question": "x", "answer": "y"}])
    task = PromptTask("Q: {question}\nA: {answer}", answer="{answer}", how="generate")
    [item] = read_few_shot_examples(file, task)
    assert item.answers == ("y",) and task.text(item) == "Q: x\nA: y"


def test_columns_may_have_spaces_in_their_names():
    assert render("{Sentence A|lower}!", {"Sentence A": "Yes"}) == "yes!"
    with pytest.raises(ConfigError, match="no column 'B C'"):
        render("{B C}", {"A": ""})


@pytest.mark.parametrize(("label", "gold"), [(1, 1), (0, 0), ("2", None)])
def test_numbers_that_are_answers_too(tmp_path, label, gold):
    file = written(tmp_path / "n.jsonl", [{"a": "2", "b": "1", "c": "0", "label": label}])
    task = PromptTask("{answer}", choices=("{a}", "{b}", "{c}"), label="label")
    if gold is None:
        with pytest.raises(DataError, match="may be the number or the text"):
            read_few_shot_examples(file, task)
    else:
        assert read_few_shot_examples(file, task)[0].gold == gold


@pytest.mark.parametrize(
    ("settings", "row", "told"),
    [
        ({"choices_column": "c", "label": "label"}, {"c": "dog", "label": 0}, "holds no list of answers"),
        ({"answer": "{c|last}", "how": "complete"}, {"c": " "}, "the right answer is ''"),
        ({"answer": "{c}", "how": "generate"}, {"c": "a\nb"}, "expected a text without"),
        ({"choices": ("{c}", "x"), "label": "label"}, {"c": "a", "label": "--1"}, "the right answer is '--1'"),
    ],
)
def test_answers_that_cannot_be(tmp_path, settings, row, told):
    with pytest.raises(DataError, match=told):
        read_few_shot_examples(written(tmp_path / "x.jsonl", [row]), PromptTask("{answer}", **settings))


def test_a_question_is_not_among_its_examples_in_another_file_either():
    asked = items(4)
    data = PromptData(asked, [*asked, *items(6)[4:]])
    assert all(item.fields != asked[0].fields for item in data.draw(0, 5, seed=0))


def test_each_label_is_shown_as_often_whatever_the_question():
    asked = items(8)
    data = PromptData(asked, asked)
    for number in range(8):
        assert Counter(item.label for item in data.draw(number, 4, seed=number)) == {"0": 2, "1": 2}


def test_paths_may_hold_an_equals_sign(tmp_path):
    folder = tmp_path / "lr=1"
    folder.mkdir()
    (folder / "t.toml").write_text('template = "{a} {answer}"\nanswer = "{b}"\nhow = "complete"\n')
    assert open_task(f"{folder / 't.toml'}=d=1.tsv").data == "d=1.tsv"
