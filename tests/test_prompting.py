"""The command: a table over models, tasks and numbers of examples, what is kept, and what is refused."""

import json

import pytest

from stemformer import api
from stemformer.cli import main
from stemformer.errors import CheckpointError, ConfigError
from stemformer.pretrained import save_model


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
    told = api.prompt(
        [task, "synthetic:association", "synthetic:copy"],
        models=[model],
        out=str(out),
        num_shots=[0, 2],
        num_questions=6,
        draws=2,
        calibrate=True,
    )
    assert [(r["task"], r["num_shots"]) for r in told["figures"]] == [
        ("mood", 0), ("mood", 2), ("association", 0), ("association", 2), ("copy", 0), ("copy", 2),
    ]  # fmt: skip
    assert {r["questions"] for r in told["figures"]} == {6} and "calibrated" in told["figures"][0]
    assert told["figures"][2]["chance"] == 0.25 and told["figures"][4]["chance"] is None
    page = (out / "report.html").read_text()
    assert "association" in page and "<svg" in page and "river:<b> " in page
    assert (out / "shots.svg").is_file() and (out / "shots.png").is_file()
    answers = (out / "answers").glob("*mood-2.jsonl")
    assert len(next(answers).read_text().splitlines()) == 12


def test_a_table_goes_on_with_what_is_missing(model, task, tmp_path, monkeypatch):
    out = str(tmp_path / "table")
    first = api.prompt([task], models=[model], out=out, num_shots=[0], num_questions=5)
    seen = []
    monkeypatch.setattr("stemformer.prompting._figure", _counting(seen))
    both = api.prompt([task], models=[model], out=out, num_shots=[0, 1], num_questions=5, resume=True)
    assert seen == [1] and both["figures"][0] == first["figures"][0]
    with pytest.raises(CheckpointError, match="num_questions was 5, is now 6"):
        api.prompt([task], models=[model], out=out, num_shots=[0], num_questions=6, resume=True)


def _counting(seen):
    from stemformer.prompting import _figure

    def figure(model, opened, tokenizer, task, data, num_shots, *rest):
        seen.append(num_shots)
        return _figure(model, opened, tokenizer, task, data, num_shots, *rest)

    return figure


def test_the_same_seed_gives_the_same_figures(model, task):
    one, two = (api.prompt([task], models=[model], num_shots=[3], num_questions=8, seed=4) for _ in range(2))
    assert one == two


def test_the_very_prompt_is_shown(task, capsys):
    assert main(["prompt", task, "--show", "--num-shots", "1"]) == 0
    out = capsys.readouterr().out
    assert "=== mood, 1 examples ===" in out and out.rstrip().endswith("]")


def test_tasks_are_listed(capsys):
    assert main(["prompt", "--list", "--json"]) == 0
    assert {"sst2", "lambada", "synthetic:copy"} <= {t["task"] for t in json.loads(capsys.readouterr().out)["tasks"]}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_shots": []}, "--num-shots"),
        ({"models": []}, "expected at least one model"),
        ({"num_questions": 0}, "--num-questions 0"),
        ({"examples": ["other=x.tsv"]}, "expected one of the tasks"),
    ],
)
def test_what_does_not_fit_is_refused(model, task, options, told):
    with pytest.raises(ConfigError, match=told):
        api.prompt([task], **{"models": [model], "num_shots": [0], **options})


def test_a_model_without_words_is_refused(task, small_gpt, bpe, tmp_path):
    from stemformer.models.model import make_model

    save_model(make_model(small_gpt.config, [], generator=None), tmp_path / "body", bpe)
    with pytest.raises(CheckpointError, match="no head for words"):
        api.prompt([task], models=[str(tmp_path / "body")], num_shots=[0])
