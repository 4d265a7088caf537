"""Our causal models in CTranslate2: the converted folder gives the same logits and completions."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from stemformer.huggingface.save import save_model
from stemformer.models.llama import LlamaConfig
from stemformer.models.model import make_model

ctranslate2 = pytest.importorskip("ctranslate2")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_converted_folder_gives_the_same_logits_and_completions(kind, small_gpt, small_llama, bpe, tmp_path):
    model = {"qwen3": small_llama, "gpt2": small_gpt}.get(kind)
    if model is None:
        # No norm of queries and keys, and sharper attention.
        model = make_model(
            LlamaConfig(**asdict(small_llama.config)), ["causal_lm"], generator=torch.Generator().manual_seed(1)
        )
    save_model(model.eval(), tmp_path / "ours", bpe)
    ctranslate2.converters.TransformersConverter(str(tmp_path / "ours")).convert(str(tmp_path / "theirs"))
    generator = ctranslate2.Generator(str(tmp_path / "theirs"), device="cpu", compute_type="float32", intra_threads=1)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    ids = tokenizer("the old king sees a green river").input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    inputs, positions = torch.tensor(ids), torch.arange(len(ids))
    with torch.no_grad():
        states = model.body(
            inputs, positions, torch.zeros_like(inputs), torch.tensor([0, len(ids)]).int(), max_seqlen=len(ids)
        )
        expected = model.lm_logits(states).numpy()
    found = np.array(generator.forward_batch([tokens]))[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

    [completion] = generator.generate_batch([tokens], max_length=12, sampling_topk=1, include_prompt_in_result=False)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    output = reference.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert completion.sequences_ids[0] == output.tolist()[: len(completion.sequences_ids[0])]
