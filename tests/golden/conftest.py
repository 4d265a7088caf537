"""The short run that every golden curve is taken from."""

import pytest

import stemformer
from stemformer.io import read_jsonl

SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "batch.size=8",
    "batch.sequence_length=32",
    "log_every=1",
]
SELDOM = ["evaluation.num_examples=32", "evaluation.every=20", "checkpoints.every=20"]


@pytest.fixture(scope="session")
def log_of_twenty_steps(tiny, no_timing, tmp_path_factory):
    """A function from further settings to the lines of the log of a run of twenty steps."""

    def run(*settings):
        out = tmp_path_factory.mktemp("golden") / "run"
        stemformer.pretrain(
            "bert_tiny",
            data=str(tiny / "data"),
            out=str(out),
            settings=[*SETTINGS, *settings, *SELDOM],
            steps=20,
            precision="fp32",
            device="cpu",
            compile=False,
        )
        return read_jsonl(out / "log.jsonl")

    return run
