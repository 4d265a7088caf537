import numpy as np
import torch

from stemformer.data.examples.batch import Example, collate
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import make_objective
from stemformer.training.throughput import matmul_rate, step_flops


def test_matmul_rate_is_a_positive_number():
    assert matmul_rate(torch.device("cpu"), "fp32", size=64) > 0


def batch_of(lengths, num_scored):
    n = sum(lengths)
    example = Example(np.zeros(n, np.int64), np.array(lengths), np.arange(num_scored), np.zeros(num_scored, np.int64))
    return collate([example], [0])


class AllRowsLm(MaskedLm):
    """Objective that needs the last states of all tokens."""

    def scored_positions(self, batch):
        return None


SPECIAL = SpecialIds(cls=1, sep=2, mask=3)
ALL_ROWS = AllRowsLm(MaskedLmConfig(), special=SPECIAL, vocab_size=50)


def small_model():
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0))


def test_flops_are_six_a_parameter_and_token_and_attention_by_real_lengths():
    model = small_model()
    d, f, v, layers = 16, 32, 50, 2
    weights = layers * (4 * d * d + 2 * d * f)
    biases_and_norms = layers * (4 * d + f + d + 4 * d)
    body = 6 * (weights + biases_and_norms) * 9
    attention = 12 * d * layers * (5**2 + 4**2)  # q k^T and p v, forward and twice backward, 2 operations each
    head = 6 * 3 * d * (d + v)
    assert step_flops(model, batch_of([5, 4], 3), ALL_ROWS) == body + attention + head


def test_flops_of_the_head_are_of_the_scored_positions_only():
    model = small_model()
    more, fewer = (step_flops(model, batch_of([8], m), ALL_ROWS) for m in (4, 1))
    assert more - fewer == 6 * 3 * 16 * (16 + 50)


def test_flops_leave_out_rows_and_ids_that_the_objective_does_not_need():
    model, batch = small_model(), batch_of([8], 2)
    config = MaskedLmConfig(sampled_softmax=20)
    full, sampled = (
        make_objective(config, special=SPECIAL, vocab_size=50, unigram_counts=counts)
        for counts in (None, np.ones(50, np.int64))
    )
    d, f = 16, 32
    per_row = d * d + d + 2 * d * f + f + d + 4 * d
    all_rows = step_flops(model, batch, ALL_ROWS)
    assert step_flops(model, batch, full) == all_rows - 6 * per_row * (8 - 2)
    assert step_flops(model, batch, sampled) == step_flops(model, batch, full) - 6 * 2 * d * (50 - 20)
