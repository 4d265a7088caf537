"""A GPT from text to text: a run, resumed bit for bit, its metrics, its folder, and what it refuses."""

import html
import json
import math

import pytest
import torch
import transformers
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.cli.app import main
from stemformer.commands.pretrain import _notes
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError, TokenizerError
from stemformer.huggingface.load import load_model
from stemformer.io import read_jsonl

pytestmark = pytest.mark.usefixtures("no_timing")

SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "batch.size=8",
    "batch.sequence_length=32",
    "log_every=1",
    "evaluation.num_examples=32",
    "evaluation.every=5",
    "checkpoints.every=4",
]
OF_THE_CLOCK = ("seconds", "tokens_per_second", "mfu")


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """A folder with text.txt, a byte-level BPE tok/ and data/ made of both; not to be changed."""
    root = tmp_path_factory.mktemp("gpt")
    text = str(tiny / "text.txt")
    stemformer.train_tokenizer([text], out=str(root / "tok"), kind="bpe", vocab_size=320, documents="line")
    stemformer.prepare(
        [text], tokenizer=str(root / "tok"), out=str(root / "data"), held_out=0.1, documents="line", num_workers=1
    )
    return root


def run(files, out, *, settings=(), progress=None, recipe="gpt_tiny", **options):
    usual = {} if options.get("resume") else {"recipe": recipe, "settings": [*SETTINGS, *settings], "steps": 10}
    return stemformer.pretrain(
        data=str(files / "data"), out=str(out), precision="fp32", progress=progress, **{**usual, **options}
    )


@pytest.fixture(scope="module")
def full(files, no_timing, tmp_path_factory):
    """A run of 10 steps and what it result; not to be changed."""
    out = tmp_path_factory.mktemp("full") / "run"
    return out, run(files, out)


