"""Invalid model folders, and the search for a model folder. parity/test_bert_parity.py checks the numbers."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import CheckpointError
from stemformer.huggingface.load import find_model_folder, load_model, load_model_and_tokenizer
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def save(folder, heads=("masked_lm",), *, vocab_size=40, tokenizer=None):
    model = make_model(BertConfig(vocab_size=vocab_size, **SIZES), heads, generator=torch.Generator().manual_seed(0))
    save_model(model, folder, tokenizer)
    return model


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def refused(path, message, *, exit_code=2, load=load_model):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert caught.value.exit_code == exit_code
    assert "\n" not in str(caught.value)


# Errors


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "a/b/c", "nothing/"])
def test_missing_folder_is_refused(name):
    refused(name, "does not exist")


@pytest.mark.parametrize("name", ["", " "])
def test_empty_name_is_refused(name):
    refused(name, "The name of a model is empty")


def test_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


@pytest.mark.parametrize(
    "content", ['{"model_type": "bert"', "", "[1, 2]", "null"], ids=["cut", "empty", "list", "null"]
)
def test_config_that_is_not_an_object_is_damaged(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder, "config.json", exit_code=3)


def test_config_that_is_not_utf_8_is_damaged(folder):
    (folder / "config.json").write_bytes(b'{"model_type": "\xff"}')
    refused(folder, "config.json cannot be read", exit_code=3)


def test_other_model_type_is_refused(folder):
    for name in ("t5", "pegasus", "marian"):
        change_config(folder, model_type=name)
        refused(folder, f"model of type '{name}', expected one of bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "selu"}, "hidden_act is 'selu'"),
        ({"num_attention_heads": 3}, "is not divisible by 3 heads"),
        ({"hidden_size": "eight"}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ],
)
def test_invalid_config_is_refused(folder, changes, message):
    change_config(folder, **changes)
    refused(folder, message)


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights")


@pytest.mark.parametrize("size", [0, 5, 2000])
def test_truncated_safetensors_is_damaged(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(folder, "model.safetensors cannot be read", exit_code=3)


def test_truncated_bin_is_damaged(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    refused(folder, "pytorch_model.bin cannot be read", exit_code=3)


def test_bin_that_is_not_a_state_dict_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save([1, 2], folder / "pytorch_model.bin")
    refused(folder, "not a state_dict of tensors")


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_broken_index_of_weights_is_damaged(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, "model.safetensors.index.json", exit_code=3)


def test_missing_file_of_the_index_is_named(folder):
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "model-00002-of-00002.safetensors", exit_code=3)


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 39), ("intermediate_size", 24), ("type_vocab_size", 1)])
def test_weights_of_another_shape_are_refused(folder, name, value):
    change_config(folder, **{name: value})
    refused(folder, "has shape .* config.json says")


def test_fewer_layers_than_the_config_says_are_refused(folder):
    change_config(folder, num_hidden_layers=3)
    refused(folder, r"lacks 12 weights of the body, the first is body\.layers\.2\.")


def test_more_layers_than_the_config_says_are_refused(folder):
    change_config(folder, num_hidden_layers=1)
    refused(folder, "layer")


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_missing_part_of_a_concatenated_parameter_is_damaged(folder, part):
    change_weights(folder, lambda weights: weights.pop(f"bert.encoder.layer.1.attention.self.{part}.bias"))
    refused(folder, rf"but not bert.*layer\.1\.attention\.self\.{part}\.bias", exit_code=3)


def test_parts_of_unequal_shape_in_a_concatenated_parameter_are_refused(folder):
    def change(weights):
        weights["bert.encoder.layer.1.attention.self.key.weight"] = torch.zeros(8, 7)

    change_weights(folder, change)
    refused(folder, r"layer\.1\.attention\.self\.key\.weight|layers\.1\.attention\.qkv\.weight")


def test_hub_id_without_a_network_is_refused(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as set by HF_HUB_OFFLINE=1 at import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refused(
        "someone/no-such-model",
        r"'someone/no-such-model' is not a local folder, and .* \(the hub could not be reached\)",
    )


def test_name_that_is_not_a_hub_id_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("not a name", r"'not a name' is not a local folder, and .* \(it is no hub id\)")


def test_misspelled_run_is_named_in_full_without_asking_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stemformer.huggingface.load._download", None)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.toml").touch()
    refused("runs/firs", r"runs/firs does not exist \(did you mean 'runs/first'\?\)")


# Tokenizer


TOKENIZER = train_wordpiece(["to be or not to be"], vocab_size=24, min_frequency=1)


def test_tokenizer_larger_than_the_model_is_refused(tmp_path):
    save(tmp_path, vocab_size=TOKENIZER.vocab_size - 1, tokenizer=TOKENIZER)
    refused(tmp_path, f"the tokenizer has {TOKENIZER.vocab_size} ids", load=load_model_and_tokenizer)


def test_tokenizer_much_smaller_than_the_model_warns(tmp_path):
    save(tmp_path, vocab_size=TOKENIZER.vocab_size + 300, tokenizer=TOKENIZER)
    with pytest.warns(
        UserWarning, match=f"has {TOKENIZER.vocab_size} ids, the model 32.; it may belong to another model"
    ):
        load_model_and_tokenizer(tmp_path)


def test_tokenizer_slightly_smaller_than_the_model_is_accepted(tmp_path):
    save(tmp_path, vocab_size=64, tokenizer=TOKENIZER)
    model, tokenizer = load_model_and_tokenizer(tmp_path)
    assert (model.config.vocab_size, tokenizer.fingerprint) == (64, TOKENIZER.fingerprint)


# Heads


def test_heads_are_those_of_the_folder(tmp_path):
    for heads in ([], ["masked_lm"], ["next_sentence"], ["masked_lm", "next_sentence"]):
        save(tmp_path / "-".join(["m", *heads]), heads)
        assert list(load_model(tmp_path / "-".join(["m", *heads])).heads) == heads


def test_head_that_is_not_requested_is_not_loaded(folder):
    assert list(load_model(folder, []).heads) == []


def test_missing_head_is_initialized_with_a_warning(folder):
    with pytest.warns(UserWarning, match=r"heads\.next_sentence\.classifier\.weight.*initialized randomly") as caught:
        model = load_model(folder, ["masked_lm", "next_sentence"])
    assert len(caught) == 1
    pooler = model.heads["next_sentence"].pooler
    assert pooler.bias.count_nonzero() == 0 and 0.01 < pooler.weight.std().item() < 0.03  # 64 values at 0.02


def test_missing_head_is_initialized_deterministically(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        first = load_model(folder, ["next_sentence"])
        torch.manual_seed(1)
        second = load_model(folder, ["next_sentence"])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_missing_head_does_not_change_the_others(tmp_path):
    model = save(tmp_path)
    with pytest.warns(UserWarning, match="initialized randomly"):
        loaded = load_model(tmp_path, ["masked_lm", "next_sentence"])
    for part in ("body", "heads.masked_lm"):
        expected, found = (m.get_submodule(part).state_dict() for m in (model, loaded))
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_missing_weight_of_a_head_keeps_its_other_weights(folder):
    def change(weights):
        del weights["cls.predictions.transform.dense.weight"]
        weights["cls.predictions.bias"] += 5

    change_weights(folder, change)
    with pytest.warns(UserWarning, match=r"masked_lm\.dense\.weight: initialized randomly"):
        head = load_model(folder).heads["masked_lm"]
    assert head.bias.eq(5).all() and 0.01 < head.dense.weight.std().item() < 0.03


def test_output_matrix_that_contradicts_the_config_warns(folder):
    def change(weights):
        weights["cls.predictions.decoder.weight"] = torch.ones(40, 8)

    change_weights(folder, change)
    with pytest.warns(UserWarning, match="its config.json says that they are tied"):
        model = load_model(folder)
    assert model.heads["masked_lm"].decoder is None


def test_loaded_model_is_in_evaluation_mode(folder):
    assert not any(module.training for module in load_model(folder).modules())


def test_loading_does_not_advance_the_global_generator(folder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


# Search


def test_model_folder_is_found(folder):
    assert find_model_folder(folder) == folder


def make_run(run, *names):
    for name in names:
        save(run / name)
    return run


def test_final_model_of_a_run_has_precedence(tmp_path):
    run = make_run(tmp_path, "checkpoints/step-00000900", "final")
    assert find_model_folder(run) == run / "final"


def test_latest_checkpoint_of_a_run_without_a_final_model_is_found(tmp_path):
    run = make_run(tmp_path, *(f"checkpoints/step-{step:08}" for step in (900, 1000, 20)))
    assert find_model_folder(run) == run / "checkpoints" / "step-00001000"


@pytest.mark.parametrize("ending", [".tmp", ".old"])  # left by an interrupted `write_folder`
def test_incomplete_checkpoint_is_ignored(tmp_path, ending):
    run = make_run(tmp_path, "checkpoints/step-00000900", f"checkpoints/step-00001000{ending}")
    assert find_model_folder(run) == run / "checkpoints" / "step-00000900"


def test_run_without_a_model_yet_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    refused(tmp_path, "has no config.json, expected a Hugging Face model folder or a run folder")


def test_eos_token_id_of_a_gpt_must_be_in_its_vocabulary(small_gpt, bpe, tmp_path):
    save_model(small_gpt, tmp_path, bpe)
    config = json.loads((tmp_path / "config.json").read_text())
    for end in (None, -1, small_gpt.config.vocab_size):
        (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": end}))
        with pytest.raises(CheckpointError, match=r"config\.json: eos_token_id is "):
            load_model_and_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [5, 9]}))
    with pytest.warns(UserWarning, match=r"eos_token_id is \[5, 9\]; only the first one ends texts"):
        assert load_model_and_tokenizer(tmp_path)[0].config.eos_token_id == 5
