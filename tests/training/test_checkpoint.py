import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from stemformer import io as io_module
from stemformer.cli.exit_codes import describe_error
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import CheckpointError
from stemformer.huggingface.load import load_model
from stemformer.io import write_folder
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.training import checkpoint as checkpoint_module
from stemformer.training.checkpoint import (
    Checkpoint,
    environment,
    load_optimizer,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from stemformer.training.optimizer import OptimizerConfig, make_optimizer

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "config.json",
    "config.toml",
    "tokenizer.json",
    "checkpoint.json",
]


def make_parts(seed=0, kind="adamw"):
    """A model and an optimizer that has done two steps."""
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    generator = torch.Generator().manual_seed(seed)
    model = make_model(config, ["masked_lm"], generator=generator)
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["the cat sees the dog and the dog sees the cat"] * 3, vocab_size=40)


@pytest.fixture
def save(tmp_path, tokenizer):
    def run(step, keep=2, seed=0, held_out_loss=None, kind="adamw", config="seed = 0\n"):
        model, optimizer = make_parts(seed, kind)
        metadata = Checkpoint(
            step, 100 * step, 1.5 * step, config, "fingerprint", {"threads": 2}, held_out_loss=held_out_loss
        )
        return save_checkpoint(tmp_path, model, optimizer, metadata, tokenizer=tokenizer, keep=keep)

    return run


def load(path):
    """A model and an optimizer as they were saved."""
    model = load_model(path)
    optimizer = make_optimizer(model, OptimizerConfig())
    load_optimizer(path, model, optimizer)
    return model, optimizer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(file, at=-5):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


# Saving and loading


def test_checkpoint_comes_back_bit_for_bit(save, tmp_path):
    path = save(4, seed=1)
    model, optimizer = make_parts(seed=1)
    fresh, fresh_optimizer = load(path)
    for (name, expected), found in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(expected, found), name
        for kind, tensor in optimizer.state[expected].items():
            assert torch.equal(tensor, fresh_optimizer.state[found][kind]), (name, kind)


def test_optimizer_goes_on_as_the_one_that_was_saved(save):
    path = save(4, seed=1)
    model, optimizer = make_parts(seed=1)
    other, other_optimizer = load(path)
    for parameters, stepper in ((model.parameters(), optimizer), (other.parameters(), other_optimizer)):
        generator = torch.Generator().manual_seed(3)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_checkpoint_says_how_far_the_run_was(save):
    metadata = read_checkpoint(save(4))
    assert metadata == Checkpoint(4, 400, 6.0, "seed = 0\n", "fingerprint", {"threads": 2})


def test_checkpoint_is_named_by_its_step(save):
    assert save(500).name == "step-00000500"


def test_environment_names_what_bits_depend_on():
    metadata = environment(torch.device("cpu"), "fp32", False)
    assert metadata["threads"] == torch.get_num_threads()
    expected = {"torch", "processor", "machine", "threads", "device", "precision", "compile", "world_size"}
    assert set(metadata) == expected
    assert json.loads(json.dumps(metadata)) == metadata


# Keeping


def test_only_the_newest_are_kept(save, tmp_path):
    for step in (2, 4, 6, 8):
        save(step, keep=2)
    assert names(tmp_path) == ["step-00000006", "step-00000008"]


def test_best_is_kept_in_addition_to_the_newest(save, tmp_path):
    for step, loss in ((2, 5.0), (4, 3.0), (6, None), (8, 4.0), (10, 3.5)):
        save(step, keep=2, held_out_loss=loss)
    assert names(tmp_path) == ["best", "step-00000004", "step-00000008", "step-00000010"]
    assert (tmp_path / "best").resolve().name == "step-00000004"
    save(12, keep=2, held_out_loss=2.0)
    assert names(tmp_path) == ["best", "step-00000010", "step-00000012"]
    assert load_model(tmp_path / "best").config.hidden_size == 8


