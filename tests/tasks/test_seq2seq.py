"""The task `seq2seq`: examples, length limits, loss, metrics against sacreBLEU."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stemformer.data.examples.batch import collate
from stemformer.data.labelled.sequence_pairs import SourceTarget
from stemformer.generation.beam_search import Hypothesis
from stemformer.models.bart import BartConfig
from stemformer.models.model import make_model
from stemformer.objectives.objective import LossModule
from stemformer.tasks.rewriting_metrics import METRIC_NAMES, bleu_tokenizer, rewriting_metrics
from stemformer.tasks.seq2seq import RewritePrediction, Seq2Seq, WrittenPiece, join_pieces
from stemformer.tasks.task import TaskConfig


def pairs(*texts):
    return [SourceTarget(source, tuple(targets), f"file:{i}") for i, (source, *targets) in enumerate(texts)]


RECORDS = [
    SourceTarget("the old king", ("the king",), "a:1"),
    SourceTarget("a green river", ("river", "a river"), "a:2"),
]


def encode(tokenizer, records=RECORDS, **options):
    task = Seq2Seq(TaskConfig("seq2seq", **options))
    return task, task.encode(records, tokenizer, max_length=16)


def test_examples_are_those_of_bart(tokenizer):
    _, examples = encode(tokenizer)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    source, target = (tokenizer.encode(text).ids.tolist() for text in ("the old king", "the king"))
    example = examples.examples[0]
    assert example.input_ids.tolist() == [cls, *source, sep]
    assert example.decoder_input_ids.tolist() == [sep, cls, *target]
    assert example.labels.tolist() == [cls, *target, sep]
    assert example.label_positions.tolist() == list(range(len(target) + 2))


def test_long_sides_are_cut_and_counted(tokenizer):
    record = SourceTarget("the " * 20, ("king " * 15,), "a:1")
    _, examples = encode(tokenizer, [record, *RECORDS])
    assert examples.counts == {"sources truncated": 1, "targets truncated": 1}
    assert len(examples.examples[0].input_ids) == len(examples.examples[0].decoder_input_ids) == 16


def test_the_length_limit_follows_the_training_pairs(tokenizer):
    long = [SourceTarget("king", ("the " * 12,), "a:1")] * 3
    task = Seq2Seq(TaskConfig("seq2seq"))
    task.encode(long, tokenizer, max_length=64)
    assert task.max_length_ratio == 4.0
    # A source of 9 tokens counts as one of 16.
    assert task.max_new_tokens(9, 512) == 4 * 16 + 8
    assert task.max_new_tokens(9, 20) == 18
    again = Seq2Seq(TaskConfig("seq2seq"))
    again.load_metadata(task.metadata())
    assert again.max_length_ratio == 4.0
    again.encode(RECORDS, tokenizer, max_length=64)
    assert again.max_length_ratio == 4.0


def test_sentences_of_training_sources_bound_the_pieces_of_others(tokenizer):
    records = pairs(*[("the king\nthe river", "king")] * 20, ("a\nb\nc\nd", "king"))
    task = Seq2Seq(TaskConfig("seq2seq"))
    assert len(task.encode(records, tokenizer, max_length=64).examples) == len(records)
    assert task.max_source_sentences == 2
    task.long_sources = "split"
    found = task.encode([SourceTarget("the king\na river\n\nold", None, "a:1")], tokenizer, max_length=64)
    assert found.counts == {"sources split at sentence ends": 1} and found.records.tolist() == [0, 0]
    assert [piece.space for piece in found.scored] == ["\n\n", ""]
    hypotheses = [
        Hypothesis(ids=tokenizer.encode(text).ids.tolist(), score=score, is_complete=is_complete)
        for text, score, is_complete in (("the king", -1.0, True), ("old", -4.0, False))
    ]
    (prediction,) = task.decode(hypotheses, found, records[:1])
    assert (prediction.text, prediction.is_complete) == ("the king\n\nold", False)
    assert prediction.score == pytest.approx(-2.0)
    # A source like those of training is not split.
    assert not task.encode(records[:1], tokenizer, max_length=64).counts


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_loss_is_smoothed_and_evaluation_is_not(tokenizer, smoothing):
    task, examples = encode(tokenizer, label_smoothing=smoothing)
    config = BartConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
    )
    model = make_model(config, ["seq2seq_lm"], generator=torch.Generator().manual_seed(0))
    batch = collate(examples.examples, range(2))
    module = LossModule(model, task)
    loss = module(batch)["seq2seq"]
    with torch.no_grad():
        plain = module(batch)["seq2seq"]
        logits = module(batch, return_logits=True)
    assert loss.count == plain.count == len(batch.labels)
    torch.testing.assert_close(plain.total, F.cross_entropy(logits, batch.labels, reduction="sum"))
    expected = F.cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss.total.detach(), expected)


def outcomes(*texts):
    return [(source, targets, written, True) for source, targets, written in texts]


def test_metrics_are_those_of_sacrebleu():
    from sacrebleu import corpus_bleu, corpus_chrf

    found, details = rewriting_metrics(
        outcomes(
            ("a cat sat there", ("the cat sat on the mat.",), "the cat sat on a mat."),
            ("hello", ("good day to you all", "hello to you all"), "hello to you all"),
        )
    )
    texts = ["the cat sat on a mat.", "hello to you all"]
    references = [["the cat sat on the mat.", "good day to you all"], [None, "hello to you all"]]
    assert found["bleu"] == pytest.approx(corpus_bleu(texts, references).score)
    assert found["chrf"] == pytest.approx(corpus_chrf(texts, references).score)
    assert (found["exact_match"], found["copied"], found["cut"]) == (0.5, 0.0, 0.0)
    assert "tok:13a" in details["signature"]
    copy, truncate = details["baselines"]
    assert (copy["baseline"], truncate["baseline"]) == ("copy", "truncate")
    assert copy["bleu"] < found["bleu"]


def test_rouge_is_that_of_its_package_in_english_and_counts_other_scripts():
    from rouge_score.rouge_scorer import RougeScorer

    rows = [
        ("s", ("The cat's mat,\nand 2 dogs. They ran_away",), "the cat and two dogs\nran"),
        ("s", ("one two three", "four five"), "five four six"),
    ]
    found, _ = rewriting_metrics(outcomes(*rows))
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scores = [RougeScorer(names).score_multi(list(refs), text) for _, refs, text in rows]
    for name in names:
        assert found[name] == pytest.approx(50 * sum(score[name].fmeasure for score in scores))
    assert rewriting_metrics(outcomes(("x", ("déjà vu",), "déjà lu")))[0]["rouge1"] == pytest.approx(50)
    assert rewriting_metrics(outcomes(("x", ("北京是首都",), "北京在首都")))[0]["rouge1"] == pytest.approx(80)


def test_returning_the_source_equals_the_baseline():
    rows = outcomes(("the cat sat", ("the cat sat down",), "the cat sat"), ("a b c d", ("a b c e",), "a b c d"))
    found, details = rewriting_metrics(rows, constant="the cat sat down")
    assert found["copied"] == 1.0
    copy, truncate, constant = details["baselines"]
    assert {"baseline": "copy", **found} == {**copy, "cut": 0.0}
    assert set(copy) == set(truncate) == set(constant)
    assert (constant["baseline"], constant["exact_match"], constant["copied"]) == ("constant", 0.5, 0.0)
    assert truncate["length_ratio"] < copy["length_ratio"]


def test_the_constant_is_the_most_frequent_target_of_the_training_pairs():
    task = Seq2Seq.from_records(TaskConfig("seq2seq"), pairs(("a", "x"), ("b", "y", "z"), ("c", "y")))
    again = Seq2Seq(TaskConfig("seq2seq"))
    again.load_metadata(task.metadata())
    assert again.most_frequent_target == "y"
    predictions = [RewritePrediction(text, 0.0, True) for text in ("p", "q")]
    _, details = again.compute_metrics(predictions, pairs(("a", "x"), ("b", "y")))
    assert details["baselines"][-1]["exact_match"] == 0.5
    # Evaluations during training are without baselines.
    assert "baselines" not in again.during_training().compute_metrics(predictions, pairs(("a", "x"), ("b", "y")))[1]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("the cat sat", r"not better than returning the source \(bleu"),
        ("x", r"not better than returning the source \(bleu"),
        ("the old cat sat down there now", None),
    ],
)
def test_results_that_are_no_better_than_a_baseline_are_noted(written, expected):
    task, records = Seq2Seq(TaskConfig("seq2seq")), pairs(("the old cat sat", "the old cat sat down there now"))
    predictions = [RewritePrediction(written, 0.0, True)]
    notes = list(task.weak_results(records, predictions, *task.compute_metrics(predictions, records)))
    assert (notes == []) if expected is None else re.match(expected, notes[0])


def test_tokenizer_of_bleu_follows_the_script():
    assert bleu_tokenizer(["the cat", "un chat"]) == "13a"
    assert bleu_tokenizer(["北京是中国的首都。"]) == "zh"
    assert bleu_tokenizer(["東京は日本の首都です。"]) == "char"
    assert bleu_tokenizer(["สวัสดีครับ"]) == "char"


def test_tokens_around_a_text_are_no_part_of_what_is_written(tokenizer):
    words = tokenizer.encode("the king").ids.tolist()
    found = Hypothesis([words[0], tokenizer.cls_token_id, tokenizer.cls_token_id, *words[1:]], -0.5, False)
    piece = WrittenPiece(tokenizer, "\n")
    assert join_pieces([(found, piece), (found, piece)]) == RewritePrediction("the king\nthe king", -0.5, False)


def test_texts_that_were_not_written_are_not_scored():
    task = Seq2Seq(TaskConfig("seq2seq"))
    written = RewritePrediction("the king", -0.1, True)
    metrics, _ = task.compute_metrics([written, None], RECORDS)
    assert metrics["exact_match"] == 1.0
    metrics, details = task.compute_metrics([None, None], RECORDS)
    assert tuple(metrics) == METRIC_NAMES and details == {}


def test_rows_and_report_examples():
    task, prediction = Seq2Seq(TaskConfig("seq2seq")), RewritePrediction("a river", -0.2, True)
    row = task.to_row(RECORDS[1], prediction)
    assert row == {
        "source": "a green river",
        "prediction": "a river",
        "score": -0.2,
        "is_complete": True,
        "targets": ["river", "a river"],
    }
    error, is_wrong, entry = task.to_report_example(RECORDS[1], prediction)
    assert (error, is_wrong, entry["gold"]) == (0.0, False, "river")
    assert np.isfinite(entry["chrf"])
