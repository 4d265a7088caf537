"""Determinism of runs and of resuming: 10 steps = 4 + save + resume + 6, bit for bit, on a tiny corpus."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.cli import app as cli
from stemformer.config import with_settings
from stemformer.data.examples.packing import make_token_stream, pack_documents
from stemformer.data.examples.sampling import prefetch
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl, write_checksums
from stemformer.models.heads import MaskedLmHead
from stemformer.models.model import make_model
from stemformer.objectives.masked_lm import MaskedLm, SpecialIds
from stemformer.objectives.objective import LossModule
from stemformer.recipes import find_recipe
from stemformer.training import loop
from stemformer.training.budget import TrainingBudget
from stemformer.training.checkpoint import newest_checkpoint
from stemformer.training.config import RENAMED_SETTINGS
from stemformer.training.context import Phase, TrainingContext
from stemformer.training.log import MetricAccumulator

SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1",
    "batch.size=4",
    "batch.sequence_length=32",
    "evaluation.num_examples=8",
    "evaluation.every=5",
    "checkpoints.every=4",
    "checkpoints.keep=9",
    "log_every=1",
]
TIMING_KEYS = ("seconds", "tokens_per_second", "mfu")


def prepare_text(folder, text):
    (folder / "text.txt").write_text(text)
    options = {"documents": "line"}
    if not (folder.parent / "tokenizer").exists():
        stemformer.train_tokenizer(
            [str(folder / "text.txt")], out=str(folder.parent / "tokenizer"), vocab_size=300, **options
        )
    tokenizer = str(folder.parent / "tokenizer")
    stemformer.prepare(
        [str(folder / "text.txt")],
        tokenizer=tokenizer,
        out=str(folder / "data"),
        held_out=0.1,
        num_workers=1,
        **options,
    )
    return str(folder / "data")


@pytest.fixture(scope="session")
def determinism_data(make_text, tmp_path_factory):
    """Two prepared folders with the same tokenizer and other text."""
    root = tmp_path_factory.mktemp("determinism")
    folders = [root / "one", root / "two"]
    for folder in folders:
        folder.mkdir()
    return [prepare_text(folder, make_text(seed)) for seed, folder in enumerate(folders)]


@pytest.fixture
def data(determinism_data):
    return determinism_data[0]


pytestmark = pytest.mark.usefixtures("no_timing")


def train(data, out, *, recipe="bert_tiny", settings=(), **options):
    options = {"steps": 10} | options
    return stemformer.pretrain(
        recipe, data=data, out=str(out), settings=[*SETTINGS, *settings], precision="fp32", **options
    )


def train_interrupted(data, out, *, at=4, settings=(), resume=None, **options):
    with pytest.raises(KeyboardInterrupt):
        train(data, out, settings=settings, progress=StopAt(at), **options)
    assert newest(out) == at
    return stemformer.pretrain(data=data, out=str(out), resume=True, precision="fp32", **(resume or {}))


def newest(out):
    return max(int(path.name[5:]) for path in Path(out).glob("checkpoints/step-????????"))


def assert_same_files(a, b, names=("model.safetensors", "optimizer.safetensors")):
    for name in names:
        first, second = load_file(a / name), load_file(b / name)
        assert first.keys() == second.keys()
        different = [key for key in first if not torch.equal(first[key], second[key])]
        assert different == [], f"{len(different)} of {len(first)} tensors differ in {name}"


def log_of(out):
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in read_jsonl(Path(out) / "log.jsonl")]


def last_checkpoint(out):
    return Path(out) / "checkpoints" / f"step-{newest(out):08d}"


# 10 = 4 + save + resume + 6


@pytest.mark.parametrize("budget", [{"steps": 10}, {"tokens": 1000}, {"epochs": 0.25}], ids=lambda b: next(iter(b)))
def test_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(data, tmp_path, budget):
    options = {"steps": None} | budget
    full = train(data, tmp_path / "full", **options)
    resumed = train_interrupted(data, tmp_path / "parts", **options)
    assert full["steps"] > 4
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))
    assert_same_files(tmp_path / "full" / "final", tmp_path / "parts" / "final", ["model.safetensors"])
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")
    assert {k: v for k, v in full.items() if k not in ("run", "model", "report", "seconds")} == {
        k: v for k, v in resumed.items() if k not in ("run", "model", "report", "seconds")
    }


@pytest.mark.parametrize("documents", ["packed", "stream"])
def test_interruption_in_the_second_epoch_changes_nothing(data, tmp_path, documents):
    shards = open_shards(data)
    if documents == "packed":
        recipe, settings, examples = "bert_tiny", [], pack_documents(shards, sequence_length=32)
    else:
        recipe, settings = "gpt_tiny", ["objective.documents=stream"]
        examples = make_token_stream(shards, sequence_length=32, eos_token_id=0)
    # Three steps are an epoch: the run stops in its second one, and ends in its fourth.
    options = {"recipe": recipe, "settings": [*settings, f"batch.size={len(examples) // 3}"]}
    train(data, tmp_path / "full", **options)
    train_interrupted(data, tmp_path / "parts", **options)
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


@pytest.mark.parametrize("recipe", ["modernbert_tiny", "llama_tiny"])
def test_interruption_of_a_sampled_softmax_and_rare_updates_of_matrices_changes_nothing(data, tmp_path, recipe):
    # Interrupted between two updates of the matrices.
    settings = ["objective.sampled_softmax=60", "optimizer.muon_interval=3", "model.num_attention_heads=2"]
    options = {"recipe": recipe, "settings": settings}
    train(data, tmp_path / "full", **options)
    train_interrupted(data, tmp_path / "parts", **options)
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


def test_interruption_of_denoising_changes_nothing(data, tmp_path):
    options = {"recipe": "bart_tiny", "settings": ["model.num_attention_heads=2", "model.hidden_dropout_prob=0.1"]}
    train(data, tmp_path / "full", **options)
    train_interrupted(data, tmp_path / "parts", **options)
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


def test_micro_batches_of_denoising_change_nothing(data, tmp_path):
    options = {"recipe": "bart_tiny", "steps": 1}
    settings = ["model.num_attention_heads=2", "batch.size=8", "optimizer.kind=adamw", "optimizer.eps=1e-3"]
    settings.append("model.hidden_dropout_prob=0.0")
    for name, size in (("full", 8), ("parts", 2)):
        train(data, tmp_path / name, settings=[*settings, f"batch.micro_size={size}"], **options)
    full, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("full", "parts"))
    assert max(float((full[name] - parts[name]).abs().max()) for name in full) < 1e-6


@pytest.mark.parametrize("at", [1, 5, 9])
def test_interruption_between_regular_checkpoints_changes_nothing(data, tmp_path, at):
    train(data, tmp_path / "full")
    train_interrupted(data, tmp_path / "parts", at=at)
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


def test_log_lines_of_several_steps_do_not_depend_on_the_interruption(data, tmp_path):
    train(data, tmp_path / "full", settings=["log_every=5"])
    train_interrupted(data, tmp_path / "parts", at=7, settings=["log_every=5"])
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


def test_log_line_is_the_mean_of_all_steps_since_the_last(data, tmp_path):
    often = ["evaluation.every=100", "checkpoints.every=100", "model.hidden_dropout_prob=0.0"]
    train(data, tmp_path / "plain", settings=[*often, "log_every=10"])
    train(data, tmp_path / "saved", settings=[*often[:1], "checkpoints.every=4", *often[2:], "log_every=10"])
    assert log_of(tmp_path / "plain") == log_of(tmp_path / "saved")  # a save in between drops no loss


def test_killed_run_resumes_from_its_last_checkpoint(data, tmp_path):
    train(data, tmp_path / "full")
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:

        def die(step, *args, original=loop.batches_of_step):
            if step == 6:
                raise RuntimeError("killed")
            return original(step, *args)

        patch.setattr(loop, "batches_of_step", die)
        train(data, tmp_path / "parts")
    assert newest(tmp_path / "parts") == 4
    assert log_of(tmp_path / "parts")[-1]["step"] == 6  # steps 5 and 6 are in the log, and will be done again
    stemformer.pretrain(data=data, out=str(tmp_path / "parts"), resume=True, precision="fp32")
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


def test_damaged_newest_checkpoint_is_skipped_and_the_result_is_the_same(data, tmp_path):
    train(data, tmp_path / "full")
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", progress=StopAt(9))
    file = last_checkpoint(tmp_path / "parts") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    stemformer.pretrain(data=data, out=str(tmp_path / "parts"), resume=True, precision="fp32")
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))


COMPILED = """
import json, signal, sys
import stemformer
from stemformer.commands import pretrain as pretraining
from stemformer.progress import Silent

