"""`rewrite`: texts in order, independent of the batch, and clear errors."""

import copy
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stemformer
from stemformer import commands
from stemformer.cli.app import main
from stemformer.errors import ConfigError, DataError, TokenizerError
from stemformer.generation import rewriting
from stemformer.generation.rewriting import Rewriter
from stemformer.progress import Silent
from stemformer.tasks.seq2seq import Seq2Seq
from stemformer.tasks.task import TaskConfig

TOO_LONG = "king " * 31
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
    hurried = copy.deepcopy(model)
    with torch.no_grad():
        # Without a minimum every text ends at once.
        hurried.model.lm_head.bias[model.tokenizer.sep_token_id] += 50
    assert [row["rewritten"] for row in stemformer.rewrite(TEXTS, model=hurried)] == ["", "", ""]
    found = stemformer.rewrite(TEXTS, model=hurried, min_new_tokens=6, no_repeat_ngram_size=1, max_new_tokens=12)
    for row in found:
        ids = model.tokenizer.encode_ids([row["rewritten"]])[0].tolist()
        assert row["is_complete"] and 5 <= len(ids) <= 6 and len(set(ids)) == len(ids)


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
    monkeypatch.setattr(commands.rewrite, "_BLOCK_SIZE", 2)
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
    with pytest.raises(DataError, match=r"Text 3 \('king king .* has 31 tokens"):
        stemformer.rewrite(iter([*TEXTS[:2], TOO_LONG]), model=model, **keep)
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


def interrupted(model, out, monkeypatch, number=2, **options):
    """Rewrite the texts in blocks of two, and stop after some of them."""
    monkeypatch.setattr(commands.rewrite, "_BLOCK_SIZE", 2)
    said, progress = [], Silent()
    progress.say = said.append
    options = {"model": model, "out": str(out), "batch_size": 2, "progress": progress, **options}
    with pytest.raises(DataError, match=f"Text {number + 1}"):
        stemformer.rewrite(iter([*TEXTS[:number], TOO_LONG]), **options)
    return said


def test_finished_blocks_are_kept_and_continued(model, tmp_path, monkeypatch):
    out = tmp_path / "rewritten.jsonl"
    said = interrupted(model, out, monkeypatch)
    assert said[-1] == f"{out}.partial keeps 2 texts: continue with --resume"
    assert [file.name for file in tmp_path.iterdir()] == ["rewritten.jsonl.partial"]
    with pytest.raises(ConfigError, match=r"partial holds the texts of a command that was interrupted\. Continue it"):
        stemformer.rewrite(TEXTS, model=model, out=str(out))
    with pytest.raises(DataError, match=r"Text 2 is not the one that .*partial has\. Pass the same texts"):
        stemformer.rewrite([TEXTS[0], "another"], model=model, out=str(out), resume=True)
    with pytest.raises(DataError, match=r"There are 1 text, and .*partial has 2\. Pass the same texts"):
        stemformer.rewrite(TEXTS[:1], model=model, out=str(out), resume=True)
    rewritten = []
    block = Rewriter.rewrite
    monkeypatch.setattr(Rewriter, "rewrite", lambda *args, **how: rewritten.extend(args[1]) or block(*args, **how))
    assert stemformer.rewrite(TEXTS, model=model, out=str(out), resume=True) == {"out": str(out), "texts": 3}
    assert rewritten == TEXTS[2:]
    rows = stemformer.rewrite(TEXTS, model=model)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    assert [file.name for file in tmp_path.iterdir()] == ["rewritten.jsonl"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"max_new_tokens": 30}, "max_new_tokens"),
        ({"precision": "bf16"}, "precision"),
        ({"long_sources": "cut"}, "long_sources"),
    ],
)
def test_texts_of_other_options_are_not_mixed(model, tmp_path, monkeypatch, options, names):
    out = tmp_path / "rewritten.jsonl"
    interrupted(model, out, monkeypatch)
    with pytest.raises(ConfigError, match=rf"was written with another value of {names}\. Pass the same"):
        stemformer.rewrite(TEXTS, model=model, out=str(out), resume=True, **options)


def test_texts_of_another_model_of_this_path_are_not_mixed(model, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(Path(model.path) / "final", tmp_path / "model"))
    interrupted(stemformer.load(str(folder)), tmp_path / "rewritten.jsonl", monkeypatch)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"was written with another value of weights\."):
        stemformer.rewrite(TEXTS, model=str(folder), out=str(tmp_path / "rewritten.jsonl"), resume=True)


def test_a_replacement_that_was_interrupted_is_continued(model, tmp_path, monkeypatch):
    out = tmp_path / "rewritten.jsonl"
    out.write_text("old\n")
    interrupted(model, out, monkeypatch, overwrite=True)
    assert out.read_text() == "old\n"
    assert stemformer.rewrite(TEXTS, model=model, out=str(out), resume=True)["texts"] == 3
    assert len(out.read_text().splitlines()) == 3


