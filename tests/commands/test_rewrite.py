"""`rewrite`: texts in order, independent of the batch, and clear errors."""

import io
import json
import sys

import pytest

import stemformer
from stemformer.cli.app import main
from stemformer.errors import ConfigError, DataError, TokenizerError
from stemformer.generation import rewriting
from stemformer.progress import Silent

TEXTS = ["the king was old .", "[MASK] king", "a queen came to the old [MASK] and spoke to him"]


@pytest.fixture(scope="module")
def model(tiny, no_timing, tmp_path_factory):
    out = tmp_path_factory.mktemp("bart") / "run"
    sizes = ["model.hidden_size=32", "model.intermediate_size=64", "batch.size=8", "batch.sequence_length=32"]
    seldom = ["evaluation.num_examples=8", "evaluation.every=100", "optimizer.learning_rate=1e-2"]
    options = {"data": str(tiny / "data"), "out": str(out), "settings": [*sizes, *seldom]}
    stemformer.pretrain("bart_tiny", **options, steps=20, precision="fp32", device="cpu")
    return stemformer.load(str(out))


def test_each_text_gets_a_result_in_order(model):
    found = stemformer.rewrite(TEXTS, model=model, max_new_tokens=5)
    assert [row["text"] for row in found] == TEXTS
    assert all(isinstance(row["rewritten"], str) and row["score"] < 0 for row in found)
    assert all("candidates" not in row for row in found)


def test_results_do_not_depend_on_the_batch(model):
    together = stemformer.rewrite(TEXTS, model=model)
    one_by_one = stemformer.rewrite(TEXTS, model=model, batch_size=1)
    assert [row["rewritten"] for row in together] == [row["rewritten"] for row in one_by_one]