def test_best_is_chosen_among_evaluations_on_the_same_number_of_examples(save, tmp_path):
    for step, loss, number in ((2, 3.0, 8), (4, 4.0, 8), (6, None, 16)):
        save(step, keep=1, held_out_loss=loss, config=f"[evaluation]\nnum_examples = {number}\n")
    assert names(tmp_path) == ["best", "step-00000002", "step-00000006"]
    for step, loss in ((8, 3.6), (10, 3.5), (12, 3.9)):
        save(step, keep=1, held_out_loss=loss, config="[evaluation]\nnum_examples = 16\n")
    assert names(tmp_path) == ["best", "step-00000010", "step-00000012"]
    assert (tmp_path / "best").resolve().name == "step-00000010"


def test_at_least_one_is_kept(save, tmp_path):
    save(2)
    save(4, keep=0)
    assert names(tmp_path) == ["step-00000004"]


def test_saving_a_step_again_replaces_it(save, tmp_path):
    save(4, seed=1)
    path = save(4, seed=2)
    assert names(tmp_path) == ["step-00000004"]
    expected, _ = make_parts(seed=2)
    found, _ = load(path)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


# A full disk


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (checkpoint_module, "save_model"),
        (checkpoint_module, "save_tensors"),
        (io_module, "hash_file"),
        (io_module, "fsync"),
    ],
)
def test_full_disk_leaves_the_last_good_checkpoint_alone(save, tmp_path, monkeypatch, module, function):
    save(2)

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail)
        with pytest.raises(OSError, match="No space left") as caught:
            save(4)
    assert describe_error(caught.value)[0] == 3
    assert names(tmp_path) == ["step-00000002"]
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000002", [])


def test_interrupted_save_of_a_step_leaves_the_one_of_before(tmp_path):
    target = tmp_path / "final"
    write_folder(target, lambda folder: (folder / "a").write_text("good"))

    def half(folder):
        (folder / "a").write_text("ba")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(target, half)
    assert names(tmp_path) == ["final"]
    assert (target / "a").read_text() == "good"


def test_remains_of_a_killed_save_do_not_disturb_the_next(save, tmp_path):
    (tmp_path / "step-00000004.tmp").mkdir()
    (tmp_path / "step-00000004.tmp" / "old").write_text("half")
    save(4)
    assert names(tmp_path) == ["step-00000004"]
    assert not (tmp_path / "step-00000004" / "old").exists()


def test_disk_that_is_full_for_the_weights_ends_with_exit_code_3(tmp_path):
    """The library that writes weights has an error of its own; a limit on file sizes is the full disk that needs no disk."""
    code = """
import errno, resource, sys, signal
from pathlib import Path
import torch
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.cli.exit_codes import describe_error
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.training.checkpoint import Checkpoint, save_checkpoint
from stemformer.training.optimizer import OptimizerConfig, make_optimizer

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = BertConfig(vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
model = make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0))
optimizer = make_optimizer(model, OptimizerConfig())
for p in model.parameters():
    p.grad = torch.zeros_like(p)
optimizer.step()
tokenizer = train_wordpiece(["the cat sees the dog"] * 3, vocab_size=40)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoint = Checkpoint(1, 1, 1.0, "", "", {})
try:
    save_checkpoint(Path(sys.argv[1]), model, optimizer, checkpoint, tokenizer=tokenizer, keep=1)
except Exception as error:
    print(type(error).__name__, isinstance(error, OSError))
"""
    environ = {**os.environ, "STEMFORMER_NO_TYPECHECK": "1"}
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environ)
    assert run.stdout.split()[1:] == ["True"], run.stdout + run.stderr  # an OSError, which `describe_error` knows
    assert names(tmp_path) == []


@pytest.mark.parametrize(("saved", "opened"), [("adamw", "muon"), ("muon", "adamw")])
def test_state_of_another_optimizer_is_refused(save, saved, opened):
    path = save(2, kind=saved)
    model = load_model(path)
    with pytest.raises(CheckpointError, match="does not belong to this run") as caught:
        load_optimizer(path, model, make_optimizer(model, OptimizerConfig(kind=opened)))
    assert caught.value.exit_code == 3