pretraining.matmul_rate, pretraining.write_report = lambda *args: 1e11, lambda folder: None
data, out, settings, at = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])

class StopAt(Silent):
    left = at
    def advance(self, amount, note=""):
        self.left -= amount
        if amount and self.left == 0:
            signal.raise_signal(signal.SIGINT)

try:
    stemformer.pretrain("bert_tiny", data=data, out=out, settings=settings, steps=10, precision="fp32", threads=2, progress=StopAt())
except KeyboardInterrupt:
    pass
"""
RESUMED = """
import sys
import stemformer
from stemformer.commands import pretrain as pretraining

pretraining.matmul_rate, pretraining.write_report = lambda *args: 1e11, lambda folder: None
stemformer.pretrain(data=sys.argv[1], out=sys.argv[2], resume=True)
"""


@pytest.mark.slow
def test_interrupted_compiled_run_equals_an_uninterrupted_one_bit_for_bit(data, tmp_path):
    # A pool of compiling processes takes longer to start than two small layers take to compile.
    environ = {**os.environ, "STEMFORMER_NO_TYPECHECK": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    settings = json.dumps([*SETTINGS, "compute.compile=true"])

    def run(code, *arguments):
        subprocess.run([sys.executable, "-c", code, data, *arguments], check=True, env=environ)

    run(COMPILED, str(tmp_path / "full"), settings, "0")
    run(COMPILED, str(tmp_path / "parts"), settings, "4")
    assert newest(tmp_path / "parts") == 4
    run(RESUMED, str(tmp_path / "parts"))
    assert_same_files(last_checkpoint(tmp_path / "full"), last_checkpoint(tmp_path / "parts"))
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


# Seeds


def test_same_seed_gives_the_same_run(data, tmp_path):
    for name in ("a", "b"):
        train(data, tmp_path / name, steps=3, seed=5)
    assert_same_files(last_checkpoint(tmp_path / "a"), last_checkpoint(tmp_path / "b"))
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")


def test_random_state_of_the_process_does_not_matter(data, tmp_path):
    train(data, tmp_path / "a", steps=3)
    torch.manual_seed(99)
    np.random.seed(99)
    train(data, tmp_path / "b", steps=3)
    assert_same_files(last_checkpoint(tmp_path / "a"), last_checkpoint(tmp_path / "b"))


def test_another_seed_gives_another_run(data, tmp_path):
    for seed in (5, 6):
        train(data, tmp_path / str(seed), steps=3, seed=seed)
    first, second = (load_file(tmp_path / str(seed) / "final" / "model.safetensors") for seed in (5, 6))
    matrices = [name for name, tensor in first.items() if tensor.ndim == 2]
    assert matrices
    assert not any(torch.equal(first[name], second[name]) for name in matrices)


# Gradients


def make_context(data, tmp_path, settings=()):
    config = with_settings(find_recipe("bert_tiny"), [*SETTINGS, "batch.size=8", "budget.steps=10", *settings])
    tokenizer = load_tokenizer(Path(data) / "tokenizer")
    config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    special = SpecialIds(cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id, mask=tokenizer.mask_token_id)
    return TrainingContext(
        config=config,
        budget=TrainingBudget(config, 10, tmp_path),
        objective=MaskedLm(config.objective, special=special, vocab_size=tokenizer.vocab_size),
        phases=[Phase(config.batch, pack_documents(open_shards(data), sequence_length=config.batch.sequence_length))],
        evaluate=None,
        sample_fn=None,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        precision="fp32",
        environment={},
        peak_flops=1.0,
        folder=tmp_path,
    )


def gradients(context, step):
    model = make_model(context.config.model, ["masked_lm"], generator=torch.Generator().manual_seed(0)).train()
    batches = loop.batches_of_step(step, context)
    counts = {"masked_lm": float(sum(len(batch.labels) for batch in batches))}
    loop.add_gradients(LossModule(model, context.objective), batches, context, step, MetricAccumulator(), counts)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro_size", [4, 2, 1])
def test_micro_batches_add_up_to_the_gradient_of_the_full_batch(data, tmp_path, micro_size):
    no_dropout = "model.hidden_dropout_prob=0.0"
    full = gradients(make_context(data, tmp_path, [no_dropout]), step=3)
    parts = gradients(make_context(data, tmp_path, [no_dropout, f"batch.micro_size={micro_size}"]), step=3)
    largest = max(float(gradient.abs().max()) for gradient in full.values())
    worst = max(float((full[name] - parts[name]).abs().max()) for name in full)
    assert worst < 1e-6 * largest  # design, section 4: sums in another order


def test_micro_batches_and_ranks_have_dropout_of_their_own(data, tmp_path):
    context = make_context(data, tmp_path)
    seeds = [
        loop._dropout_seed(context.config.seed, step, rank, micro)
        for step in range(5)
        for rank in range(3)
        for micro in range(5)
    ]
    assert len(set(seeds)) == 75


def test_dropout_is_a_function_of_the_step(data, tmp_path):
    context = make_context(data, tmp_path)
    first = gradients(context, step=3)
    torch.rand(7)
    again = gradients(context, step=3)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_batches_of_a_step_are_the_same_however_they_are_made(data, tmp_path):
    context = make_context(data, tmp_path, ["batch.micro_size=2"])
    steps = range(3, 9)
    ahead = list(prefetch(lambda step: loop.batches_of_step(step, context), steps))
    for step, made in zip(steps, ahead, strict=True):
        for one, other in zip(made, loop.batches_of_step(step, context), strict=True):
            assert one.example_numbers == other.example_numbers
            for name in ("input_ids", "position_ids", "token_type_ids", "cu_seqlens", "label_positions", "labels"):
                assert torch.equal(getattr(one, name), getattr(other, name))


# What a resumed run may change


@pytest.fixture(scope="module")
def stopped(determinism_data, no_timing, tmp_path_factory):
    """A run of 10 steps that was stopped after 2, to be copied."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with suppress(KeyboardInterrupt):
        train(determinism_data[0], out, progress=StopAt(2))
    return out


