"""Prompts that fit the model, predictions of each output type, and their metrics."""

import copy

import numpy as np
import pytest
import sacrebleu
import torch

from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.few_shot.dataset import FewShotDataset
from stemformer.evaluation.few_shot.evaluate import (
    FewShotPrediction,
    aggregate,
    evaluate_few_shot,
    mean_interval,
    notes_on_answers,
    wilson_interval,
)
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model

TASK = PromptTask("The king is {text} and {answer}", label="label", answers={"0": "sees", "1": "paints the river"})


def data(number=12):
    texts = ["old", "wise", "small", "quiet", "green"]
    items = [
        FewShotExample({"text": texts[i % 5], "label": str(i % 2)}, ("sees", "paints the river"), i % 2, str(i % 2))
        for i in range(number)
    ]
    return FewShotDataset(items, items)


@torch.no_grad()
def score_full_text(model, bpe, prompt, answer):
    ids = [model.config.eos_token_id, *bpe.encode(prompt + answer).ids.tolist()]
    n, num_scored = len(ids), len(ids) - 1 - len(bpe.encode(prompt).ids)
    x = torch.tensor(ids)
    states = model.body(x, torch.arange(n), torch.zeros_like(x), torch.tensor([0, n], dtype=torch.int32), n)
    logits = model.lm_logits(states).log_softmax(-1)[-1 - num_scored : -1]
    return logits.gather(1, x[-num_scored:, None]).sum().item()


def test_scores_are_those_of_the_rendered_text(small_gpt, bpe):
    dataset = data()
    [result] = evaluate_few_shot(small_gpt, bpe, TASK, dataset, [3], num_shots=2, seed=0)
    prompt = TASK.render_prompt(dataset.sample_demonstrations(3, 2, seed=0), dataset.items[3])
    expected = [score_full_text(small_gpt, bpe, prompt, " " + answer) for answer in dataset.items[3].answers]
    np.testing.assert_allclose(result.log_probabilities, expected, rtol=1e-5)  # float32, other summation order
    assert result.prediction == int(np.argmax(expected))
    assert result.prediction_norm == int(np.argmax(np.array(expected) / [4, 16]))


def test_token_across_the_end_of_the_prompt_belongs_to_the_answer(small_gpt, bpe):
    assert len(bpe.encode("The k").ids) > len(bpe.encode("The king").ids) - 1  # " king" is one token
    task = PromptTask("The k{answer}", label="label", answers={"0": "ing", "1": "ink"})
    item = FewShotExample({"label": "0"}, ("ing", "ink"), 0, "0")
    [result] = evaluate_few_shot(small_gpt, bpe, task, FewShotDataset([item], ()), [0], num_shots=0, seed=0)
    assert result.log_probabilities[0] == pytest.approx(score_full_text(small_gpt, bpe, "The", " king"), rel=1e-5)


def test_demonstrations_that_do_not_fit_are_dropped(small_gpt, bpe):
    dataset = data(40)
    [result] = evaluate_few_shot(small_gpt, bpe, TASK, dataset, [0], num_shots=30, seed=0)
    assert 0 < result.num_dropped < 30 and not result.is_cut
    kept = dataset.sample_demonstrations(0, 30, seed=0)[result.num_dropped :]
    expected = score_full_text(small_gpt, bpe, TASK.render_prompt(kept, dataset.items[0]), " sees")
    assert result.log_probabilities[0] == pytest.approx(expected, rel=1e-5)
    assert aggregate([[result]], TASK, dataset.items)["dropped_examples"] == result.num_dropped


def test_too_long_example_loses_its_beginning(small_gpt, bpe):
    long = FewShotExample({"text": "old " * 200, "label": "0"}, ("sees", "paints"), 0, "0")
    [result] = evaluate_few_shot(small_gpt, bpe, TASK, FewShotDataset([long], ()), [0], num_shots=0, seed=0)
    assert result.is_cut and all(np.isfinite(result.log_probabilities))


