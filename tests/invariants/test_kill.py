"""Killed runs lose nothing but time. `STEMFORMER_KILLS` is the number of kills (3)."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

import stemformer
from stemformer.cli import app as cli
from stemformer.commands import pretrain as pretraining
from stemformer.io import read_jsonl
from stemformer.progress import Silent
from stemformer.training import context, loop
from stemformer.training.checkpoint import newest_checkpoint

pytestmark = pytest.mark.usefixtures("no_timing")

KILLS = int(os.environ.get("STEMFORMER_KILLS", "3"))
STEPS = 60
SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1",
    "batch.size=4",
    "batch.sequence_length=32",
    "evaluation.num_examples=8",
    "evaluation.every=5",
    "checkpoints.every=1",
    "log_every=1",
]
TIMING_KEYS = ("seconds", "tokens_per_second", "mfu")

# --------------------------------------------------------------------------------------------------------- processes to be killed


def serve():
    """Run the commands of standard input, each in a forked process, which starts at once: everything is imported already."""
    pretraining.matmul_rate = lambda *args: 1e11
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            with open(job["output"], "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            if job["largest_file"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], job["largest_file"]))
            os._exit(cli.main(job["words"]))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Commands:
    """Runs commands in their own processes, one after the other."""

    def __init__(self, folder):
        self.output = folder / "output.txt"
        words = [sys.executable, __file__]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environ
        )

    def start(self, words, *, largest_file=None):
        """Start a command and return its process id."""
        job = {"words": words, "output": str(self.output), "largest_file": largest_file}
        self.server.stdin.write(json.dumps(job) + "\n")
        return int(self.server.stdout.readline())

    def end(self):
        """Wait for the command and return its exit code; negative for a signal."""
        return int(self.server.stdout.readline())

    def run(self, words, **options):
        self.start(words, **options)
        return self.end()

    def run_killed(self, words, *, delay, started=lambda: True):
        """Kill the command `delay` seconds after `started`, and return its exit code."""
        process = self.start(words)
        while not started() and running(process):
            time.sleep(0.002)
        until = time.monotonic() + delay
        while time.monotonic() < until and running(process):
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        return self.end()


def running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.server.stdin.close()
    made.server.wait()
    made.server.stdout.close()


@pytest.fixture
def data(tiny):
    return str(tiny / "data")


def words(data, out, *more, steps=STEPS):
    options = ["--recipe", "bert_tiny", "--data", data, "--out", str(out), "--precision", "fp32", "--threads", "1"]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    budget = ["--steps", str(steps)] if steps else []
    return ["pretrain", *options, *settings, *budget, *more]


def newest(run):
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-????????")), default=-1)


def log_of(run):
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in read_jsonl(run / "log.jsonl")]


def assert_same_run(run, expected):
    for name in ("final/model.safetensors", f"checkpoints/step-{newest(expected):08d}/optimizer.safetensors"):
        one, other = load_file(run / name), load_file(expected / name)
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert log_of(run) == log_of(expected)


# kill -9


@pytest.fixture(scope="module")
def undisturbed(commands, tiny, tmp_path_factory):
    """An undisturbed run, and its duration in seconds."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    began = time.monotonic()
    assert commands.run(words(str(tiny / "data"), run)) == 0, commands.output.read_text()
    return run, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_run_killed_at_a_random_moment_equals_an_undisturbed_one(commands, data, undisturbed, tmp_path, number):
    expected, seconds = undisturbed
    line = words(data, tmp_path / "run", "--resume")
    code = commands.run_killed(line, delay=random.Random(number).uniform(0, seconds))
    assert code in (0, -signal.SIGKILL)
    assert commands.run(line) == 0, commands.output.read_text()
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.slow
def test_run_killed_again_and_again_equals_an_undisturbed_one(commands, data, undisturbed, tmp_path):
    """Every second kill comes as the process starts, the others after a new checkpoint, most of them while the next is written."""
    expected, seconds = undisturbed
    run, rng, codes = tmp_path / "run", random.Random(0), []
    line = words(data, run, "--resume")
    for number in range(KILLS):
        before = newest(run)
        if number % 2:
            codes.append(commands.run_killed(line, delay=rng.uniform(0, seconds / 5)))
        else:
            # The first at once, so that it meets a running process however much faster the machine has become.
            delay = rng.uniform(0, seconds / max(3, KILLS)) if number else 0
            codes.append(commands.run_killed(line, delay=delay, started=lambda before=before: newest(run) > before))
    assert -signal.SIGKILL in codes
    assert set(codes) <= {0, -signal.SIGKILL}
    assert commands.run(line) == 0, commands.output.read_text()
    assert_same_run(run, expected)


@pytest.mark.parametrize(
    "left", [["config.toml.tmp"], ["config.toml", "log.jsonl"], ["config.toml", "checkpoints/step-00000001.tmp/a"]]
)
def test_run_killed_before_its_first_checkpoint_begins_again(data, tmp_path, left):
    for name in left:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    options = {"data": data, "out": str(tmp_path / "run"), "settings": SETTINGS, "steps": 2, "precision": "fp32"}
    assert stemformer.pretrain("bert_tiny", resume=True, **options)["steps"] == 2
    assert not list((tmp_path / "run").rglob("*.tmp"))


# A full disk


