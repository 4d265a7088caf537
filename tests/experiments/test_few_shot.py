"""The command: a table over models, tasks and numbers of examples, what is kept, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stemformer
from stemformer.cli.app import main
from stemformer.errors import CheckpointError, ConfigError
from stemformer.experiments import few_shot_trials as prompt_figures
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


def test_table_pictures_and_report(model, task, tmp_path):
    out = tmp_path / "table"
    told = stemformer.fewshot(
        [task, "synthetic:association", "synthetic:copy"],
        model=[model],
        out=str(out),
        num_shots=[0, 2],
        num_questions=6,
        num_draws=2,
        calibrate=True,
    )
    assert [(r["task"], r["num_shots"]) for r in told["figures"]] == [
        ("mood", 0), ("mood", 2), ("association", 0), ("association", 2), ("copy", 0), ("copy", 2),
    ]  # fmt: skip
    assert {r["questions"] for r in told["figures"]} == {6} and "acc_calibrated" in told["figures"][0]
    assert told["figures"][2]["chance"] == 0.25 and told["figures"][4]["chance"] is None
    page = (out / "report.html").read_text()
    assert "association" in page and "<svg" in page and "river:<b> " in page
    assert (out / "shots.svg").is_file() and (out / "shots.png").is_file()
    answers = (out / "answers").glob("*mood-2-*.jsonl")
    assert len(next(answers).read_text().splitlines()) == 12
    assert stemformer.inspect(str(out)) == {"prompts": str(out), "table": told["table"], "notes": told["notes"]}


def test_a_table_goes_on_with_what_is_missing(model, task, tmp_path, monkeypatch):
    out = str(tmp_path / "table")
    first = stemformer.fewshot([task], model=[model], out=out, num_shots=[0], num_questions=5)
    seen = []
    monkeypatch.setattr("stemformer.experiments.few_shot_trials.evaluate_few_shot", _counting(seen))
    both = stemformer.fewshot([task], model=[model], out=out, num_shots=[0, 1], num_questions=5, resume=True)
    assert seen == [1] and both["figures"][0] == first["figures"][0]
    again = stemformer.fewshot([task], model=[model], out=out, num_shots=[1], num_questions=5, resume=True)
    assert seen == [1] and again["figures"] == both["figures"]  # what is there stays in the table
    stemformer.fewshot([task], model=[model], out=out, num_shots=[0, 1], num_questions=6, resume=True)
    assert seen == [1, 0, 1]  # other questions are other figures


def _counting(seen):
    from stemformer.evaluation.few_shot.evaluate import evaluate_few_shot

    def counted(*given, num_shots, **more):
        seen.append(num_shots)
        return evaluate_few_shot(*given, num_shots=num_shots, **more)

    return counted


@pytest.mark.parametrize("change", ["n_head", "layer_norm_epsilon", "tokenizer"])
def test_the_same_weights_read_in_another_way_are_asked_anew(model, task, tmp_path, monkeypatch, change):
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
    monkeypatch.setattr("stemformer.experiments.few_shot_trials.evaluate_few_shot", _counting(seen))
    stemformer.fewshot([task], model=[str(folder)], out=out, num_shots=[0], num_questions=5, resume=True)
    assert seen == [0]


def test_answers_of_another_model_stay_beside_new_ones(model, small_gpt, bpe, task, tmp_path):
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(5))
    save_model(other, tmp_path / "b" / "model", bpe)
    out = tmp_path / "table"
    first = stemformer.fewshot([task], model=[model], out=str(out), num_shots=[0], num_questions=3)["figures"][0]
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
    given = {"out": out, "num_shots": [0], "num_questions": 3}
    first = stemformer.fewshot([task, "synthetic:copy"], model=[model], **given)["figures"]
    told = stemformer.fewshot([task], model=[second], resume=True, **given)
    assert [(row["task"], row["model"]) for row in told["figures"]] == [
        ("mood", second), ("mood", model), ("copy", model),
    ]  # fmt: skip
    assert told["figures"][1:] == [{**row, "is_from_before": True} for row in first] and len(told["table"]) == 3
    other_seed = stemformer.fewshot([task], model=[second], resume=True, seed=3, **given)
    assert [row["model"] for row in other_seed["figures"]] == [second]
    assert "3 figures in the folder asked with other settings" in other_seed["notes"][-1]
    again = stemformer.fewshot(["synthetic:copy"], model=[second], resume=True, **given)["figures"]
    assert {(row["task"], row["model"]) for row in again} == {
        ("copy", second), ("copy", model), ("mood", second), ("mood", model),
    }  # fmt: skip


def test_figures_of_weights_that_are_gone_leave_the_table(model, small_gpt, bpe, task, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    given = {"model": [str(tmp_path / "m")], "out": str(tmp_path / "table"), "num_shots": [0], "num_questions": 3}
    stemformer.fewshot([task, "synthetic:copy"], **given)
    shutil.rmtree(tmp_path / "m")
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(5))
    save_model(other, tmp_path / "m", bpe)
    assert [row["task"] for row in stemformer.fewshot([task], resume=True, **given)["figures"]] == ["mood"]


def test_synthetic_questions_are_the_same_for_more_examples(model, tmp_path, monkeypatch):
    out = str(tmp_path / "table")
    first = stemformer.fewshot(["synthetic:copy"], model=[model], out=out, num_shots=[0, 2], num_questions=4)
    seen = []
    monkeypatch.setattr("stemformer.experiments.few_shot_trials.evaluate_few_shot", _counting(seen))
    more = stemformer.fewshot(
        ["synthetic:copy"], model=[model], out=out, num_shots=[0, 2, 4], num_questions=4, resume=True
    )
    assert seen == [4] and more["figures"][:2] == first["figures"]
    two, four = (stemformer.show_prompts(["synthetic:copy"], num_shots=[k])[0]["prompt"].splitlines() for k in (2, 4))
    assert four[:2] == two[:2] and four[-1] == two[-1]


def test_a_table_that_was_stopped_at_once_goes_on(model, task, tmp_path):
    out = tmp_path / "table"
    out.mkdir()
    (out / "figures.jsonl").touch()
    assert stemformer.fewshot([task], model=[model], out=str(out), num_shots=[0], num_questions=3, resume=True)[
        "figures"
    ]


def test_columns_may_have_spaces_in_their_names(model, tmp_path):
    (tmp_path / "mood.tsv").write_text("my text\tlabel\n" + "".join(f"river {i}\t{i % 2}\n" for i in range(8)))
    (tmp_path / "mood.toml").write_text(
        'template = "{ my text }: {answer}"\nlabel = "label"\ndata = "mood.tsv"\n[answers]\n"0" = "bad"\n"1" = "good"\n'
    )
    given = {"model": [model], "num_shots": [1], "calibrate": True}
    assert stemformer.fewshot([str(tmp_path / "mood.toml")], **given)["figures"][0]["questions"] == 8


def test_other_data_or_overwriting_asks_anew(model, task, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("mood.toml", "mood.tsv"):
        (folder / name).write_bytes((Path(task).parent / name).read_bytes())
    mine, out = str(folder / "mood.toml"), str(tmp_path / "table")
    before = stemformer.fewshot([mine], model=[model], out=out, num_shots=[0])["figures"][0]
    turned = (folder / "mood.tsv").read_text().replace("\t0", "\tx").replace("\t1", "\t0").replace("\tx", "\t1")
    (folder / "mood.tsv").write_text(turned)
    for options in ({"resume": True}, {"overwrite": True}):
        told = stemformer.fewshot([mine], model=[model], out=out, num_shots=[0], **options)["figures"]
        assert [row["accuracy"] for row in told] == [pytest.approx(1 - before["accuracy"])]


def test_a_folder_of_something_else_is_left_alone(model, task, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("seed = 0\n")
    with pytest.raises(CheckpointError, match="holds no table of prompting"):
        stemformer.fewshot([task], model=[model], out=str(tmp_path / "run"), num_shots=[0], resume=True)
    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 0\n"


def test_one_task_on_two_files_is_told_apart_by_them(model, task, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_bytes((Path(task).parent / "mood.tsv").read_bytes())
    told = stemformer.fewshot([f"{task}={other}", task], model=[model], num_shots=[0], num_questions=3)
    assert [row["task"] for row in told["figures"]] == ["mood_other", "mood_mood"]


def test_models_called_alike_keep_their_answers(model, small_gpt, bpe, task, tmp_path):
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(5))
    save_model(other, tmp_path / "b" / "model", bpe)
    out = tmp_path / "table"
    stemformer.fewshot(
        [task], model=[model, str(tmp_path / "b" / "model")], out=str(out), num_shots=[0], num_questions=3
    )
    assert len(list((out / "answers").iterdir())) == 2


def test_the_report_shows_what_was_asked(model, tmp_path):
    out = tmp_path / "table"
    stemformer.fewshot(["synthetic:association"], model=[model], out=str(out), num_shots=[0, 9], num_questions=1)
    [shown] = stemformer.show_prompts(["synthetic:association"], num_shots=[9])
    last = shown["prompt"].splitlines()[-1]
    assert last.replace(">", "&gt;") in (out / "report.html").read_text()


def test_calibrated_figures_are_in_the_table(model, task, tmp_path):
    out = tmp_path / "table"
    [line] = stemformer.fewshot([task], model=[model], out=str(out), num_shots=[0], num_questions=4, calibrate=True)[
        "table"
    ]
    assert "0 calibrated" in line
    assert f"calibrated {line['0 calibrated']}" in (out / "report.html").read_text()


def test_the_same_seed_gives_the_same_figures(model, task):
    one, two = (stemformer.fewshot([task], model=[model], num_shots=[3], num_questions=8, seed=4) for _ in range(2))
    assert one == two


def test_the_very_prompt_is_shown(task, capsys):
    assert main(["fewshot", task, "--dry-run", "--num-shots", "1"]) == 0
    out = capsys.readouterr().out
    assert "=== mood, 1-shot ===" in out and out.rstrip().endswith("]")


def test_a_task_says_how_near_texts_come_and_with_how_many_examples(model, tmp_path, capsys):
    rows = [{"en": f"the {word} king", "de": f"der {word}e König"} for word in ["old", "wise", "small", "green"] * 3]
    (tmp_path / "de.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "de.toml").write_text(
        'template = "{en} => {answer}"\nanswer = "{de}"\noutput_type = "generate_until"\nmetric = "chrf"\ndata = "de.jsonl"\n'
        'num_shots = [3, 1]\ndraw = "first"\nmax_new_tokens = 5\n'
    )
    task, out = str(tmp_path / "de.toml"), tmp_path / "out"
    assert main(["fewshot", task, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["num_shots"] for one in shown] == [1, 3]
    assert shown[0]["prompt"].startswith("the old king => der olde König\n\n")
    told = stemformer.fewshot([task, "synthetic:copy"], model=[model], out=str(out), num_questions=6)
    mine = [row for row in told["figures"] if row["task"] == "de"]
    assert [row["num_shots"] for row in mine] == [1, 3] and told["table"][0]["task"] == "de (chrf)"
    assert {row["num_shots"] for row in told["figures"] if row["task"] == "copy"} == {0, 1, 4}
    for row in mine:
        assert row["metric"] == "chrf" and row["value"] == row["chrf"] and row["accuracy"] == 0
        assert 0 <= row["low"] <= row["chrf"] <= row["high"] <= 1
    assert "de (chrf)" in (out / "report.html").read_text()


def test_what_did_not_fit_is_told(model, tmp_path):
    rows = [{"text": "the river and the king " * 12, "label": str(i % 2)} for i in range(30)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "long.toml").write_text(
        'template = "{text} {answer}"\ndata = "long.jsonl"\nlabel = "label"\n[answers]\n0 = "old"\n1 = "wise"\n'
    )
    told = stemformer.fewshot([str(tmp_path / "long.toml")], model=[model], num_shots=[2], num_questions=5)
    assert any("of 2 examples 2.0 did not fit" in note for note in told["notes"])
    assert any("5 of 5 questions were too long" in note for note in told["notes"])


def test_model_that_gives_one_answer_to_all_is_told(model, task, monkeypatch):
    real = prompt_figures.ask
    monkeypatch.setattr(prompt_figures, "ask", lambda *a, **b: [replace(x, prediction=1, prediction_norm=1) for x in real(*a, **b)])
    told = stemformer.fewshot([task], model=[model], num_shots=[0], num_questions=12)
    assert told["figures"][0]["same_answer"] == 1
    assert any("gives one and the same answer to all 12 questions" in note for note in told["notes"])
    monkeypatch.setattr(
        prompt_figures,
        "ask",
        lambda *a, **b: [replace(x, prediction=x.number % 2, prediction_norm=x.number % 2) for x in real(*a, **b)],
    )
    told = stemformer.fewshot([task], model=[model], num_shots=[0], num_questions=12)
    assert told["figures"][0]["same_answer"] < 1
    assert not any("same answer" in note for note in told["notes"])


def test_tasks_are_listed(capsys):
    assert main(["fewshot", "--list", "--json"]) == 0
    assert {"sst2", "lambada", "synthetic:copy"} <= {t["task"] for t in json.loads(capsys.readouterr().out)["tasks"]}


@pytest.mark.parametrize(
    ("options", "told"),
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
def test_what_does_not_fit_is_refused(model, task, options, told):
    with pytest.raises(ConfigError, match=told):
        stemformer.fewshot([task], **{"model": [model], "num_shots": [0], **options})


def test_a_model_without_words_is_refused(task, small_gpt, bpe, tmp_path):
    save_model(make_model(small_gpt.config, [], generator=None), tmp_path / "body", bpe)
    with pytest.raises(CheckpointError, match="no head for words"):
        stemformer.fewshot([task], model=[str(tmp_path / "body")], num_shots=[0])
