"""What must survive a mistake or a fault: the user's files, and what a run has learned."""

import shutil
import signal

import pytest

import stemformer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.huggingface.load import find_model_folder
from stemformer.io import read_jsonl
from stemformer.progress import Silent

pytestmark = pytest.mark.usefixtures("no_timing")

SETTINGS = ["model.hidden_size=32", "model.intermediate_size=64", "batch.size=4", "batch.sequence_length=32"]


class Stop(Silent):
    """Presses Ctrl-C after some steps."""

    def __init__(self, steps):
        self.left = steps

    def advance(self, amount, note=""):
        self.left -= amount == 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def run(tiny, tmp_path):
    """A run of 4 steps, with a checkpoint after 2 and 4."""
    settings = [*SETTINGS, "checkpoints.every=2", "evaluation.num_examples=4", "evaluation.every=4", "log_every=1"]
    stemformer.pretrain("bert_tiny", data=str(tiny / "data"), out=str(tmp_path / "run"), settings=settings, steps=4)
    return tmp_path / "run"


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def test_overwriting_what_a_pattern_reads_is_refused(tiny, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(tiny / "text.txt", tmp_path / "in" / "t.txt")
    for job in (
        lambda out: stemformer.prepare(
            [str(tmp_path / "*/t.txt")], tokenizer=str(tiny / "tok"), out=out, overwrite=True
        ),
        lambda out: stemformer.train_tokenizer([str(tmp_path / "*/t.txt")], out=out, vocab_size=300, overwrite=True),
    ):
        with pytest.raises(ConfigError, match=r"lies in the output folder|nothing that stemformer made"):
            job(str(tmp_path / "in"))
    assert (tmp_path / "in" / "t.txt").is_file()


def test_folder_of_the_users_own_is_not_overwritten(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds nothing that stemformer made"):
        stemformer.pretrain("bert_tiny", data=str(tiny / "data"), out=str(tmp_path), overwrite=True, steps=1)
    assert (tmp_path / "thesis.txt").is_file()


def test_finished_run_without_checkpoints_is_not_started_again(tiny, run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="holds a finished model without checkpoints"):
        stemformer.pretrain("bert_tiny", data=str(tiny / "data"), out=str(run), resume=True, steps=9)
    assert (run / "final" / "model.safetensors").is_file()


def test_folders_that_a_user_put_into_a_run_stay(tiny, run):
    shutil.copytree(run / "final", run / "mine.old")
    stemformer.pretrain(data=str(tiny / "data"), out=str(run), resume=True, steps=5)
    assert (run / "mine.old").is_dir()


def test_resume_that_is_refused_changes_nothing(tiny, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="the budget ends at 2"):
        stemformer.pretrain(data=str(tiny / "data"), out=str(run), resume=True, steps=2)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_restart_after_a_mistake_does_not_resume_an_older_run(tiny, run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")
    with pytest.raises(ConfigError, match="is not empty"):
        stemformer.pretrain("bert_tiny", data=str(tiny / "data"), out=str(run), steps=9)


def test_damaged_checkpoint_does_not_replace_a_valid_one(tiny, run):
    flip(run / "checkpoints" / "step-00000004" / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        stemformer.pretrain(
            data=str(tiny / "data"), out=str(run), resume=True, settings=["checkpoints.keep=1"], progress=Stop(1)
        )
    assert stemformer.pretrain(data=str(tiny / "data"), out=str(run), resume=True)["steps"] == 4


def test_edited_configuration_does_not_change_a_resumed_run(tiny, run):
    file = run / "config.toml"
    file.write_text(file.read_text().replace("learning_rate = 0.002", "learning_rate = 0.5"))
    stemformer.pretrain(data=str(tiny / "data"), out=str(run), resume=True, steps=6)
    assert max(line["learning_rate"] for line in read_jsonl(run / "log.jsonl") if line["kind"] == "train") <= 0.002
    assert "learning_rate = 0.002" in file.read_text()


def test_resumed_run_no_longer_counts_as_finished(tiny, run):
    with pytest.raises(KeyboardInterrupt):
        stemformer.pretrain(data=str(tiny / "data"), out=str(run), resume=True, steps=9, progress=Stop(2))
    assert find_model_folder(run).name == "step-00000006"
    assert not stemformer.inspect(str(run))["is_finished"]


def test_log_with_a_broken_line_in_the_middle_is_not_cut(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        read_jsonl(tmp_path / "log.jsonl")


def test_settings_of_other_sizes_than_the_initial_model_are_refused(tiny, run, tmp_path):
    other = [*SETTINGS, "model.hidden_size=64"]
    with pytest.raises(ConfigError, match=r"model.hidden_size is 64, but the model that training starts from has 32"):
        stemformer.pretrain(
            "bert_tiny", data=str(tiny / "data"), out=str(tmp_path / "b"), init=str(run), settings=other, steps=1
        )


def test_counted_embeddings_of_an_initial_model_are_refused(tiny, run, tmp_path):
    counted = [*SETTINGS, "embedding_init=cooccurrence"]
    with pytest.raises(ConfigError, match=r"embedding_init is 'cooccurrence', but a model .* Remove the setting"):
        stemformer.pretrain(
            "bert_tiny", data=str(tiny / "data"), out=str(tmp_path / "b"), init=str(run), settings=counted, steps=1
        )


def test_two_budgets_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="more than one of steps, tokens, epochs and seconds"):
        stemformer.pretrain(
            "bert_base_2018", data=str(tiny / "data"), out=str(tmp_path / "b"), settings=["budget.epochs=1.0"]
        )


def test_scoring_a_text_with_a_blank_is_refused(run):
    with pytest.raises(ConfigError, match=r"Replace each \[MASK\] by a word"):
        stemformer.score(["The [MASK] sees."], model=str(run))


def test_text_that_the_tokenizer_does_not_know_is_reported(tiny, tmp_path):
    (tmp_path / "zh.txt").write_text("我们学习语言模型\n" * 30, encoding="utf-8")
    lines = []
    progress = Silent()
    progress.say = lines.append
    made = stemformer.prepare(
        [str(tmp_path / "zh.txt")], tokenizer=str(tiny / "tok"), out=str(tmp_path / "d"), held_out=0, progress=progress
    )
    assert made["unknown"] == 1.0
    assert any("[UNK]" in line for line in lines)