def test_full_disk_ends_with_one_line_and_the_run_resumes_when_there_is_room(commands, data, tmp_path):
    out = tmp_path / "run"
    assert commands.run(words(data, out, steps=4)) == 0, commands.output.read_text()
    shutil.copytree(out, tmp_path / "expected")  # which makes a folder of the link to the best checkpoint
    line = [*words(data, out, steps=8), "--resume", "--quiet"]
    largest = (out / "final/model.safetensors").stat().st_size + 10_000  # the optimizer's file is twice as large
    assert commands.run(line, largest_file=largest) == 3
    output = commands.output.read_text()
    assert output.count("\n") == 1
    assert output.startswith("error: the disk is full at ") and output.endswith("continue with --resume\n")
    assert newest_checkpoint(out / "checkpoints") == (out / "checkpoints/step-00000004", [])
    assert not list(out.rglob("*.tmp"))
    assert commands.run(line) == 0, commands.output.read_text()
    assert commands.run([*words(data, tmp_path / "expected", steps=8), "--resume"]) == 0
    assert_same_run(out, tmp_path / "expected")


# A budget on the clock

TIMED = [*SETTINGS, "checkpoints.keep=9999", "schedule.warmup_steps=2", "schedule.decay_ratio=0.5"]
TIMED += ["phases=[{start_ratio=0.25, size=3, sequence_length=16}]"]


class Killed(Exception):
    """Simulates `kill -9` in this process."""


def is_end_decided(file):
    """Whether the clock has decided the last step, according to `schedule.json`."""
    return file.exists() and json.loads(file.read_text())["last_step"] is not None


class KillAfterDecision(Silent):
    """Ends the run some steps after the clock has decided."""

    def __init__(self, folder, steps=2):
        self.file, self.left = folder / "schedule.json", steps

    def advance(self, amount, note=""):
        self.left -= is_end_decided(self.file)
        if self.left < 0:
            raise Killed


class Clock:
    """A clock that advances by a constant whenever it is read, so that the tests do not depend on the machine."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 0.04
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in (loop, context, pretraining):
        monkeypatch.setattr(module, "time", made)


def train_timed(data, out, *, seconds, **options):
    return stemformer.pretrain(data=data, out=str(out), time=seconds, precision="fp32", threads=1, **options)


@pytest.fixture
def killed_run(data, clock, tmp_path):
    """A run of two seconds that was killed after the clock had decided."""
    out = tmp_path / "run"
    options = {"recipe": "bert_tiny", "settings": TIMED, "progress": KillAfterDecision(out)}
    with pytest.raises(Killed):
        train_timed(data, out, seconds=2, **options)
    return out


def rates(run):
    return {line["step"]: line["learning_rate"] for line in read_jsonl(run / "log.jsonl") if line["kind"] == "train"}


def test_run_killed_after_the_clock_decided_falls_and_ends_at_the_same_steps(data, killed_run):
    decided = (killed_run / "schedule.json").read_text()
    decision, before = json.loads(decided), rates(killed_run)
    assert max(before) > decision["decay_step"]
    assert stemformer.pretrain(data=data, out=str(killed_run), resume=True)["steps"] == decision["last_step"]
    assert (killed_run / "schedule.json").read_text() == decided
    assert 0 < decision["phase_steps"][0] < decision["last_step"]
    after = rates(killed_run)
    assert list(after) == list(range(1, decision["last_step"] + 1))
    assert {step: after[step] for step in before} == before
    peak = max(after.values())
    assert [after[step] for step in range(2, decision["decay_step"] + 1)] == [peak] * (decision["decay_step"] - 1)
    falling = [after[step] for step in range(decision["decay_step"] + 1, decision["last_step"] + 1)]
    assert falling == sorted(set(falling), reverse=True)


def test_run_killed_between_decision_and_checkpoint_falls_at_the_steps_decided(data, killed_run):
    decision = json.loads((killed_run / "schedule.json").read_text())
    for path in killed_run.glob("checkpoints/step-????????"):
        if int(path.name[5:]) > decision["decay_step"] - 3:
            shutil.rmtree(path)
    assert newest(killed_run) == decision["decay_step"] - 3
    assert stemformer.pretrain(data=data, out=str(killed_run), resume=True)["steps"] == decision["last_step"]
    after = rates(killed_run)
    assert min(step for step in after if step > 2 and after[step] < max(after.values())) == decision["decay_step"] + 2


def test_run_killed_after_the_true_clock_decided_ends_at_the_step_decided(commands, data, tmp_path):
    run, timed = tmp_path / "run", ["--set", "schedule.decay_ratio=0.5", "--time", "3s", "--resume"]
    line, file = words(data, run, *timed, steps=None), run / "schedule.json"
    commands.run_killed(line, delay=0.2, started=lambda: is_end_decided(file))
    decided = file.read_text()
    assert commands.run(line) == 0, commands.output.read_text()
    assert file.read_text() == decided
    assert newest(run) == max(rates(run)) == json.loads(decided)["last_step"]


def test_another_time_on_resume_is_decided_anew(data, killed_run):
    before = json.loads((killed_run / "schedule.json").read_text())
    result = train_timed(data, killed_run, seconds=4, resume=True)
    after = json.loads((killed_run / "schedule.json").read_text())
    assert after["seconds"] == 4.0
    assert after["decay_step"] > before["decay_step"]
    assert result["steps"] == after["last_step"] > before["last_step"]
    assert 2 < result["seconds"] < 6


def test_new_run_in_the_place_of_an_old_one_decides_by_itself(data, killed_run):
    file = killed_run / "schedule.json"
    file.write_text(json.dumps({"seconds": 2.0, "decay_step": 1, "last_step": 3}))
    result = train_timed(data, killed_run, seconds=2, recipe="bert_tiny", settings=TIMED, overwrite=True)
    assert result["steps"] == json.loads(file.read_text())["last_step"] > 3


if __name__ == "__main__":
    serve()
