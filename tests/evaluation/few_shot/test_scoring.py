"""Scores equal those of a forward pass over prompt and answer as one text, whatever is shared."""

import numpy as np
import pytest
import torch

from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.evaluation.few_shot import scoring
from stemformer.evaluation.few_shot.scoring import Blank, ScoringRequest, score_answers, score_blanks
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model

RELATIVE = 1e-5  # float32, other summation order


def random_ids(rng, *sizes):
    return [rng.integers(0, 300, size) for size in sizes]


def score_full_text(model, prompt, answer):
    """Return log-probability and greediness of an answer from one forward pass over the full text."""
    ids = torch.from_numpy(np.append(prompt, answer))
    n = len(ids)
    states = model.body(ids, torch.arange(n), torch.zeros_like(ids), torch.tensor([0, n], dtype=torch.int32), n)
    logits = model.lm_logits(states)[len(prompt) - 1 : -1].log_softmax(-1)
    labels = torch.from_numpy(answer)
    return logits.gather(1, labels[:, None]).sum().item(), bool((logits.argmax(-1) == labels).all())


@pytest.fixture(params=["gpt", "llama"])
def causal_model(request, small_gpt, small_llama):
    return small_gpt if request.param == "gpt" else small_llama


@torch.no_grad()
@pytest.mark.parametrize("shared", [0, 3, 30])
def test_answers_are_scored_as_in_the_full_text(causal_model, shared):
    rng = np.random.default_rng(shared)
    beginning = rng.integers(0, 300, shared)
    questions = [
        ScoringRequest(np.append(beginning, prompt), tuple(random_ids(rng, 1, 4, 2)))
        for prompt in random_ids(rng, 1, 7, 3, 20)
    ]
    for question, scores in zip(questions, score_answers(causal_model, questions), strict=True):
        for answer, score in zip(question.answers, scores, strict=True):
            expected, is_greedy = score_full_text(causal_model, question.prompt, answer)
            assert score.log_probability == pytest.approx(expected, rel=RELATIVE)
            assert (score.is_greedy, score.num_tokens) == (is_greedy, len(answer))


@torch.no_grad()
def test_most_likely_tokens_are_greedy(causal_model):
    prompt, answer = np.array([5, 6, 7]), []
    for _ in range(3):
        ids = torch.from_numpy(np.append(prompt, answer).astype(np.int64))
        n = len(ids)
        states = causal_model.body(
            ids, torch.arange(n), torch.zeros_like(ids), torch.tensor([0, n], dtype=torch.int32), n
        )
        answer.append(int(causal_model.lm_logits(states[-1:]).argmax()))
    right, wrong = np.array(answer), np.array([*answer[:2], (answer[2] + 1) % 300])
    [[a, b]] = score_answers(causal_model, [ScoringRequest(prompt, (right, wrong))])
    assert a.is_greedy and not b.is_greedy


def test_batches_and_chunks_do_not_change_scores(causal_model, monkeypatch):
    rng = np.random.default_rng(0)
    questions = [ScoringRequest(prompt, tuple(random_ids(rng, 2, 3))) for prompt in random_ids(rng, 20, 21, 22, 23)]
    together = [[s.log_probability for s in row] for row in score_answers(causal_model, questions)]
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 30)
    monkeypatch.setattr(scoring, "_MAX_LOGITS", 500)
    apart = [[s.log_probability for s in row] for row in score_answers(causal_model, questions)]
    np.testing.assert_allclose(together, apart, rtol=RELATIVE)


@pytest.mark.parametrize("at_once", [1, 15, 4096])
def test_blanks_are_scored_from_left_to_right(monkeypatch, at_once):
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", at_once)
    tokenizer = train_wordpiece(["the cat sees the dog"], vocab_size=60, min_frequency=1)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    model = make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)).eval()
    blanks = [
        Blank(np.array([10, 20, 21, 12]), 1, 3),
        Blank(np.array([10, 30, 12]), 1, 2),
        Blank(np.array([10, 22, 23, 12]), 1, 3),  # its first token shares the forward pass of the first blank
        Blank(np.array([10, 22, 23, 12]), 0, 4),
    ]
    for (ids, start, stop), score in zip(blanks, score_blanks(model, tokenizer, blanks), strict=True):
        expected = 0.0
        for i in range(start, stop):
            hidden = [tokenizer.mask_token_id] * (stop - i)
            x = torch.tensor([tokenizer.cls_token_id, *ids[:i], *hidden, *ids[stop:], tokenizer.sep_token_id])
            n = len(x)
            with torch.no_grad():
                states = model.body(x, torch.arange(n), torch.zeros_like(x), torch.tensor([0, n], dtype=torch.int32), n)
                expected += model.lm_logits(states[i + 1]).log_softmax(-1)[ids[i]].item()
        assert score.log_probability == pytest.approx(expected, rel=RELATIVE)
        assert score.num_tokens == stop - start


def test_too_long_text_is_refused(causal_model):
    with pytest.raises(ValueError, match="A sequence has 97 tokens; the model has 96 positions"):
        list(score_answers(causal_model, [ScoringRequest(np.full(97, 5), (np.array([6]),))]))
