from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import stemformer
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.huggingface.load import load_model
from stemformer.models.embeddings import WordEmbedding
from stemformer.models.model import make_model
from stemformer.recipes import find_recipe
from stemformer.training import cooccurrence
from stemformer.training.cooccurrence import init_from_nearby_tokens, init_from_next_tokens, init_from_pairs

V = 40


class InMemoryShards(Shards):
    """Shards of documents of ids, in memory."""

    def __init__(self, documents, vocab_size=V):
        self._all = np.concatenate([np.array(document, np.uint16) for document in documents])
        self.vocab_size, self.num_tokens = vocab_size, len(self._all)
        self.document_starts = np.cumsum([0, *map(len, documents)])

        self._ends = [self.num_tokens]

    def tokens(self, start, stop):
        return self._all[start:stop]


def random_documents(seed=0, number=30):
    rng = np.random.default_rng(seed)
    # Neighbors in the vocabulary occur together; the last ids never occur.
    return [
        (np.cumsum(rng.integers(-2, 3, int(rng.integers(1, 60)))) + rng.integers(V - 5)) % (V - 5)
        for _ in range(number)
    ]


def count_nearby(documents):
    counts = np.zeros((V, V))
    for document in documents:
        for i, a in enumerate(document):
            for j, b in enumerate(document):
                if 0 < abs(i - j) <= 4:
                    counts[a, b] += 1 / abs(i - j)
    return counts


def count_next(documents, eos):
    counts = np.zeros((V, V))
    for a, b in pairwise([eos, *(token for document in documents for token in [*document, eos])]):
        counts[a, b] += 1
    return counts


def pmi(counts):
    joint = counts / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(joint / np.outer(joint.sum(1), joint.sum(0)))


def words(number=1, size=V):
    made = [WordEmbedding(V, size) for _ in range(number)]
    return made if number > 1 else made[0]


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("size", [8, V])
def test_inner_products_are_the_best_weighted_approximation_of_positive_pmi(size):
    documents = random_documents()
    counts = count_nearby(documents)
    weight = np.sqrt(counts.sum(1) / counts.sum())
    weighted = np.outer(weight, weight) * np.maximum(np.nan_to_num(pmi(counts), neginf=0), 0)
    values, vectors = np.linalg.eigh(weighted)
    assert values[0] < -0.01, "without negative eigenvalues the test says less"
    top = vectors[:, V - size :] * np.sqrt(np.maximum(values[V - size :], 0))
    word = words(size=size)
    init_from_nearby_tokens(word, InMemoryShards(documents), generator=generator())
    found = word.weight.data[: V - 5].numpy() * weight[: V - 5, None]
    found, expected = found @ found.T, (top @ top.T)[: V - 5, : V - 5]
    # Up to the scale.
    scale = np.linalg.norm(expected) / np.linalg.norm(found)
    np.testing.assert_allclose(found * scale, expected, atol=0.02 * np.abs(expected).max())
    assert word.weight[: V - 5].square().sum(1).mean().sqrt().item() == pytest.approx(0.64)


@pytest.mark.parametrize("is_backward", [False, True])
def test_scores_of_input_and_output_embeddings_are_those_of_the_next_token(is_backward):
    documents, eos = random_documents(number=200), V - 1
    word, output = words(2)
    options = {"eos": eos, "generator": generator(), "is_backward": is_backward}
    init_from_next_tokens(word, output, InMemoryShards(documents), **options)
    counts = count_next(documents, eos)
    counts = counts.T if is_backward else counts
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(counts > 0, np.maximum(pmi(counts), -2), -1) + np.log(counts.sum(0) / counts.sum())
    seen = [*range(V - 5), eos]
    expected = expected[np.ix_(seen, seen)]
    found = (word.weight @ output.weight.T).detach().numpy()[np.ix_(seen, seen)]
    frequency = counts.sum(1) / counts.sum()
    rms = word.weight.square().mean(1).sqrt().detach().numpy()
    assert frequency @ rms == pytest.approx(0.5)
    # Up to a constant, for states of root mean square 1.
    found = found / 0.5
    difference = found - expected
    np.testing.assert_allclose(difference, np.full_like(difference, difference.mean()), atol=0.02)
    # Tokens that never occur are as unlikely as the rarest.
    for embedding, counted in ((word, counts.sum(1)), (output, counts.sum(0))):
        rarest = embedding.weight[counted == counted[counted > 0].min()].mean(0)
        torch.testing.assert_close(embedding.weight[V - 5 : V - 1], rarest.expand(4, -1))


