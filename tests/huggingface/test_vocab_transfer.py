"""Vocabulary transfer: row by row, and with `stemformer.pretrain`."""

import shutil
from dataclasses import replace

import pytest
import torch
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.huggingface.vocab_transfer import old_pieces, transfer_vocabulary
from stemformer.io import read_jsonl
from stemformer.models.bert import BertConfig
from stemformer.models.heads import MaskedLmHead
from stemformer.models.model import make_model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OLD = [*SPECIAL, "play", "##ing", "##s", "king", "##dom", "p", "##l", "e", "##e", "u", "n"]
NEW = ["[MASK]", "king", "kingdom", "plays", "##sing", "北", *SPECIAL[:4], "Play", "é", "##é", "un"]
SIZES = ["model.hidden_size=32", "model.intermediate_size=64", "batch.size=4", "batch.sequence_length=32"]
RUN = [
    *SIZES,
    "evaluation.num_examples=64",
    "evaluation.every=100",
    "evaluation.num_cloze_examples=4",
    "checkpoints.every=100",
]


def tokenizer_of(tokens, folder, *, lowercase=True):
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lowercase).lower()}}}')
    return load_tokenizer(folder)


@pytest.fixture
def old(tmp_path):
    return tokenizer_of(OLD, tmp_path / "old")


@pytest.fixture
def new(tmp_path):
    return tokenizer_of(NEW, tmp_path / "new", lowercase=False)