def test_nothing_is_left_if_nothing_was_rewritten(model, tmp_path, monkeypatch):
    assert interrupted(model, tmp_path / "rewritten.jsonl", monkeypatch, number=0) == []
    with pytest.raises(DataError, match="No text to work on"):
        stemformer.rewrite(iter([]), model=model, out=str(tmp_path / "rewritten.jsonl"))
    with pytest.raises(DataError, match="No text to work on"):
        stemformer.rewrite(iter([]), model=model)
    assert not list(tmp_path.iterdir())


def test_sources_are_split_as_the_model_says(model):
    with pytest.raises(DataError, match="has 31 tokens"):
        stemformer.rewrite([TOO_LONG], model=model)
    task = Seq2Seq(TaskConfig("seq2seq"))
    task.long_sources = "split"
    splitting = copy.copy(model)
    splitting.task = task
    (found,) = stemformer.rewrite([TOO_LONG], model=splitting, max_new_tokens=2)
    assert found["text"] == TOO_LONG


def test_texts_are_checked_before_the_first_is_rewritten(model, tmp_path, monkeypatch):
    monkeypatch.setattr(commands.rewrite, "_BLOCK_SIZE", 1)
    with pytest.raises(DataError, match="Text 2"):
        stemformer.rewrite([TEXTS[0], TOO_LONG], model=model, out=str(tmp_path / "rewritten.jsonl"), batch_size=1)
    assert not list(tmp_path.iterdir())


def test_blank_texts_keep_their_row(model):
    said, progress = [], Silent()
    progress.say = said.append
    rows = stemformer.rewrite([TEXTS[0], " ", TEXTS[1]], model=model, progress=progress)
    assert rows[1] == {"text": " ", "rewritten": None, "score": None, "is_complete": None}
    assert [rows[0], rows[2]] == stemformer.rewrite(TEXTS[:2], model=model)
    assert said[0] == "blank texts, for which nothing is written: 1"


def test_lines_of_a_file_on_standard_input_are_rewritten(model, monkeypatch, capsys):
    monkeypatch.setattr("stemformer.commands.rewrite.open_pipeline", lambda *_: model)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n\n".join(TEXTS).encode())))
    assert main(["rewrite", "-", "--model", "m"]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert rows[::2] == stemformer.rewrite(TEXTS, model=model)
    assert "rewriting: 5/5 texts (100%)" in printed.err
    assert "blank texts, for which nothing is written: 2" in printed.err


def test_lines_of_a_pipe_are_rewritten_before_it_ends(model, monkeypatch):
    monkeypatch.setattr("stemformer.commands.rewrite.open_pipeline", lambda *_: model)
    read, write = os.pipe()
    with os.fdopen(read) as stdin, os.fdopen(write, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        printed = []

        class Answers(io.StringIO):
            def write(self, text):
                """Send the next line once the one before is answered."""
                if text == "\n":
                    return
                printed.append(json.loads(text))
                if len(printed) < len(TEXTS):
                    pipe.write(f"{TEXTS[len(printed)]}\r\n".encode())
                else:
                    pipe.close()

        monkeypatch.setattr(sys, "stdout", Answers())
        pipe.write(f"{TEXTS[0]}\n".encode())
        assert main(["rewrite", "-", "--model", "m", "--quiet"]) == 0
    assert printed == stemformer.rewrite(TEXTS, model=model)


def test_an_interrupted_command_says_how_to_continue(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("stemformer.commands.rewrite.open_pipeline", lambda *_: model)
    monkeypatch.setattr(commands.rewrite, "_BLOCK_SIZE", 2)
    block = Rewriter.rewrite

    def stop_at_the_second(*args, first_number, **how):
        if first_number > 2:
            raise KeyboardInterrupt
        return block(*args, first_number=first_number, **how)

    monkeypatch.setattr(Rewriter, "rewrite", stop_at_the_second)
    out = tmp_path / "rewritten.jsonl"
    assert main(["rewrite", *TEXTS, "--model", "m", "--out", str(out), "--batch-size", "2"]) == 130
    assert f"{out}.partial keeps 2 texts: continue with --resume" in capsys.readouterr().err
    monkeypatch.setattr(Rewriter, "rewrite", block)
    assert main(["rewrite", *TEXTS, "--model", "m", "--out", str(out), "--resume"]) == 0
    assert len(out.read_text().splitlines()) == 3


def test_texts_that_ran_into_their_length_are_counted(model):
    said = []
    progress = Silent()
    progress.say = said.append
    (found,) = stemformer.rewrite(TEXTS[2:], model=model, max_new_tokens=1, progress=progress)
    assert not found["is_complete"]
    assert said == ["texts that ran into the maximum length and may lack an end: 1"]


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ([], {}, DataError, "No text to work on"),
        (["king", "caf\udce9"], {}, DataError, r"Text 2 is not UTF-8\. Convert it first"),
        ("one text", {}, DataError, "Expected a list of texts"),
        (["king"], {"resume": True}, ConfigError, "--resume continues a file of --out. Name it"),
        ([TOO_LONG], {}, DataError, "has 31 tokens. Expected 1 to 30: shorten it, or pass"),
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
    with pytest.raises(ConfigError, match=r"is not an encoder-decoder, so it cannot rewrite texts\. Pass a BART"):
        stemformer.rewrite(["king"], model=str(tiny_bert))
