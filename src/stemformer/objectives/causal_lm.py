"""Causal language modelling: from each token and all before it, what comes next; or read backwards, what came before.

Source: Radford et al. 2018, section 3.1.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.packing import PackedDataset, RawExample, TokenStream, make_token_stream, pack_documents
from stemformer.data.shards.reader import Shards
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, linear_cross_entropy_sum


@dataclass(frozen=True)
class CausalLmConfig:
    """How text is read; whatever is chosen, each token is asked for once an epoch, and one end for each document.

    Attributes:
        direction: `backward` reads each text from its end to its beginning. A saved model does not tell: its folder is that of any GPT-2,
            whose ids then come in reverse.
        documents: `apart`, in pieces that do not see each other, cut at sentence ends where possible; or joined to a `stream` that is cut
            wherever a row is full, in which a token sees all of its row, whatever document that is of.
    """

    direction: Literal["forward", "backward"] = "forward"
    documents: Literal["apart", "stream"] = "apart"


class CausalLm:
    """The causal-LM objective, on rows of pieces of documents that do not see each other, or on rows of their stream.

    The token that ends a document stands before each piece, so that its first token is asked for too; it is asked for itself where the
    document ends with the piece (read backwards: begins with it). So every token of the corpus is scored exactly once an epoch, and one
    end for each document; in a stream too.

    Args:
        config: Direction, and what becomes of documents.
        end: Id of the token that ends a document.
    """

    heads: tuple[str, ...] = ("causal_lm",)

    def __init__(self, config: CausalLmConfig, *, end: int) -> None:
        self.config = config
        self.end = end

    def make_examples(self, shards: Shards, row_length: int) -> PackedDataset | TokenStream:
        """Returns the examples of a split: rows of pieces, each with one token before it, or rows of a stream."""
        if self.config.documents == "stream":
            return make_token_stream(shards, row_length=row_length, end=self.end)
        return pack_documents(shards, row_length=row_length, num_special=1)

    def corrupt(self, passage: RawExample, rng: np.random.Generator) -> Example:
        """Returns what the model reads, and what is asked of it at each place; nothing is random.

        Args:
            passage: What `make_examples(...).get_example` gave.
            rng: Not used.
        """
        is_backward = self.config.direction == "backward"
        tokens = passage.tokens[::-1] if is_backward else passage.tokens
        if self.config.documents == "stream":
            n = len(tokens) - 1
            return Example(tokens[:n], lengths=np.array([n]), label_positions=np.arange(n), labels=tokens[1:])
        assert passage.begins is not None and passage.ends is not None, "a passage of rows"
        lengths = passage.lengths[::-1] if is_backward else passage.lengths
        has_end = passage.begins[::-1] if is_backward else passage.ends
        sizes = lengths + 1
        stops = np.cumsum(sizes)
        starts = stops - sizes
        is_first = np.zeros(int(stops[-1]), bool)
        is_first[starts] = True
        input_ids = np.full(len(is_first), self.end, np.int64)
        input_ids[~is_first] = tokens
        labels = np.append(input_ids[1:], self.end)
        labels[stops - 1] = self.end
        is_scored = np.ones(len(is_first), bool)
        is_scored[stops[~has_end] - 1] = False
        places = np.flatnonzero(is_scored)
        return Example(input_ids, lengths=sizes, label_positions=places, labels=labels[places])

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many places of a batch are scored, by the name of the loss."""
        return {"causal_lm": len(batch.labels)}

    def places(self, batch: Batch) -> Int[Tensor, "M"]:
        """Returns the tokens of a batch whose states are needed: the scored ones."""
        return batch.label_positions

    def loss(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> dict[str, LossSum]:
        """Returns the summed loss of a batch from the states of its places."""
        return {"causal_lm": linear_cross_entropy_sum(*model.before_causal_lm_scores(states), batch.labels)}

    def scores(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> Float[Tensor, "M V"]:
        """Returns the score of each word at each scored place of a batch, from the states of its places."""
        return model.causal_lm_logits(states)