@pytest.fixture
def stopped_run(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": ["optimizer.learning_rate=0.5"]}, "optimizer.learning_rate was 0.002, is now 0.5"),
        ({"settings": ["batch.size=8"]}, "batch.size was 4, is now 8"),
        ({"settings": ["model.hidden_size=64"]}, "model.hidden_size was 32, is now 64"),
        ({"settings": ["objective.unit=word"]}, "objective.unit was token, is now word"),
        ({"seed": 3}, "seed was 0, is now 3"),
    ],
)
def test_resuming_with_other_settings_is_refused_with_both_values(data, stopped_run, options, words):
    with pytest.raises(CheckpointError) as caught:
        stemformer.pretrain(data=data, out=str(stopped_run), resume=True, **options)
    assert words in str(caught.value)
    assert newest(stopped_run) == 2


def test_resuming_with_other_data_is_refused(determinism_data, stopped_run):
    with pytest.raises(CheckpointError, match="was trained on other data"):
        stemformer.pretrain(data=determinism_data[1], out=str(stopped_run), resume=True)


def test_resuming_may_change_settings_of_logging_and_saving(data, stopped_run):
    settings = ["log_every=2", "evaluation.every=3", "checkpoints.every=5", "checkpoints.keep=1"]
    assert stemformer.pretrain(data=data, out=str(stopped_run), resume=True, settings=settings, steps=4)["steps"] == 4


