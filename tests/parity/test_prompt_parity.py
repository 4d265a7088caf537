"""Prompts and greedy continuations equal those of transformers on the same folder, ours or that of others."""

import contextlib
import json

import numpy as np
import pytest
import torch

import stemformer
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model
from stemformer.tasks.examples import make_example

transformers = pytest.importorskip("transformers")

PROMPTS = ["The old king", "the river. The child sees"]
NEW_TOKENS = 10


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "llama"])
def own(request, make_text, bpe, small_gpt, small_llama, tmp_path_factory):
    """Folder of a causal model as pre-training saves it."""
    folder = tmp_path_factory.mktemp("own") / request.param
    if request.param != "wordpiece":
        save_model(small_gpt if request.param == "bpe" else small_llama, folder, bpe)
        return folder
    tokenizer = train_wordpiece(make_text().splitlines(), vocab_size=120, lowercase=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = GptConfig(
        **sizes,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=tokenizer.sep_token_id,
    )
    save_model(make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(2)), folder, tokenizer)
    return folder


@pytest.fixture
def others(bpe, small_gpt, tmp_path):
    """Folder of a GPT-2 as transformers saves it: no token precedes a text."""
    save_model(small_gpt, tmp_path / "ours", bpe)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    bpe.save(tmp_path / "plain")
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def check_parity(folder):
    """Check the ids of prompts, and greedy continuations by `generate` and by the pipeline."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    pipeline = transformers.pipeline("text-generation", model=network, tokenizer=theirs)
    model, tokenizer = load_model_and_tokenizer(folder)
    ours = stemformer.load(str(folder), device="cpu").generate(PROMPTS, temperature=0, max_new_tokens=NEW_TOKENS)
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = theirs(prompt, return_tensors="pt")
        start = tokenizer.start_prompt(tokenizer.encode(prompt).ids, model.config.eos_token_id)
        assert ids["input_ids"][0].tolist() == start.tolist()
        greedy = network.generate(**ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(start) :]
        assert tokenizer.decode(greedy.tolist()[: completion["num_tokens"]]) == completion["text"]
        text = pipeline(prompt, do_sample=False, max_new_tokens=NEW_TOKENS, return_full_text=False)
        assert text[0]["generated_text"].rstrip() == completion["text"].rstrip()


def test_own_model_continues_prompts_as_in_transformers(own):
    check_parity(own)
    model, tokenizer = load_model_and_tokenizer(own)
    assert tokenizer.prompt_prefix == (model.config.eos_token_id,)
    stored = json.loads((own / "generation_config.json").read_text())
    assert stored["bos_token_id"] == stored["eos_token_id"] == model.config.eos_token_id


def test_prompt_that_the_vocabulary_cannot_write_warns_before_the_text(own):
    model, texts = stemformer.load(str(own), device="cpu"), []
    is_bytes = model.tokenizer.kind == "bpe"
    warns = contextlib.nullcontext() if is_bytes else pytest.raises(UserWarning, match="100% of the words")
    with warns:
        model.generate(["король"], max_new_tokens=2, on_text=lambda number, text: texts.append(text))
    assert is_bytes or texts == []


def test_gpt2_of_others_continues_prompts_as_in_transformers(others):
    check_parity(others)
    assert load_model_and_tokenizer(others)[1].prompt_prefix == ()


@pytest.mark.parametrize("adds_bos", [True, False])
def test_vocabulary_and_merges_of_others_add_what_their_config_says(others, adds_bos):
    model = json.loads((others / "tokenizer.json").read_text())["model"]
    (others / "vocab.json").write_text(json.dumps(model["vocab"]))
    (others / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n")
    (others / "tokenizer.json").unlink()
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": adds_bos}
    (others / "tokenizer_config.json").write_text(json.dumps(config))
    check_parity(others)
    assert len(load_model_and_tokenizer(others)[1].prompt_prefix) == adds_bos


def test_saving_a_model_of_others_keeps_its_prompts(others, tmp_path):
    stemformer.load(str(others)).save(tmp_path / "again")
    check_parity(tmp_path / "again")
    assert load_model_and_tokenizer(tmp_path / "again")[1].prompt_prefix == ()


def test_empty_prompt_has_one_token(others):
    model, tokenizer = load_model_and_tokenizer(others)
    eos = model.config.eos_token_id
    assert tokenizer.start_prompt(np.empty(0, np.int64), eos).tolist() == [eos]


def test_run_of_an_earlier_version_has_prompts_after_the_end_of_text(small_gpt, bpe, tmp_path):
    save_model(small_gpt, tmp_path / "final", bpe)
    # Earlier versions saved a tokenizer that adds nothing.
    bpe.save(tmp_path / "final")
    (tmp_path / "config.toml").touch()
    model, tokenizer = load_model_and_tokenizer(tmp_path)
    assert tokenizer.start_prompt(np.array([5]), model.config.eos_token_id).tolist() == [model.config.eos_token_id, 5]


def test_sentence_pairs_of_bert_are_those_of_transformers(tiny_bert):
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer = load_model_and_tokenizer(tiny_bert)[1]
    pair = "The old king sees the river.", "A child!"
    expected = theirs(*pair)
    example = make_example(tokenizer.encode_ids(pair), tokenizer)
    assert expected["input_ids"] == example.input_ids.tolist()
    assert expected["token_type_ids"] == example.token_type_ids.tolist()
