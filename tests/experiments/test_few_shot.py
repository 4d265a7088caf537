"""Few-shot evaluation over models, tasks and numbers of demonstrations: results, resuming, and bad input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stemformer
from stemformer.cli.app import main
from stemformer.errors import CheckpointError, ConfigError
from stemformer.experiments import few_shot
from stemformer.huggingface.save import save_model
from stemformer.models.model import make_model


@pytest.fixture(scope="module")
def model(small_gpt, bpe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt") / "model"
    save_model(small_gpt, folder, bpe)
    return str(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    file = tmp_path_factory.mktemp("task") / "mood.tsv"
    rows = [f"the {word} river\t{i % 2}\n" for i, word in enumerate(["old", "wise", "small", "green"] * 5)]
    file.write_text("text\tlabel\n" + "".join(rows))
    (file.parent / "mood.toml").write_text(
        'template = "{text}: {answer}"\nlabel = "label"\ndata = "mood.tsv"\n[answers]\n"0" = "bad"\n"1" = "good"\n'
    )
    return str(file.parent / "mood.toml")


def test_table_plots_and_report(model, task, tmp_path):
    out = tmp_path / "table"
    result = stemformer.fewshot(
        [task, "synthetic:association", "synthetic:copy"],
        model=[model],
        out=str(out),
        num_shots=[0, 2],
        num_questions=6,
        num_draws=2,
        calibrate=True,
    )
    assert [(r["task"], r["num_shots"]) for r in result["results"]] == [
        ("mood", 0), ("mood", 2), ("association", 0), ("association", 2), ("copy", 0), ("copy", 2),
    ]  # fmt: skip
    assert {r["questions"] for r in result["results"]} == {6} and "acc_calibrated" in result["results"][0]
    assert result["results"][2]["chance"] == 0.25 and result["results"][4]["chance"] is None
    page = (out / "report.html").read_text()
    assert "association" in page and "<svg" in page and "river:<b> " in page
    assert (out / "shots.svg").is_file() and (out / "shots.png").is_file()
    answers = (out / "answers").glob("*mood-2-*.jsonl")
    assert len(next(answers).read_text().splitlines()) == 12
    assert stemformer.inspect(str(out)) == {"prompts": str(out), "table": result["table"], "notes": result["notes"]}


def test_resume_adds_missing_results(model, task, tmp_path, monkeypatch):
    out = str(tmp_path / "table")
    first = stemformer.fewshot([task], model=[model], out=out, num_shots=[0], num_questions=5)
    seen = []
    monkeypatch.setattr("stemformer.experiments.few_shot.evaluate_few_shot", _counting(seen))
    both = stemformer.fewshot([task], model=[model], out=out, num_shots=[0, 1], num_questions=5, resume=True)
    assert seen == [1] and both["results"][0] == first["results"][0]
    again = stemformer.fewshot([task], model=[model], out=out, num_shots=[1], num_questions=5, resume=True)
    assert seen == [1] and again["results"] == both["results"]  # earlier results stay in the table
    stemformer.fewshot([task], model=[model], out=out, num_shots=[0, 1], num_questions=6, resume=True)
    assert seen == [1, 0, 1]  # other questions give other results


def _counting(seen):
    from stemformer.evaluation.few_shot.evaluate import evaluate_few_shot

    def counted(*args, num_shots, **options):
        seen.append(num_shots)
        return evaluate_few_shot(*args, num_shots=num_shots, **options)

    return counted


@pytest.mark.parametrize("change", ["n_head", "layer_norm_epsilon", "tokenizer"])
def test_same_weights_with_another_config_or_tokenizer_are_evaluated_again(model, task, tmp_path, monkeypatch, change):
    folder, out = tmp_path / "copy", str(tmp_path / "table")
    shutil.copytree(model, folder)
    stemformer.fewshot([task], model=[str(folder)], out=out, num_shots=[0], num_questions=5)
    if change == "tokenizer":
        text = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true'))
        assert (folder / "tokenizer.json").read_text() != text
    else:
        config = json.loads((folder / "config.json").read_text())
        config[change] = {"n_head": config["n_head"] // 2, "layer_norm_epsilon": 0.1}[change]
        (folder / "config.json").write_text(json.dumps(config))
    seen = []
    monkeypatch.setattr("stemformer.experiments.few_shot.evaluate_few_shot", _counting(seen))
    stemformer.fewshot([task], model=[str(folder)], out=out, num_shots=[0], num_questions=5, resume=True)
    assert seen == [0]


def test_answers_of_another_model_stay(model, small_gpt, bpe, task, tmp_path):
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(5))
    save_model(other, tmp_path / "b" / "model", bpe)
    out = tmp_path / "table"
    first = stemformer.fewshot([task], model=[model], out=str(out), num_shots=[0], num_questions=3)["results"][0]
    before = (out / first["answers"]).read_text()
    stemformer.fewshot(
        [task], model=[str(tmp_path / "b" / "model")], out=str(out), num_shots=[0], num_questions=3, resume=True
    )
    assert (out / first["answers"]).read_text() == before
    assert len(list((out / "answers").iterdir())) == 2


def test_models_and_tasks_that_are_not_named_stay_in_the_table(model, small_gpt, bpe, task, tmp_path):
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(5))
    save_model(other, tmp_path / "b" / "model", bpe)
    out, second = str(tmp_path / "table"), str(tmp_path / "b" / "model")
    options = {"out": out, "num_shots": [0], "num_questions": 3}
    first = stemformer.fewshot([task, "synthetic:copy"], model=[model], **options)["results"]
    result = stemformer.fewshot([task], model=[second], resume=True, **options)
    assert [(row["task"], row["model"]) for row in result["results"]] == [
        ("mood", second), ("mood", model), ("copy", model),
    ]  # fmt: skip
    assert result["results"][1:] == [{**row, "is_from_before": True} for row in first] and len(result["table"]) == 3
    other_seed = stemformer.fewshot([task], model=[second], resume=True, seed=3, **options)
    assert [row["model"] for row in other_seed["results"]] == [second]
    assert "3 results in the directory with other settings" in other_seed["notes"][-1]
    again = stemformer.fewshot(["synthetic:copy"], model=[second], resume=True, **options)["results"]
    assert {(row["task"], row["model"]) for row in again} == {
        ("copy", second), ("copy", model), ("mood", second), ("mood", model),
    }  # fmt: skip


def test_results_of_replaced_weights_leave_the_table(model, small_gpt, bpe, task, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    options = {"model": [str(tmp_path / "m")], "out": str(tmp_path / "table"), "num_shots": [0], "num_questions": 3}
    stemformer.fewshot([task, "synthetic:copy"], **options)
    shutil.rmtree(tmp_path / "m")
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(5))
    save_model(other, tmp_path / "m", bpe)
    assert [row["task"] for row in stemformer.fewshot([task], resume=True, **options)["results"]] == ["mood"]


def test_synthetic_questions_are_the_same_for_more_demonstrations(model, tmp_path, monkeypatch):
    out = str(tmp_path / "table")
    first = stemformer.fewshot(["synthetic:copy"], model=[model], out=out, num_shots=[0, 2], num_questions=4)
    seen = []
    monkeypatch.setattr("stemformer.experiments.few_shot.evaluate_few_shot", _counting(seen))
    more = stemformer.fewshot(
        ["synthetic:copy"], model=[model], out=out, num_shots=[0, 2, 4], num_questions=4, resume=True
    )
    assert seen == [4] and more["results"][:2] == first["results"]
    two, four = (stemformer.show_prompts(["synthetic:copy"], num_shots=[k])[0]["prompt"].splitlines() for k in (2, 4))
    assert four[:2] == two[:2] and four[-1] == two[-1]


def test_directory_of_an_earlier_version_is_resumed(model, task, tmp_path, monkeypatch):
    out = tmp_path / "table"
    options = {"model": [model], "out": str(out), "num_shots": [0], "num_questions": 5}
    first = stemformer.fewshot([task], **options)["results"]
    text = (out / "finished.jsonl").read_text().replace('"value"', '"figure"').replace('"acc"', '"by_sum"')
    (out / ("figure" + "s.jsonl")).write_text(text)
    (out / "finished.jsonl").unlink()
    monkeypatch.setattr("stemformer.experiments.few_shot.evaluate_few_shot", None)
    assert stemformer.fewshot([task], resume=True, **options)["results"] == first


def test_evaluation_that_was_stopped_at_once_is_resumed(model, task, tmp_path):
    out = tmp_path / "table"
    out.mkdir()
    (out / "finished.jsonl").touch()
    assert stemformer.fewshot([task], model=[model], out=str(out), num_shots=[0], num_questions=3, resume=True)[
        "results"
    ]


def test_columns_may_have_spaces_in_their_names(model, tmp_path):
    (tmp_path / "mood.tsv").write_text("my text\tlabel\n" + "".join(f"river {i}\t{i % 2}\n" for i in range(8)))
    (tmp_path / "mood.toml").write_text(
        'template = "{ my text }: {answer}"\nlabel = "label"\ndata = "mood.tsv"\n[answers]\n"0" = "bad"\n"1" = "good"\n'
    )
    options = {"model": [model], "num_shots": [1], "calibrate": True}
    assert stemformer.fewshot([str(tmp_path / "mood.toml")], **options)["results"][0]["questions"] == 8


def test_other_data_or_overwriting_evaluates_again(model, task, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("mood.toml", "mood.tsv"):
        (folder / name).write_bytes((Path(task).parent / name).read_bytes())
    mine, out = str(folder / "mood.toml"), str(tmp_path / "table")
    before = stemformer.fewshot([mine], model=[model], out=out, num_shots=[0])["results"][0]
    turned = (folder / "mood.tsv").read_text().replace("\t0", "\tx").replace("\t1", "\t0").replace("\tx", "\t1")
    (folder / "mood.tsv").write_text(turned)
    for options in ({"resume": True}, {"overwrite": True}):
        result = stemformer.fewshot([mine], model=[model], out=out, num_shots=[0], **options)["results"]
        assert [row["accuracy"] for row in result] == [pytest.approx(1 - before["accuracy"])]


def test_other_directory_is_not_resumed(model, task, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("seed = 0\n")
    with pytest.raises(CheckpointError, match="holds no few-shot evaluation to resume"):
        stemformer.fewshot([task], model=[model], out=str(tmp_path / "run"), num_shots=[0], resume=True)
    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 0\n"


def test_one_task_on_two_files_is_named_after_them(model, task, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_bytes((Path(task).parent / "mood.tsv").read_bytes())
    result = stemformer.fewshot([f"{task}={other}", task], model=[model], num_shots=[0], num_questions=3)
    assert [row["task"] for row in result["results"]] == ["mood_other", "mood_mood"]


def test_models_of_the_same_name_keep_their_answers(model, small_gpt, bpe, task, tmp_path):
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(5))
    save_model(other, tmp_path / "b" / "model", bpe)
    out = tmp_path / "table"
    stemformer.fewshot(
        [task], model=[model, str(tmp_path / "b" / "model")], out=str(out), num_shots=[0], num_questions=3
    )
    assert len(list((out / "answers").iterdir())) == 2


def test_report_shows_the_evaluated_prompt(model, tmp_path):
    out = tmp_path / "table"
    stemformer.fewshot(["synthetic:association"], model=[model], out=str(out), num_shots=[0, 9], num_questions=1)
    [shown] = stemformer.show_prompts(["synthetic:association"], num_shots=[9])
    last = shown["prompt"].splitlines()[-1]
    assert last.replace(">", "&gt;") in (out / "report.html").read_text()


def test_calibrated_accuracy_is_in_the_table(model, task, tmp_path):
    out = tmp_path / "table"
    [line] = stemformer.fewshot([task], model=[model], out=str(out), num_shots=[0], num_questions=4, calibrate=True)[
        "table"
    ]
    assert "shots_0_calibrated" in line
    assert f"calibrated {line['shots_0_calibrated']}" in (out / "report.html").read_text()


def test_same_seed_gives_the_same_results(model, task):
    one, two = (stemformer.fewshot([task], model=[model], num_shots=[3], num_questions=8, seed=4) for _ in range(2))
    assert one == two


def test_the_very_prompt_is_shown(task, capsys):
    assert main(["fewshot", task, "--dry-run", "--num-shots", "1"]) == 0
    out = capsys.readouterr().out
    assert "=== mood, 1-shot ===" in out and out.rstrip().endswith("]")


def test_task_sets_metric_and_numbers_of_demonstrations(model, tmp_path, capsys):
    rows = [{"en": f"the {word} king", "de": f"der {word}e König"} for word in ["old", "wise", "small", "green"] * 3]
    (tmp_path / "de.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "de.toml").write_text(
        'template = "{en} => {answer}"\nanswer = "{de}"\noutput_type = "generate_until"\nmetric = "chrf"\ndata = "de.jsonl"\n'
        'num_shots = [3, 1]\nsampler = "first"\nmax_new_tokens = 5\n'
    )
    task, out = str(tmp_path / "de.toml"), tmp_path / "out"
    assert main(["fewshot", task, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["num_shots"] for one in shown] == [1, 3]
    assert shown[0]["prompt"].startswith("the old king => der olde König\n\n")
    result = stemformer.fewshot([task, "synthetic:copy"], model=[model], out=str(out), num_questions=6)
    mine = [row for row in result["results"] if row["task"] == "de"]
    assert [row["num_shots"] for row in mine] == [1, 3] and result["table"][0]["task"] == "de (chrf)"
    assert {row["num_shots"] for row in result["results"] if row["task"] == "copy"} == {0, 1, 4}
    for row in mine:
        assert row["metric"] == "chrf" and row["value"] == row["chrf"] and row["accuracy"] == 0
        assert 0 <= row["low"] <= row["chrf"] <= row["high"] <= 1
    assert "de (chrf)" in (out / "report.html").read_text()


def test_questions_that_the_vocabulary_cannot_write_are_noted(tiny_bert, tmp_path):
    rows = [{"text": "король и река", "label": str(i % 2)} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.toml").write_text(
        'template = "{text} {answer}"\ndata = "a.jsonl"\nlabel = "label"\n[answers]\n0 = "old"\n1 = "wise"\n'
    )
    result = stemformer.fewshot([str(tmp_path / "a.toml")], model=[str(tiny_bert)], num_shots=[0], num_questions=3)
    assert any("100% of the words are [UNK], such as 'король'" in note for note in result["notes"])


def test_prompts_that_do_not_fit_are_noted(model, tmp_path):
    rows = [{"text": "the river and the king " * 12, "label": str(i % 2)} for i in range(30)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "long.toml").write_text(
        'template = "{text} {answer}"\ndata = "long.jsonl"\nlabel = "label"\n[answers]\n0 = "old"\n1 = "wise"\n'
    )
    result = stemformer.fewshot([str(tmp_path / "long.toml")], model=[model], num_shots=[2], num_questions=5)
    assert any("2.0 of 2 demonstrations did not fit" in note for note in result["notes"])
    assert any("5 of 5 questions were too long" in note for note in result["notes"])


def test_model_with_the_same_answer_to_all_questions_is_noted(model, task, monkeypatch):
    real = few_shot.evaluate_few_shot
    monkeypatch.setattr(
        few_shot,
        "evaluate_few_shot",
        lambda *a, **b: [replace(x, prediction=1, prediction_norm=1) for x in real(*a, **b)],
    )
    result = stemformer.fewshot([task], model=[model], num_shots=[0], num_questions=12)
    assert result["results"][0]["same_answer"] == 1
    assert any("the same answer to all 12 questions" in note for note in result["notes"])
    monkeypatch.setattr(
        few_shot,
        "evaluate_few_shot",
        lambda *a, **b: [replace(x, prediction=x.number % 2, prediction_norm=x.number % 2) for x in real(*a, **b)],
    )
    result = stemformer.fewshot([task], model=[model], num_shots=[0], num_questions=12)
    assert result["results"][0]["same_answer"] < 1
    assert not any("same answer" in note for note in result["notes"])


def test_tasks_are_listed(capsys):
    assert main(["fewshot", "--list", "--json"]) == 0
    assert {"sst2", "lambada", "synthetic:copy"} <= {t["task"] for t in json.loads(capsys.readouterr().out)["tasks"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_shots": [-1]}, "--num-shots -1"),
        ({"model": []}, "expected at least one model"),
        ({"num_questions": 0}, "--num-questions 0"),
        ({"demonstrations": ["other=x.tsv"]}, "expected one of the tasks"),
        ({"demonstrations": ["mood.toml"]}, "expected TASK=FILE"),
        ({"seed": -1}, "--seed -1"),
        ({"threads": -1}, "--threads -1"),
    ],
)
def test_bad_input_is_refused(model, task, options, message):
    with pytest.raises(ConfigError, match=message):
        stemformer.fewshot([task], **{"model": [model], "num_shots": [0], **options})


def test_model_without_a_language_modelling_head_is_refused(task, small_gpt, bpe, tmp_path):
    save_model(make_model(small_gpt.config, [], generator=None), tmp_path / "body", bpe)
    with pytest.raises(CheckpointError, match="no language-modelling head"):
        stemformer.fewshot([task], model=[str(tmp_path / "body")], num_shots=[0])
