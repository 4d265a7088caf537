"""Our models in CTranslate2: the converted folder gives the same logits, completions and rewritten texts."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from stemformer.data.tokenization.trainers import train_byte_bpe
from stemformer.generation.beam_search import BeamConfig
from stemformer.generation.rewriting import decode_sources
from stemformer.huggingface.save import save_model
from stemformer.models.bart import BartConfig
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


def test_converted_bart_writes_the_same_texts(make_text, tmp_path):
    lines = make_text().splitlines()
    tokenizer = train_byte_bpe(lines, vocab_size=340, special_tokens="bart")
    config = BartConfig(
        vocab_size=340,
        hidden_size=32,
        num_hidden_layers=2,
        num_decoder_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        # Far from uniform, so that rounding decides nothing.
        initializer_range=0.3,
    )
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = make_model(replace(config, **ids), ["seq2seq_lm"], generator=torch.Generator().manual_seed(3)).eval()
    save_model(model, tmp_path / "ours", tokenizer)
    ctranslate2.converters.TransformersConverter(str(tmp_path / "ours")).convert(str(tmp_path / "theirs"))
    translator = ctranslate2.Translator(str(tmp_path / "theirs"), compute_type="float32", intra_threads=1)

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    sources = [their_tokenizer(line[:60]).input_ids for line in lines[:12]]
    tokens = [their_tokenizer.convert_ids_to_tokens(source) for source in sources]
    for num_beams in (1, 4):
        # Without a length penalty all stopping rules choose the same text.
        settings = BeamConfig(num_beams=num_beams, length_penalty=0.0)
        found = decode_sources(sources, model, settings, batch_size=5, limit_of=lambda length: 20)
        # Their maximum length counts the first token.
        options = {"beam_size": num_beams, "length_penalty": 0.0, "target_prefix": [["<s>"]] * len(sources)}
        results = translator.translate_batch(tokens, max_decoding_length=21, **options)
        theirs = [their_tokenizer.convert_tokens_to_ids(result.hypotheses[0])[1:] for result in results]
        assert [hypotheses[0].ids for hypotheses in found] == theirs
