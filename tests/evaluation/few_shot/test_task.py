"""Task files: templates, correct answers, demonstrations, and errors in files."""

import json
from collections import Counter

import pytest

from stemformer.errors import ConfigError, DataError
from stemformer.evaluation.few_shot.dataset import FewShotDataset, read_few_shot_examples
from stemformer.evaluation.few_shot.synthetic import SYNTHETIC_TASKS
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask, built_in_tasks, open_task, render

SENTIMENT = PromptTask("Text: {text}\nIt is {answer}", name="s", label="label", answers={"0": "bad", "1": "good"})


def items(number):
    return [FewShotExample({"text": f"t{i}"}, ("bad", "good"), i % 2, str(i % 2)) for i in range(number)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_prompt_has_demonstrations_before_the_example():
    examples = items(3)
    prompt = SENTIMENT.render_prompt(examples[:2], examples[2])
    assert prompt == "Text: t0\nIt is bad\n\nText: t1\nIt is good\n\nText: t2\nIt is"
    assert SENTIMENT.split_template(examples[2]) == ("Text: t2\nIt is", " ", "")


def test_prompt_starts_with_the_instruction():
    task = PromptTask(
        "{a} => {answer}", answer="{b}", output_type="generate_until", instruction="Translate:", separator="\n"
    )
    assert (
        task.render_prompt([FewShotExample({"a": "x"}, ("y",), 0)], FewShotExample({"a": "z"}, ("w",), 0))
        == "Translate:\nx => y\nz =>"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [("{a|lower}", "the end."), ("{a|open}", "The end"), ("{a|before_last}", "The"), ("{a|last|open}", "end")],
)
def test_filters(template, text):
    assert render(template, {"a": "The end."}) == text


def test_missing_column_is_reported_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no column 'txt' \(did you mean 'text'\?\). Columns: text, label"):
        render("{txt}", {"text": "", "label": ""})
    with pytest.raises(ConfigError, match="Unknown filter 'uper'"):
        render("{text|uper}", {"text": ""})


def test_demonstrations_are_balanced_nested_and_exclude_the_example():
    examples = items(20)
    data = FewShotDataset(examples, examples)
    for number in range(20):
        eight = data.sample_demonstrations(number, 8, seed=0)
        assert Counter(item.label for item in eight[:6]).most_common()[0][1] <= 4
        assert examples[number] not in eight and len({item.fields["text"] for item in eight}) == 8
        assert data.sample_demonstrations(number, 3, seed=0) == eight[:3]
    assert (
        data.sample_demonstrations(0, 8, seed=0)
        != data.sample_demonstrations(0, 8, seed=1)
        != data.sample_demonstrations(1, 8, seed=1)
    )


def test_samplers_random_and_first():
    pool = [FewShotExample({"text": f"t{i}"}, ("bad", "good"), int(i > 17), str(int(i > 17))) for i in range(20)]
    first = FewShotDataset(pool, pool, sampler="first")
    assert [item.fields["text"] for item in first.sample_demonstrations(1, 3, seed=0)] == [
        "t0",
        "t2",
        "t3",
    ]  # not the example itself
    assert first.sample_demonstrations(5, 4, seed=0) == first.sample_demonstrations(6, 4, seed=1) == pool[:4]
    samples = [FewShotDataset(pool, pool, sampler="random").sample_demonstrations(i, 4, seed=0) for i in range(20)]
    shares = Counter(item.label for four in samples for item in four)
    assert len({str(four) for four in samples}) == 20 and shares["0"] > 3 * shares["1"]  # as in the data, 9:1


def test_separate_demonstrations_are_all_available():
    data = FewShotDataset(items(2), items(6)[2:])
    assert len(data.sample_demonstrations(0, 4, seed=0)) == 4
    with pytest.raises(DataError, match="5 demonstrations requested, 4 available"):
        data.sample_demonstrations(0, 5, seed=0)


@pytest.mark.parametrize("label", ["1", "B", "b", "second"])
def test_correct_choice_by_number_letter_or_text(tmp_path, label):
    file = write(tmp_path / "c.jsonl", [{"a": "first", "b": "second", "label": label}])
    task = PromptTask("{answer}", choices=("{a}", "{b}"), label="label")
    assert read_few_shot_examples(file, task)[0].gold == 1


def test_choices_from_a_column(tmp_path):
    file = write(tmp_path / "c.jsonl", [{"x": "q", "endings": ["one", "two", "three"], "label": 2}])
    [item] = read_few_shot_examples(
        file, PromptTask("{x} {answer}", choices_column="endings", label="label", first_label=1)
    )
    assert (item.answers, item.gold) == (("one", "two", "three"), 1)


def test_labels_that_the_task_does_not_know_are_refused(tmp_path):
    file = write(tmp_path / "s.jsonl", [{"text": "x", "label": "2"}])
    with pytest.raises(DataError, match=r"s.jsonl:1: Unknown label '2'.*Labels of task s: 0, 1"):
        read_few_shot_examples(file, SENTIMENT)
    file = write(tmp_path / "t.jsonl", [{"text": "x", "lable": "1"}])
    with pytest.raises(ConfigError, match=r"no column 'label' \(did you mean 'lable'\?\)"):
        read_few_shot_examples(file, SENTIMENT)


def test_every_built_in_task_can_be_loaded():
    for name in built_in_tasks():
        task = open_task(f"{name}=data.tsv")
        assert task.name == name and task.about and task.source


def test_synthetic_tasks_can_be_loaded():
    for name, kind in SYNTHETIC_TASKS.items():
        expected = "multiple_choice" if kind.num_candidates else "generate_until"
        assert open_task(f"synthetic:{name}").output_type == expected


def test_task_file_locates_its_data(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'template = "{a} {answer}"\nanswer = "{b}"\noutput_type = "loglikelihood"\ndata = "q.tsv"\ndemonstrations = "e.tsv"\n'
    )
    task = open_task(str(tmp_path / "mine.toml"))
    assert (task.name, task.data, task.demonstrations) == ("mine", str(tmp_path / "q.tsv"), str(tmp_path / "e.tsv"))
    assert open_task(f"{tmp_path / 'mine.toml'}=other.tsv").data == "other.tsv"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sst", r"Unknown task 'sst' \(did you mean 'sst2'\?\)"),
        ("sst2", "Task sst2 has no data. Pass it as sst2=FILE"),
        ("none.toml", "Task file none.toml does not exist"),
        ("synthetic:copi", r"did you mean 'copy'\?"),
    ],
)
def test_unknown_tasks_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        open_task(spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "no answer", "answer": "x"}, r"Expected \{answer\} exactly once"),
        ({"template": "{answer}"}, "Expected exactly one of the keys answers, choices.*found none"),
        (
            {"template": "{answer}", "answer": "{a}"},
            "answer is only valid for output_type = loglikelihood or generate",
        ),
        ({"template": "{answer}", "choices": ("a", "b")}, "Expected label"),
        ({"template": "{answer}", "answers": {"0": "", "1": "x"}, "label": "l"}, "each with a text"),
        (
            {"template": "{answer}", "choices": ("a", "b"), "label": "l", "output_type": "generate_until"},
            "requires answer",
        ),
        (
            {"template": "{answer}", "choices": ("a", "b"), "label": "l", "metric": "chrf"},
            "requires output_type = generate_until",
        ),
        (
            {"template": "{answer}", "answer": "{a}", "output_type": "generate_until", "num_shots": ()},
            "Expected numbers from 0 on",
        ),
        (
            {"template": "{answer}", "answer": "{a}", "output_type": "generate_until", "num_shots": (-1,)},
            r"num_shots is \[-1\]",
        ),
    ],
)
def test_inconsistent_tasks_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PromptTask(**settings)