def test_candidates_are_ordered_by_score(model):
    (found,) = stemformer.rewrite(TEXTS[:1], model=model, num_return_sequences=3)
    scores = [candidate["score"] for candidate in found["candidates"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert found["rewritten"] == found["candidates"][0]["rewritten"]


def test_constraints_hold(model):
    found = stemformer.rewrite(TEXTS, model=model, min_new_tokens=6, no_repeat_ngram_size=1, max_new_tokens=12)
    for row in found:
        ids = model.tokenizer.encode_ids([row["rewritten"]])[0].tolist()
        assert len(ids) >= 5 and len(set(ids)) == len(ids)


def test_a_minimum_length_raises_the_usual_maximum(model, monkeypatch):
    limits = []
    search = rewriting.search_beams
    monkeypatch.setattr(
        rewriting, "search_beams", lambda *args, **options: limits.extend(options["limits"]) or search(*args, **options)
    )
    stemformer.rewrite(["king"], model=model)
    stemformer.rewrite(["king"], model=model, min_new_tokens=limits[0] + 3)
    assert limits[1] == limits[0] + 3


def test_texts_of_any_iterable_are_read_in_blocks(model, monkeypatch):
    monkeypatch.setattr(rewriting, "_BLOCK_SIZE", 2)
    events = []

    def texts():
        for text in TEXTS:
            events.append(text)
            yield text

    keep = {"batch_size": 1, "on_row": lambda row: events.append(row["rewritten"])}
    assert stemformer.rewrite(texts(), model=model, **keep) == []
    first, second, third = (row["rewritten"] for row in stemformer.rewrite(TEXTS, model=model))
    assert events == [*TEXTS[:2], first, second, TEXTS[2], third]
    events.clear()
    with pytest.raises(DataError, match=r"Text 3 \(''\) has 0 tokens"):
        stemformer.rewrite(iter([*TEXTS[:2], ""]), model=model, **keep)
    assert events == [first, second]


def test_results_are_written_to_a_file(model, tmp_path):
    out = tmp_path / "new" / "rewritten.jsonl"
    result = stemformer.rewrite(TEXTS, model=model, out=str(out))
    assert result == {"out": str(out), "texts": 3}
    assert [json.loads(line) for line in out.read_text().splitlines()] == stemformer.rewrite(TEXTS, model=model)
    with pytest.raises(ConfigError, match=r"exists\. Pass another --out, or --overwrite to replace it"):
        stemformer.rewrite(TEXTS, model=model, out=str(out))
    with pytest.raises(ConfigError, match=r"Expected a name that ends with \.jsonl"):
        stemformer.rewrite(TEXTS, model=model, out="rewritten.txt")


def test_no_file_is_left_if_a_text_is_refused(model, tmp_path):
    with pytest.raises(DataError, match="Text 2"):
        stemformer.rewrite(iter([TEXTS[0], ""]), model=model, out=str(tmp_path / "rewritten.jsonl"))
    assert not list(tmp_path.iterdir())


def test_lines_of_standard_input_are_written_as_they_come(model, monkeypatch, capsys):
    monkeypatch.setattr("stemformer.commands.rewrite.open_pipeline", lambda *_: model)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n\n".join(TEXTS).encode())))
    assert main(["rewrite", "-", "--model", "m"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == stemformer.rewrite(TEXTS, model=model)
    assert "rewriting: 3/3 texts (100%)" in printed.err
    assert "blank lines of standard input (skipped): 2" in printed.err


def test_texts_that_ran_into_their_length_are_counted(model):
    said = []
    progress = Silent()
    progress.say = said.append
    (found,) = stemformer.rewrite(TEXTS[2:], model=model, max_new_tokens=1, progress=progress)
    assert not found["is_complete"]
    assert said == ["note: 1 text ran into the maximum length and may lack an end"]


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ([], {}, DataError, "No text to work on"),
        ("one text", {}, DataError, "Expected a list of texts"),
        ([""], {}, DataError, r"Text 1 \(''\) has 0 tokens. Expected 1 to 30"),
        (["king " * 31], {}, DataError, "has 31 tokens. Expected 1 to 30: shorten it, or pass"),
        (["king"], {"num_beams": 0}, ConfigError, "num_beams is 0"),
        (["king"], {"max_new_tokens": 0}, ConfigError, "max_new_tokens is 0"),
        (["king"], {"min_new_tokens": 9, "max_new_tokens": 8}, ConfigError, "min_new_tokens is 9: expected at most 8"),
        (["king"], {"min_new_tokens": 999}, ConfigError, "min_new_tokens is 999: expected at most"),
        (["king"], {"no_repeat_ngram_size": -1}, ConfigError, "no_repeat_ngram_size is -1"),
        (["king"], {"num_return_sequences": 5}, ConfigError, "num_return_sequences is 5: expected 1 to 4"),
        (["king"], {"batch_size": 0}, ConfigError, "batch_size is 0"),
        (["king"], {"length_penalty": float("nan")}, ConfigError, "length_penalty is nan"),
        (["king"], {"length_penalty": 11.0}, ConfigError, r"length_penalty is 11.0: expected a number from -10 to 10"),
    ],
)
def test_bad_input_is_refused(model, texts, options, error, message):
    with pytest.raises(error, match=message):
        stemformer.rewrite(texts, model=model, **options)


def test_bad_settings_are_refused_before_the_model_is_opened():
    with pytest.raises(ConfigError, match="num_beams is 0"):
        stemformer.rewrite(["king"], model="no/such/model/here", num_beams=0)
    with pytest.raises(DataError, match="No text to work on"):
        stemformer.rewrite([], model="no/such/model/here")


def test_a_language_without_tokens_of_languages_is_refused(model):
    with pytest.raises(TokenizerError, match="has no tokens of languages"):
        stemformer.rewrite(["king"], model=model, target_language="fr")


def test_a_bert_is_refused(tiny_bert):
    with pytest.raises(ConfigError, match=r"is no encoder-decoder, so it cannot rewrite texts\. Pass a BART"):
        stemformer.rewrite(["king"], model=str(tiny_bert))
