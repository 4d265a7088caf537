"""Prompts that fit into a model, answers of every kind, and the figures made of them."""

import copy

import numpy as np
import pytest
import sacrebleu
import torch

from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.few_shot.dataset import PromptData
from stemformer.evaluation.few_shot.evaluate import (
    FewShotPrediction,
    aggregate,
    evaluate_few_shot,
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
    return PromptData(items, items)


@torch.no_grad()
def whole(model, bpe, prompt, answer):
    ids = [model.config.eos_token_id, *bpe.encode(prompt + answer).ids.tolist()]
    n, asked = len(ids), len(ids) - 1 - len(bpe.encode(prompt).ids)
    x = torch.tensor(ids)
    states = model.body(x, torch.arange(n), torch.zeros_like(x), torch.tensor([0, n], dtype=torch.int32), n)
    logits = model.causal_lm_logits(states).log_softmax(-1)[-1 - asked : -1]
    return logits.gather(1, x[-asked:, None]).sum().item()


def test_scores_are_those_of_the_text_as_it_is_shown(small_gpt, bpe):
    given = data()
    [told] = evaluate_few_shot(small_gpt, bpe, TASK, given, [3], num_shots=2, seed=0)
    prompt = TASK.before(given.draw(3, 2, seed=0), given.items[3])
    expected = [whole(small_gpt, bpe, prompt, " " + answer) for answer in given.items[3].answers]
    np.testing.assert_allclose(told.log_probabilities, expected, rtol=1e-5)  # float32, other orders of summing
    assert told.by_sum == int(np.argmax(expected))
    assert told.by_mean == int(np.argmax(np.array(expected) / [4, 16]))


def test_a_token_across_the_end_of_the_prompt_belongs_to_the_answer(small_gpt, bpe):
    assert len(bpe.encode("The k").ids) > len(bpe.encode("The king").ids) - 1  # " king" is one token
    task = PromptTask("The k{answer}", label="label", answers={"0": "ing", "1": "ink"})
    item = FewShotExample({"label": "0"}, ("ing", "ink"), 0, "0")
    [told] = evaluate_few_shot(small_gpt, bpe, task, PromptData([item], ()), [0], num_shots=0, seed=0)
    assert told.log_probabilities[0] == pytest.approx(whole(small_gpt, bpe, "The", " king"), rel=1e-5)


def test_whole_examples_are_dropped_where_they_do_not_fit(small_gpt, bpe):
    given = data(40)
    [told] = evaluate_few_shot(small_gpt, bpe, TASK, given, [0], num_shots=30, seed=0)
    assert 0 < told.num_dropped < 30 and not told.is_cut
    kept = given.draw(0, 30, seed=0)[told.num_dropped :]
    expected = whole(small_gpt, bpe, TASK.before(kept, given.items[0]), " sees")
    assert told.log_probabilities[0] == pytest.approx(expected, rel=1e-5)
    assert aggregate([[told]], TASK, given.items)["dropped_examples"] == told.num_dropped


def test_a_question_that_alone_is_too_long_loses_its_beginning(small_gpt, bpe):
    long = FewShotExample({"text": "old " * 200, "label": "0"}, ("sees", "paints"), 0, "0")
    [told] = evaluate_few_shot(small_gpt, bpe, TASK, PromptData([long], ()), [0], num_shots=0, seed=0)
    assert told.is_cut and all(np.isfinite(told.log_probabilities))


def test_complete_is_right_where_each_token_is_the_likeliest(small_gpt, bpe, monkeypatch):
    task = PromptTask("The {text} {answer}", answer="{label}", how="complete")
    generate = PromptTask("The {text} {answer}", answer="{label}", how="generate", max_new_tokens=1)
    ids = [small_gpt.config.eos_token_id, *bpe.encode("The old").ids.tolist()]
    x, n = torch.tensor(ids), len(ids)
    with torch.no_grad():
        states = small_gpt.body(x, torch.arange(n), torch.zeros_like(x), torch.tensor([0, n], dtype=torch.int32), n)
    next_one = bpe.decode([int(small_gpt.causal_lm_logits(states[-1:]).argmax())])
    [told] = evaluate_few_shot(
        small_gpt,
        bpe,
        generate,
        PromptData([FewShotExample({"text": "old"}, (next_one,), 0)], ()),
        [0],
        num_shots=0,
        seed=0,
    )
    assert told.text == next_one.strip()
    wrong = FewShotExample({"text": "old"}, ("zzz",), 0)
    assert [
        a.by_sum for a in evaluate_few_shot(small_gpt, bpe, task, PromptData([wrong], ()), [0], num_shots=0, seed=0)
    ] == [-1]
    assert [
        a.by_sum for a in evaluate_few_shot(small_gpt, bpe, generate, PromptData([wrong], ()), [0], num_shots=0, seed=0)
    ] == [-1]


def test_calibration_takes_away_what_is_likely_without_a_question(small_gpt, bpe):
    given = data()
    [plain] = evaluate_few_shot(small_gpt, bpe, TASK, given, [1], num_shots=1, seed=0)
    [told] = evaluate_few_shot(small_gpt, bpe, TASK, given, [1], num_shots=1, seed=0, calibrate=True)
    free = []
    for text in ("N/A", "[MASK]", ""):
        empty = FewShotExample({"text": text, "label": "1"}, given.items[1].answers, 1, "1")
        prompt = TASK.before(given.draw(1, 1, seed=0), empty)
        free.append(np.exp([whole(small_gpt, bpe, prompt, " " + answer) for answer in empty.answers]))
    free = np.mean([p / p.sum() for p in free], axis=0)
    assert told.calibrated == int(np.argmax(np.array(plain.log_probabilities) - np.log(free)))
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


def test_masked_models_fill_as_many_blanks_as_an_answer_has_tokens(masked):
    model, tokenizer = masked
    task = TASK
    [told] = evaluate_few_shot(model, tokenizer, task, data(), [1], num_shots=1, seed=0)
    prompt = task.before(data().draw(1, 1, seed=0), data().items[1])
    answer = tokenizer.encode("paints the river").ids
    before = tokenizer.encode(prompt).ids
    ids = torch.tensor([tokenizer.cls_id, *before, *[tokenizer.mask_id] * len(answer), tokenizer.sep_id])
    n, places = len(ids), 1 + len(before) + torch.arange(len(answer))
    with torch.no_grad():
        states = model.body(ids, torch.arange(n), torch.zeros_like(ids), torch.tensor([0, n], dtype=torch.int32), n)
        logits = model.masked_lm_logits(states[places]).log_softmax(-1)
    expected = logits.gather(1, torch.from_numpy(answer)[:, None]).sum().item()
    assert told.log_probabilities[1] == pytest.approx(expected, rel=1e-5)


def test_masked_models_do_not_generate(masked):
    task = PromptTask("{text} {answer}", name="g", answer="{label}", how="generate")
    with pytest.raises(ConfigError, match="task g asks for a text, which a masked model does not write"):
        evaluate_few_shot(*masked, task, data(), [0], num_shots=0, seed=0)


def test_what_should_be_known_of_answers_is_told(bpe):
    split, alike = notes_on_answers(PromptTask("{text} {answer}", label="l", answers={"0": "qx", "1": "qy"}), bpe)
    assert split.startswith("answers of several tokens, all of which count: 'qx' (3), 'qy' (3);")
    assert alike == "answers that begin with the same token, told apart by the next: 'qx', 'qy'"
    assert notes_on_answers(PromptTask("{text} {answer}", answer="{l}", how="complete"), bpe) == []


def test_figures():
    items = data(4).items
    draws = [
        [FewShotPrediction(i, i % 2, by_sum=0, by_mean=i % 2) for i in range(4)],
        [FewShotPrediction(i, i % 2, 1, 0) for i in range(4)],
    ]
    told = aggregate(draws, TASK, items)
    assert (told["accuracy"], told["by_sum"], told["by_mean"]) == (0.5, 0.5, 0.75)
    assert (told["chance"], told["majority"], told["questions"], told["draws"]) == (0.5, 0.5, 4, 2)
    assert told["spread"] == 0.0 and told["low"] < 0.5 < told["high"]


@pytest.mark.parametrize(
    ("rights", "texts", "tokenize"),
    [
        (["the old king sees the river", "a dog"], ["the old king sees a river", "a dog runs"], "13a"),
        (["国王看见了河。", "一只狗"], ["国王看见河。", "一只猫"], "zh"),
    ],
)
def test_texts_are_compared_as_sacrebleu_does(rights, texts, tokenize):
    task = PromptTask("{text} {answer}", answer="{text}", how="generate", metric="bleu")
    items = [FewShotExample({"text": right}, (right,), 0) for right in rights]
    told = aggregate([[FewShotPrediction(i, 0, -1, -1, text=text) for i, text in enumerate(texts)]], task, items)
    assert told["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [rights], tokenize=tokenize).score / 100)
    assert told["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [rights]).score / 100)
    assert told["figure"] == told["bleu"] and told["accuracy"] == 0 and told["low"] < told["high"]


def test_the_interval_of_nothing_right_has_a_width():
    low, high = wilson_interval(0.0, 50)
    assert low == 0.0 and high == pytest.approx(0.0713, abs=1e-4)


def test_answers_that_tie_are_not_right(small_gpt, bpe):
    task = PromptTask("{text} {answer}", answers={"0": "king", "1": "king"}, label="label")
    item = FewShotExample({"text": "old"}, ("king", "king"), 0, "0")
    [told] = evaluate_few_shot(small_gpt, bpe, task, PromptData([item], ()), [0], num_shots=0, seed=0)
    assert told.by_sum == -1
    assert "cannot tell apart" in notes_on_answers(task, bpe)[0]


def test_scores_that_are_no_numbers_are_an_error(small_gpt, bpe):
    broken = copy.deepcopy(small_gpt)
    broken.body.norm.bias.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="scores are not finite"):
        evaluate_few_shot(broken, bpe, TASK, data(), [0], num_shots=0, seed=0)
    generate = PromptTask("{text} {answer}", answer="{label}", how="generate")
    with pytest.raises(CheckpointError, match="scores are not finite"):
        evaluate_few_shot(broken, bpe, generate, data(), [0], num_shots=0, seed=0)


def test_a_text_behind_the_answer_is_taken_off(small_gpt, bpe, monkeypatch):
    task = PromptTask("{text} {answer}.", answer="{label}", how="generate")
    item = FewShotExample({"text": "old"}, ("king",), 0)
    monkeypatch.setattr("stemformer.evaluation.asking.continue_ids", lambda ids, *a, **b: [(" king.", None)] * len(ids))
    assert evaluate_few_shot(small_gpt, bpe, task, PromptData([item], ()), [0], num_shots=0, seed=0)[0].by_sum == 0