def test_column_named_answer_can_be_the_answer(tmp_path):
    file = write(tmp_path / "q.jsonl", [{"question": "x", "answer": "y"}])
    task = PromptTask("Q: {question}\nA: {answer}", answer="{answer}", output_type="generate_until")
    [item] = read_few_shot_examples(file, task)
    assert item.answers == ("y",) and task.render_example(item) == "Q: x\nA: y"


def test_column_names_may_contain_spaces():
    assert render("{Sentence A|lower}!", {"Sentence A": "Yes"}) == "yes!"
    with pytest.raises(ConfigError, match="no column 'B C'"):
        render("{B C}", {"A": ""})


@pytest.mark.parametrize(("label", "gold"), [(1, 1), (0, 0), ("2", None)])
def test_numbers_that_are_also_answers(tmp_path, label, gold):
    file = write(tmp_path / "n.jsonl", [{"a": "2", "b": "1", "c": "0", "label": label}])
    task = PromptTask("{answer}", choices=("{a}", "{b}", "{c}"), label="label")
    if gold is None:
        with pytest.raises(DataError, match="is both the number and the text"):
            read_few_shot_examples(file, task)
    else:
        assert read_few_shot_examples(file, task)[0].gold == gold


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        ({"choices_column": "c", "label": "label"}, {"c": "dog", "label": 0}, "contains no list of answers"),
        ({"answer": "{c|last}", "output_type": "loglikelihood"}, {"c": " "}, "The correct answer is ''"),
        ({"answer": "{c}", "output_type": "generate_until"}, {"c": "a\nb"}, "Expected a text without the stop string"),
        ({"choices": ("{c}", "x"), "label": "label"}, {"c": "a", "label": "--1"}, "The correct answer is '--1'"),
    ],
)
def test_invalid_answers_are_refused(tmp_path, settings, row, message):
    with pytest.raises(DataError, match=message):
        read_few_shot_examples(write(tmp_path / "x.jsonl", [row]), PromptTask("{answer}", **settings))


def test_example_is_excluded_from_demonstrations_of_another_file():
    examples = items(4)
    data = FewShotDataset(examples, [*examples, *items(6)[4:]])
    assert all(item.fields != examples[0].fields for item in data.sample_demonstrations(0, 5, seed=0))


def test_labels_are_balanced_for_every_example():
    examples = items(8)
    data = FewShotDataset(examples, examples)
    for number in range(8):
        assert Counter(item.label for item in data.sample_demonstrations(number, 4, seed=number)) == {"0": 2, "1": 2}


def test_paths_may_contain_an_equals_sign(tmp_path):
    folder = tmp_path / "lr=1"
    folder.mkdir()
    (folder / "t.toml").write_text('template = "{a} {answer}"\nanswer = "{b}"\noutput_type = "loglikelihood"\n')
    assert open_task(f"{folder / 't.toml'}=d=1.tsv").data == "d=1.tsv"


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ('how = "choose"\nlabel = "l"\nanswers = { a = "A", b = "B" }', ("multiple_choice", "balanced")),
        ('how = "complete"\nanswer = "{b}"\ndraw = "first"\nexamples = "e.tsv"', ("loglikelihood", "first")),
        ('output_type = "generate"\nanswer = "{b}"\nsampler = "random"', ("generate_until", "random")),
    ],
)
def test_former_keys_are_accepted_with_a_warning(tmp_path, old, expected):
    (tmp_path / "t.toml").write_text(f'template = "{{a}} {{answer}}"\n{old}\n')
    with pytest.warns(UserWarning, match="is now output_type = "):
        task = open_task(f"{tmp_path / 't.toml'}=d.tsv")
    assert (task.output_type, task.sampler) == expected
    assert bool(task.demonstrations) == ("examples" in old)
