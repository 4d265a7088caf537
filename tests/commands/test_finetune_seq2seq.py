"""Rewriting from pairs to a model that writes, and what becomes of bad input."""

import json
import random

import pytest
import torch
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.progress import Silent

WORDS = ["ape", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]

pytestmark = pytest.mark.usefixtures("no_timing")


def write_pairs(path, number, change, seed):
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(number):
            words = rng.choices(WORDS, k=rng.randint(2, 4))
            file.write(json.dumps({"source": " ".join(words), "target": " ".join(change(words))}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def reverser(tmp_path_factory):
    """A small BART, trained from scratch to reverse the words of a text."""
    folder = tmp_path_factory.mktemp("reverse")
    files = [
        write_pairs(folder / f"{name}.jsonl", n, lambda words: words[::-1], n)
        for name, n in (("train", 1000), ("dev", 60))
    ]
    result = stemformer.finetune(
        "seq2seq",
        model="bart_tiny",
        train=[files[0]],
        dev=[files[1]],
        out=str(folder / "run"),
        epochs=4,
        batch_size=16,
        precision="fp32",
        device="cpu",
        settings=["task.vocab_size=300", "evaluation.every=200"],
    )
    return folder, result


def test_reversing_is_learned_from_scratch(reverser):
    folder, result = reverser
    assert result["exact_match"] > 0.9
    assert [row["baseline"] for row in result["baselines"]] == ["copy", "truncate", "constant"]
    assert all(row["exact_match"] < 0.2 for row in result["baselines"])
    page = (folder / "run" / "report.html").read_text()
    assert "<h2>Baselines</h2>" in page and "baseline: constant" in page
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    gains = [line["dev_source_gain"] for line in lines if line["kind"] == "evaluation"]
    assert gains[-1] > 1


def test_comparison_scores_all_texts_with_all_beams(reverser, tmp_path):
    folder, result = reverser
    files = {split: [str(folder / f"{split}.jsonl")] for split in ("train", "dev")}
    # A step that changes nothing; evaluations during training write three texts greedily.
    options = {"steps": 1, "num_seeds": 1, "sizes": (1.0,), "initializations": ("pretrained",), "precision": "fp32"}
    settings = ["task.num_written=3", "optimizer.learning_rate=1e-12"]
    out = str(tmp_path / "out")
    stemformer.compare("seq2seq", model=result["model"], out=out, **files, **options, settings=settings)
    (trial,) = json.loads((tmp_path / "out" / "compare.json").read_text())["trials"]
    assert trial["metrics"]["bleu"] == pytest.approx(result["bleu"])
    assert trial["metrics"]["exact_match"] == result["exact_match"]


def test_the_model_rewrites_predicts_and_is_evaluated(reverser):
    folder, result = reverser
    (found,) = stemformer.rewrite(["ape bee cat"], model=result["model"])
    assert found["rewritten"] == "cat bee ape" and found["is_complete"]
    rows = stemformer.predict([str(folder / "dev.jsonl")], model=result["model"])["predictions"]
    assert len(rows) == 60 and {"source", "prediction", "score", "is_complete"} <= set(rows[0])
    measured = stemformer.evaluate([str(folder / "dev.jsonl")], model=result["model"])
    assert measured["bleu"] == pytest.approx(result["bleu"]) and measured["main_metric"] == "bleu"
    assert measured["baselines"] == result["baselines"]
    model = stemformer.load(result["model"])
    assert model.predict(["ape bee cat"])[0].text == "cat bee ape"


LINES = "ape bee\ncat dog elk\nfox gnu\nhen ape\nbee cat\ndog elk fox"
REVERSED = "bee ape\nelk dog cat\ngnu fox\nape hen\ncat bee\nfox elk dog"


def test_long_sources_are_rewritten_sentence_by_sentence(reverser, tmp_path):
    _, result = reverser
    said, advanced = [], []
    progress = Silent()
    progress.say, progress.advance = said.append, advanced.append
    texts = [LINES, "ape bee"]
    found = stemformer.rewrite(texts, model=result["model"], long_sources="split", progress=progress)
    assert [row["rewritten"] for row in found] == [REVERSED, "bee ape"]
    assert all(row["is_complete"] for row in found) and said == ["texts split at sentence ends: 1"]
    assert sum(advanced) == pytest.approx(2)
    (tmp_path / "in.jsonl").write_text(json.dumps({"source": LINES, "target": REVERSED}) + "\n")
    options = {"model": result["model"], "long_sources": "split"}
    predicted = stemformer.predict([str(tmp_path / "in.jsonl")], **options)
    assert predicted["predictions"][0]["prediction"] == REVERSED
    assert predicted["predictions"][0]["score"] == pytest.approx(found[0]["score"], rel=1e-3)
    assert predicted["counts"] == {"sources split at sentence ends": 1}
    measured = stemformer.evaluate([str(tmp_path / "in.jsonl")], **options)
    assert measured["exact_match"] == 1.0 and measured["counts"] == {"sources split at sentence ends": 1}
    several = stemformer.rewrite([LINES], model=result["model"], long_sources="split", num_return_sequences=2)
    assert [row["rewritten"].count("\n") for row in several[0]["candidates"]] == [5, 5]


def test_sources_over_the_positions_are_refused_cut_or_split(reverser, tmp_path):
    _, result = reverser
    long = "\n".join(["ape bee cat dog"] * 60)
    with pytest.raises(DataError, match=r"Expected 1 to 254: shorten it, or pass --long-sources split or cut"):
        stemformer.rewrite([long], model=result["model"])
    said = []
    progress = Silent()
    progress.say = said.append
    options = {"model": result["model"], "num_beams": 1, "progress": progress}
    (cut,) = stemformer.rewrite([long], long_sources="cut", **options)
    (split,) = stemformer.rewrite([long], long_sources="split", **options)
    assert said[0] == "texts truncated: 1" and said[-1] == "texts split at sentence ends: 1"
    assert split["rewritten"] == "\n".join(["dog cat bee ape"] * 60) != cut["rewritten"]
    (tmp_path / "in.jsonl").write_text(json.dumps({"source": long}) + "\n")
    counts = stemformer.predict([str(tmp_path / "in.jsonl")], model=result["model"])["counts"]
    assert counts == {"sources truncated": 1}


def test_a_target_over_the_positions_is_cut_and_counted(reverser, tmp_path):
    _, result = reverser
    rows = [{"source": "ape bee", "target": "bee ape " * 200}, {"source": "cat dog", "target": ""}]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    counts = stemformer.evaluate([str(tmp_path / "in.jsonl")], model=result["model"])["counts"]
    assert counts == {"empty target (left out)": 1, "targets truncated": 1}


def test_a_resumed_run_ends_with_the_same_numbers(reverser, tmp_path):
    folder, _ = reverser
    options = {"model": "bart_tiny", "train": [str(folder / "dev.jsonl")], "device": "cpu", "precision": "fp32"}
    options |= {"steps": 8, "batch_size": 8}
    options["settings"] = ["task.vocab_size=300", "dropout=0.1", "task.label_smoothing=0.1"]
    stemformer.finetune("seq2seq", out=str(tmp_path / "full"), **options)
    with pytest.raises(KeyboardInterrupt):
        stemformer.finetune("seq2seq", out=str(tmp_path / "part"), progress=StopAt(3), **options)
    stemformer.finetune("seq2seq", out=str(tmp_path / "part"), resume=True, **options)
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("full", "part")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_model_of_elsewhere_goes_on_from_its_weights(reverser, tmp_path):
    folder, result = reverser
    again = stemformer.finetune(
        "seq2seq",
        model=result["model"],
        train=[str(folder / "dev.jsonl")],
        out=str(tmp_path / "run"),
        steps=1,
        learning_rate=1e-7,
        precision="fp32",
        device="cpu",
    )
    assert again["exact_match"] > 0.8


def test_bad_input_is_refused(reverser, tiny_bert, tmp_path):
    folder, _ = reverser
    options = {"train": [str(folder / "dev.jsonl")], "out": str(tmp_path / "run")}
    with pytest.raises(CheckpointError, match="is a bert, which has no head seq2seq_lm"):
        stemformer.finetune("seq2seq", model=str(tiny_bert), **options)
    (tmp_path / "one.csv").write_text("source\na\n")
    with pytest.raises(DataError, match="Cannot tell source and target"):
        stemformer.finetune("seq2seq", model="bart_tiny", **{**options, "train": [str(tmp_path / "one.csv")]})
    with pytest.raises(ConfigError, match="balance applies to classes"):
        stemformer.finetune("seq2seq", model="bart_tiny", settings=["task.balance=true"], **options)
    with pytest.raises(ConfigError, match="bert_mini is not an encoder-decoder"):
        stemformer.finetune("seq2seq", model="bert_mini", **options)
    with pytest.raises(CheckpointError, match=r"Recipe 'bart_tinyy' does not exist \(did you mean 'bart_tiny'\?\)"):
        stemformer.finetune("seq2seq", model="bart_tinyy", **options)
    with pytest.raises(ConfigError, match=r"task\.vocab_size is 500, but .* has a vocabulary: it applies to a new"):
        stemformer.finetune("seq2seq", model=str(tiny_bert), settings=["task.vocab_size=500"], **options)


def test_a_model_that_rewrites_can_learn_to_classify(reverser, tmp_path):
    folder, result = reverser
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    labelled = [{"text": row["source"], "label": str(row["source"].split()[0] < "dog")} for row in rows]
    (tmp_path / "labelled.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in labelled))
    options = {"train": [str(tmp_path / "labelled.jsonl")], "precision": "fp32", "device": "cpu"}
    found = stemformer.finetune("classify", model=result["model"], out=str(tmp_path / "run"), steps=10, **options)
    assert found["accuracy"] > 0.5
    with pytest.raises(ConfigError, match=r"--long-sources split applies to seq2seq, but .* was trained for classify"):
        stemformer.predict(options["train"], model=found["model"], long_sources="split")
    assert stemformer.load(found["model"]).predict(["ape bee"])[0].label in ("true", "false", "True", "False")


def test_a_model_that_rewrites_can_learn_to_tag(reverser, tmp_path):
    """The tag of a word depends on the next one, which the decoder has not read: the encoder knows it."""
    _, result = reverser
    rng, files = random.Random(0), {}
    for name, number in (("train", 300), ("dev", 40)):
        sentences = [rng.choices(WORDS, k=rng.randint(2, 4)) for _ in range(number)]
        tagged = [
            [(word, "AM"[after < "dog"]) for word, after in zip(s, [*s[1:], "z"], strict=True)] for s in sentences
        ]
        text = "\n".join("".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in tagged)
        (tmp_path / f"{name}.conll").write_text(text)
        files[name] = [str(tmp_path / f"{name}.conll")]
    options = {"precision": "fp32", "device": "cpu", "epochs": 4, "batch_size": 16, "out": str(tmp_path / "run")}
    found = stemformer.finetune("tag", model=result["model"], **files, **options)
    assert found["accuracy"] > 0.9
    assert not any("without a token" in text for text in found["notes"])
    note = "transformers has no BartForTokenClassification: the model opens in stemformer alone"
    assert note in found["notes"] and stemformer.inspect(found["model"])["note"] == note
    assert stemformer.evaluate(files["dev"], model=found["model"])["accuracy"] == pytest.approx(found["accuracy"])
    model = stemformer.load(found["model"])
    assert model.predict(["elk ape elk"])[0].tags == ("M", "A", "A")
    with pytest.raises(CheckpointError, match="is a bart, which has no head choice"):
        (tmp_path / "choice.csv").write_text("prompt,choice1,choice2,label\n" + "a,b,c,0\nb,c,a,1\n" * 10)
        train = [str(tmp_path / "choice.csv")]
        stemformer.finetune("choice", model=result["model"], train=train, out=str(tmp_path / "choice"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ["task.num_beams=600"], "steps": 1}, r"task\.num_beams is 600: expected at most half of the"),
        ({"settings": ["compute.shard=true"]}, r"compute\.shard is not supported with seq2seq"),
        ({"text_column": ["source", "target"]}, r"task\.text names 2 columns: seq2seq has one source"),
        ({"best_metric": "cut"}, "Metric 'cut' does not exist"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(reverser, tmp_path, options, message):
    folder, _ = reverser
    train = [str(folder / "dev.jsonl")]
    with pytest.raises(ConfigError, match=message):
        stemformer.finetune("seq2seq", model="bart_tiny", train=train, out=str(tmp_path / "run"), **options)


def test_a_budget_in_settings_replaces_the_default(reverser, tmp_path):
    folder, _ = reverser
    options = {"train": [str(folder / "dev.jsonl")], "out": str(tmp_path / "run"), "show_config": True}
    shown = stemformer.finetune("seq2seq", model="bart_tiny", settings=["budget.steps=2"], **options)["config"]
    assert "steps = 2" in shown and "epochs = 20" not in shown
    assert "epochs = 20" in stemformer.finetune("seq2seq", model="bart_tiny", **options)["config"]
    assert "epochs = 3" in stemformer.finetune("classify", model="m", **options)["config"]


def test_rewriting_and_predicting_agree(reverser, tmp_path):
    _, result = reverser
    with pytest.raises(ConfigError, match="max_new_tokens is 1000: expected at most 254"):
        stemformer.rewrite(["ape"], model=result["model"], max_new_tokens=1000)
    (tmp_path / "in.txt").write_text("ape bee\n\ncat dog elk\n")
    rows = stemformer.predict([str(tmp_path / "in.txt")], model=result["model"])["predictions"]
    assert [row["source"] for row in rows] == ["ape bee", "", "cat dog elk"]
    assert rows[1]["prediction"] is None
    found = stemformer.rewrite(["ape bee", "cat dog elk"], model=result["model"])
    assert [x["rewritten"] for x in found] == [rows[0]["prediction"], rows[2]["prediction"]]
    assert [x["score"] for x in found] == pytest.approx([rows[0]["score"], rows[2]["score"]], rel=1e-3)


def test_a_parallel_file_is_not_overwritten(reverser, tmp_path):
    _, result = reverser
    for name in ("a.en", "a.fr"):
        (tmp_path / name).write_text("ape bee\n")
    with pytest.raises(ConfigError, match=r"a\.fr is an input file"):
        files = [f"{tmp_path}/a.en,{tmp_path}/a.fr"]
        stemformer.evaluate(files, model=result["model"], out=str(tmp_path / "a.fr"), overwrite=True)