def small(vocab_size, *, tied=True):
    config = BertConfig(
        vocab_size=vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0))
    if not tied:
        model.heads["masked_lm"] = MaskedLmHead(config, tied=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


# Pieces of each token

EXPECTED = {
    "[MASK]": ["[MASK]"],
    "king": ["king"],
    "kingdom": ["king", "##dom"],
    "plays": ["play", "##s"],
    "##sing": ["##s", "##ing"],
    "北": [],
    "[PAD]": ["[PAD]"],
    "[UNK]": ["[UNK]"],
    "[CLS]": ["[CLS]"],
    "[SEP]": ["[SEP]"],
    "Play": ["play"],
    "é": ["e"],
    "##é": ["##e"],
    "un": [],  # "u" exists, "##n" does not
}


def test_pieces_are_those_of_the_old_vocabulary(old):
    assert list(EXPECTED) == NEW
    assert {token: [old.tokens[i] for i in old_pieces(token, old)] for token in NEW} == EXPECTED


def test_pieces_of_a_cased_vocabulary_keep_their_case(tmp_path):
    cased = tokenizer_of([*OLD, "é"], tmp_path / "cased", lowercase=False)
    assert old_pieces("Play", cased) == []
    assert old_pieces("é", cased) == [cased.token_to_id("é")]
    assert old_pieces("éé", cased) == []


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_kept_averaged_or_random(old, new, tied):
    model = small(old.vocab_size, tied=tied)
    head = model.heads["masked_lm"]
    before = [model.body.embeddings.word.weight.detach().clone(), head.bias.detach().clone()[:, None]]
    before += [] if tied else [head.decoder.weight.detach().clone()]
    stats = transfer_vocabulary(model, old, new, generator=torch.Generator().manual_seed(0))
    after = [model.body.embeddings.word.weight, head.bias[:, None], *([] if tied else [head.decoder.weight])]
    for old_rows, new_rows in zip(before, after, strict=True):
        assert new_rows.shape == (len(NEW), old_rows.shape[1])
        for row, token in enumerate(NEW):
            pieces = [old.token_to_id(piece) for piece in EXPECTED[token]]
            if pieces:
                assert torch.equal(new_rows[row], old_rows[pieces].mean(0)), token
    for row in (NEW.index("北"), NEW.index("un")):
        assert head.bias[row] == before[1].mean()
        assert 0 < model.body.embeddings.word.weight[row].abs().max() < 6 * model.config.initializer_range
    assert (stats.num_kept, stats.num_from_pieces, stats.num_random, stats.num_dropped) == (6, 6, 2, len(OLD) - 6)


def test_transferred_model_has_the_new_vocabulary_and_computes(old, new, tmp_path):
    model = small(old.vocab_size)
    transfer_vocabulary(model, old, new, generator=torch.Generator().manual_seed(0))
    assert model.config.vocab_size == model.body.config.vocab_size == len(NEW)
    assert model.config.pad_token_id == NEW.index("[PAD]")
    ids = torch.arange(len(NEW))
    states = model.body(ids, ids, torch.zeros_like(ids), torch.tensor([0, len(NEW)], dtype=torch.int32), len(NEW))
    assert model.lm_logits(states).shape == (len(NEW), len(NEW))
    save_model(model, tmp_path / "saved", new)
    again = load_model(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_random_rows_are_a_function_of_the_generator(old, new):
    models = [small(old.vocab_size) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 5)
        transfer_vocabulary(model, old, new, generator=torch.Generator().manual_seed(seed))
    first, same, other = (model.body.embeddings.word.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_same_vocabulary_changes_nothing(old):
    model = small(old.vocab_size)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stats = transfer_vocabulary(model, old, old, generator=torch.Generator().manual_seed(0))
    assert (stats.num_kept, stats.num_from_pieces, stats.num_random, stats.num_dropped) == (len(OLD), 0, 0, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# pretrain --init


@pytest.fixture(scope="module")
def trained(tiny, no_timing, tmp_path_factory):
    """Run on the tiny text, long enough to learn something."""
    out = tmp_path_factory.mktemp("trained") / "run"
    pretrain(
        tiny / "data", out, steps=60, recipe="bert_tiny", settings=["batch.size=8", "optimizer.learning_rate=5e-3"]
    )
    return out


@pytest.fixture(scope="module")
def extended(tiny, tmp_path_factory):
    """The tiny text, prepared with a vocabulary of ten more, unused words, which shift every id."""
    root = tmp_path_factory.mktemp("extended")
    old = load_tokenizer(tiny / "tok")
    words = ["kingdom", "rivers", "teachers", "gardens", "oldest", "wiser", "greener", "under-", "北", "quietly"]
    tokenizer_of([*words, *old.tokens], root / "tok", lowercase=bool(old.lowercase))
    options = {"held_out": 0.1, "documents": "line", "num_workers": 1}
    stemformer.prepare([str(tiny / "text.txt")], tokenizer=str(root / "tok"), out=str(root / "data"), **options)
    return root / "data"


def pretrain(data, out, *, recipe=None, settings=(), init=None, **options):
    return stemformer.pretrain(
        recipe,
        data=str(data),
        out=str(out),
        settings=[*RUN, *settings] if recipe else settings,
        init=None if init is None else str(init),
        precision="fp32",
        device="cpu",
        **options,
    )


def evaluations(out):
    return [line for line in read_jsonl(out / "log.jsonl") if line["kind"] == "evaluation"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_model_with_a_larger_vocabulary_starts_where_the_old_one_ended(trained, extended, tmp_path):
    pretrain(extended, tmp_path / "run", recipe="bert_tiny", init=trained, steps=1)
    fresh, *_, ended = evaluations(trained)
    start = evaluations(tmp_path / "run")[0]
    assert start["step"] == 0
    assert ended["held_out_masked_lm_loss"] < fresh["held_out_masked_lm_loss"] - 1
    # The softmax has ten more words, and masked words are replaced by others.
    assert start["held_out_masked_lm_loss"] == pytest.approx(ended["held_out_masked_lm_loss"], abs=0.2)


def test_resumed_run_does_not_need_the_initial_model_and_ends_like_an_uninterrupted_one(trained, extended, tmp_path):
    init = shutil.copytree(trained / "final", tmp_path / "model")
    options = {"recipe": "bert_tiny", "init": init, "steps": 4, "settings": ["frozen_layers=1"]}
    pretrain(extended, tmp_path / "uninterrupted", **options)
    with pytest.raises(KeyboardInterrupt):
        pretrain(extended, tmp_path / "parts", progress=StopAt(2), **options)
    shutil.rmtree(init)
    pretrain(extended, tmp_path / "parts", resume=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        full, parts = (
            load_file(tmp_path / run / "checkpoints/step-00000004" / name) for run in ("uninterrupted", "parts")
        )
        assert full.keys() == parts.keys()
        assert [key for key in full if not torch.equal(full[key], parts[key])] == []


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        (["frozen_layers=1"], ["bert.encoder.layer.0."]),
        (["frozen_embeddings=true"], ["bert.embeddings."]),
        (["frozen_layers=2", "frozen_embeddings=true"], ["bert.encoder.layer.", "bert.embeddings."]),
    ],
)
def test_frozen_parts_are_bit_equal_and_all_others_change(trained, tiny, tmp_path, settings, frozen):
    pretrain(tiny / "data", tmp_path / "run", recipe="bert_tiny", init=trained, steps=2, settings=settings)
    before, after = weights(trained / "final"), weights(tmp_path / "run/final")
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {name for name in before if name.startswith(tuple(frozen))}


@pytest.mark.parametrize("setting", ["frozen_layers=1", "frozen_embeddings=true"])
def test_freezing_a_fresh_model_is_refused(tiny, tmp_path, setting):
    with pytest.raises(ConfigError, match="need a pre-trained model: add --init"):
        pretrain(tiny / "data", tmp_path / "run", recipe="bert_tiny", steps=1, settings=[setting])


def test_freezing_more_layers_than_the_model_has_is_refused(trained, tiny, tmp_path):
    with pytest.raises(ConfigError, match="frozen_layers is 3: expected 0 to 2, the number of layers of"):
        options = {"init": trained, "steps": 1, "settings": ["frozen_layers=3"]}
        pretrain(tiny / "data", tmp_path / "run", recipe="bert_mini", **options)
    assert not (tmp_path / "run").exists()


def test_frozen_layers_are_checked_against_the_initial_model(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny / "tok")
    deep = replace(small(tokenizer.vocab_size).config, num_hidden_layers=3)
    save_model(
        make_model(deep, ["masked_lm"], generator=torch.Generator().manual_seed(0)), tmp_path / "deep", tokenizer
    )
    small_rows = ["batch.size=4", "batch.sequence_length=32", "evaluation.num_examples=4"]
    stemformer.pretrain(
        "bert_tiny",
        data=str(tiny / "data"),
        out=str(tmp_path / "run"),
        settings=[*small_rows, "frozen_layers=3"],
        init=str(tmp_path / "deep"),
        steps=1,
        device="cpu",
    )
    assert load_model(tmp_path / "run").config.num_hidden_layers == 3


def test_model_whose_tokenizer_has_more_ids_is_refused(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny / "tok")
    save_model(small(tokenizer.vocab_size - 1), tmp_path / "model", tokenizer)
    with pytest.raises(CheckpointError, match="Use the tokenizer that the model was trained with"):
        pretrain(tiny / "data", tmp_path / "run", recipe="bert_tiny", init=tmp_path / "model", steps=1)
