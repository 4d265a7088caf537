import numpy as np
import pytest
import torch
from torch import nn

from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.heads import (
    MaskedLmHead,
    NextSentenceHead,
    can_shift_scores,
    init_output_bias_from_unigrams,
    rescale_scores,
)
from stemformer.models.layers import initialize_weights
from stemformer.models.llama import LlamaConfig
from stemformer.models.model import make_model

CONFIG = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24)
GPT_CONFIG = GptConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24)


def initialized(head):
    initialize_weights(head, std=0.5, generator=torch.Generator().manual_seed(0))
    return head


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def logits_of(head, states, embedding):
    return nn.functional.linear(*head.projection(states, embedding))


def test_masked_lm_head_uses_the_embedding_passed_to_it():
    head, states, embedding = initialized(MaskedLmHead(CONFIG)), random(5, 16), random(60, 16)
    head.bias.data = random(60)
    x = nn.functional.layer_norm(nn.functional.gelu(head.dense(states)), (16,), eps=CONFIG.layer_norm_eps)
    # float32, another order of sums
    torch.testing.assert_close(logits_of(head, states, embedding), x @ embedding.T + head.bias)


def test_tied_head_has_no_output_matrix():
    assert {name for name, _ in MaskedLmHead(CONFIG).named_parameters()} == {
        "dense.weight",
        "dense.bias",
        "norm.weight",
        "norm.bias",
        "bias",
    }


def test_untied_head_uses_its_own_matrix():
    head, states = initialized(MaskedLmHead(CONFIG, tied=False)), random(5, 16)
    expected = logits_of(initialized(MaskedLmHead(CONFIG)), states, head.decoder.weight)
    assert torch.equal(logits_of(head, states, random(60, 16)), expected)


def test_masked_lm_head_accepts_no_token_at_all():
    assert logits_of(MaskedLmHead(CONFIG), random(0, 16), random(60, 16)).shape == (0, 60)


def test_masked_lm_logits_use_and_train_the_word_embedding():
    model = make_model(CONFIG, ["masked_lm"], generator=torch.Generator().manual_seed(0))
    states = random(3, 16)
    logits = model.lm_logits(states)
    logits.sum().backward()
    word = model.body.embeddings.word.weight
    assert torch.equal(logits, logits_of(model.heads["masked_lm"], states, word)) and word.grad.count_nonzero() > 0


def test_next_sentence_head_is_pooler_tanh_and_two_logits():
    head, states = initialized(NextSentenceHead(CONFIG)), random(5, 16)
    pooled = torch.tanh(states @ head.pooler.weight.T + head.pooler.bias)
    torch.testing.assert_close(head(states), pooled @ head.classifier.weight.T + head.classifier.bias)


@pytest.mark.parametrize("head", [MaskedLmHead(CONFIG), MaskedLmHead(CONFIG, tied=False), NextSentenceHead(CONFIG)])
def test_initial_head_follows_the_table(head):
    initialize_weights(head, std=0.02, generator=torch.Generator().manual_seed(0))
    for name, parameter in head.named_parameters():
        if name == "norm.weight":
            assert parameter.eq(1).all()
        elif parameter.ndim == 1:
            assert parameter.eq(0).all(), name
        else:
            # From the 32 draws of the smallest matrix the deviation is known to 1/sqrt(64) = 13 %: four times that.
            assert abs(parameter.std().item() / 0.02 - 1) < 0.5, name


def test_number_of_parameters_counts_the_tied_matrix_once():
    model = make_model(CONFIG, ["masked_lm"])
    layer = 4 * 16 * 16 + 4 * 16 + 2 * 16 * 24 + 24 + 16 + 4 * 16
    embeddings = (60 + 512 + 2 + 2) * 16
    head = 16 * 16 + 16 + 2 * 16 + 60
    assert model.num_parameters(embeddings=False) == layer
    assert model.num_parameters() == layer + embeddings + head


def test_output_bias_from_unigrams_predicts_word_frequencies():
    config = BertConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = make_model(config, ["masked_lm"])
    counts = np.array([0, 9, 4, 1, 1], np.uint64)
    init_output_bias_from_unigrams(model.heads["masked_lm"], counts)
    expected = torch.tensor([1.0, 10.0, 5.0, 2.0, 2.0]) / 20
    torch.testing.assert_close(model.heads["masked_lm"].bias.softmax(0), expected)


@pytest.mark.parametrize("config", [CONFIG, GPT_CONFIG])
def test_rescaled_scores_are_a_linear_function_of_the_scores(config):
    model = make_model(config, ["sequence"], num_labels=1, generator=torch.Generator().manual_seed(0)).eval()
    ids, lengths = torch.tensor([1, 2, 3]), torch.tensor([0, 3], dtype=torch.int32)

    def score():
        with torch.inference_mode():
            states = model.body(ids, torch.arange(3), torch.zeros(3, dtype=torch.long), lengths, 3)
            return model.heads["sequence"](states[-1:]).item()

    before = score()
    model.load_state_dict(rescale_scores(model.state_dict(), scale=20.0, shift=100.0), strict=False)
    assert score() == pytest.approx(20 * before + 100, abs=1e-4)
    model.load_state_dict(rescale_scores(model.state_dict(), scale=1 / 20, shift=-100 / 20), strict=False)
    assert score() == pytest.approx(before, abs=1e-5)


def test_scores_of_a_head_without_any_bias_are_scaled_but_not_shifted():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
    config = LlamaConfig(vocab_size=60, **sizes)
    state = make_model(config, ["sequence"], num_labels=1, generator=torch.Generator().manual_seed(0)).state_dict()
    assert not can_shift_scores(state)
    (scaled,) = rescale_scores(state, scale=20.0, shift=0.0).items()
    assert torch.equal(scaled[1], 20 * state[scaled[0]])
