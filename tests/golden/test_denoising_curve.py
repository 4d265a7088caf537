"""The first twenty losses of a run of denoising. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest
import torch

import stemformer
from stemformer.generation.beam_search import BeamConfig, search_beams
from stemformer.huggingface.load import load_model
from stemformer.io import read_jsonl
from stemformer.models.inference.cached_bart import BartTextDecoder

transformers = pytest.importorskip("transformers")

GOLDEN = [
    *[3.640845, 3.412314, 3.285921, 3.064821, 2.838019, 2.75583, 2.667543, 2.51332, 2.451448, 2.370965],
    *[2.265597, 2.135391, 2.108491, 2.108751, 1.970506, 1.910377, 1.858845, 1.903196, 1.821612, 1.782413],
]
"""Losses (nats) of each step, on 2 threads in fp32. Another processor sums in another order, which 20 steps amplify: 1e-3 relative."""


@pytest.fixture(scope="module")
def run(tiny, no_timing, tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "run"
    sizes = ["model.hidden_size=32", "model.intermediate_size=64", "batch.size=8", "batch.sequence_length=32"]
    seldom = ["evaluation.num_examples=32", "evaluation.every=20", "checkpoints.every=20", "log_every=1"]
    settings = [*sizes, *seldom, "optimizer.learning_rate=1e-2"]
    options = {"data": str(tiny / "data"), "out": str(out), "settings": settings}
    stemformer.pretrain("bart_tiny", **options, steps=20, precision="fp32", device="cpu", compile=False)
    return out


def test_losses_are_those_that_were_stored(run):
    losses = [line["denoising_loss"] for line in read_jsonl(run / "log.jsonl") if line["kind"] == "train"]
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-3)


def test_evaluations_have_the_parts_of_the_loss(run):
    first, *_, last = (line for line in read_jsonl(run / "log.jsonl") if line["kind"] == "evaluation")
    assert last["held_out_denoising_loss"] < first["held_out_denoising_loss"] - 0.5
    assert last["held_out_copied_loss"] < first["held_out_copied_loss"]
    assert abs(first["held_out_source_gain"]) < 0.05


def test_the_model_opens_in_transformers(run):
    theirs = transformers.BartForConditionalGeneration.from_pretrained(run / "final")
    ours = load_model(run / "final")
    assert theirs.generation_config.decoder_start_token_id == ours.config.eos_token_id
    assert theirs.generation_config.max_length == 32
    # With the first two tokens, which are not chosen here, it writes what ours does.
    source = [ours.config.bos_token_id, 20, 30, 40, ours.config.eos_token_id]
    start = torch.tensor([[ours.config.decoder_start_token_id, ours.config.bos_token_id]])
    written = theirs.generate(torch.tensor([source]), decoder_input_ids=start, num_beams=4)[0, 2:].tolist()
    ((found,),) = search_beams(BartTextDecoder(ours), [source], BeamConfig(max_new_tokens=30))
    assert [token for token in written if token != ours.config.eos_token_id] == found.ids