@pytest.mark.parametrize(("number", "is_said"), [(5, True), (None, False)])
def test_resuming_with_other_held_out_examples_says_that_losses_are_not_comparable(
    data, stopped_run, capsys, number, is_said
):
    settings = [f"evaluation.num_examples={number}"] if number else []
    words = [word for setting in settings for word in ("--set", setting)]
    assert (
        cli.main(["pretrain", "--data", str(data), "--out", str(stopped_run), "--resume", "--steps", "3", *words]) == 0
    )
    assert ("earlier validation losses are not comparable" in capsys.readouterr().err) == is_said


def test_resuming_with_a_larger_budget_continues(data, stopped_run):
    assert stemformer.pretrain(data=data, out=str(stopped_run), resume=True, steps=12)["steps"] == 12
    assert newest(stopped_run) == 12


def test_resuming_with_a_budget_that_is_used_up_is_refused(data, stopped_run):
    with pytest.raises(ConfigError, match="is at step 2, the budget ends at 1"):
        stemformer.pretrain(data=data, out=str(stopped_run), resume=True, steps=1)


def test_resuming_a_finished_run_returns_what_it_returned(data, tmp_path):
    first = train(data, tmp_path / "run", steps=3)
    before, log = (tmp_path / "run/final/model.safetensors").read_bytes(), log_of(tmp_path / "run")
    again = stemformer.pretrain(data=data, out=str(tmp_path / "run"), resume=True, precision="fp32")
    assert again == first
    assert (tmp_path / "run/final/model.safetensors").read_bytes() == before
    assert log_of(tmp_path / "run") == log


