"""Metrics of denoising: parts of the loss, and the gain from the source."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stemformer.data.examples.batch import Example, collate
from stemformer.evaluation.repair import repair_metrics, source_gain, with_other_sources
from stemformer.models.bart import BartConfig, DecoderInput
from stemformer.models.model import make_model

V = 40
# The start, the end and others.
SPECIAL_IDS = torch.arange(4)
SOURCES, TARGETS = [5, 9, 3], [7, 4, 6]


@pytest.fixture(scope="module")
def model():
    config = BartConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    return make_model(config, ["seq2seq_lm"], generator=torch.Generator().manual_seed(0)).eval()


def examples():
    rng = np.random.default_rng(0)
    made = []
    for n, t in zip(SOURCES, TARGETS, strict=True):
        target = rng.integers(4, V, t)
        target[0], target[-1] = 2, 3
        lost = rng.random(t) < 0.5
        lost[[0, -1]] = False
        made.append(
            Example(
                rng.integers(4, V, n),
                np.array([n]),
                np.arange(t),
                target,
                decoder_input_ids=np.append(3, target[:-1]),
                decoder_lengths=np.array([t]),
                is_copied=~lost,
            )
        )
    return made


def losses(model, example):
    """Return the loss of each label, computed from all logits of one example."""
    batch = collate([example], [0])
    run = batch.decoder
    decoder = DecoderInput(run.input_ids, run.position_ids, run.cu_seqlens, run.max_seqlen)
    tokens = batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen
    with torch.no_grad():
        logits = model.lm_logits(model.body(*tokens, decoder=decoder))
    return F.cross_entropy(logits, batch.labels, reduction="none").numpy()


def test_lost_and_copied_tokens_are_apart_without_start_and_end(model):
    made = examples()
    values = np.concatenate([losses(model, example)[1:-1] for example in made])
    copied = np.concatenate([example.is_copied[1:-1] for example in made])
    found = repair_metrics(model, [collate(made[:2], [0, 1]), collate(made[2:], [2])], SPECIAL_IDS)
    assert found["lost_loss"] == pytest.approx(values[~copied].mean(), rel=1e-5)
    assert found["copied_loss"] == pytest.approx(values[copied].mean(), rel=1e-5)


def test_source_gain_is_the_rise_of_the_loss_with_the_source_of_the_next_text(model):
    made = examples()
    swapped = [
        replace(example, input_ids=other.input_ids, lengths=other.lengths)
        for example, other in zip(made, [*made[1:], made[0]], strict=True)
    ]
    rises = [(losses(model, b) - losses(model, a))[1:] for a, b in zip(made, swapped, strict=True)]
    batch = collate(made, [0, 1, 2])
    assert source_gain(model, [batch]) == pytest.approx(np.concatenate(rises).mean(), rel=1e-4)
    # In denoising without the end.
    expected = np.concatenate([rise[:-1] for rise in rises]).mean()
    assert repair_metrics(model, [batch], SPECIAL_IDS)["source_gain"] == pytest.approx(expected, rel=1e-4)


def test_batches_with_other_sources_keep_their_targets():
    made = examples()
    batch = collate(made, [0, 1, 2])
    other = with_other_sources(batch)
    assert other.input_ids.tolist() == np.concatenate([made[i].input_ids for i in (1, 2, 0)]).tolist()
    assert other.cu_seqlens.tolist() == [0, 9, 12, 17]
    assert other.position_ids.tolist() == [*range(9), *range(3), *range(5)]
    assert other.decoder is batch.decoder


def test_a_model_that_ignores_its_source_has_no_gain(model):
    with torch.no_grad():
        for layer in model.body.decoder.layers:
            saved = layer.cross_attention.out.weight.clone()
            layer.cross_attention.out.weight.zero_()
    found = repair_metrics(model, [collate(examples(), [0, 1, 2])], SPECIAL_IDS)
    with torch.no_grad():
        model.body.decoder.layers[0].cross_attention.out.weight.copy_(saved)
    assert found["source_gain"] == pytest.approx(0.0, abs=1e-6)


def test_a_single_text_has_no_gain_and_nothing_lost_no_loss(model):
    made = replace(examples()[0], is_copied=np.ones(7, bool))
    found = repair_metrics(model, [collate([made], [0])], SPECIAL_IDS)
    assert set(found) == {"copied_loss", "copied_accuracy"}


def test_a_source_without_a_text_has_no_gain(model):
    made = [replace(e, input_ids=np.array([2, 3]), lengths=np.array([2])) for e in examples()]
    batch = collate(made, [0, 1, 2])
    assert set(repair_metrics(model, [batch], SPECIAL_IDS)) == {
        "lost_loss",
        "lost_accuracy",
        "copied_loss",
        "copied_accuracy",
    }
    assert source_gain(model, [batch]) is None


def test_without_copied_tokens_only_lost_ones_are_measured(model):
    # What a decoder writes that writes only what is lost: a sentinel, which the source has, and lost tokens.
    made = [replace(e, is_copied=np.isin(e.labels, SPECIAL_IDS)) for e in examples()]
    made = [replace(e, labels=np.where(np.arange(len(e.labels)) == 1, 1, e.labels)) for e in made]
    values = np.concatenate([losses(model, example)[2:-1] for example in made])
    found = repair_metrics(model, [collate(made, [0, 1, 2])], SPECIAL_IDS)
    assert set(found) == {"lost_loss", "lost_accuracy", "source_gain"}
    assert found["lost_loss"] == pytest.approx(values.mean(), rel=1e-5)
