"""Transfer a trained model to the vocabulary of another domain or language."""

import unicodedata
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stemformer.data.tokenization.tokenizer import SUBWORD_PREFIX, Tokenizer
from stemformer.errors import TokenizerError
from stemformer.models.bert import BertConfig
from stemformer.models.llama import EuroBertConfig
from stemformer.models.model import Model
from stemformer.models.modernbert import ModernBertConfig


@dataclass(frozen=True)
class VocabTransferStats:
    """Numbers of tokens by origin of their embedding, and of old tokens that were dropped."""

    num_kept: int
    num_from_pieces: int
    num_random: int
    num_dropped: int

    def __str__(self) -> str:
        return (
            f"{self.num_kept:,} tokens keep their embedding, {self.num_from_pieces:,} start from their pieces, "
            f"{self.num_random:,} start randomly, {self.num_dropped:,} old ones are dropped"
        )


def transfer_vocabulary(
    model: Model, old: Tokenizer, new: Tokenizer, *, generator: torch.Generator
) -> VocabTransferStats:
    """Replace word embeddings and output biases in place by those of a new vocabulary.

    A token of both vocabularies keeps its embedding. Any other token starts as the mean embedding of
    its pieces in the old vocabulary, or randomly if that cannot spell it.

    Source: Yao et al. 2021 (Adapt-and-Distill), section 3.1.
    """
    if (kinds := {old.kind, new.kind}) != {"wordpiece"}:
        raise TokenizerError(f"The vocabularies are of kind {', '.join(sorted(kinds))}, expected WordPiece for both.")
    pieces = [old_pieces(token, old) for token in new.tokens]
    unknown = [row for row, ids in enumerate(pieces) if not ids]

    def transfer(embedding: nn.Embedding) -> None:
        rows = _mean_rows(embedding.weight.data, pieces, std=model.config.initializer_range, generator=generator)
        embedding.weight, embedding.num_embeddings = nn.Parameter(rows), new.vocab_size

    transfer(model.body.embeddings.word)
    if "masked_lm" in model.heads:
        head = model.lm_head
        if head.bias is not None:
            bias = _mean_rows(head.bias.data[:, None], pieces, std=0.0, generator=generator)[:, 0]
            # As likely as an average word: 0 can be far above all others.
            bias[unknown] = head.bias.data.mean()
            head.bias = nn.Parameter(bias)
        if head.decoder is not None:
            transfer(head.decoder)
    assert isinstance(model.config, BertConfig | ModernBertConfig | EuroBertConfig)
    ids: dict[str, int] = {"vocab_size": new.vocab_size, "pad_token_id": new.pad_token_id}
    if isinstance(model.config, EuroBertConfig):
        ids["mask_token_id"] = new.mask_token_id
    model.config = model.body.config = replace(model.config, **ids)  # type: ignore[arg-type]
    num_kept = sum(old.token_to_id(token) is not None for token in new.tokens)
    num_from_pieces = new.vocab_size - num_kept - len(unknown)
    return VocabTransferStats(num_kept, num_from_pieces, len(unknown), old.vocab_size - num_kept)


def old_pieces(token: str, tokenizer: Tokenizer) -> list[int]:
    """Split a token with another WordPiece vocabulary by longest match; [] if impossible.

    For a lower-cased one, lower-case the token, and drop its accents if they prevent the split.
    """
    if (known := tokenizer.token_to_id(token)) is not None:
        return [known]
    prefix = SUBWORD_PREFIX if token.startswith(SUBWORD_PREFIX) else ""
    word = token.removeprefix(SUBWORD_PREFIX)
    spellings = [word]
    if tokenizer.lowercase:
        decomposed = unicodedata.normalize("NFD", word.lower())
        spellings = [word.lower(), "".join(c for c in decomposed if unicodedata.category(c) != "Mn")]
    return next((found for spelling in spellings if (found := _longest_pieces(spelling, prefix, tokenizer))), [])


def _longest_pieces(rest: str, prefix: str, tokenizer: Tokenizer) -> list[int]:
    found: list[int] = []
    while rest:
        ids = ((tokenizer.token_to_id(prefix + rest[:end]), end) for end in range(len(rest), 0, -1))
        piece, end = next(((number, end) for number, end in ids if number is not None), (None, 0))
        if piece is None:
            return []
        found.append(piece)
        prefix, rest = SUBWORD_PREFIX, rest[end:]
    return found


def _mean_rows(old: Tensor, sources: list[list[int]], *, std: float, generator: torch.Generator) -> Tensor:
    """Return the mean of the source rows of each new row; random values if there are none."""
    rows = torch.randn(len(sources), old.shape[1], generator=generator) * std
    for row, ids in enumerate(sources):
        if ids:
            rows[row] = old[ids].mean(0)
    return rows
