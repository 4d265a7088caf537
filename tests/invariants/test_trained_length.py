"""Positions that were never trained: the trained length is saved, is the default of every command, and beyond it is a warning."""

import json
import shutil

import pytest
import torch

import stemformer
from stemformer.cli.app import main
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.huggingface.load import load_model, load_model_and_tokenizer
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model

pytestmark = pytest.mark.usefixtures("no_timing")

SMALL = [
    *["model.hidden_size=32", "model.intermediate_size=64", "model.max_position_embeddings=64", "batch.size=4"],
    *["batch.sequence_length=16", "evaluation.num_examples=8", "evaluation.num_cloze_examples=0"],
]
BEYOND = "--max-length 32: positions 16 to 31 were never trained"
LONG = "the old king sees the river near the garden " * 4


def stored_length(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]


@pytest.fixture(scope="module")
def short(tiny, no_timing, tmp_path_factory):
    """A run with sequences of 16 tokens of a BERT of 64 positions."""
    out = tmp_path_factory.mktemp("short") / "run"
    stemformer.pretrain("bert_tiny", data=str(tiny / "data"), out=str(out), settings=SMALL, steps=2, precision="fp32")
    return out


@pytest.fixture
def tune(short, labelled, tmp_path):
    def finetune(out="tuned", task="classify", name="reviews.csv", **options):
        files = {split: str(labelled / split / name) for split in ("train", "dev")}
        usual = {"model": str(short), "steps": 2, "batch_size": 8, "precision": "fp32"}
        stemformer.finetune(task, out=str(tmp_path / out), **(usual | files | options))
        return tmp_path / out

    return finetune


@pytest.fixture(scope="module")
def gpt(tiny, tmp_path_factory):
    """Folder of a random GPT of 64 positions, trained on 16."""
    tokenizer, folder = load_tokenizer(tiny / "tok"), tmp_path_factory.mktemp("gpt")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = GptConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, eos_token_id=3, **sizes)
    model = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0))
    model.max_length = 16
    save_model(model, folder, tokenizer)
    return folder


