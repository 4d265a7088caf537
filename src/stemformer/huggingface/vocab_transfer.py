"""A trained model is given the vocabulary of another text: a domain, a language.

A token that both vocabularies have keeps its vector. Any other one starts as the mean of the vectors of the pieces that the old
vocabulary would have cut it into, and one that the old vocabulary cannot spell is drawn afresh.

Source: the mean of the pieces: Yao et al. 2021 (Adapt-and-Distill), section 3.1.
"""

import unicodedata
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.data.tokenization.wordpiece import PREFIX
from stemformer.errors import TokenizerError
from stemformer.models.bert import BertConfig
from stemformer.models.heads import MaskedLmHead
from stemformer.models.model import Model


@dataclass(frozen=True)
class VocabTransferStats:
    """How many tokens of a new vocabulary kept their vector, came from pieces, or were drawn; and how many old ones were dropped."""

    kept: int
    from_pieces: int
    drawn: int
    dropped: int

    def __str__(self) -> str:
        return (
            f"{self.kept:,} tokens keep their vector, {self.from_pieces:,} start from their pieces, {self.drawn:,} are drawn afresh, "
            f"{self.dropped:,} old ones are dropped"
        )


def transfer_vocabulary(
    model: Model, old: Tokenizer, new: Tokenizer, *, generator: torch.Generator
) -> VocabTransferStats:
    """Changes word embeddings and output biases of a model, in place, to those of a new vocabulary.

    Args:
        model: Trained with `old`.
        old: Its tokenizer.
        new: WordPiece too.
        generator: For the tokens that the old vocabulary cannot spell.

    Returns:
        What became of the tokens.

    Raises:
        TokenizerError: One of them is not WordPiece.
    """
    if (kinds := {old.kind, new.kind}) != {"wordpiece"}:
        raise TokenizerError(f"vocabularies of the kinds {', '.join(sorted(kinds))}: expected WordPiece for both")
    sources = [pieces_of(token, old) for token in new.tokens]
    std = model.config.initializer_range
    word = model.body.embeddings.word
    word.weight = nn.Parameter(_mean_rows(word.weight.data, sources, std=std, generator=generator))
    word.num_embeddings = new.vocab_size
    if "masked_lm" in model.heads:
        head = model.heads["masked_lm"]
        assert isinstance(head, MaskedLmHead)
        bias = _mean_rows(head.bias.data[:, None], sources, std=0.0, generator=generator)[:, 0]
        drawn_rows = [row for row, pieces in enumerate(sources) if not pieces]
        bias[drawn_rows] = head.bias.data.mean()  # as likely as a middling word: 0 can be far above all others
        head.bias = nn.Parameter(bias)
        if head.decoder is not None:
            rows = _mean_rows(head.decoder.weight.data, sources, std=std, generator=generator)
            head.decoder.weight = nn.Parameter(rows)
            head.decoder.num_embeddings = new.vocab_size
    assert isinstance(model.config, BertConfig)
    config = replace(model.config, vocab_size=new.vocab_size, pad_token_id=new.pad_id)
    model.config = model.body.config = config
    kept = sum(old.id_of(token) is not None for token in new.tokens)
    drawn = sum(not pieces for pieces in sources)
    return VocabTransferStats(kept, new.vocab_size - kept - drawn, drawn, old.vocab_size - kept)


def pieces_of(token: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a token in another WordPiece vocabulary: its own, or its longest pieces from the left; [] if it has none.

    Where the vocabulary is lower-cased the token is too, and loses its accents if it has no pieces with them.

    Example:
        >>> from stemformer.data.tokenizer import train_wordpiece
        >>> tokenizer = train_wordpiece(["to be or not to be"], vocab_size=24)
        >>> [tokenizer.tokens[i] for i in pieces_of("tote", tokenizer)]
        ['to', '##t', '##e']
    """
    if (known := tokenizer.id_of(token)) is not None:
        return [known]
    prefix = PREFIX if token.startswith(PREFIX) else ""
    word = token.removeprefix(PREFIX)
    spellings = [word.lower(), _without_accents(word.lower())] if tokenizer.lowercase else [word]
    return next((found for spelling in spellings if (found := _longest_pieces(spelling, prefix, tokenizer))), [])


def _longest_pieces(rest: str, prefix: str, tokenizer: Tokenizer) -> list[int]:
    found: list[int] = []
    while rest:
        ids = ((tokenizer.id_of(prefix + rest[:end]), end) for end in range(len(rest), 0, -1))
        piece, end = next(((number, end) for number, end in ids if number is not None), (None, 0))
        if piece is None:
            return []
        found.append(piece)
        prefix, rest = PREFIX, rest[end:]
    return found


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def _mean_rows(
    old: Float[Tensor, "V D"], sources: list[list[int]], *, std: float, generator: torch.Generator
) -> Float[Tensor, "W D"]:
    fresh = torch.randn(len(sources), old.shape[1], generator=generator) * std
    for row, pieces in enumerate(sources):
        if pieces:
            fresh[row] = old[pieces].mean(0)
    return fresh
