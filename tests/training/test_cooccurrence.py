from dataclasses import replace

import numpy as np
import pytest
import torch

import stemformer
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.huggingface.load import load_model
from stemformer.models.layers import WordEmbedding
from stemformer.models.model import make_model
from stemformer.recipes import find_recipe
from stemformer.training import cooccurrence
from stemformer.training.cooccurrence import cooccurrence_vectors, init_from_cooccurrence

V = 40


class InMemoryShards(Shards):
    """Shards of documents of ids, in memory."""

    def __init__(self, documents, vocab_size=V):
        self._all = np.concatenate([np.array(document, np.uint16) for document in documents])
        self.vocab_size, self.num_tokens = vocab_size, len(self._all)
        self.document_starts = np.cumsum([0, *map(len, documents)])

    def tokens(self, start, stop):
        return self._all[start:stop]


def random_documents(seed=0, number=30):
    rng = np.random.default_rng(seed)
    # Neighbors in the vocabulary occur together; the last ids never occur.
    return [
        (np.cumsum(rng.integers(-2, 3, int(rng.integers(1, 60)))) + rng.integers(V - 5)) % (V - 5)
        for _ in range(number)
    ]


def brute_force_pmi(documents):
    counts = np.zeros((V, V))
    for document in documents:
        for i, a in enumerate(document):
            for j, b in enumerate(document):
                if 0 < abs(i - j) <= 4:
                    counts[a, b] += 1 / abs(i - j)
    joint = counts / counts.sum()
    one = joint.sum(1)
    smooth = one**0.75 / (one**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = (np.log(joint / np.outer(one, smooth)) + np.log(joint / np.outer(smooth, one))) / 2
    return np.where(joint > 0, np.maximum(pmi, 0), 0)


def test_inner_products_are_the_best_approximation_of_positive_pmi():
    documents = random_documents()
    values, vectors = np.linalg.eigh(brute_force_pmi(documents))
    assert values[0] < -1, "without negative eigenvalues the test says less"
    for size in (8, V):
        top = slice(V - size, V)
        expected = (vectors[:, top] * np.maximum(values[top], 0)) @ vectors[:, top].T
        found = cooccurrence_vectors(InMemoryShards(documents), size, generator=torch.Generator().manual_seed(0))
        assert found.shape == (V, size)
        np.testing.assert_allclose(found @ found.T, expected, atol=0.02 * np.abs(expected).max())


def test_more_dimensions_than_tokens_are_allowed():
    found = cooccurrence_vectors(InMemoryShards(random_documents()), 64, generator=torch.Generator().manual_seed(0))
    assert found.shape == (V, 64)
    assert torch.linalg.matrix_rank(found) <= V


def test_tokens_without_counts_keep_their_embedding():
    word = WordEmbedding(V, 16)
    before = word.weight.detach().clone()
    init_from_cooccurrence(word, InMemoryShards(random_documents()), generator=torch.Generator().manual_seed(0))
    assert word.weight[-5:].equal(before[-5:])
    assert word.weight[:-5].square().mean().sqrt().item() == pytest.approx(0.04)
    # A document of one token has no pairs.
    init_from_cooccurrence(word, InMemoryShards([[3]]), generator=torch.Generator().manual_seed(0))
    assert word.weight[-5:].equal(before[-5:])


def test_a_long_text_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(cooccurrence, "_NUM_TOKENS", 100)
    tokens, documents = cooccurrence._sample_documents(InMemoryShards([[n] * 10 for n in range(V)]))
    assert tokens.tolist() == np.repeat(np.arange(0, V, 4), 10).tolist()
    assert documents.tolist() == np.repeat(np.arange(10), 10).tolist()
    tokens, documents = cooccurrence._sample_documents(InMemoryShards([[1] * 1_000]))
    assert len(tokens) == len(documents) == 100


def test_pretraining_starts_from_counts_but_a_trained_model_keeps_its_embeddings(tiny, tmp_path, no_timing):
    settings = ["model.hidden_size=16", "model.num_attention_heads=2", "batch.sequence_length=32", "batch.size=4"]
    settings += ["evaluation.num_examples=4", "evaluation.num_cloze_examples=0"]
    options = {"recipe": "modernbert_tiny", "data": str(tiny / "data"), "steps": 1, "learning_rate": 1e-9}

    def embeddings(name, kind, **more):
        stemformer.pretrain(**options, out=str(tmp_path / name), settings=[*settings, f"embedding_init={kind}"], **more)
        return load_model(tmp_path / name / "final").body.embeddings.word

    counted, random = embeddings("counted", "cooccurrence"), embeddings("random", "random")
    sizes = {"vocab_size": len(random.weight), "hidden_size": 16, "num_attention_heads": 2}
    generator = torch.Generator().manual_seed(0)
    model = make_model(replace(find_recipe("modernbert_tiny").model, **sizes), ["masked_lm"], generator=generator)
    init_from_cooccurrence(model.body.embeddings.word, open_shards(tiny / "data"), generator=generator)
    torch.testing.assert_close(counted.weight, model.body.embeddings.word.weight, atol=1e-6, rtol=0)
    assert not torch.allclose(counted.weight, random.weight, atol=1e-3)
    more = embeddings("more", "cooccurrence", init=str(tmp_path / "random"))
    torch.testing.assert_close(more.weight, random.weight, atol=1e-6, rtol=0)
