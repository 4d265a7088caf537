"""Llamas of others, with tokenizers in the style of Llama 2 and 3, whose texts begin with a token of their own."""

import json
import shutil
from dataclasses import replace

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import stemformer
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.huggingface.save import save_model
from stemformer.models.model import make_model

transformers = pytest.importorskip("transformers")

TEXT = "The old king sees a green river, doesn't he?\n 1234 Zürich"


def llama3_tokenizer(lines):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    words = tokenizers.Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer, *special


def llama2_tokenizer(lines):
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(spaces)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, max_token_length=16)
    tokenizer.train_from_iterator(lines, trainer)
    # Bytes are tokens like others, not special ones.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(content)), "<s>", "</s>"


@pytest.fixture(scope="module", params=[llama2_tokenizer, llama3_tokenizer], ids=["llama2", "llama3"])
def published(request, tiny, tmp_path_factory):
    """A folder as transformers writes it: a random Llama and its tokenizer; not to be changed."""
    folder = tmp_path_factory.mktemp("published") / "llama"
    tokenizer, bos, eos = request.param((tiny / "text.txt").read_text().splitlines())
    first = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, first)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=128, bos_token_id=first, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def their_score(folder, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        logits = transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0]
    return logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).sum().item()


def test_scores_and_completions_are_those_of_transformers(published):
    [row] = stemformer.score([TEXT], model=str(published), precision="fp32")
    assert row["log_likelihood"] == pytest.approx(their_score(published, TEXT), rel=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    model = transformers.AutoModelForCausalLM.from_pretrained(published)
    inputs = tokenizer("The old king", return_tensors="pt")
    output = model.generate(inputs.input_ids, max_new_tokens=8, do_sample=False)[0]
    options = {"max_new_tokens": 8, "temperature": 0.0, "precision": "fp32"}
    [found] = stemformer.generate(["The old king"], model=str(published), **options)
    expected = tokenizer.decode(output, skip_special_tokens=True)
    assert found["prompt"] + found["text"] == expected


def test_saved_folder_keeps_the_token_before_texts(published, tmp_path):
    model, tokenizer = load_model_and_tokenizer(published)
    save_model(model, tmp_path / "ours", tokenizer)
    before, after = (transformers.AutoTokenizer.from_pretrained(x) for x in (published, tmp_path / "ours"))
    assert before(TEXT).input_ids == after(TEXT).input_ids
    assert (before.bos_token, before.eos_token) == (after.bos_token, after.eos_token)
    for name in ("config.json", "generation_config.json"):
        read = [json.loads((folder / name).read_text()) for folder in (published, tmp_path / "ours")]
        assert [x["bos_token_id"] for x in read] == [before.bos_token_id] * 2
        assert [x["eos_token_id"] for x in read] == [before.eos_token_id] * 2
    [row] = stemformer.score([TEXT], model=str(tmp_path / "ours"), precision="fp32")
    assert row["log_likelihood"] == pytest.approx(their_score(published, TEXT), rel=1e-5)


def test_classifier_is_scored_alike_by_transformers(published, tmp_path):
    lines = ["text,label\n", *(f"the {word} king,{word}\n" for word in ("old", "new") * 4)]
    (tmp_path / "train.csv").write_text("".join(lines))
    stemformer.finetune(
        "classify", model=str(published), train=[str(tmp_path / "train.csv")], dev=[str(tmp_path / "train.csv")],
        out=str(tmp_path / "run"), steps=4, precision="fp32",
    )  # fmt: skip
    folder = str(tmp_path / "run" / "final")
    classify = transformers.pipeline("text-classification", model=folder, top_k=None)
    theirs = {row["label"]: row["score"] for row in classify("the old king")[0]}
    [row] = stemformer.load(folder, precision="fp32").predict(["the old king"])
    assert row.label == max(theirs, key=theirs.get)
    assert max(row.probabilities) == pytest.approx(max(theirs.values()), abs=1e-5)


def test_pretraining_continues_with_the_end_token_of_the_model(published, tiny, tmp_path):
    data, out = str(tmp_path / "data"), tmp_path / "run"
    stemformer.prepare([str(tiny / "text.txt")], tokenizer=str(published), out=data, documents="line", num_workers=1)
    settings = ["batch.size=2", "batch.sequence_length=32", "evaluation.num_examples=4"]
    stemformer.pretrain(
        "llama_tiny", init=str(published), data=data, out=str(out), steps=2, precision="fp32", settings=settings
    )
    model, tokenizer = load_model_and_tokenizer(out)
    assert model.config == load_model_and_tokenizer(published)[0].config
    assert tokenizer.bos_token_id == model.config.eos_token_id


def test_run_of_an_earlier_version_begins_texts_with_the_end_token(tiny, small_gpt, tmp_path):
    # It stored BERT's tokenizer as it was, with [CLS] before texts and [SEP] after them.
    tokenizer = load_tokenizer(tiny / "tok")
    config = replace(small_gpt.config, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.sep_token_id)
    model = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "final", tokenizer)
    shutil.copy(tiny / "tok" / "tokenizer.json", tmp_path / "final" / "tokenizer.json")
    (tmp_path / "config.toml").write_text('recipe = "gpt_tiny"\nmodel_type = "gpt2"\n')
    _, loaded = load_model_and_tokenizer(tmp_path / "final")
    assert (loaded.bos_token_id, loaded.prompt_prefix) == (tokenizer.sep_token_id, None)