def log_of(folder):
    return [{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in read_jsonl(folder / "log.jsonl")]


def test_loss_decreases_and_is_also_in_bits_per_byte(files, full):
    _, result = full
    assert result["held_out_causal_lm_loss"] < result["before"]["held_out_causal_lm_loss"] - 0.2
    manifest = json.loads((files / "data" / "manifest.json").read_text())
    counts = manifest["splits"]["held_out"]
    per_byte = (counts["tokens"] + counts["documents"]) / counts["bytes"]
    expected = result["held_out_causal_lm_loss"] * per_byte / math.log(2)
    assert result["held_out_bits_per_byte"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("recipe", ["gpt_tiny", "llama_tiny"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_run_with_counted_embeddings_resumes_bit_for_bit_and_opens_in_transformers(files, tmp_path, recipe, direction):
    settings = ["embedding_init=cooccurrence", f"objective.direction={direction}"]
    assert_stopped_run_equals_full_run(files, tmp_path, settings, stop=6, recipe=recipe, steps=10)
    folder = tmp_path / "full" / "final"
    model = load_model(folder)
    assert model.lm_head.decoder is not None
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 9, 3, 7]])
    with torch.inference_mode():
        states = model.eval().body(
            ids[0], torch.arange(4), torch.zeros(4, dtype=torch.long), torch.tensor([0, 4]).int(), 4
        )
        torch.testing.assert_close(model.lm_logits(states), theirs(ids).logits[0], atol=1e-4, rtol=1e-4)
    # The counts know more than random embeddings, from the first step on.
    first = read_jsonl(tmp_path / "full" / "log.jsonl")[0]
    run(files, tmp_path / "random", settings=[*settings, "embedding_init=random"], recipe=recipe, steps=1)
    random = read_jsonl(tmp_path / "random" / "log.jsonl")[0]
    assert first["held_out_causal_lm_loss"] < random["held_out_causal_lm_loss"] - 0.2


@pytest.mark.parametrize("recipe", ["bert_tiny", "modernbert_tiny", "eurobert_mini"])
def test_encoder_on_a_vocabulary_without_its_special_tokens_is_refused(files, tmp_path, recipe):
    with pytest.raises(TokenizerError, match=r"bpe vocabulary has no \[PAD\], which BERT and BART need"):
        stemformer.pretrain(recipe, data=str(files / "data"), out=str(tmp_path / "run"), steps=2)
    assert not (tmp_path / "run" / "final").exists()


def assert_stopped_run_equals_full_run(files, tmp_path, settings, *, stop, **options):
    run(files, tmp_path / "full", settings=settings, **options)
    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path / "parts", settings=settings, progress=StopAt(stop), **options)
    run(files, tmp_path / "parts", resume=True)
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("full", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


@pytest.mark.parametrize(
    "settings",
    [
        ["model.hidden_dropout_prob=0.0"],
        ["model.hidden_dropout_prob=0.1"],
        ["objective.documents=stream"],
        ["objective.documents=stream", "objective.direction=backward"],
    ],
)
def test_ten_steps_are_four_and_six_bit_for_bit(files, tmp_path, settings):
    assert_stopped_run_equals_full_run(files, tmp_path, settings, stop=4)


def test_grouped_heads_are_resumed_bit_for_bit_by_muon(files, tmp_path):
    settings = ["model.num_key_value_heads=2"]
    assert_stopped_run_equals_full_run(files, tmp_path, settings, stop=4, recipe="qwen3_mini")


def test_stream_stopped_in_its_second_epoch_is_resumed_bit_for_bit(files, tmp_path):
    settings = ["objective.documents=stream", "batch.size=64", "evaluation.num_cloze_examples=0"]
    assert_stopped_run_equals_full_run(files, tmp_path, settings, stop=7)


def test_micro_batches_give_the_same_losses(files, full, tmp_path):
    run(files, tmp_path / "run", settings=["batch.micro_size=2"])
    for a, b in zip(log_of(full[0]), log_of(tmp_path / "run"), strict=True):
        if a["kind"] == "train":
            assert b["causal_lm_loss"] == pytest.approx(a["causal_lm_loss"], rel=1e-4)


def test_result_opens_in_transformers_and_goes_on_with_texts(full, capsys):
    transformers = pytest.importorskip("transformers")
    out, _ = full
    model, result = transformers.AutoModelForCausalLM.from_pretrained(out / "final", output_loading_info=True)
    assert type(model).__name__ == "GPT2LMHeadModel" and not result["missing_keys"] and not result["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "final")
    ids = tokenizer("The old king", return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
    (found,) = stemformer.generate(["The old king"], model=str(out), max_new_tokens=8, temperature=0)
    assert found["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert main(["inspect", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["recipe"], result["is_finished"], result["step"]) == ("gpt_tiny", True, 10)
    assert result["held_out_bits_per_byte"] > 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_wordpiece_will_do_too(tiny, tmp_path, direction):
    settings = [*SETTINGS, f"objective.direction={direction}"]
    result = stemformer.pretrain(
        "gpt_tiny", data=str(tiny / "data"), out=str(tmp_path / "run"), settings=settings, steps=2, precision="fp32"
    )
    model = load_model(tmp_path / "run")
    assert model.config.eos_token_id == 3  # [SEP]
    counts = json.loads((tiny / "data" / "manifest.json").read_text())["splits"]["held_out"]
    per_byte = (counts["tokens"] + counts["documents"]) / counts["bytes"]
    assert result["held_out_bits_per_byte"] == pytest.approx(
        result["held_out_causal_lm_loss"] * per_byte / math.log(2), rel=1e-3
    )
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    text = "The old king sees the river."
    assert theirs(text)["input_ids"] == [3, *load_tokenizer(tmp_path / "run" / "final").encode_ids([text])[0].tolist()]
    assert theirs.pad_token == "[PAD]"


def test_samples_of_a_model_that_reads_backwards_stand_before_their_prompt(files, tiny, tmp_path):
    from stemformer.reports.pretraining import write_report

    settings = ["objective.direction=backward", "optimizer.learning_rate=0.01", "evaluation.every=60"]
    run(files, tmp_path / "run", steps=60, settings=settings)
    lines = [line for line in read_jsonl(tmp_path / "run" / "log.jsonl") if line["kind"] == "samples"]
    text = (tiny / "text.txt").read_text()
    for sample in lines[-1]["samples"]:
        assert sample["direction"] == "backward" and sample["prompt"].endswith(".")
        assert sample["prompt"] + "\n" in text
        assert " the " in f" {sample['text']}".lower()  # words in the order in which one reads them
    page = html.unescape(write_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "held-out endings, generated backwards," in page and f"... {sample['prompt']}" in page


def test_training_goes_on_from_a_model_with_the_same_vocabulary_alone(files, tiny, full, tmp_path):
    result = run(files, tmp_path / "more", init=str(full[0]), steps=2)
    first = full[1]["held_out_causal_lm_loss"]
    assert result["before"]["held_out_causal_lm_loss"] == pytest.approx(first, abs=1e-3)
    with pytest.raises(ConfigError, match="another vocabulary"):
        run(tiny, tmp_path / "other", init=str(full[0]), steps=2)


def test_one_text_in_bytes_is_learned_as_a_stream(tiny, tmp_path):
    text = str(tiny / "text.txt")
    result = stemformer.train_tokenizer([text], out=str(tmp_path / "tok"), kind="bpe", vocab_size=257)
    assert result["vocab_size"] == 257
    result = stemformer.prepare(
        [text], tokenizer=str(tmp_path / "tok"), out=str(tmp_path / "data"), documents="file", held_out=0
    )
    assert result["train"]["tokens"] == result["train"]["bytes"] == len((tiny / "text.txt").read_bytes().strip())
    small = ["model.hidden_size=48", "model.num_hidden_layers=2", "model.intermediate_size=96", "batch.size=4"]
    small += ["optimizer.learning_rate=0.01", "log_every=1"]
    out = tmp_path / "run"
    stemformer.pretrain("gpt_small_char", data=str(tmp_path / "data"), out=str(out), settings=small, steps=20)
    losses = [line["causal_lm_loss"] for line in read_jsonl(out / "log.jsonl") if line["kind"] == "train"]
    assert losses[0] == pytest.approx(math.log(257), abs=0.2) and losses[-1] < losses[0] - 1
    lines = [line for line in read_jsonl(out / "log.jsonl") if line["kind"] == "train"]
    assert lines[0]["tokens"] == 4 * 256  # rows are full


def test_samples_of_a_byte_model_are_as_long_as_those_of_words(tiny, tmp_path):
    text = str(tiny / "text.txt")
    stemformer.train_tokenizer([text], out=str(tmp_path / "tok"), kind="bpe", vocab_size=257)
    stemformer.prepare(
        [text], tokenizer=str(tmp_path / "tok"), out=str(tmp_path / "data"), documents="line", held_out=0.1
    )
    small = ["model.hidden_size=48", "model.num_hidden_layers=1", "model.intermediate_size=96", "batch.size=4"]
    out = tmp_path / "run"
    stemformer.pretrain(
        "gpt_small_char",
        data=str(tmp_path / "data"),
        out=str(out),
        settings=[*small, "batch.sequence_length=128"],
        steps=1,
    )
    (sample, *_) = next(line for line in read_jsonl(out / "log.jsonl") if line["kind"] == "samples")["samples"]
    assert len(sample["prompt"]) == 32 and sample["prompt"] in (tiny / "text.txt").read_text()
    assert 40 < len(sample["text"]) <= 128 - 64


def test_plan_of_a_gpt(files):
    result = stemformer.plan(
        "gpt_tiny", data=str(files / "data"), settings=["batch.size=2", "batch.sequence_length=32"]
    )
    assert result["recipe"] == "gpt_tiny" and result["sequence_length_32"]["tokens_per_second"] > 0


def test_masked_words_are_not_for_a_gpt(full):
    with pytest.raises(CheckpointError, match="has no"):
        stemformer.fill(["a [MASK]"], model=str(full[0]))


def test_bert_is_no_start_for_a_gpt(files, tiny_bert, tmp_path):
    with pytest.raises(CheckpointError, match="is a bert, which has no head causal_lm"):
        run(files, tmp_path / "run", init=str(tiny_bert))


def test_report_tells_of_next_words(files, tmp_path, monkeypatch):
    from stemformer.reports.pretraining import write_report

    run(files, tmp_path / "run", steps=2)
    page = write_report(tmp_path / "run").read_bytes().decode()
    assert "accuracy on next words" in page and "bits per byte" in page and "Loss on next words" in page
    log = read_jsonl(tmp_path / "run" / "log.jsonl")
    lines = [line for line in log if line["kind"] == "samples"]
    assert len(lines) >= 2 and len(lines[-1]["samples"]) == 3
    heads = [line["heads"] for line in log if line["kind"] == "heads"]
    metrics = [line for line in log if line["kind"] == "evaluation"]
    assert len(heads) == len(metrics) and [len(layer) for layer in heads[-1]] == [2, 2]
    assert metrics[-1]["induction_score"] == pytest.approx(max(map(max, heads[-1])), abs=1e-4)
    for title in ("Gain in loss on repeated random words", "Best induction-head score", "Induction heads"):
        assert title in page
    shown = html.unescape(page)
    for sample in lines[-1]["samples"]:
        assert sample["prompt"] in shown and sample["text"] in shown


@pytest.mark.parametrize(
    ("loss", "advice"), [(5.0, None), (6.5, "raise --learning-rate"), (700.0, "lower --learning-rate")]
)
def test_advice_after_a_run_that_learned_nothing_depends_on_its_loss(loss, advice):
    notes = list(_notes({"held_out_unigram_loss": 6.0, "held_out_causal_lm_loss": loss}))
    assert len(notes) == (advice is not None) and all(advice in note for note in notes)
