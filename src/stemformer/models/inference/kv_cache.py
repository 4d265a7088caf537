"""A GPT that reads on: each token is looked at once, and its keys and values are kept for those that follow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KeyValueCache:
    """Keys and values of all tokens seen so far, for decoding: dense, with room for the longest text, written in place.

    All texts end at the same place: shorter ones begin later, after places that nothing looks at.

    Args:
        num_layers: L.
        lengths: Tokens of each of S texts that are read first, together.
        room: Places, as many as the longest text may need.
        num_heads: H.
        head_size: K.
        device: Where it lies.
        dtype: Of keys and values.

    Attributes:
        longest: Places taken so far.
        room: All that there are.

    Raises:
        ValueError: There is no room for the texts.
    """

    def __init__(
        self,
        num_layers: int,
        lengths: Sequence[int],
        room: int,
        num_heads: int,
        head_size: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.longest, self.room = max(lengths), room
        self._check_room()
        is_even = min(lengths) == self.longest
        make = torch.empty if is_even else torch.zeros  # what is hidden is multiplied by zero, so it must be a number
        self._keep(make(num_layers, 2, len(lengths), num_heads, room, head_size, device=device, dtype=dtype))
        self._begins = self.longest - torch.tensor(lengths, device=device)  # (S,)
        self._hidden: Tensor | None = None  # (S, 1, 1, room), -inf before a text begins
        if not is_even:
            before = torch.arange(room, device=device) < self._begins[:, None, None, None]
            self._hidden = torch.zeros(before.shape, device=device, dtype=dtype).masked_fill(before, -torch.inf)

    def _keep(self, kept: Tensor) -> None:
        self._kept, by_head = kept, kept.flatten(2, 3)  # (L, 2, S, H, room, K), (L, 2, S * H, room, K)
        self._new = kept.permute(0, 2, 4, 1, 3, 5)  # what each step takes slices of
        self._keys, self._values = by_head[:, 0].mT, by_head[:, 1]

    def _check_room(self) -> None:
        if self.longest > self.room:
            raise ValueError(f"{self.longest} tokens for a cache of {self.room}")

    @property
    def is_even(self) -> bool:
        """Whether all texts are of one length."""
        return self._hidden is None

    @property
    def positions(self) -> Int[Tensor, "S"]:
        """Place of each text's next token in its text."""
        return self.longest - self._begins

    def first_places(
        self, places: Int[Tensor, "N"]
    ) -> tuple[tuple[Float[Tensor, "S room 2 H K"], ...], tuple[Int[Tensor, "N"], Int[Tensor, "N"]]]:
        """Returns for each layer where keys and values of the texts go that are read first, and at which text and place of it each token's.

        Args:
            places: Of each token in its text, all texts one after the other.
        """
        lengths = self.positions
        texts = torch.arange(len(lengths), device=places.device).repeat_interleave(lengths)
        return self._new.unbind(), (texts, places + self._begins[texts])

    def grow(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Takes a place for the next token of each text.

        Returns:
            For each layer, where keys and values of the new tokens go, (S, 2, H, K), and the keys (S * H, K, P) and values
            (S * H, P, K) of all places up to theirs.

        Raises:
            ValueError: There is no room for them.
        """
        place, self.longest = self.longest, self.longest + 1
        self._check_room()
        new, keys = self._new.select(2, place), self._keys.narrow(3, 0, self.longest)
        values = self._values.narrow(2, 0, self.longest)
        return zip(new.unbind(), keys.unbind(), values.unbind(), strict=True)

    def mask(self) -> Float[Tensor, "S 1 1 P"] | None:
        """Returns what is added to the scores of all places taken so far; None where each text sees them all."""
        return None if self._hidden is None else self._hidden[..., : self.longest]

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Keeps these texts, in this order; one may be kept several times. Memory is taken only where there are more than before."""
        if torch.equal(rows, torch.arange(len(self._begins), device=rows.device)):
            return
        seen = self._kept.narrow(4, 0, self.longest).index_select(2, rows)
        sizes = list(self._kept.shape)
        fewer = len(rows) <= sizes[2]
        self._keep(self._kept.narrow(2, 0, len(rows)) if fewer else seen.new_empty(*sizes[:2], len(rows), *sizes[3:]))
        self._kept.narrow(4, 0, self.longest).copy_(seen)
        self._begins = self._begins.index_select(0, rows)
        if self._hidden is not None:
            self._hidden = self._hidden.index_select(0, rows)


@dataclass(frozen=True)
class PromptCache:
    """Keys and values of texts that were read, flat, so that several texts may go on from each of them.

    Attributes:
        keys: Of each layer (N, H, K).
        values: Likewise.
        cu_seqlens: int32 offsets at which the texts begin, the last entry N.
    """

    keys: list[Tensor]
    values: list[Tensor]
    cu_seqlens: Int[Tensor, "S1"]
