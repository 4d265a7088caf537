import pytest
import torch
import torch.nn.functional as F

from stemformer.objectives import losses
from stemformer.objectives.losses import cross_entropy_sum, linear_cross_entropy_sum


def random_logits(m, v, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(m, v, generator=generator), torch.randint(v, (m,), generator=generator)


def test_total_and_count_give_the_mean_cross_entropy():
    logits, labels = random_logits(50, 30)
    loss = cross_entropy_sum(logits, labels)
    torch.testing.assert_close(loss.total / loss.count, F.cross_entropy(logits, labels))


def test_correct_counts_the_right_predictions():
    logits, labels = random_logits(50, 5, seed=1)
    assert cross_entropy_sum(logits, labels).correct == sum(
        int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)
    )


def test_losses_of_parts_sum_to_the_loss_of_all():
    logits, labels = random_logits(40, 20, seed=2)
    parts = [cross_entropy_sum(logits[a : a + 7], labels[a : a + 7]) for a in range(0, 40, 7)]
    full = cross_entropy_sum(logits, labels)
    torch.testing.assert_close(sum(part.total for part in parts), full.total)
    assert sum(part.count for part in parts) == full.count
    assert sum(part.correct for part in parts) == full.correct


def test_bf16_scores_are_summed_in_float32():
    logits, labels = random_logits(4000, 10, seed=3)
    loss = cross_entropy_sum(logits.bfloat16(), labels)
    assert loss.total.dtype == torch.float32
    exact = F.cross_entropy(logits.bfloat16().double(), labels, reduction="sum")
    assert float(loss.total) == pytest.approx(float(exact), rel=1e-6)  # a sum in bf16 is off by 1e-3 and more


def test_loss_of_no_item_and_its_gradient_are_zero():
    logits = torch.zeros(0, 8, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.zeros(0, dtype=torch.int64))
    loss.total.backward()
    assert (float(loss.total.detach()), loss.count, int(loss.correct)) == (0.0, 0, 0)


def projection(m, v, d=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    leaves = [
        torch.randn(m, d, generator=generator),
        torch.randn(v, d, generator=generator),
        torch.randn(v, generator=generator),
    ]
    return [x.to(dtype).requires_grad_() for x in leaves], torch.randint(v, (m,), generator=generator)


def gradients(loss, leaves):
    return torch.autograd.grad(loss.total * 0.3, leaves)  # not 1, so that the scale matters


@pytest.mark.parametrize(
    ("m", "at_once"), [(50, None), (50, 64), (3, None), (50, 1)], ids=["one", "chunks", "few", "rows"]
)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("is_split", [False, True], ids=["all", "columns"])
def test_linear_loss_and_gradients_equal_those_of_all_logits_at_once(m, at_once, has_bias, is_split, monkeypatch):
    if at_once is not None:
        monkeypatch.setattr(losses, "_CHUNK_LOGITS", 30 * at_once)
        monkeypatch.setattr(losses, "_SOFTMAX_LOGITS", 30 * at_once // 8)
    if is_split:
        monkeypatch.setattr(losses, "_MIN_SPLIT_VOCAB", 0)
        monkeypatch.setattr(losses, "_SPLIT", 7)
    (states, weight, bias), labels = projection(m, 30)
    leaves = [states, weight, bias if has_bias else None]
    found = linear_cross_entropy_sum(*leaves, labels)
    expected = cross_entropy_sum(F.linear(*leaves), labels)
    torch.testing.assert_close(found.total, expected.total)
    assert (found.count, found.correct) == (expected.count, expected.correct)
    leaves = leaves if has_bias else leaves[:2]
    for a, b in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_linear_loss_ignores_tokens_with_a_negative_label(monkeypatch):
    monkeypatch.setattr(losses, "_SOFTMAX_LOGITS", 30 * 8)
    leaves, labels = projection(50, 30)
    labels[::3] = -100
    found = linear_cross_entropy_sum(*leaves, labels)
    states, weight, bias = leaves
    expected = cross_entropy_sum(F.linear(states[labels >= 0], weight, bias), labels[labels >= 0])
    torch.testing.assert_close(found.total, expected.total)
    assert (found.count, found.correct) == (50, expected.correct)
    for a, b in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_linear_loss_of_a_gpu_equals_that_of_the_cpu(monkeypatch):
    """The padded vocabulary and the GPU's passes over the logits, both run on the CPU."""
    leaves, labels = projection(50, 30)
    labels[::3] = -100
    expected = linear_cross_entropy_sum(*leaves, labels)
    wanted = gradients(expected, leaves)
    monkeypatch.setattr(losses, "_vocab_multiple", lambda device: 64)
    monkeypatch.setattr(losses, "_loss_in_place", losses._loss_in_place_gpu)
    found = linear_cross_entropy_sum(*leaves, labels)
    torch.testing.assert_close(found.total, expected.total)
    assert (found.count, found.correct) == (expected.count, expected.correct)
    for a, b in zip(gradients(found, leaves), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_linear_loss_under_autocast_is_as_close_as_bfloat16():
    leaves, labels = projection(400, 30, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy_sum(*leaves, labels)
    rounded = [x.bfloat16().float() for x in leaves]
    exact = cross_entropy_sum(F.linear(*rounded), labels)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, exact.total, rtol=1e-4, atol=0)
    for a, b in zip(gradients(found, leaves), gradients(exact, leaves), strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).abs().max() / b.abs().max()) < 2**-7  # random_logits and probabilities have 8 bits


def test_linear_loss_is_exact_where_the_probability_is_zero_in_float32():
    states, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.0]])
    assert float(linear_cross_entropy_sum(states, weight, torch.zeros(2), torch.tensor([1])).total) == 1000.0


