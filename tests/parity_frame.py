"""What the parity tests against transformers share: texts, logits of both sides, gradients, an optimizer step."""

import json

import torch
import torch.nn.functional as F

from stemformer.huggingface.load import load_model
from stemformer.models.hf_names import to_hugging_face
from stemformer.models.layers import row_parts
from stemformer.models.model import ARCHITECTURES
from stemformer.training.optimizer import OptimizerConfig, make_optimizer

RELATIVE = 1e-5  # of the largest value: float32 sums differ in order only
AFTER_A_STEP = 2e-6  # with a learning rate of 1e-3
VOCAB = 97
# Longer than the windows of sliding layers; one with CPU's flash kernel.
LENGTHS = [9, 40, 1, 17, 420, 8]


def random_model(kind, config):
    """Return a model of transformers, every parameter random: initial norms would hide a swapped pair."""
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def opened(model, folder):
    model.save_pretrained(folder)
    return load_model(folder)


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def texts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(4, VOCAB, (length,), generator=generator) for length in LENGTHS]


def flat(inputs):
    """Return ids, positions, segments, boundaries and maximum length of texts, as a body takes them."""
    lengths = [len(ids) for ids in inputs]
    ids, cu_seqlens = torch.cat(inputs), torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in lengths])
    return ids, positions, torch.zeros_like(ids), cu_seqlens, max(lengths)


def logits_of(model, inputs=None):
    return model.lm_logits(model.body(*flat(texts() if inputs is None else inputs)))


def their_logits_of(model):
    return torch.cat([model(input_ids=ids[None]).logits[0] for ids in texts()])


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= RELATIVE * expected.abs().max().item()


def by_their_names(ours, tensors):
    return to_hugging_face(tensors, ARCHITECTURES[ours.config.model_type].parameter_names, row_parts(ours))


def _add_gradients(ours, model):
    for logits in (logits_of(ours), their_logits_of(model)):
        F.cross_entropy(logits, torch.cat(texts()).roll(1)).backward()


def assert_equal_gradients(ours, model):
    _add_gradients(ours, model)
    found = by_their_names(ours, {name: p.grad for name, p in ours.named_parameters()})
    expected = {name: p.grad for name, p in model.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max().item() <= RELATIVE * largest, name


def assert_equal_optimizer_step(ours, model):
    # An epsilon far above the rounding errors of gradients: the first step of a tiny one has its sign alone.
    optimizer = make_optimizer(ours, OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, eps=1e-5, beta2=0.999))
    reference = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.0)
    _add_gradients(ours, model)
    optimizer.step()
    reference.step()
    found = by_their_names(ours, ours.state_dict())
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter).abs().max().item() <= AFTER_A_STEP, name


def assert_read_unchanged(ours, folder):
    """Check that a saved folder gives the same config and weights."""
    again = load_model(folder)
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))
