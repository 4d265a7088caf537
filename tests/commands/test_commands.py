"""Commands on a tiny corpus, through the `main` of the command line."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import stemformer
from stemformer import io
from stemformer.cli.app import main
from stemformer.commands.prepare import _default_fraction
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.huggingface.save import save_model

SMALL = [
    *["model.hidden_size=32", "model.intermediate_size=64", "batch.size=4", "batch.sequence_length=32"],
    *["evaluation.num_examples=8", "log_every=1"],
]


pytestmark = pytest.mark.usefixtures("no_timing")


@pytest.fixture(scope="module")
def made(tiny, no_timing, tmp_path_factory):
    """Directory with text.txt, tok/, data/ and a finished run/ of two steps; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny, root, dirs_exist_ok=True)
    data, run = str(root / "data"), str(root / "run")
    stemformer.pretrain("bert_tiny", data=data, out=run, settings=SMALL, steps=2, precision="fp32")
    return root


@pytest.fixture
def run_json(capsys):
    """Run a command with --json and return what it prints."""

    def run(*arguments):
        assert main([*(str(argument) for argument in arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seed", "-1"], "seed is -1"),
        (["--seed", "9" * 20], "seed is 9"),
        (["--max-characters", "0"], "--max-characters is 0"),
    ],
)
def test_tokenizer_options_out_of_range_are_refused(made, tmp_path, capsys, option, message):
    assert main(["train-tokenizer", str(made / "text.txt"), "--out", str(tmp_path / "tok"), *option]) == 2
    assert message in capsys.readouterr().err


def test_every_file_of_model_and_data_has_the_mode_that_the_umask_gives(made, tmp_path):
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in made.rglob("*") if path.is_file()}
    assert {"model.safetensors", "optimizer.safetensors", "tokenizer.json", "manifest.json"} <= modes.keys()
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}


# Words that the vocabulary cannot write