def as_saved_before(run):
    """Change a run to what earlier versions wrote: the number of positions as the length of the tokenizer."""
    for file in run.glob("**/tokenizer_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 64}))


# Saved


def test_length_of_pretraining_is_saved_with_result_and_checkpoints(short):
    folders = [short / "final", *short.glob("checkpoints/step-*")]
    assert [stored_length(folder) for folder in folders] == [16] * len(folders)
    assert len(folders) > 1


def test_checkpoint_knows_the_phases_up_to_its_step(tiny, tmp_path):
    settings = [*SMALL, "phases=[{start_ratio=0.5, size=4, sequence_length=48}]", "checkpoints.every=2"]
    how = {"data": str(tiny / "data"), "settings": settings, "steps": 4, "precision": "fp32"}
    stemformer.pretrain("bert_tiny", out=str(tmp_path / "run"), **how)
    steps = [tmp_path / "run" / "checkpoints" / f"step-0000000{n}" for n in (2, 4)]
    assert [stored_length(folder) for folder in [*steps, tmp_path / "run" / "final"]] == [16, 48, 48]


def test_continued_training_keeps_the_longer_length(tiny, short, tmp_path):
    for length in (8, 32):
        settings = [*SMALL[3:4], *SMALL[5:], f"batch.sequence_length={length}"]
        how = {"data": str(tiny / "data"), "settings": settings, "steps": 1, "precision": "fp32"}
        stemformer.pretrain("bert_tiny", init=str(short), out=str(tmp_path / str(length)), **how)
    assert [stored_length(tmp_path / str(length) / "final") for length in (8, 32)] == [16, 32]


def test_finetuning_saves_its_own_length(tune):
    run = tune(max_length=8)
    assert {stored_length(folder) for folder in [run / "final", *run.glob("checkpoints/step-*")]} == {8}
    with pytest.warns(UserWarning, match=BEYOND):
        assert stored_length(tune("longer", max_length=32) / "final") == 32


def test_loaded_model_is_saved_with_its_length(short, tmp_path):
    stemformer.load(str(short)).save(tmp_path / "copy")
    assert stored_length(tmp_path / "copy") == 16


# Read


@pytest.mark.parametrize("stored", [16, 10**30, 1e30, 0, None, "long"])
def test_stored_length_counts_if_it_is_a_number_up_to_the_positions(gpt, tmp_path, stored):
    model, tokenizer = load_model_and_tokenizer(gpt)
    save_model(model, tmp_path, tokenizer)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": stored}))
    assert load_model(tmp_path).max_length == (16 if stored == 16 else 64)


@pytest.mark.parametrize("name", ["", "final", "checkpoints/step-00000002"])
def test_run_of_an_earlier_version_knows_its_length_from_its_config(tiny, short, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(short, run, symlinks=True)
    as_saved_before(run)
    (run / "checkpoints" / "step-00000002" / "checkpoint.json").unlink()
    assert load_model(run / name).max_length == 16
    config = run / "config.toml"
    config.write_text(config.read_text().replace("sequence_length = ", "row_length = "))
    assert load_model(run).max_length == 16


# Used


def test_finetuning_and_prediction_read_windows_of_the_trained_length(tune, labelled):
    run = tune()
    notes = json.loads((run / "metrics.json").read_text())["notes"]
    assert any(note.startswith("training data: texts split into windows: ") for note in notes)
    model = stemformer.load(str(run))
    (record,) = [model.require_task().make_record(LONG, "input")]
    (block,) = model.predict_blocks([[record]], total=1)
    examples = block.examples
    assert len(examples) > 1
    assert max(examples.sizes) <= 16


def test_comparison_reads_the_trained_length(short, labelled, tmp_path):
    files = {split: str(labelled / split / "reviews.csv") for split in ("train", "dev")}
    how = {"model": str(short), "steps": 1, "sizes": ("16",), "num_seeds": 1, "precision": "fp32"}
    stemformer.compare("classify", out=str(tmp_path / "c"), **files, **how)
    notes = json.loads((tmp_path / "c" / "compare.json").read_text())["notes"]
    assert any("texts split into windows" in note for note in notes)


def test_embedding_cuts_to_the_trained_length_and_warns_beyond_it(short):
    model = stemformer.load(str(short))
    cut = model.embed([LONG], max_length=16)
    assert (model.embed([LONG]) == cut).all()
    with pytest.warns(UserWarning, match=BEYOND):
        more = model.embed([LONG], max_length=32)
    assert (more != cut).any()


@pytest.mark.parametrize("length", [7, 65])
def test_length_that_the_model_cannot_have_is_refused(short, length):
    with pytest.raises(
        ConfigError, match=f"--max-length {length}: expected at least 8, and at most the model's 64 positions"
    ):
        stemformer.load(str(short)).embed([LONG], max_length=length)


@pytest.mark.parametrize("command", ["fill", "score"])
def test_masked_texts_beyond_the_trained_length_are_scored_with_a_warning(short, command):
    text = LONG + ("[MASK]" if command == "fill" else "")
    with pytest.warns(UserWarning, match="more than the 16 tokens"):
        (result,) = getattr(stemformer.load(str(short)), command)([text])
    assert result["text"] == text


def test_gpt_scores_beyond_the_trained_length_with_a_warning(gpt):
    with pytest.warns(UserWarning, match="more than the 16 tokens"):
        stemformer.load(str(gpt)).score([LONG])


def test_gpt_generates_within_the_trained_length(gpt):
    model = stemformer.load(str(gpt))
    with pytest.raises(DataError, match="more than the model's maximum length of 16"):
        model.generate(["the old king"], max_new_tokens=16)
    assert model.generate(["the old king"], max_new_tokens=40, overflow="slide", temperature=0)[0]["num_tokens"] <= 40


def test_inspect_prints_the_trained_length(short, capsys):
    assert main(["inspect", str(short / "final"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_length"] == 16
    assert stemformer.load(str(short)).info()["max_length"] == 16


def test_start_of_finetuning_says_the_mean_of_what_is_read(tune, labelled):
    class Lines:
        def __init__(self):
            self.lines = []

        def say(self, line):
            self.lines.append(line)

        def start(self, *args, **options): ...
        def advance(self, *args): ...
        def finish(self): ...

    progress = Lines()
    tune(task="choice", name="choices.jsonl", progress=progress)
    (line,) = [line for line in progress.lines if "mean length" in line]
    mean = float(line.partition("mean length ")[2].split(",")[0])
    assert "40 examples (80 sequences), mean length" in line
    assert mean <= 16


def test_folder_that_does_not_exist_is_no_hub_id():
    with pytest.raises(CheckpointError, match=r"^nothing/ does not exist"):
        load_model("nothing/")