def test_linear_loss_of_no_token_has_zero_gradients():
    leaves, labels = projection(0, 30)
    loss = linear_cross_entropy_sum(*leaves, labels)
    assert (float(loss.total.detach()), loss.count, int(loss.correct)) == (0.0, 0, 0)
    assert all(
        g.count_nonzero() == 0 and g.shape == x.shape for g, x in zip(gradients(loss, leaves), leaves, strict=True)
    )


def test_linear_loss_leaves_a_frozen_matrix_without_gradient():
    (states, weight, bias), labels = projection(20, 30)
    loss = linear_cross_entropy_sum(states, weight.detach(), bias, labels)
    expected = cross_entropy_sum(F.linear(states, weight.detach(), bias), labels)
    for a, b in zip(gradients(loss, [states, bias]), gradients(expected, [states, bias]), strict=True):
        torch.testing.assert_close(a, b)


def test_linear_loss_holds_no_more_logits_than_a_chunk(monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK_LOGITS", 16 * 30)
    leaves, labels = projection(100, 30)
    sizes = []
    seen = losses._loss_in_place
    monkeypatch.setattr(
        losses, "_loss_in_place", lambda z, *rest, **options: (sizes.append(len(z)), seen(z, *rest, **options))[1]
    )
    linear_cross_entropy_sum(*leaves, labels)
    assert sum(sizes) == 100 and max(sizes) <= 16


@pytest.mark.parametrize("is_gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("has_ignored", [False, True], ids=["all", "ignored"])
def test_label_smoothing_of_the_linear_loss_equals_that_of_torch(is_gpu, has_ignored, monkeypatch):
    monkeypatch.setattr(losses, "_SOFTMAX_LOGITS", 30 * 8)
    if is_gpu:
        monkeypatch.setattr(losses, "_vocab_multiple", lambda device: 64)
        monkeypatch.setattr(losses, "_loss_in_place", losses._loss_in_place_gpu)
    leaves, labels = projection(50, 30)
    if has_ignored:
        labels[::3] = -100
    found = linear_cross_entropy_sum(*leaves, labels, label_smoothing=0.1)
    total = F.cross_entropy(F.linear(*leaves), labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(found.total, total)
    wanted = torch.autograd.grad(total * 0.3, leaves)
    for a, b in zip(gradients(found, leaves), wanted, strict=True):
        torch.testing.assert_close(a, b)