RUSSIAN = ["король видит реку", "река помнит сад", "учитель рисует дом", "сад забывает короля"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("command", ["fill", "score", "embed"])
def test_commands_on_texts_warn_of_unknown_words(made, capsys, command):
    texts = [f"{text} [MASK]" if command == "fill" else text for text in RUSSIAN]
    assert main([command, *texts, "--model", str(made / "run")]) == 0
    assert "% of the words are [UNK], such as 'король': the vocabulary cannot write" in capsys.readouterr().err


def test_prepare_warns_of_unknown_words(made, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(RUSSIAN) + "\n", encoding="utf-8")
    out, tokenizer = str(tmp_path / "data"), str(made / "tok")
    options = ["--tokenizer", tokenizer, "--out", out, "--documents", "line", "--held-out", "0", "--num-workers", "1"]
    assert main(["prepare", str(tmp_path / "text.txt"), *options]) == 0
    assert "100% of the words are [UNK], such as 'король'" in capsys.readouterr().err


def test_pretrain_refuses_data_that_the_vocabulary_cannot_write(made, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(RUSSIAN * 20) + "\n", encoding="utf-8")
    out, tokenizer = str(tmp_path / "data"), str(made / "tok")
    stemformer.prepare([str(tmp_path / "text.txt")], tokenizer=tokenizer, out=out, documents="line", num_workers=1)
    with pytest.raises(DataError, match=r"100% of the words are \[UNK\].*the model cannot read this text"):
        stemformer.pretrain("bert_tiny", data=out, out=str(tmp_path / "run"), settings=SMALL, steps=1)


@pytest.mark.parametrize("share", ["0", "0.1"])
def test_data_without_a_held_out_split_is_said(made, tmp_path, capsys, share):
    out = str(tmp_path / "data")
    options = ["--tokenizer", str(made / "tok"), "--out", out, "--documents", "line", "--held-out", share]
    assert main(["prepare", str(made / "text.txt"), *options, "--num-workers", "1"]) == 0
    assert ("nothing is held out" in capsys.readouterr().err) == (share == "0")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    run = ["--recipe", "bert_tiny", "--data", out, "--out", str(tmp_path / "run"), "--steps", "1", *settings]
    assert main(["pretrain", *run]) == 0
    said = capsys.readouterr().err
    assert ("no held-out split" in said) == (share == "0")
    assert said.count("| unigram_loss ") == said.count("| unigram_accuracy ") == (0 if share == "0" else 2)


# inspect


def test_inspect_suggests_the_path_of_a_similar_folder(made, tmp_path):
    with pytest.raises(DataError, match=rf"does not exist \(did you mean '{made}/data'\?\)"):
        stemformer.inspect(str(made / "dat"))


def test_inspect_describes_data(run_json, made):
    result = run_json("inspect", made / "data")
    assert result["data"] == str(made / "data")
    assert result["train"]["documents"] + result["held_out"]["documents"] == 200
    assert result["skipped"] == {}


@pytest.mark.filterwarnings("ignore:.*judging by its entries")
def test_guessed_lower_casing_is_called_a_guess(run_json, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "model")
    assert "lowercase_is_guess" not in stemformer.load(str(tmp_path / "model")).info()["tokenizer"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    assert stemformer.load(str(tmp_path / "model")).info()["tokenizer"]["lowercase_is_guess"] is True
    assert run_json("inspect", tmp_path / "model")["tokenizer"]["lowercase_is_guess"] is True


@pytest.mark.parametrize(
    ("name", "text"), [("scale.json", "{"), ("prompt.json", "{"), ("config.toml", "recipe = "), ("glue.json", "\0")]
)
def test_inspect_of_a_damaged_directory_names_the_file(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    if name == "config.toml":
        (tmp_path / "log.jsonl").write_text("")
    assert main(["inspect", str(tmp_path)]) in (2, 3)
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / name} is ")


def test_inspect_describes_a_run(run_json, made):
    result = run_json("inspect", made / "run")
    assert (result["recipe"], result["is_finished"], result["step"]) == ("bert_tiny", True, 2)
    assert result["checkpoints"] == ["step-00000002"]
    assert result["held_out_masked_lm_loss"] > 0
    assert result["held_out_unigram_loss"] > 0


@pytest.mark.parametrize("folder", ["run/final", "run/checkpoints/step-00000002"])
def test_inspect_describes_a_model(run_json, made, folder):
    result = run_json("inspect", made / folder)
    assert (result["hidden_size"], result["num_hidden_layers"], result["heads"]) == (32, 2, ["masked_lm"])
    assert result["tokenizer"]["vocab_size"] == result["vocab_size"]
    assert result["parameters"] > result["parameters_in_layers"] > 0


def test_inspect_checks_the_checkpoint_that_a_run_resumes_from(made, tmp_path, monkeypatch):
    shutil.copytree(made / "run", run := tmp_path / "run")
    newest = run / "checkpoints" / "step-00000002"
    for older in ("step-00000000", "step-00000001"):
        shutil.copytree(newest, run / "checkpoints" / older)
        (run / "checkpoints" / older / "optimizer.safetensors").unlink()
    hashed = set()
    monkeypatch.setattr(
        io, "hash_file", lambda path, hash_file=io.hash_file: hashed.add(path.parent) or hash_file(path)
    )
    assert "damaged_checkpoints" not in stemformer.inspect(str(run))
    assert hashed == {newest}
    shutil.copy(newest / "optimizer.safetensors", run / "checkpoints" / "step-00000001")
    (newest / "config.toml").unlink()
    assert stemformer.inspect(str(run))["damaged_checkpoints"] == {newest.name: "config.toml is missing"}


def test_inspect_and_fill_find_a_damaged_checkpoint(made, tmp_path, capsys):
    shutil.copytree(made / "run", run := tmp_path / "run")
    step = run / "checkpoints" / "step-00000002"
    content = bytearray((step / "model.safetensors").read_bytes())
    content[-9] ^= 64
    (step / "model.safetensors").write_bytes(content)
    assert stemformer.inspect(str(run))["damaged_checkpoints"] == {step.name: "model.safetensors is damaged"}
    for words in (["inspect", str(step)], ["fill", "the [MASK]", "--model", str(step)]):
        assert main(words) == 3
        assert f"{step}: model.safetensors is damaged" in capsys.readouterr().err


def test_inspect_describes_a_tokenizer(run_json, made):
    result = run_json("inspect", made / "tok")
    assert (result["kind"], result["lowercase"]) == ("wordpiece", False)
    assert result["vocab_size"] == json.loads(json.dumps(stemformer.load(str(made / "run")).tokenizer.vocab_size))


@pytest.mark.parametrize("folder", ["data", "run", "run/final", "tok"])
def test_inspect_prints_text(made, folder, capsys):
    assert main(["inspect", str(made / folder)]) == 0
    captured = capsys.readouterr()
    assert str(made / folder) in captured.out
    assert captured.err == ""


# load, fill


def test_loaded_model_is_ready_to_evaluate(made):
    loaded = stemformer.load(str(made / "run"))
    assert not loaded.model.training
    assert loaded.tokenizer.vocab_size == loaded.model.config.vocab_size
    assert list(loaded.model.heads) == ["masked_lm"]
    assert loaded.task is None


def test_run_folder_opens_as_its_final_model(made):
    a, b = (stemformer.load(str(folder)).model for folder in (made / "run", made / "run" / "final"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_fill_returns_the_most_probable_words_in_order(run_json, made):
    (result,) = run_json("fill", "The old [MASK] sees the [MASK].", "--model", made / "run", "--top-k", "3")
    assert [len(mask["candidates"]) for mask in result["masks"]] == [3, 3]
    for mask in result["masks"]:
        p = [candidate["probability"] for candidate in mask["candidates"]]
        assert p == sorted(p, reverse=True)
        assert 0 < sum(p) <= 1
    assert "[MASK]" not in result["filled"]


def test_fill_with_candidates_returns_these_words(run_json, made):
    (result,) = run_json(
        "fill", "The old [MASK].", "--model", made / "run", "--candidates", "king", "--candidates", "river"
    )
    (mask,) = result["masks"]
    assert {candidate["token"] for candidate in mask["candidates"]} == {"king", "river"}
    assert sum(candidate["probability"] for candidate in mask["candidates"]) == pytest.approx(1, abs=1e-6)


def test_fill_without_text_is_an_error(made):
    with pytest.raises(DataError, match="No text to work on"):
        stemformer.fill([], model=str(made / "run"))


def test_embeddings_of_empty_texts_keep_their_rows_with_a_warning(tiny_bert):
    with pytest.warns(UserWarning, match=r"2 texts without a token: text 2 \(''\), text 3 \(' '\)\."):
        found = stemformer.embed(["The door.", "", " ", "the river"], model=str(tiny_bert))["embeddings"]
    assert len(found) == 4


def test_score_is_a_log_likelihood(run_json, made):
    (result,) = run_json("score", "The old king sees the river.", "--model", made / "run")
    assert result["log_likelihood"] < 0
    assert result["perplexity"] == pytest.approx(np.exp(-result["log_likelihood"] / result["num_tokens"]))


@pytest.mark.parametrize("is_causal", [False, True])
def test_texts_without_a_score_do_not_keep_others_from_theirs(tiny_bert, small_gpt, bpe, tmp_path, is_causal):
    save_model(small_gpt, tmp_path, bpe)
    model = stemformer.load(str(tmp_path if is_causal else tiny_bert))
    texts = ["The old king sees.", "", "the king " * 200, "The river."]
    with pytest.warns(
        UserWarning, match=r"2 texts without a score: text 2 \(''\) has 0 tokens, text 3 .* Expected 1 to "
    ):
        rows = model.score(texts)
    assert [row["text"] for row in rows] == texts
    assert [row["log_likelihood"] is None for row in rows] == [False, True, True, False]
    assert rows[::3] == model.score(texts[::3])
    with pytest.raises(DataError, match="2 texts without a score"):
        model.score(texts[1:3])


def test_pseudo_log_likelihood_of_a_causal_model_is_refused(small_gpt, bpe, tmp_path):
    save_model(small_gpt, tmp_path, bpe)
    with pytest.raises(ConfigError, match="--pll applies to masked language models"):
        stemformer.score(["The river."], model=str(tmp_path), pll="original")


# pretrain


def test_pretrain_writes_a_run_directory(made):
    expected = {"checkpoints", "config.toml", "final", "log.jsonl"}
    assert expected <= {path.name for path in (made / "run").iterdir()}


def test_pretrain_starts_from_a_model(made, tmp_path):
    out = tmp_path / "run"
    options = {"data": str(made / "data"), "out": str(out), "settings": [*SMALL, "optimizer.learning_rate=1e-12"]}
    stemformer.pretrain("bert_tiny", **options, init=str(made / "run"), steps=1, precision="fp32")
    a, b = (stemformer.load(str(folder)).model for folder in (made / "run", out))
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)  # one step at a learning rate of 1e-12


def test_settings_override_a_config_file(made, tmp_path):
    (tmp_path / "mine.toml").write_text("log_every = 7\nseed = 4\n[batch]\nsize = 6\n")
    options = {"data": str(made / "data"), "config": str(tmp_path / "mine.toml"), "steps": 1, "precision": "fp32"}
    stemformer.pretrain(
        "bert_tiny", **options, out=str(tmp_path / "run"), settings=[s for s in SMALL if "log" not in s]
    )
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "log_every = 7" in text
    assert "seed = 4" in text
    # A setting overrides the file.
    assert "size = 4" in text


def test_pretrain_overwrites_with_overwrite(made, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "old").write_text("old")
    (out / "config.toml").write_text("")
    options = {"data": str(made / "data"), "out": str(out), "settings": SMALL, "steps": 1, "precision": "fp32"}
    with pytest.raises(ConfigError, match="is not empty"):
        stemformer.pretrain("bert_tiny", **options)
    stemformer.pretrain("bert_tiny", **options, overwrite=True)
    assert not (out / "old").exists()
    assert (out / "final").is_dir()


def test_resume_refuses_another_recipe(made):
    with pytest.raises(CheckpointError, match="has recipe 'bert_tiny', not 'bert_mini'"):
        stemformer.pretrain("bert_mini", data=str(made / "data"), out=str(made / "run"), resume=True)


def test_data_without_held_out_split_trains(made, tmp_path):
    options = {"tokenizer": str(made / "tok"), "documents": "line", "held_out": 0.0, "num_workers": 1}
    stemformer.prepare([str(made / "text.txt")], out=str(tmp_path / "data"), **options)
    options = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "settings": SMALL, "precision": "fp32"}
    ended = stemformer.pretrain("bert_tiny", **options, steps=1)
    assert ended["steps"] == 1
    assert not any(name.startswith("held_out") for name in ended)


# tokenizer, prepare


@pytest.mark.parametrize(("share", "is_noted"), [("0.02", True), ("0.9", False), ("0", False)])
def test_small_held_out_split_is_noted(made, tmp_path, capsys, share, is_noted):
    words = ["prepare", made / "text.txt", "--tokenizer", made / "tok", "--out", tmp_path / "d", "--held-out", share]
    assert main([str(word) for word in words]) == 0
    assert ("the held-out split has only" in capsys.readouterr().err) == is_noted


def test_train_tokenizer_describes_the_tokenizer(run_json, made, tmp_path):
    result = run_json(
        "train-tokenizer", made / "text.txt", "--out", tmp_path / "tok", "--vocab-size", "90", "--lowercase", "-q"
    )
    assert (result["vocab_size"], result["lowercase"], result["kind"]) == (90, True, "wordpiece")
    assert Path(result["tokenizer"], "vocab.txt").is_file()


# synthetic


def test_synthetic_tasks_mix_into_pretraining_data(run_json, made, tmp_path):
    file, tokenizer, text = tmp_path / "icl.jsonl", tmp_path / "tok", made / "text.txt"
    result = run_json(
        "make-synthetic", "--out", file, "--num-documents", 60, "--tasks", "copy,association", "--seed", 3
    )
    assert [(row["task"], row["documents"], row["chance"]) for row in result["tasks"]] == [
        ("copy", 30, 0.0),
        ("association", 30, 0.25),
    ]
    assert result["bytes"] == file.stat().st_size
    run_json("train-tokenizer", text, file, "--kind", "bpe", "--vocab-size", 400, "--out", tokenizer)
    data = run_json("prepare", text, file, "--tokenizer", tokenizer, "--out", tmp_path / "data", "--held-out", 0.1)
    assert data["train"]["documents"] + data["held_out"]["documents"] == 260


def test_synthetic_file_is_not_overwritten_without_overwrite(run_json, tmp_path, capsys):
    file = tmp_path / "icl.jsonl"
    file.write_text("mine", encoding="utf-8")
    assert main(["make-synthetic", "--out", str(file)]) == 2
    assert "exists. Pass another --out, or --overwrite to replace it" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "mine"
    run_json("make-synthetic", "--out", file, "--num-documents", 2, "--overwrite")
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2


def test_synthetic_file_must_end_with_jsonl(tmp_path):
    with pytest.raises(ConfigError, match=r"Expected a name that ends with \.jsonl"):
        stemformer.make_synthetic(out=str(tmp_path / "icl.txt"))


@pytest.mark.parametrize(
    ("num_bytes", "share"), [(None, 0.01), (0, 0.01), (10**4, 0.1), (2 * 10**6, 0.05), (10**7, 0.01), (10**9, 0.01)]
)
def test_more_of_short_text_is_held_out(num_bytes, share):
    assert _default_fraction(num_bytes) == share


# recipes, runs, env, embed


def test_recipes_have_sizes_and_a_purpose(run_json):
    rows = {row["recipe"]: row for row in run_json("recipes")}
    assert {"bert_tiny", "bert_base_2018", "gpt_mini", "gpt2_small"} <= set(rows)
    assert (rows["bert_tiny"]["layers"], rows["bert_tiny"]["hidden_size"]) == (2, 128)
    assert all(row["purpose"] for row in rows.values())


def test_runs_are_listed_with_kind_state_and_best_metric(run_json, made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "deep" / "first")
    shutil.copytree(made / "run", tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "final")
    study = tmp_path / "study"
    shutil.copytree(made / "run", study / "sizes" / "one")
    (study / "config.toml").write_text("")
    (study / "scale.json").write_text("{}")
    rows = {Path(row["run"]).name: row for row in run_json("runs", tmp_path)}
    assert list(rows) == ["first", "second", "study"]
    first = rows["first"]
    assert (first["kind"], first["state"], first["metric"]) == ("pretraining", "finished", "held_out_masked_lm_loss")
    lines = [json.loads(line) for line in (made / "run" / "log.jsonl").read_text().splitlines()]
    assert first["best"] == min(line[first["metric"]] for line in lines if line["kind"] == "evaluation")
    assert rows["second"]["state"] == "at step 2"
    assert (rows["study"]["kind"], rows["study"]["state"]) == ("scaling", "finished")


def test_runs_of_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        stemformer.list_runs(str(tmp_path / "none"))


def test_env_has_versions_and_processor(run_json):
    result = run_json("env")
    assert result["versions"]["torch"] == torch.__version__
    assert result["threads"] >= 1
    assert isinstance(result["bf16_units"], bool)


def test_embeddings_are_those_of_the_loaded_model(made, tmp_path, capsys):
    texts = ["The old king.", "The river."]
    expected = stemformer.load(str(made / "run")).embed(texts)
    assert main(["embed", *texts, "--model", str(made / "run")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == texts
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, rtol=1e-6)
    result = stemformer.embed(texts, model=str(made / "run"), out=str(tmp_path / "v.npy"))
    assert (result["texts"], result["dimensions"]) == (2, 32)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    stemformer.embed(texts, model=str(made / "run"), out=str(tmp_path / "v.jsonl"))
    written = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["embedding"] for row in written], expected, rtol=1e-6)


def test_embeddings_in_another_format_are_refused(made, tmp_path):
    with pytest.raises(ConfigError, match=r"Expected a name that ends with \.npy or \.jsonl"):
        stemformer.embed(["a"], model=str(made / "run"), out=str(tmp_path / "v.csv"))


# --show-config, --learning-rate, --batch-size


def test_show_config_prints_the_resolved_config_and_writes_nothing(made, tmp_path, capsys):
    words = ["pretrain", "--recipe", "bert_tiny", "--data", made / "data", "--out", tmp_path / "run", "--steps", 3]
    words += ["--learning-rate", "0.00025", "--batch-size", 6, "--set", "batch.sequence_length=32", "--show-config"]
    assert main([str(word) for word in words]) == 0
    config = tomllib.loads(capsys.readouterr().out)
    assert (config["recipe"], config["budget"]) == ("bert_tiny", {"steps": 3})
    assert (config["optimizer"]["learning_rate"], config["batch"]["size"]) == (0.00025, 6)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["finetune", "compare"])
def test_show_config_of_fine_tuning(command, made, tmp_path, capsys):
    words = [command, "classify", "--model", "m", "--train", "a.csv", "--out", str(tmp_path / "run"), "--show-config"]
    assert main([*words, "--learning-rate=1e-3", "--symbols=draw", "--kmer=3", "--text-column=t"]) == 0
    config = tomllib.loads(capsys.readouterr().out)
    assert (config["task"]["symbol_size"], config["task"]["text"]) == (3, ["t"])
    assert config["optimizer"]["learning_rate"] == 1e-3
    assert not (tmp_path / "run").exists()


def test_two_budgets_are_an_error(made, tmp_path):
    with pytest.raises(ConfigError, match="Several training budgets: --steps, --epochs"):
        stemformer.pretrain("bert_tiny", data=str(made / "data"), out=str(tmp_path / "run"), steps=1, epochs=1)


def test_functions_take_a_loaded_model(made):
    model = stemformer.load(str(made / "run"))
    assert stemformer.fill(["The [MASK]."], model=model) == stemformer.fill(["The [MASK]."], model=str(made / "run"))
