"""BART and mBART against transformers: states, logits, gradients, an optimizer step, and folders both ways."""

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from parity_frame import (
    AFTER_A_STEP,
    RELATIVE,
    VOCAB,
    assert_close,
    assert_read_unchanged,
    by_their_names,
    flat,
    opened,
    random_model,
    rewrite,
)

from stemformer.data.examples.batch import Example, collate
from stemformer.errors import CheckpointError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.bart import BartConfig, DecoderInput, MBartConfig
from stemformer.models.model import make_model
from stemformer.objectives.objective import LossModule
from stemformer.tasks.question_answering import QuestionAnswering
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TokenClassification
from stemformer.training.optimizer import OptimizerConfig, make_optimizer

transformers = pytest.importorskip("transformers")

SOURCE_LENGTHS, TARGET_LENGTHS = [9, 40, 1, 17, 30], [5, 1, 38, 20, 9]
SIZES = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 56,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
KINDS = ["Bart", "MBart"]


@pytest.fixture(params=KINDS)
def theirs(request):
    config = getattr(transformers, f"{request.param}Config")(**SIZES)
    model = random_model(getattr(transformers, f"{request.param}ForConditionalGeneration"), config)
    with torch.no_grad():
        model.final_logits_bias.add_(torch.randn_like(model.final_logits_bias))
    return model


def texts(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    # Not the padding id, whose embedding gets no gradient in transformers.
    return [torch.randint(4, VOCAB, (length,), generator=generator) for length in lengths]


SOURCES, TARGETS = texts(SOURCE_LENGTHS, 2), texts(TARGET_LENGTHS, 3)


def decoder_input():
    ids, positions, _, cu_seqlens, longest = flat(TARGETS)
    return DecoderInput(ids, positions, cu_seqlens, longest)


def logits_of(model):
    return model.lm_logits(model.body(*flat(SOURCES), decoder=decoder_input()))


def their_logits_of(model):
    pairs = zip(SOURCES, TARGETS, strict=True)
    return torch.cat([model(input_ids=x[None], decoder_input_ids=y[None]).logits[0] for x, y in pairs])


def add_gradients(ours, model):
    for logits in (logits_of(ours), their_logits_of(model)):
        F.cross_entropy(logits, torch.cat(TARGETS).roll(1)).backward()


def compared(tensors, expected):
    """Yield the name and both sides of what transformers trains, without rows that are not used."""
    for name, theirs_ in expected.items():
        unused = slice(2, None) if "embed_positions" in name else slice(None)
        yield name, tensors[name][unused], theirs_[unused]


def test_states_and_logits_equal_those_of_transformers(theirs, tmp_path):
    ours = opened(theirs, tmp_path)
    with torch.no_grad():
        assert_close(logits_of(ours), their_logits_of(theirs))
        encoded = [theirs.model.encoder(input_ids=x[None]).last_hidden_state[0] for x in SOURCES]
        assert_close(ours.body(*flat(SOURCES)), torch.cat(encoded))


def test_gradients_equal_those_of_transformers(theirs, tmp_path):
    ours = opened(theirs, tmp_path)
    add_gradients(ours, theirs)
    found = by_their_names(ours, {name: p.grad for name, p in ours.named_parameters()})
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    # transformers does not train the output bias.
    assert set(found) == {*expected, "final_logits_bias"}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, ours_, theirs_ in compared(found, expected):
        assert (ours_ - theirs_).abs().max().item() <= RELATIVE * largest, name


def test_weights_after_an_optimizer_step_equal_those_of_transformers(theirs, tmp_path):
    ours = opened(theirs, tmp_path)
    options = {"weight_decay": 0.0, "eps": 1e-5}
    optimizer = make_optimizer(ours, OptimizerConfig(learning_rate=1e-3, beta2=0.999, **options))
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.999), **options)
    add_gradients(ours, theirs)
    optimizer.step()
    reference.step()
    found = by_their_names(ours, ours.state_dict())
    for name, ours_, theirs_ in compared(found, dict(theirs.named_parameters())):
        assert (ours_ - theirs_).abs().max().item() <= AFTER_A_STEP, name


