import pytest
import torch
import torch.nn.functional as F

from stemformer.objectives.losses import cross_entropy_sum


def scores(m, v, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(m, v, generator=generator), torch.randint(v, (m,), generator=generator)


def test_total_and_count_give_the_mean_cross_entropy():
    logits, labels = scores(50, 30)
    loss = cross_entropy_sum(logits, labels)
    torch.testing.assert_close(loss.total / loss.count, F.cross_entropy(logits, labels))


def test_correct_counts_the_places_that_are_right():
    logits, labels = scores(50, 5, seed=1)
    assert cross_entropy_sum(logits, labels).correct == sum(
        int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)
    )


def test_parts_add_up_to_the_whole():
    logits, labels = scores(40, 20, seed=2)
    parts = [cross_entropy_sum(logits[a : a + 7], labels[a : a + 7]) for a in range(0, 40, 7)]
    whole = cross_entropy_sum(logits, labels)
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(part.count for part in parts) == whole.count
    assert sum(part.correct for part in parts) == whole.correct


def test_bf16_scores_are_summed_in_float32():
    logits, labels = scores(4000, 10, seed=3)
    loss = cross_entropy_sum(logits.bfloat16(), labels)
    assert loss.total.dtype == torch.float32
    exact = F.cross_entropy(logits.bfloat16().double(), labels, reduction="sum")
    assert float(loss.total) == pytest.approx(float(exact), rel=1e-6)  # a sum in bf16 is off by 1e-3 and more


def test_no_place_gives_zero_and_a_gradient_of_zero():
    logits = torch.zeros(0, 8, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.zeros(0, dtype=torch.int64))
    loss.total.backward()
    assert (float(loss.total.detach()), loss.count, int(loss.correct)) == (0.0, 0, 0)