# Damage


@pytest.mark.parametrize("name", FILES)
def test_checkpoint_with_a_missing_file_is_passed_over(save, tmp_path, name):
    save(2)
    (save(4) / name).unlink()
    path, faults = newest_checkpoint(tmp_path)
    assert path.name == "step-00000002"
    assert len(faults) == 1
    assert faults[0].startswith("step-00000004: ")
    assert name in faults[0]


@pytest.mark.parametrize("name", FILES)
def test_checkpoint_with_a_truncated_file_is_passed_over(save, tmp_path, name):
    save(2)
    file = save(4) / name
    file.write_bytes(file.read_bytes()[:-7])
    path, faults = newest_checkpoint(tmp_path)
    assert path.name == "step-00000002"
    assert name in faults[0]


@pytest.mark.parametrize("name", FILES)
def test_checkpoint_with_an_empty_file_is_passed_over(save, tmp_path, name):
    save(2)
    (save(4) / name).write_bytes(b"")
    path, faults = newest_checkpoint(tmp_path)
    assert path.name == "step-00000002"
    assert name in faults[0]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "vocab.txt"])
def test_damaged_checkpoint_is_not_loaded(save, name):
    path = save(2)
    flip(path / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged") as caught:
        load_model(path)
    assert caught.value.exit_code == 3


def test_checkpoint_without_its_optimizer_or_checksums_can_be_loaded(save):
    path = save(2)
    (path / "optimizer.safetensors").unlink()
    load_model(path)
    (path / "checkpoint.json").unlink()
    flip(path / "model.safetensors")
    load_model(path)


@pytest.mark.parametrize("name", FILES)
def test_checkpoint_with_a_flipped_bit_is_passed_over(save, tmp_path, name):
    save(2)
    flip(save(4) / name)
    path, faults = newest_checkpoint(tmp_path)
    assert path.name == "step-00000002"
    assert name in faults[0]


@pytest.mark.parametrize("field", ["step", "tokens", "seconds"])
def test_checkpoint_whose_own_record_was_changed_is_passed_over(save, tmp_path, field):
    save(2)
    file = save(4) / "checkpoint.json"
    metadata = json.loads(file.read_text())
    metadata[field] += 1
    file.write_text(json.dumps(metadata, indent=2))
    assert newest_checkpoint(tmp_path)[0].name == "step-00000002"


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"files": []}', '{"files": {}}', "\xff"])
def test_record_that_is_no_record_is_passed_over(save, tmp_path, content):
    save(2)
    (save(4) / "checkpoint.json").write_text(content, encoding="latin-1")
    assert newest_checkpoint(tmp_path)[0].name == "step-00000002"


def test_newest_valid_checkpoint_is_used_without_a_message(save, tmp_path):
    save(2)
    save(4)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000004", [])


def test_half_written_folders_are_no_checkpoints(save, tmp_path):
    path = save(2)
    shutil.copytree(path, tmp_path / "step-00000006.tmp")
    shutil.copytree(path, tmp_path / "step-00000006.old")
    assert newest_checkpoint(tmp_path) == (path, [])


def test_no_valid_checkpoint_is_damage(save, tmp_path):
    flip(save(2) / "model.safetensors")
    (save(4) / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(tmp_path)
    assert caught.value.exit_code == 3
    words = ["no valid checkpoint", "step-00000002: model.safetensors is damaged"]
    words += ["step-00000004: optimizer.safetensors is missing", "--overwrite"]
    assert all(word in str(caught.value) for word in words)


def test_no_checkpoint_at_all_is_a_mistake(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint yet") as caught:
        newest_checkpoint(tmp_path)
    assert caught.value.exit_code == 2


def test_checkpoint_opens_as_a_model_folder(save):
    from stemformer.huggingface.load import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(save(4, seed=5))
    expected, _ = make_parts(seed=5)
    assert tokenizer.vocab_size <= 40
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), model.parameters(), strict=True))
