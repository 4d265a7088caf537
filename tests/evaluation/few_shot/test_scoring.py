"""Scores equal those of a forward pass over prompt and answer as one text, whatever is shared."""

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import Example
from stemformer.evaluation.few_shot import scoring
from stemformer.evaluation.few_shot.scoring import ScoringRequest, score_answers, score_blanks
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


@torch.no_grad()
@pytest.mark.parametrize("shared", [0, 3, 30])
def test_answers_are_scored_as_in_the_full_text(small_gpt, shared):
    rng = np.random.default_rng(shared)
    beginning = rng.integers(0, 300, shared)
    questions = [
        ScoringRequest(np.append(beginning, prompt), tuple(random_ids(rng, 1, 4, 2)))
        for prompt in random_ids(rng, 1, 7, 3, 20)
    ]
    for question, scores in zip(questions, score_answers(small_gpt, questions), strict=True):
        for answer, score in zip(question.answers, scores, strict=True):
            expected, is_greedy = score_full_text(small_gpt, question.prompt, answer)
            assert score.log_probability == pytest.approx(expected, rel=RELATIVE)
            assert (score.is_greedy, score.num_tokens) == (is_greedy, len(answer))


@torch.no_grad()
def test_most_likely_tokens_are_greedy(small_gpt):
    prompt, answer = np.array([5, 6, 7]), []
    for _ in range(3):
        ids = torch.from_numpy(np.append(prompt, answer).astype(np.int64))
        n = len(ids)
        states = small_gpt.body(ids, torch.arange(n), torch.zeros_like(ids), torch.tensor([0, n], dtype=torch.int32), n)
        answer.append(int(small_gpt.lm_logits(states[-1:]).argmax()))
    right, wrong = np.array(answer), np.array([*answer[:2], (answer[2] + 1) % 300])
    [[a, b]] = score_answers(small_gpt, [ScoringRequest(prompt, (right, wrong))])
    assert a.is_greedy and not b.is_greedy


def test_batches_and_chunks_do_not_change_scores(small_gpt, monkeypatch):
    rng = np.random.default_rng(0)
    questions = [ScoringRequest(prompt, tuple(random_ids(rng, 2, 3))) for prompt in random_ids(rng, 20, 21, 22, 23)]
    together = [[s.log_probability for s in row] for row in score_answers(small_gpt, questions)]
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 30)
    monkeypatch.setattr(scoring, "_MAX_LOGITS", 500)
    apart = [[s.log_probability for s in row] for row in score_answers(small_gpt, questions)]
    np.testing.assert_allclose(together, apart, rtol=RELATIVE)


def test_masked_answers_are_scored_together(monkeypatch):
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    model = make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)).eval()
    ids = np.array([2, 10, 4, 4, 12, 3])
    other = np.array([2, 10, 4, 12, 3])
    texts = [
        Example(ids, np.array([6]), np.array([2, 3]), np.array([20, 21])),
        Example(other, np.array([5]), np.array([2]), np.array([30])),
        Example(ids, np.array([6]), np.array([2, 3]), np.array([22, 23])),  # shares the forward pass of the first
    ]
    scores = [score.log_probability for score in score_blanks(model, texts)]
    for text, score in zip(texts, scores, strict=True):
        x = torch.from_numpy(text.input_ids)
        n = len(x)
        with torch.no_grad():
            states = model.body(x, torch.arange(n), torch.zeros_like(x), torch.tensor([0, n], dtype=torch.int32), n)
            logits = model.lm_logits(states[text.label_positions]).log_softmax(-1)
        assert score == pytest.approx(
            logits.gather(1, torch.from_numpy(text.labels)[:, None]).sum().item(), rel=RELATIVE
        )


def test_too_long_text_is_refused(small_gpt):
    with pytest.raises(ValueError, match="A sequence has 97 tokens; the model has 96 positions"):
        list(score_answers(small_gpt, [ScoringRequest(np.full(97, 5), (np.array([6]),))]))
