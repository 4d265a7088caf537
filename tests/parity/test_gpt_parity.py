"""GPT against transformers: states, logits, gradients, an optimizer step, decoding, and folders both ways."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from stemformer.data.examples.batch import Example, collate
from stemformer.errors import CheckpointError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.hf_names import GPT, to_hugging_face
from stemformer.models.inference import linear_kernels
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import make_model
from stemformer.training.optimizer import OptimizerConfig, make_optimizer

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value: the project's bound for float32, whose sums differ in order only
AFTER_A_STEP = 2e-6  # with a learning rate of 1e-3
VOCAB = 97
LENGTHS = [9, 40, 1, 17, 24, 8]


def theirs(kind="GPT2LMHeadModel", *, noise=0.1, **options):
    """Return a model of transformers, every parameter random: initial biases and norms would hide a swapped pair."""
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=40,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def opened(model, folder):
    model.save_pretrained(folder)
    return load_model(folder)


def batch_of(lengths=LENGTHS, *, seed=0):
    rng = np.random.default_rng(seed)
    none = np.empty(0, np.int64)
    examples = [Example(rng.integers(0, VOCAB, n), np.array([n]), none, none) for n in lengths]
    return collate(examples, range(len(examples)))


def padded(batch):
    """Return the padded arguments of transformers for the same sequences, and the mask of real tokens."""
    lengths = batch.cu_seqlens.diff().tolist()
    mask = torch.arange(batch.max_seqlen) < torch.tensor(lengths)[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, batch.input_ids)
    return {"input_ids": ids, "attention_mask": mask.long()}, mask


def states_of(model, batch, **options):
    return model.body(
        batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen, **options
    )


def assert_close(found, expected, *, relative=RELATIVE):
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= relative * expected.abs().max().item()


def losses_of(ours, model, batch):
    """Return our mean causal-LM loss and theirs; the last token of a sequence has no label."""
    rows, mask = padded(batch)
    logits = ours.lm_logits(states_of(ours, batch))
    last = batch.cu_seqlens[1:].long() - 1
    scored = torch.ones(len(batch.input_ids), dtype=torch.bool).index_fill(0, last, False)
    loss = F.cross_entropy(logits[scored], batch.input_ids.roll(-1)[scored])
    labels = rows["input_ids"].masked_fill(~mask, -100)
    return loss, model(**rows, labels=labels).loss


@pytest.mark.parametrize("lengths", [LENGTHS, [12, 12, 12]], ids=["ragged", "equal"])
def test_hidden_states_of_all_layers_equal_theirs(tmp_path, lengths):
    model = theirs("GPT2Model")
    ours, batch = opened(model, tmp_path), batch_of(lengths)
    rows, mask = padded(batch)
    with torch.no_grad():
        expected = model(**rows, output_hidden_states=True).hidden_states
        found = states_of(ours, batch, return_layers=(0, 1, 2, 3))
    assert len(expected) == 4 and list(ours.heads) == []
    for layer, states in found.items():
        assert_close(states, expected[layer][mask])


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("inner", [None, 48])
def test_logits_equal_theirs(tmp_path, activation, inner):
    model = theirs(activation_function=activation, n_inner=inner)
    ours, batch = opened(model, tmp_path), batch_of()
    rows, mask = padded(batch)
    with torch.no_grad():
        assert_close(ours.lm_logits(states_of(ours, batch)), model(**rows).logits[mask])


def test_states_of_some_rows_are_those_of_all(tmp_path):
    ours, batch = opened(theirs(), tmp_path), batch_of()
    rows = torch.tensor([5, 0, 48, 98])
    with torch.no_grad():
        assert_close(states_of(ours, batch, rows=rows), states_of(ours, batch)[rows])


def test_later_tokens_change_no_earlier_state(tmp_path):
    ours, batch = opened(theirs(), tmp_path), batch_of([20, 30])
    changed = batch_of([20, 30])
    changed.input_ids[35:50] = (changed.input_ids[35:50] + 1) % VOCAB
    with torch.no_grad():
        before, after = states_of(ours, batch), states_of(ours, changed)
    assert torch.equal(before[:35], after[:35]) and not torch.allclose(before[35:], after[35:])


def test_every_gradient_equals_theirs(tmp_path):
    model = theirs()
    ours = opened(model, tmp_path)
    loss, expected_loss = losses_of(ours, model, batch_of())
    loss.backward()
    expected_loss.backward()
    found = to_hugging_face({name: p.grad for name, p in ours.named_parameters()}, GPT)
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert set(found) == set(expected)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    wrong = {n: (found[n] - expected[n]).abs().max().item() / largest for n in found}
    assert {name: share for name, share in wrong.items() if share > RELATIVE} == {}
    assert_close(loss.detach(), expected_loss.detach())


def test_every_parameter_after_an_optimizer_step_equals_theirs(tmp_path):
    model = theirs(noise=0.0)
    ours = opened(model, tmp_path).eval()
    optimizer = make_optimizer(ours, OptimizerConfig(learning_rate=1e-3, weight_decay=0.01))
    decays, not_decayed = [], []
    for parameter in model.parameters():
        (decays if parameter.ndim > 1 else not_decayed).append(parameter)
    groups = [{"params": decays, "weight_decay": 0.01}, {"params": not_decayed, "weight_decay": 0.0}]
    expected_optimizer = torch.optim.AdamW(groups, lr=1e-3, eps=1e-6)
    for loss, step in zip(losses_of(ours, model, batch_of()), (optimizer, expected_optimizer), strict=True):
        loss.backward()
        step.step()
    found = to_hugging_face({name: p.detach() for name, p in ours.named_parameters()}, GPT)
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter.detach()).abs().max().item() <= AFTER_A_STEP, name


# Decoding


def prefilled(model, prompts, max_length, **options):
    decoder = GptDecoder(model, **options)
    return decoder, decoder.prefill([prompt.tolist() for prompt in prompts], max_length)


@pytest.mark.parametrize("first", [1, 5, 11])
@pytest.mark.parametrize("rows", [1, 2])
def test_cached_logits_equal_those_of_the_full_forward(tmp_path, first, rows):
    ours, batch = opened(theirs(), tmp_path), batch_of([12, 12])
    ids = batch.input_ids.view(2, 12)
    with torch.no_grad():
        full = ours.lm_logits(states_of(ours, batch)).view(2, 12, -1)
        decoder, scores = prefilled(ours, ids[:, :first], 14, rows=rows)
        assert_close(scores, full[:, first - 1])
        for at in range(first, 12):
            assert_close(decoder.decode_step(ids[:, at]), full[:, at])
    assert decoder.cache.positions.tolist() == [12, 12]


def test_prompts_of_unequal_length_share_a_cache(tmp_path):
    ours = opened(theirs(), tmp_path)
    lengths, rng = [3, 9, 6], np.random.default_rng(1)
    texts = [torch.from_numpy(rng.integers(0, VOCAB, n + 4)) for n in lengths]
    decoder, scores = prefilled(ours, [text[:n] for text, n in zip(texts, lengths, strict=True)], 13, rows=3)
    with torch.no_grad():
        full = [ours.lm_logits(states_of(ours, one_text(text))) for text in texts]
        for step in range(5):
            assert_close(scores, torch.stack([rows[n - 1 + step] for rows, n in zip(full, lengths, strict=True)]))
            if step < 4:
                scores = decoder.decode_step(
                    torch.stack([text[n + step] for text, n in zip(texts, lengths, strict=True)])
                )
    assert decoder.cache.positions.tolist() == [7, 13, 10]


def one_text(ids):
    none = np.empty(0, np.int64)
    return collate([Example(ids.numpy(), np.array([len(ids)]), none, none)], [0])


def test_cached_sequences_can_be_dropped_and_reordered(tmp_path):
    ours = opened(theirs(), tmp_path)
    rng = np.random.default_rng(2)
    texts = [torch.from_numpy(rng.integers(0, VOCAB, n)) for n in (3, 9, 6)]
    next_tokens = torch.from_numpy(rng.integers(0, VOCAB, 5))
    for rows in ([2, 0], [1, 0, 2], [1], [0, 1, 2]):
        decoder, _ = prefilled(ours, texts, 12, rows=5)
        decoder.cache.select(torch.tensor(rows))
        found = decoder.decode_step(next_tokens[: len(rows)])
        for row, number in enumerate(rows):
            alone = one_text(torch.cat([texts[number], next_tokens[row, None]]))
            with torch.no_grad():
                assert_close(found[row], ours.lm_logits(states_of(ours, alone)[-1]))


@pytest.mark.parametrize(
    ("dtype", "rows", "relative"),
    [(torch.bfloat16, 2, RELATIVE), (torch.bfloat16, 4, 2e-2), (torch.float16, 2, 2e-2), (torch.float64, 2, RELATIVE)],
    ids=["fbgemm", "onednn", "float16", "float64"],
)
def test_weights_of_other_dtypes_give_the_logits_of_the_same_values_in_float32(tmp_path, dtype, rows, relative):
    ours, ids = opened(theirs(), tmp_path).to(dtype), batch_of([12, 12]).input_ids.view(2, 12)
    if dtype == torch.bfloat16 and not linear_kernels._has_bf16_kernels():
        relative = RELATIVE  # float32 products with every kernel
    elif dtype == torch.bfloat16 and rows < 4 and not linear_kernels._fits_float16(torch.ones(1)):
        pytest.skip("this processor has no FBGEMM, so oneDNN is used")
    decoder, scores = prefilled(ours, ids[:, :1], 12, rows=rows)
    for token in ids[:, 1:].T:
        scores = decoder.decode_step(token)
    with torch.no_grad():
        expected = ours.float().lm_logits(states_of(ours, batch_of([12, 12]))).view(2, 12, -1)[:, -1]
    assert_close(scores, expected, relative=relative)  # oneDNN rounds the inputs of a product to 8 bits


def test_prompt_longer_than_the_cache_is_refused(tmp_path):
    with pytest.raises(ValueError, match="5 tokens exceed the cache's max_length of 4"):
        prefilled(opened(theirs(), tmp_path), [torch.zeros(5, dtype=torch.long)], 4)


# Folders


def test_our_folder_opens_in_transformers_with_the_same_numbers(tmp_path):
    config = GptConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_act="gelu",
        max_position_embeddings=40,
        eos_token_id=3,
        hidden_dropout_prob=0.2,
    )
    ours = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)).eval()
    save_model(ours, tmp_path)
    model, loading_info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert not any(loading_info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = batch_of()
    rows, mask = padded(batch)
    with torch.no_grad():
        assert_close(ours.lm_logits(states_of(ours, batch)), model.eval()(**rows).logits[mask])
    assert (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop) == (0.2, 0.2, 0.0)
    assert (model.config.n_inner, model.config.bos_token_id, model.config.eos_token_id) == (48, 3, 3)
    again = load_model(tmp_path)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


def test_untied_head_is_kept(tmp_path):
    model = theirs(tie_word_embeddings=False)
    ours, batch = opened(model, tmp_path), batch_of()
    rows, mask = padded(batch)
    assert not torch.equal(ours.heads["causal_lm"].decoder.weight, ours.body.embeddings.word.weight)
    with torch.no_grad():
        assert_close(ours.lm_logits(states_of(ours, batch)), model(**rows).logits[mask])
    save_model(ours, tmp_path / "again")
    with torch.no_grad():
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")(**rows).logits[mask]
        assert_close(again, model(**rows).logits[mask])


def test_old_folder_without_prefix_and_with_masks_opens(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(file).items()
        if name != "lm_head.weight"
    }
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 40, 40).tril() for i in range(3)}
    save_file(state, file, metadata={"format": "pt"})
    ours, batch = load_model(tmp_path), batch_of()
    rows, mask = padded(batch)
    with torch.no_grad():
        assert_close(ours.lm_logits(states_of(ours, batch)), model(**rows).logits[mask])


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False), ("add_cross_attention", True)],
)
def test_unsupported_config_switch_is_refused(tmp_path, key, value):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=f"{key} is {value}"):
        load_model(tmp_path)


def test_head_of_another_architecture_is_refused(tmp_path):
    theirs().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a gpt2, which has no head masked_lm"):
        load_model(tmp_path, ["masked_lm"])


def test_initial_residual_weights_are_scaled_by_depth():
    config = GptConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=8, num_attention_heads=2, intermediate_size=512
    )
    model = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0))
    for layer in model.body.layers:
        for linear, expected in (
            (layer.attention.qkv, 0.02),
            (layer.feed_forward.up, 0.02),
            (layer.attention.out, 0.02 / 4),
            (layer.feed_forward.down, 0.02 / 4),
        ):
            assert linear.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert not linear.bias.any()
