"""One model by turns masked and causal: both losses fall, and each view opens as its own architecture."""

from pathlib import Path

import pytest
import torch

import stemformer
from stemformer.errors import ConfigError
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.io import read_jsonl
from stemformer.objectives.masked_lm import MaskedLmConfig, is_causal_step

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def run(tiny, no_timing, tmp_path_factory):
    out = tmp_path_factory.mktemp("hybrid") / "run"
    sizes = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2"]
    settings = [*sizes, "model.intermediate_size=64", "batch.size=8", "batch.sequence_length=32", "log_every=1"]
    settings += ["objective.causal_start_ratio=0", "objective.causal_share=0.5", "evaluation.num_examples=16"]
    options = {"data": str(tiny / "data"), "out": str(out), "precision": "fp32", "device": "cpu"}
    return stemformer.pretrain("eurobert_mini", settings=settings, steps=30, learning_rate=1e-2, **options)


def test_steps_take_turns(run):
    lines = read_jsonl(Path(run["run"]) / "log.jsonl")
    kinds = ["causal_lm_loss" in line for line in lines if line["kind"] == "train"]
    assert kinds == [False, True] * 15
    assert [is_causal_step(step, 0.25) for step in range(8)] == [False, False, False, True] * 2
    assert sum(is_causal_step(step, 0.7) for step in range(1000)) == 700
    assert not any(is_causal_step(step, 0.0) for step in range(10))


def test_both_losses_are_measured_and_fall(run):
    for name in ("held_out_masked_lm_loss", "held_out_causal_lm_loss"):
        assert run[name] < run["before"][name] - 0.3


def test_each_view_opens_as_its_own_architecture(run, tiny):
    llama, tokenizer = load_model_and_tokenizer(run["causal_model"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run["causal_model"]).eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert (llama.config.eos_token_id, tokenizer.bos_token_id) == (tokenizer.sep_token_id, tokenizer.cls_token_id)
    ids = torch.tensor([tokenizer.cls_token_id, *tokenizer.encode("the old king").ids.tolist()])
    positions, ends = torch.arange(len(ids)), torch.tensor([0, len(ids)]).int()
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        found = llama.lm_logits(llama.body(ids, positions, torch.zeros_like(ids), ends, len(ids)))
        # The masked view reads the same weights without looking ahead.
        euro, _ = load_model_and_tokenizer(run["model"])
        shared = euro.lm_logits(euro.body(ids, positions, torch.zeros_like(ids), ends, len(ids), causal=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, shared, rtol=1e-4, atol=1e-4)
    assert stemformer.fill(["the old [MASK]"], model=run["model"])[0]["masks"]
    (text,) = stemformer.generate(["the old"], model=run["causal_model"], max_new_tokens=5)
    assert text["text"].startswith("the old") or text["prompt"] == "the old"


def test_models_without_a_causal_counterpart_are_refused(tiny, tmp_path):
    for recipe in ("bert_tiny", "modernbert_tiny"):
        with pytest.raises(ConfigError, match=r"causal_share is 0\.5, but a (modern)?bert has no causal counterpart"):
            settings = ["objective.causal_share=0.5"]
            stemformer.pretrain(recipe, data=str(tiny / "data"), out=str(tmp_path / "x"), steps=1, settings=settings)
    with pytest.raises(ConfigError, match=r"causal_share is 1\.0: expected a fraction"):
        MaskedLmConfig(causal_share=1.0)
    with pytest.raises(ConfigError, match=r"causal_share is 0\.5, with sentence pairs"):
        MaskedLmConfig(causal_share=0.5, sentences="next")