def test_loglikelihood_is_correct_if_each_token_is_the_most_likely(small_gpt, bpe, monkeypatch):
    task = PromptTask("The {text} {answer}", answer="{label}", output_type="loglikelihood")
    generate = PromptTask("The {text} {answer}", answer="{label}", output_type="generate_until", max_new_tokens=1)
    ids = [small_gpt.config.eos_token_id, *bpe.encode("The old").ids.tolist()]
    x, n = torch.tensor(ids), len(ids)
    with torch.no_grad():
        states = small_gpt.body(x, torch.arange(n), torch.zeros_like(x), torch.tensor([0, n], dtype=torch.int32), n)
    next_one = bpe.decode([int(small_gpt.lm_logits(states[-1:]).argmax())])
    [result] = evaluate_few_shot(
        small_gpt,
        bpe,
        generate,
        FewShotDataset([FewShotExample({"text": "old"}, (next_one,), 0)], ()),
        [0],
        num_shots=0,
        seed=0,
    )
    assert result.text == next_one.strip()
    wrong = FewShotExample({"text": "old"}, ("zzz",), 0)
    assert [
        a.prediction
        for a in evaluate_few_shot(small_gpt, bpe, task, FewShotDataset([wrong], ()), [0], num_shots=0, seed=0)
    ] == [-1]
    assert [
        a.prediction
        for a in evaluate_few_shot(small_gpt, bpe, generate, FewShotDataset([wrong], ()), [0], num_shots=0, seed=0)
    ] == [-1]


def test_calibration_removes_the_likelihood_without_content(small_gpt, bpe):
    dataset = data()
    [plain] = evaluate_few_shot(small_gpt, bpe, TASK, dataset, [1], num_shots=1, seed=0)
    [result] = evaluate_few_shot(small_gpt, bpe, TASK, dataset, [1], num_shots=1, seed=0, calibrate=True)
    free = []
    for text in ("N/A", "[MASK]", ""):
        empty = FewShotExample({"text": text, "label": "1"}, dataset.items[1].answers, 1, "1")
        prompt = TASK.render_prompt(dataset.sample_demonstrations(1, 1, seed=0), empty)
        free.append(np.exp([score_full_text(small_gpt, bpe, prompt, " " + answer) for answer in empty.answers]))
    free = np.mean([p / p.sum() for p in free], axis=0)
    assert result.calibrated == int(np.argmax(np.array(plain.log_probabilities) - np.log(free)))
    assert plain.calibrated is None


@pytest.fixture(scope="module")
def masked(make_text):
    tokenizer = train_wordpiece(make_text().splitlines(), vocab_size=120, lowercase=True)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)).eval(), tokenizer


def test_masked_models_predict_an_answer_from_left_to_right(masked):
    model, tokenizer = masked
    [result] = evaluate_few_shot(model, tokenizer, TASK, data(), [1], num_shots=1, seed=0)
    before = tokenizer.encode(TASK.render_prompt(data().sample_demonstrations(1, 1, seed=0), data().items[1])).ids
    answer = tokenizer.encode("paints the river").ids.tolist()
    assert len(answer) == 3
    expected = 0.0
    for k, token in enumerate(answer):
        hidden = [tokenizer.mask_token_id] * (len(answer) - k)
        ids = torch.tensor([tokenizer.cls_token_id, *before, *answer[:k], *hidden, tokenizer.sep_token_id])
        n = len(ids)
        with torch.no_grad():
            states = model.body(ids, torch.arange(n), torch.zeros_like(ids), torch.tensor([0, n], dtype=torch.int32), n)
            expected += model.lm_logits(states[1 + len(before) + k]).log_softmax(-1)[token].item()
    assert result.log_probabilities[1] == pytest.approx(expected, rel=1e-5)


def test_masked_models_do_not_generate(masked):
    task = PromptTask("{text} {answer}", name="g", answer="{label}", output_type="generate_until")
    with pytest.raises(ConfigError, match="Task g needs a causal language model"):
        evaluate_few_shot(*masked, task, data(), [0], num_shots=0, seed=0)


def test_notes_on_answers(bpe):
    split, ambiguous = notes_on_answers(PromptTask("{text} {answer}", label="l", answers={"0": "qx", "1": "qy"}), bpe)
    assert split.startswith("answers of several tokens, all of which are scored: 'qx' (3), 'qy' (3);")
    assert ambiguous == "answers with the same first token, which only later ones distinguish: 'qx', 'qy'"
    assert notes_on_answers(PromptTask("{text} {answer}", answer="{l}", output_type="loglikelihood"), bpe) == []


def test_aggregate():
    items = data(4).items
    samples = [
        [FewShotPrediction(i, i % 2, prediction=0, prediction_norm=i % 2) for i in range(4)],
        [FewShotPrediction(i, i % 2, 1, 0) for i in range(4)],
    ]
    result = aggregate(samples, TASK, items)
    assert (result["accuracy"], result["acc"], result["acc_norm"]) == (0.5, 0.5, 0.75)
    assert (result["chance"], result["majority"], result["questions"], result["draws"]) == (0.5, 0.5, 4, 2)
    assert result["spread"] == 0.0 and result["low"] < 0.5 < result["high"]


