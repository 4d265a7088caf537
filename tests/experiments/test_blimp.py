"""The command `benchmark blimp` on small sets and random models: counts, resumption, report, bad input."""

import json
from pathlib import Path

import pytest
import torch
from report_page import Page, assert_loads_nothing_and_runs_nothing

import stemformer
from stemformer.cli.app import main
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.few_shot.evaluate import mean_interval
from stemformer.experiments import blimp
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model

NOUNS = ["king", "river", "child", "teacher", "garden"]
SETS = {
    "agreement_1": ("morphology", "agreement", "The {0} sees the {1}.", "The {0} see the {1}."),
    "agreement_2": ("morphology", "agreement", "The small {0} follows.", "The small {0} follow."),
    "order": ("syntax", "word_order", "The old {0} paints.", "The {0} old paints."),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blimp")
    for name, (field, term, good, bad) in SETS.items():
        words = [(a, b) for a in NOUNS for b in NOUNS]
        rows = [
            {"sentence_good": good.format(*w), "sentence_bad": bad.format(*w), "field": field, "linguistics_term": term}
            for w in words[: 10 if name == "order" else 20]
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def gpt(small_gpt, bpe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt")
    save_model(small_gpt, folder, bpe)
    return folder


def run(data, model, out, **options):
    return stemformer.benchmark_blimp(str(data), model=str(model), out=str(out), device="cpu", **options)


@pytest.fixture(scope="module")
def finished(data, tiny_bert, tmp_path_factory):
    """Directory and result of a masked model, scored in both ways."""
    out = tmp_path_factory.mktemp("out")
    return out, run(data, tiny_bert, out, pll="both", overwrite=True)


def without_times(result):
    return {key: value for key, value in result.items() if key not in ("run", "report", "minutes")}


def test_accuracy_is_that_of_the_scores_of_single_sentences(finished, data, tiny_bert):
    _, result = finished
    model = stemformer.load(str(tiny_bert))
    for pll in ("within_word_l2r", "original"):
        shares = []
        for row in result["sets"]:
            lines = [json.loads(line) for line in (data / f"{row['set']}.jsonl").read_text().splitlines()]
            good, bad = (
                [score["log_likelihood"] for score in model.score([line[key] for line in lines], pll=pll)]
                for key in ("sentence_good", "sentence_bad")
            )
            shares.append(sum(a > b for a, b in zip(good, bad, strict=True)) / len(lines))
            assert row[pll] == f"{100 * shares[-1]:.1f}"
        # Sets count equally, whatever their size.
        assert result["accuracy"][pll] == pytest.approx(sum(shares) / 3)
        low, high = result["interval"][pll]
        assert low < result["accuracy"][pll] < high
        assert (low, high) == pytest.approx(mean_interval(shares, [20, 20, 10]))


def test_table_has_all_fields_and_phenomena(finished):
    _, result = finished
    assert [(row["field"], row["phenomenon"], row["sets"], row["pairs"]) for row in result["table"]] == [
        ("all", "all", 3, 50),
        ("morphology", "all", 2, 40),
        ("morphology", "agreement", 2, 40),
        ("syntax", "all", 1, 10),
        ("syntax", "word_order", 1, 10),
    ]
    first, second, third = (float(row["original"]) for row in result["sets"])
    assert float(result["table"][1]["original"]) == pytest.approx((first + second) / 2, abs=0.06)
    assert float(result["table"][4]["original"]) == third


def test_result_names_published_results_and_that_they_are_of_filtered_sets(finished):
    out, result = finished
    assert any(row["accuracy"] == 71.66 for row in result["published"])
    assert any("filtered sets" in note for note in result["notes"])
    assert json.loads((out / "blimp.json").read_text())["table"] == result["table"]


def test_report_shows_fields_sets_and_published_results(finished):
    page = Page((finished[0] / "report.html").read_text())
    assert_loads_nothing_and_runs_nothing(page)
    assert page.captions() == ["Accuracy by phenomenon"]
    for text in ("word_order", "agreement_2", "GPT-BERT causal-focus", "ties, counted as wrong"):
        assert text in page.text


def test_causal_model_is_scored_by_its_likelihood(data, gpt, tmp_path):
    result = run(data, gpt, tmp_path / "out", limit=4)
    assert list(result["accuracy"]) == ["causal"] and result["pairs"] == 12
    assert [row["pairs"] for row in result["sets"]] == [4, 4, 4]


def test_loaded_model_is_accepted_and_the_result_is_the_same_each_time(data, gpt, tmp_path):
    first = run(data, gpt, tmp_path / "a", limit=3)
    second = stemformer.benchmark_blimp(data, model=stemformer.load(gpt), out=tmp_path / "b", limit=3, device="cpu")
    assert without_times(first) == without_times(second)


def test_sets_without_fields_have_one_row(gpt, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "a.jsonl").write_text('{"sentence_good": "The king.", "sentence_bad": "King the."}\n')
    [row] = run(tmp_path / "sets", gpt, tmp_path / "out")["table"]
    assert (row["field"], row["phenomenon"], row["pairs"]) == ("all", "all", 1)


def test_resume_keeps_finished_sets(data, tiny_bert, tmp_path, monkeypatch):
    expected = run(data, tiny_bert, tmp_path / "a")
    real, calls = blimp.count_correct, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(blimp, "count_correct", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(data, tiny_bert, tmp_path / "b")
    # Killed while it wrote the next line.
    with (tmp_path / "b" / "finished.jsonl").open("a") as stream:
        stream.write('{"set": "agree')
    assert without_times(run(data, tiny_bert, tmp_path / "b", resume=True)) == without_times(expected)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pll": "original"}, "pll was within_word_l2r, is now original"), ({"limit": 2}, "limit was 3, is now 2")],
)
def test_resume_with_other_settings_is_refused(data, tiny_bert, tmp_path, options, message):
    run(data, tiny_bert, tmp_path / "out", limit=3)
    with pytest.raises(CheckpointError, match=message):
        run(data, tiny_bert, tmp_path / "out", **{"limit": 3, **options}, resume=True)


def test_resume_with_other_weights_or_sentences_is_refused(data, gpt, small_gpt, bpe, tmp_path):
    sets, model = tmp_path / "sets", tmp_path / "model"
    sets.mkdir()
    (sets / "a.jsonl").write_bytes((data / "order.jsonl").read_bytes())
    other = make_model(small_gpt.config, ["causal_lm"], generator=torch.Generator().manual_seed(2))
    save_model(other, model, bpe)
    run(sets, model, tmp_path / "out")
    save_model(small_gpt, model, bpe)
    with pytest.raises(CheckpointError, match="model_digest was"):
        run(sets, model, tmp_path / "out", resume=True)
    save_model(other, model, bpe)
    run(sets, model, tmp_path / "out", resume=True)
    (sets / "a.jsonl").write_bytes((data / "agreement_1.jsonl").read_bytes())
    with pytest.raises(CheckpointError, match="data_digest was"):
        run(sets, model, tmp_path / "out", resume=True)


def test_words_that_the_vocabulary_cannot_write_are_noted(tiny_bert, tmp_path):
    (tmp_path / "sets").mkdir()
    row = {"sentence_good": "\u0416\u0414 \u0416", "sentence_bad": "\u0414\u0416 the \u0414"}
    (tmp_path / "sets" / "a.jsonl").write_text(json.dumps(row) + "\n")
    notes = run(tmp_path / "sets", tiny_bert, tmp_path / "out")["notes"]
    assert any("the vocabulary cannot write them" in note for note in notes)


def test_model_without_a_head_is_refused(data, tiny, tmp_path):
    tokenizer = load_tokenizer(str(tiny / "tok"))
    config = BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    save_model(make_model(config, generator=torch.Generator().manual_seed(0)), tmp_path / "model", tokenizer)
    with pytest.raises(CheckpointError, match="has no language-modelling head"):
        run(data, tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"limit": 0}, ConfigError, "--limit 0: expected at least 1"),
        ({"pll": "original"}, ConfigError, "--pll applies to masked language models"),
        ({"data": Path("nowhere")}, DataError, "nowhere is not a directory"),
        ({"model": "./nowhere"}, CheckpointError, "nowhere does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(data, gpt, tmp_path, options, error, message):
    chosen = {"data": data, "model": gpt, "out": tmp_path / "out"} | options
    with pytest.raises(error, match=message):
        run(**chosen)
    assert not (tmp_path / "out").exists()


def test_command_prints_the_table_and_json_has_the_sets(data, gpt, tmp_path, capsys):
    words = ["benchmark", "blimp", "--data", str(data), "--model", str(gpt), "--limit", "2", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    text = capsys.readouterr().out
    assert "word_order" in text and "agreement_1" not in text
    assert main([*words, "--out", str(tmp_path / "b"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sets"]) == 3
    assert main([*words, "--out", str(tmp_path / "a")]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_finished_run_is_described(finished):
    out, result = finished
    assert stemformer.inspect(out)["table"] == result["table"]
    assert "sets" not in stemformer.inspect(out)