def test_saved_folders_open_in_transformers_with_the_same_logits(theirs, tmp_path):
    ours = opened(theirs, tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert_close(their_logits_of(again), their_logits_of(theirs))
    assert_read_unchanged(ours, tmp_path / "ours")


@pytest.mark.parametrize("config", [BartConfig, MBartConfig])
def test_a_new_model_equals_itself_in_transformers(config, tmp_path):
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_decoder_layers": 1}
    config = config(**sizes, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64)
    ours = make_model(config, ["seq2seq_lm"], generator=torch.Generator().manual_seed(0)).eval()
    save_model(ours, tmp_path)
    name = type(config).__name__.removesuffix("Config")
    theirs = getattr(transformers, f"{name}ForConditionalGeneration").from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(logits_of(ours), their_logits_of(theirs))


def test_a_body_opens_with_its_tied_head(tmp_path, recwarn):
    """Published BARTs, such as bart-base, are bodies."""
    model = random_model(transformers.BartModel, transformers.BartConfig(**SIZES))
    ours = opened(model, tmp_path)
    assert [*ours.heads] == ["seq2seq_lm"] and not recwarn.list
    generation = transformers.BartForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = [
            model(input_ids=x[None], decoder_input_ids=y[None]).last_hidden_state[0]
            for x, y in zip(SOURCES, TARGETS, strict=True)
        ]
        assert_close(ours.body(*flat(SOURCES), decoder=decoder_input()), torch.cat(expected))
        assert_close(logits_of(ours), their_logits_of(generation))


@pytest.mark.parametrize("kept", ["model.encoder.embed_tokens.weight", "lm_head.weight"])
def test_one_copy_of_the_word_embeddings_is_enough(theirs, kept, tmp_path):
    ours = opened(theirs, tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights[kept] = weights.pop("model.shared.weight")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(logits_of(load_model(tmp_path)), logits_of(ours))


def framed():
    """Texts between `<s>` and `</s>`."""
    return [torch.cat([torch.tensor([0]), text, torch.tensor([2])]) for text in SOURCES]


def batch_of(inputs):
    examples = [Example(x.numpy(), np.array([len(x)]), np.empty(0, int), np.empty(0, int)) for x in inputs]
    return collate(examples, range(len(examples)))


def their_task_logits(model):
    outputs = [model(input_ids=x[None]) for x in framed()]
    if hasattr(outputs[0], "start_logits"):
        return torch.cat([torch.stack([o.start_logits[0], o.end_logits[0]], -1) for o in outputs])
    return torch.cat([o.logits for o in outputs])


TASKS = {
    "ForSequenceClassification": SequenceClassification(TaskConfig("classify"), ("a", "b", "c")),
    "ForQuestionAnswering": QuestionAnswering(TaskConfig("qa")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_task_heads_equal_those_of_transformers(kind, name, tmp_path):
    config = getattr(transformers, f"{kind}Config")(**SIZES, num_labels=3)
    model = random_model(getattr(transformers, f"{kind}{name}"), config)
    ours = opened(model, tmp_path)
    assert [*ours.heads] == [TASKS[name].head]
    with torch.no_grad():
        found = LossModule(ours, TASKS[name])(batch_of(framed()), return_logits=True)
        assert_close(found, their_task_logits(model))
        save_model(ours, tmp_path / "ours", task=TASKS[name].metadata())
        assert_close(their_task_logits(type(model).from_pretrained(tmp_path / "ours").eval()), found)


@pytest.mark.parametrize("kind", KINDS)
def test_tags_are_read_from_the_states_of_the_decoder_in_transformers(kind, tmp_path):
    """transformers has no class for it: its body gives the states, and reads the body of the saved folder."""
    theirs = random_model(getattr(transformers, f"{kind}Model"), getattr(transformers, f"{kind}Config")(**SIZES))
    theirs.save_pretrained(tmp_path)
    task = TokenClassification(TaskConfig("tag"), ("X", "Y", "Z"))
    generator = torch.Generator().manual_seed(1)
    ours = load_model(tmp_path, task.heads, num_labels=3, generator=generator)
    positions = [np.arange(1, len(x) - 1) for x in framed()]
    examples = [Example(x.numpy(), np.array([len(x)]), p, p) for x, p in zip(framed(), positions, strict=True)]
    batch = collate(examples, range(len(examples)))

    def their_states(model):
        # The decoder reads the text one token later, after its start token.
        pairs = [(x[None], torch.cat([torch.tensor([2]), x[:-1]])[None]) for x in framed()]
        states = [model(input_ids=x, decoder_input_ids=y).last_hidden_state[0] for x, y in pairs]
        return torch.cat([each[p] for each, p in zip(states, positions, strict=True)])

    with torch.no_grad():
        found = LossModule(ours, task)(batch, return_logits=True)
        assert_close(found, ours.heads["token"].classifier(their_states(theirs)))
        save_model(ours, tmp_path / "ours", task=task.metadata())
        again = load_model(tmp_path / "ours")
        assert [*again.heads] == ["token"]
        assert torch.equal(LossModule(again, task)(batch, return_logits=True), found)
        assert_close(their_states(type(theirs).from_pretrained(tmp_path / "ours").eval()), their_states(theirs))


def test_states_of_selected_tokens_are_those_of_the_decoder(theirs, tmp_path):
    ours, rows = opened(theirs, tmp_path), torch.tensor([70, 3, 3, 0])
    with torch.no_grad():
        every = ours.body(*flat(SOURCES), decoder=decoder_input())
        assert torch.equal(ours.body(*flat(SOURCES), decoder=decoder_input(), rows=rows), every[rows])


def test_decoder_with_another_number_of_sequences_is_refused(theirs, tmp_path):
    ours = opened(theirs, tmp_path)
    with pytest.raises(ValueError, match="The decoder has 5 sequences, the encoder 4"):
        ours.body(*flat(SOURCES[:4]), decoder=decoder_input())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_before": True}, "normalize_before is True, only False is supported"),
        ({"static_position_embeddings": True}, "static_position_embeddings is True"),
        ({"decoder_attention_heads": 5}, "not divisible by 5 heads of the decoder"),
        ({"decoder_layers": 2}, "holds model.decoder.layers.2"),
        (
            {"architectures": ["BartForCausalLM"]},
            "BartForCausalLM, which is not supported; expected BartModel or BartForConditionalGeneration or",
        ),
    ],
)
def test_unsupported_folders_are_refused(changes, message, tmp_path):
    random_model(transformers.BartForConditionalGeneration, transformers.BartConfig(**SIZES)).save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)