@pytest.mark.parametrize(
    ("references", "texts", "tokenize"),
    [
        (["the old king sees the river", "a dog"], ["the old king sees a river", "a dog runs"], "13a"),
        (["国王看见了河。", "一只狗"], ["国王看见河。", "一只猫"], "zh"),
    ],
)
def test_text_metrics_equal_sacrebleu(references, texts, tokenize):
    task = PromptTask("{text} {answer}", answer="{text}", output_type="generate_until", metric="bleu")
    items = [FewShotExample({"text": text}, (text,), 0) for text in references]
    result = aggregate([[FewShotPrediction(i, 0, -1, -1, text=text) for i, text in enumerate(texts)]], task, items)
    assert result["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references], tokenize=tokenize).score / 100)
    assert result["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score / 100)
    assert result["value"] == result["bleu"] and result["accuracy"] == 0 and result["low"] < result["high"]


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_intervals_of_text_metrics_accept_an_empty_text(metric):
    # Resamples of only the empty text have no n-grams: sacrebleu scores them 0.0, and others as float32.
    references = ["the old king sees the river", "the dog runs"]
    task = PromptTask("{text} {answer}", answer="{text}", output_type="generate_until", metric=metric)
    items = [FewShotExample({"text": text}, (text,), 0) for text in references]
    predictions = [FewShotPrediction(0, 0, -1, -1, text="the old king sees a river"), FewShotPrediction(1, 0, -1, -1)]
    result = aggregate([predictions], task, items)
    assert 0 <= result["low"] < result["value"] < result["high"]


def test_interval_of_zero_has_a_width():
    low, high = wilson_interval(0.0, 50)
    assert low == 0.0 and high == pytest.approx(0.0713, abs=1e-4)


def test_interval_of_a_mean_of_proportions():
    # Wilson: 0 to z^2 / (8 + z^2) = 0.32442 for none of 8, 1 / (1 + z^2) = 0.20654 to 1 for one of one.
    low, high = mean_interval([0.0, 1.0], [8, 1])
    assert low == pytest.approx(0.5 - (1 - 0.20654) / 2, abs=1e-4)
    assert high == pytest.approx(0.5 + 0.32442 / 2, abs=1e-4)
    # Standard error of many samples: sqrt(0.6 * 0.4 / 10,000 + 0.8 * 0.2 / 1,000) / 2 = 0.006782.
    assert mean_interval([0.6, 0.8], [10_000, 1_000]) == pytest.approx((0.7 - 0.01329, 0.7 + 0.01329), abs=1e-3)
    assert mean_interval([0.3], [20]) == pytest.approx(wilson_interval(0.3, 20))


def test_tied_answers_are_not_correct(small_gpt, bpe):
    task = PromptTask("{text} {answer}", answers={"0": "king", "1": "king"}, label="label")
    item = FewShotExample({"text": "old"}, ("king", "king"), 0, "0")
    [result] = evaluate_few_shot(small_gpt, bpe, task, FewShotDataset([item], ()), [0], num_shots=0, seed=0)
    assert result.prediction == -1
    assert "equal token ids" in notes_on_answers(task, bpe)[0]


def test_scores_that_are_not_finite_are_refused(small_gpt, bpe):
    broken = copy.deepcopy(small_gpt)
    broken.body.norm.bias.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="scores are not finite"):
        evaluate_few_shot(broken, bpe, TASK, data(), [0], num_shots=0, seed=0)
    generate = PromptTask("{text} {answer}", answer="{label}", output_type="generate_until")
    with pytest.raises(CheckpointError, match="scores are not finite"):
        evaluate_few_shot(broken, bpe, generate, data(), [0], num_shots=0, seed=0)


def test_text_after_the_answer_is_removed(small_gpt, bpe, monkeypatch):
    task = PromptTask("{text} {answer}.", answer="{label}", output_type="generate_until")
    item = FewShotExample({"text": "old"}, ("king",), 0)
    monkeypatch.setattr(
        "stemformer.evaluation.few_shot.evaluate.generate_from_ids", lambda ids, *a, **b: [(" king.", None)] * len(ids)
    )
    assert (
        evaluate_few_shot(small_gpt, bpe, task, FewShotDataset([item], ()), [0], num_shots=0, seed=0)[0].prediction == 0
    )