def test_finished_run_continues_with_a_larger_budget(data, tmp_path):
    train(data, tmp_path / "run", steps=3)
    assert stemformer.pretrain(data=data, out=str(tmp_path / "run"), resume=True, steps=5)["steps"] == 5
    assert [line["step"] for line in log_of(tmp_path / "run") if line["kind"] == "train"] == [1, 2, 3, 4, 5]


def with_old_names(file):
    """Rewrite a config.toml as an earlier version wrote it."""
    names = {new.rpartition(".")[2]: old.rpartition(".")[2] for old, new in RENAMED_SETTINGS.items()}
    lines = [line.partition(" = ") for line in file.read_text().splitlines() if "model_type" not in line]
    file.write_text("".join(f"{names.get(name, name)}{equals}{value}\n" for name, equals, value in lines))


def test_run_of_an_earlier_version_is_resumed_silently(data, stopped_run):
    folder = newest_checkpoint(stopped_run / "checkpoints")[0]
    for file in (stopped_run / "config.toml", folder / "config.toml"):
        with_old_names(file)
        assert "row_length = 32" in file.read_text()
        assert "size = 4" not in file.read_text().splitlines()
    record = json.loads((folder / "checkpoint.json").read_text())
    write_checksums(folder, {key: value for key, value in record.items() if key not in ("files", "sha256")})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = stemformer.pretrain(data=data, out=str(stopped_run), resume=True, steps=4)
    assert result["steps"] == 4
    assert [str(w.message) for w in caught if "is now" in str(w.message)] == []
    assert "batch.rows" not in (stopped_run / "config.toml").read_text()
    assert "sequence_length = 32" in (stopped_run / "config.toml").read_text()
    assert 'model_type = "bert"' in (stopped_run / "config.toml").read_text()


def test_setting_by_its_old_name_works_and_shows_the_new_one_once(data, tmp_path, capsys):
    words = ["pretrain", "--recipe", "bert_tiny", "--data", data, "--out", str(tmp_path / "run"), "--steps", "1"]
    settings = [*(s for s in SETTINGS if not s.startswith("batch.")), "batch.rows=3", "batch.sequence_length=32"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main([*words, *(word for setting in settings for word in ("--set", setting))]) == 0
    assert capsys.readouterr().err.count("Setting 'batch.rows' is now 'batch.size'.") == 1
    assert "\nsize = 3\n" in (tmp_path / "run" / "config.toml").read_text()


def test_run_from_a_model_with_an_output_matrix_of_its_own_can_be_resumed(data, stopped_run, tmp_path):
    model = load_model(stopped_run)
    head = MaskedLmHead(model.config, tied=False)
    head.load_state_dict({**head.state_dict(), **model.heads["masked_lm"].state_dict()})
    model.heads["masked_lm"] = head
    save_model(model, tmp_path / "untied", load_tokenizer(Path(data) / "tokenizer"))
    ended = train_interrupted(data, tmp_path / "run2", at=1, steps=2, init=str(tmp_path / "untied"))
    assert ended["steps"] == 2
