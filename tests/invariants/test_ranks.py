"""Several ranks train the same model as one, also when a rank dies.

`torchrun` starts this file as the program of each rank: it runs the jobs (name and options) of a JSON file.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stemformer
from stemformer.cli import app as cli
from stemformer.commands import pretrain as pretraining
from stemformer.config import with_settings
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import DataError
from stemformer.io import read_jsonl
from stemformer.progress import Silent
from stemformer.recipes import find_recipe
from stemformer.training import loop
from stemformer.training.checkpoint import newest_checkpoint
from stemformer.training.distributed import distribute, gather_full_state, init_distributed
from stemformer.training.log import MetricAccumulator

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("no_timing")]

SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.0",
    "batch.size=4",
    "batch.sequence_length=32",
    "evaluation.num_examples=300",
    "evaluation.every=5",
    "checkpoints.every=4",
    "checkpoints.keep=9",
    "log_every=1",
]
NEXT = ["objective.sentences=next"]
SHARD = ["compute.shard=true"]

# ------------------------------------------------------------------------------------------------------------- what the ranks do


class StopAt(Silent):
    """Presses Ctrl-C while a step is under way."""

    def __init__(self, step):
        self.left = step

    def advance(self, amount, note=""):
        self.left -= amount
        if amount and self.left == 0:
            signal.raise_signal(signal.SIGINT)


def train(data, out, *, recipe="bert_tiny", settings=(), stop_at=0, die_at=None, error="", **options):
    """A run of 10 steps, which ends after `stop_at`, or continues with `resume`; at `die_at`, rank 1 dies once, or raises `error`."""
    if die_at is not None and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":

        def die(module, batches, setup, step, *rest, original=loop.add_gradients):
            if step == die_at and error:
                raise DataError(error)
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            original(module, batches, setup, step, *rest)

        loop.add_gradients = die
    recipe = None if options.get("resume") else recipe
    options = {"precision": "fp32", **options, "settings": [*(SETTINGS if recipe else ()), *settings]}
    if recipe:
        options = {"steps": 10, **options}
    with suppress(KeyboardInterrupt):
        return stemformer.pretrain(recipe, data=data, out=out, progress=StopAt(stop_at), **options)


def gradients(data, out, *, recipe="bert_tiny", settings=()):
    """Writes the gradients of a step to the file `out`."""
    settings = [*SETTINGS, "compute.precision=fp32", "budget.steps=10", *settings]
    config = with_settings(find_recipe(recipe), settings)
    tokenizer = load_tokenizer(Path(data) / "tokenizer")
    with init_distributed(torch.device("cpu")) as ranks:
        model = pretraining.make_initial_model(config, tokenizer, Silent()).train()
        setup = pretraining.make_pretraining_context(
            replace(config, model=model.config), open_shards(data), tokenizer, ranks, Path(out).parent
        )
        module = distribute(model, setup.objective, ranks, sharded=config.compute.shard)
        batches = loop.batches_of_step(3, setup)
        own = [setup.objective.counts(batch) for batch in batches]
        names = list(own[0])
        totals = ranks.all_reduce_sum([float(sum(count[name] for count in own)) for name in names])
        loop.add_gradients(
            module, batches, setup, 3, MetricAccumulator(None, ranks), dict(zip(names, totals, strict=True))
        )
        full = gather_full_state({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        if ranks.is_main:
            save_file(full, out)


def finetune_rewriting(pairs, out, *, settings=()):
    """A new BART, trained on pairs of texts for 6 steps."""
    settings = ["task.vocab_size=300", "dropout=0.0", "log_every=1", "evaluation.every=3", *settings]
    options = {"train": [pairs], "dev": [pairs], "steps": 6, "batch_size": 6, "precision": "fp32", "device": "cpu"}
    stemformer.finetune("seq2seq", model="bart_tiny", out=out, **options, settings=settings)


def command(arguments):
    """The command line."""
    if code := cli.main(arguments):
        sys.exit(code)


def main(file):
    pretraining.matmul_rate = lambda *args: 1e11
    for name, options in json.loads(Path(file).read_text()):
        known = {
            "train": train,
            "gradients": gradients,
            "finetune_rewriting": finetune_rewriting,
            "command": command,
        }
        known[name](**options)


# ------------------------------------------------------------------------------------------------------------------ starting them


def start_ranks(folder, jobs, *, number=2, restarts=0):
    """Starts `torchrun` on a list of jobs; what it writes goes to `folder/output.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    words = [*torchrun, f"--max-restarts={restarts}", __file__, str(folder / "jobs.json")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environ)


def ended(started, folder):
    """Waits for the end of `torchrun`, and returns its exit code and what it output."""
    try:
        code = started.wait()
    finally:
        started.terminate()
    return code, (folder / "output.txt").read_text()


def do(folder, jobs, **options):
    code, output = ended(start_ranks(folder, jobs, **options), folder)
    assert code == 0, output


@pytest.fixture(scope="session")
def data(make_text, tmp_path_factory):
    """Prepared data with three held-out batches, so that one of two ranks has more of them."""
    root = tmp_path_factory.mktemp("ranks-data")
    (root / "text.txt").write_text(make_text(num_documents=700))
    text, tok, out = (str(root / name) for name in ("text.txt", "tok", "data"))
    stemformer.train_tokenizer([text], out=tok, vocab_size=300, documents="line")
    stemformer.prepare([text], tokenizer=tok, out=out, held_out=0.5, documents="line", num_workers=1)
    return out


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Pairs of words and the same words in another order."""
    file = tmp_path_factory.mktemp("ranks-pairs") / "pairs.jsonl"
    words = ["ape", "bee", "cat", "dog", "elk"]
    sources = [" ".join(words[i % 5 : i % 5 + 1 + i % 3] + words[: i % 4]) for i in range(40)]
    rows = [{"source": f"{source} {i}", "target": f"{i} {source}"} for i, source in enumerate(sources)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


DENOISING = ["model.num_attention_heads=2"]

GRADIENTS = {
    "plain": [],
    "micro-batches": ["batch.micro_size=1"],
    "unequal": ["batch.size=3"],
    "unequal micro-batches": ["batch.size=3", "batch.micro_size=1"],
    "pairs": NEXT,
    "sharded": SHARD,
    "sharded micro-batches": [*SHARD, "batch.micro_size=1"],
    "sharded unequal micro-batches": [*SHARD, "batch.size=3", "batch.micro_size=1"],
    "sharded pairs": [*SHARD, *NEXT],
    "denoising": DENOISING,
    "denoising unequal micro-batches": [*DENOISING, "batch.size=3", "batch.micro_size=1"],
}
RUNS = {
    "masked": [],
    "pairs": NEXT,
    "sharded": SHARD,
    "sharded pairs": [*SHARD, *NEXT],
    "denoising": DENOISING,
}
DROPOUT = ["model.hidden_dropout_prob=0.1"]


def recipe_of(name):
    return "bart_tiny" if name.startswith("denoising") else "bert_tiny"


@pytest.fixture(scope="module")
def one(data, pairs, no_timing, tmp_path_factory):
    """Runs on one rank: `masked`, `pairs`, `denoising`, `rewriting`, and `stopped` after 4 steps."""
    root = tmp_path_factory.mktemp("one")
    train(data, str(root / "masked"))
    train(data, str(root / "pairs"), settings=NEXT)
    train(data, str(root / "denoising"), recipe="bart_tiny", settings=DENOISING)
    finetune_rewriting(pairs, str(root / "rewriting"))
    train(data, str(root / "stopped"), stop_at=4)
    return root


@pytest.fixture(scope="module")
def two(data, pairs, one, tmp_path_factory):
    """What two ranks did, started once for all tests."""
    root = tmp_path_factory.mktemp("two")
    jobs = [
        (
            "gradients",
            {"data": data, "out": str(root / f"{name}.safetensors"), "recipe": recipe_of(name), "settings": settings},
        )
        for name, settings in GRADIENTS.items()
    ]

    def job(name, **options):
        jobs.append(("train", {"data": data, "out": str(root / name), **options}))

    for name, settings in RUNS.items():
        job(name, recipe=recipe_of(name), settings=settings)
    for name, settings in (("rewriting", []), ("rewriting micro-batches", ["batch.micro_tokens=64"])):
        jobs.append(("finetune_rewriting", {"pairs": pairs, "out": str(root / name), "settings": settings}))
    for name, settings in (("ddp", []), ("sharded", SHARD)):
        job(f"{name} stopped", settings=settings, stop_at=4)
        shutil.copytree(one / "stopped", root / f"{name} from one")
        job(f"{name} from one", settings=settings, resume=True)
        job(f"{name} dropout", settings=[*DROPOUT, *settings])
        job(f"{name} dropout parts", settings=[*DROPOUT, *settings], stop_at=4)
        job(f"{name} dropout parts", resume=True)
    do(root, jobs)
    return root


def losses(run):
    """The metrics of each line of the log that do not depend on time."""
    kept = ("step", "tokens", "learning_rate", "gradient_norm", "fill")
    return [
        {name: value for name, value in line.items() if name in kept or name.endswith(("_loss", "_accuracy"))}
        for line in read_jsonl(run / "log.jsonl")
        if line["kind"] != "fills"
    ]


def assert_same_losses(run, expected, last_step=10):
    found, wanted = losses(run), losses(expected)
    assert found[-1]["step"] == last_step
    assert len(found) == len(wanted) > last_step
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)  # sums in another order


def assert_same_weights(run, expected):
    for name in ("final/model.safetensors", "checkpoints/step-00000010/optimizer.safetensors"):
        one, other = load_file(run / name), load_file(expected / name)
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []


# 1 rank = 2 ranks


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_two_ranks_are_those_of_one(data, two, tmp_path, name):
    settings = [setting for setting in GRADIENTS[name] if setting not in ("batch.micro_size=1", *SHARD)]
    gradients(data, str(tmp_path / "one.safetensors"), recipe=recipe_of(name), settings=settings)
    one, both = load_file(tmp_path / "one.safetensors"), load_file(two / f"{name}.safetensors")
    assert one.keys() == both.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    worst = max(float((one[key] - both[key]).abs().max()) for key in one)
    assert worst < 1e-6 * largest  # design, section 4: sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_run_on_two_ranks_is_that_of_one(one, two, name):
    assert_same_losses(two / name, one / next((kind for kind in ("pairs", "denoising") if kind in name), "masked"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewriting", "rewriting micro-batches"])
def test_rewriting_on_two_ranks_is_that_on_one(one, two, name):
    assert_same_losses(two / name, one / "rewriting", last_step=6)
    weights = [load_file(root / "final" / "model.safetensors") for root in (one / "rewriting", two / name)]
    worst = max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0])
    assert worst < 1e-4  # steps of AdamW and Muon, whose gradients are sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp stopped", "sharded stopped"])
def test_run_started_on_two_ranks_continues_with_one(data, one, two, tmp_path, name):
    run = Path(shutil.copytree(two / name, tmp_path / "run"))
    assert newest_checkpoint(run / "checkpoints")[0].name == "step-00000004"
    train(data, str(run), resume=True)
    assert_same_losses(run, one / "masked")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp from one", "sharded from one"])
def test_run_started_on_one_rank_continues_with_two(one, two, name):
    assert_same_losses(two / name, one / "masked")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp dropout", "sharded dropout"])
def test_interrupted_run_on_two_ranks_equals_an_uninterrupted_one_bit_for_bit(two, name):
    assert_same_weights(two / f"{name} parts", two / name)


# Ranks that end


@pytest.mark.slow
def test_run_restarts_by_itself_when_a_rank_dies(data, two, tmp_path):
    do(
        tmp_path,
        [("train", {"data": data, "out": str(tmp_path / "run"), "settings": DROPOUT, "die_at": 5})],
        restarts=1,
    )
    assert_same_weights(tmp_path / "run", two / "ddp dropout")


@pytest.mark.slow
def test_nothing_is_lost_when_a_rank_dies(data, two, tmp_path):
    dying = {"data": data, "out": str(tmp_path / "run"), "settings": DROPOUT, "die_at": 5}
    code, output = ended(start_ranks(tmp_path, [("train", dying)]), tmp_path)
    assert code != 0
    assert "TrainingError: Other ranks cannot be reached" in output
    assert newest_checkpoint(tmp_path / "run/checkpoints") == (tmp_path / "run/checkpoints/step-00000004", [])
    do(tmp_path, [("train", {"data": data, "out": str(tmp_path / "run"), "resume": True})])
    assert_same_weights(tmp_path / "run", two / "ddp dropout")


@pytest.mark.slow
def test_error_of_a_rank_is_that_of_the_others(data, tmp_path):
    failing = {"data": data, "out": str(tmp_path / "run"), "die_at": 2, "error": "no such row"}
    code, output = ended(start_ranks(tmp_path, [("train", failing)]), tmp_path)
    assert code != 0
    assert "DataError: no such row" in output
    assert "TrainingError: Rank 1 failed: no such row" in output


@pytest.mark.slow
def test_sigterm_stops_all_ranks_after_the_same_step(data, tmp_path):
    out = tmp_path / "run"
    settings = [*SETTINGS, "evaluation.every=100000", "checkpoints.every=100000"]
    options = ["--recipe", "bert_tiny", "--data", data, "--out", str(out), "--steps", "100000", "--precision", "fp32"]
    words = ["pretrain", *options, *(word for setting in settings for word in ("--set", setting))]
    started = start_ranks(tmp_path, [("command", {"arguments": words})])
    while started.poll() is None and len(read_jsonl(out / "log.jsonl")) < 20:
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    code, output = ended(started, tmp_path)
    assert code != 0
    assert output.count("Checkpoint saved; continue with --resume") == 1
    assert output.count("stopped by SIGTERM") == 1
    last = read_jsonl(out / "log.jsonl")[-1]["step"]
    assert newest_checkpoint(out / "checkpoints") == (out / f"checkpoints/step-{last:08d}", [])
    assert stemformer.pretrain(data=data, out=str(out), resume=True, steps=last + 2)["steps"] == last + 2


def test_mistake_is_reported_once(tmp_path):
    words = ["pretrain", "--recipe", "bert_tiny", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    code, output = ended(start_ranks(tmp_path, [("command", {"arguments": [*words, "--steps", "1"]})]), tmp_path)
    assert code != 0
    summary = output.partition("FAILED")[2]
    assert output.removesuffix(summary).count("error: ") == 1, output
    assert summary.count("none does not exist") == 2
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    main(sys.argv[1])