def test_more_dimensions_than_tokens_are_allowed():
    word, output = words(2, size=64)
    init_from_nearby_tokens(word, InMemoryShards(random_documents()), generator=generator())
    assert word.weight.shape == (V, 64) and word.weight.isfinite().all()
    init_from_next_tokens(word, output, InMemoryShards(random_documents()), eos=0, generator=generator())
    assert word.weight.isfinite().all() and output.weight.isfinite().all()


def test_tokens_without_counts_start_near_zero():
    word = words(size=16)
    before = word.weight.detach().clone()
    init_from_nearby_tokens(word, InMemoryShards(random_documents()), generator=generator())
    torch.testing.assert_close(word.weight[-5:], 0.01 * before[-5:])


def test_a_text_without_pairs_changes_nothing():
    word = words(size=16)
    before = word.weight.detach().clone()
    init_from_nearby_tokens(word, InMemoryShards([[3]]), generator=generator())
    assert word.weight.equal(before)


def test_tokens_that_were_not_counted_get_little_probability():
    """1,600 of 2,000 ids never occur; each is as likely as an id that occurs once."""
    rng, vocab_size = np.random.default_rng(0), 2_000
    documents = [np.minimum(rng.geometric(0.02, 200), 400) for _ in range(50)]
    word, output = WordEmbedding(vocab_size, 32), WordEmbedding(vocab_size, 32)
    init_from_next_tokens(word, output, InMemoryShards(documents, vocab_size), eos=0, generator=generator())
    states = torch.nn.functional.rms_norm(word.weight[torch.from_numpy(documents[0].astype(np.int64))], (32,))
    assert (states @ output.weight.T).softmax(1)[:, 401:].sum(1).mean() < 0.2


@pytest.mark.parametrize(
    "lengths",
    [[10] * V, [1_000], [3, 1_000], [5, *[400] * 3], [1, 50] * 20, [50, 1] * 20],
    ids=["equal", "one", "short_first", "preface", "titles_first", "titles_last"],
)
def test_a_long_text_is_sampled_evenly_by_tokens(lengths, monkeypatch):
    monkeypatch.setattr(cooccurrence, "_NUM_TOKENS", 100)
    monkeypatch.setattr(cooccurrence, "_NUM_WINDOWS", 10)
    documents = [[n % V] * length for n, length in enumerate(lengths)]
    shards = InMemoryShards(documents)
    sample = cooccurrence._sample(shards)
    positions = np.concatenate(
        [np.arange(start, start + 10) for start in np.linspace(0, sum(lengths) - 10, 10).astype(int)]
    )
    assert sample.tokens.tolist() == np.concatenate(documents)[positions].tolist()
    document = np.repeat(np.arange(len(lengths)), lengths)[positions]
    neighbors = (np.diff(document) == 0) & (np.arange(1, 100) % 10 != 0)
    assert (np.diff(sample.segments) == 0).tolist() == neighbors.tolist()
    ends = np.cumsum(lengths)
    assert sample.is_first.tolist() == np.isin(positions, [0, *ends]).tolist()
    assert sample.is_last.tolist() == np.isin(positions + 1, ends).tolist()


def test_a_short_text_is_counted_completely():
    documents = random_documents()
    assert cooccurrence._sample(InMemoryShards(documents)).tokens.tolist() == np.concatenate(documents).tolist()


def test_pretraining_starts_from_counts_but_a_trained_model_keeps_its_embeddings(tiny, tmp_path, no_timing):
    settings = ["model.hidden_size=16", "model.num_attention_heads=2", "batch.sequence_length=32", "batch.size=4"]
    settings += ["evaluation.num_examples=4", "evaluation.num_cloze_examples=0"]
    options = {"recipe": "modernbert_tiny", "data": str(tiny / "data"), "steps": 1, "learning_rate": 1e-9}

    def embeddings(name, *kind, **more):
        stemformer.pretrain(**options, out=str(tmp_path / name), settings=[*settings, *kind], **more)
        return load_model(tmp_path / name / "final").body.embeddings.word

    counted, random = embeddings("counted"), embeddings("random", "embedding_init=random")
    sizes = {"vocab_size": len(random.weight), "hidden_size": 16, "num_attention_heads": 2}
    numbers = generator()
    model = make_model(replace(find_recipe("modernbert_tiny").model, **sizes), ["masked_lm"], generator=numbers)
    init_from_nearby_tokens(model.body.embeddings.word, open_shards(tiny / "data"), generator=numbers)
    torch.testing.assert_close(counted.weight, model.body.embeddings.word.weight, atol=1e-6, rtol=0)
    assert not torch.allclose(counted.weight, random.weight, atol=1e-3)
    # The recipe's counts are for a new model.
    more = embeddings("more", init=str(tmp_path / "random"))
    torch.testing.assert_close(more.weight, random.weight, atol=1e-6, rtol=0)


def random_pairs(number=400, seed=0):
    """Return texts of ids below 15, and the same in another order and 20 higher."""
    rng = np.random.default_rng(seed)
    sources = [rng.integers(0, 15, int(rng.integers(1, 8))) for _ in range(number)]
    return sources, [20 + rng.permutation(source) for source in sources]


@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_tokens_across_a_pair_are_all_counted(monkeypatch, block):
    monkeypatch.setattr(cooccurrence, "_BLOCK_MEETINGS", block)
    sources, targets = random_pairs(20)
    expected = np.zeros((V, V))
    for source, target in zip(sources, targets, strict=True):
        for a in source:
            for b in target:
                expected[a, b] += 4 / len(target)
    np.testing.assert_allclose(cooccurrence._count_across(sources, targets, V).toarray(), expected, rtol=1e-5)


def test_of_many_pairs_some_are_counted(monkeypatch):
    sources, targets = random_pairs()
    meetings = sum(len(source) * len(target) for source, target in zip(sources, targets, strict=True))
    monkeypatch.setattr(cooccurrence, "_NUM_MEETINGS", meetings // 2)
    full, half = sum(map(len, sources)), cooccurrence._count_across(sources, targets, V).sum() / 4
    assert 0.4 * full < half < 0.6 * full


def test_translations_get_similar_embeddings():
    word = torch.nn.Embedding(V, 16)
    init_from_pairs(word, *random_pairs(), generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.normalize(word.weight.detach(), dim=1)
    similar = vectors[:15] @ vectors[20:35].T
    assert similar.argmax(1).tolist() == list(range(15))


def test_few_tokens_of_a_larger_vocabulary_get_embeddings():
    # Eight words, each with an id of its own at the start of a text, and their reverse.
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 8, int(rng.integers(2, 5))) for _ in range(1000)]
    pairs = [[text + 8 * (np.arange(len(text)) > 0) for text in (forward, forward[::-1])] for forward in words]
    word = torch.nn.Embedding(300, 128)
    before = word.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    init_from_pairs(word, *map(list, zip(*pairs, strict=True)), generator=generator)
    assert word.weight.isfinite().all() and torch.equal(word.weight[16:], before[16:])
    assert not torch.equal(word.weight[:16], before[:16])
