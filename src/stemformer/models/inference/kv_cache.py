"""Dense key-value cache for decoding."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class KeyValueCache:
    """Dense key-value cache of S sequences, left-padded: all prompts end at the same column, and padding is masked.

    With `num_beams` (B), each sequence is continued by several beams, which share its columns: a step adds one column
    for each beam, and the mask hides from a beam all that are not of its own past. Beams that change their order
    therefore move no keys and values, only the mask.

    `shape` is the number of layers, of heads of keys (H), and the head size; `lengths` are those of the prompts, and
    `max_length` (tokens of a sequence) includes new tokens.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        lengths: Sequence[int],
        max_length: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        num_beams: int = 1,
    ) -> None:
        # Tokens of the longest sequence, of which `_prompt_length` have one column for all beams.
        self.length = self._prompt_length = max(lengths)
        self.max_length, self.num_beams = max_length, num_beams
        self._check_length()
        # Whether sequences have different lengths.
        self.has_padding = min(lengths) < self.length
        # Padding is multiplied by zero, so it must be a finite number.
        make = torch.zeros if self.has_padding else torch.empty
        num_layers, num_heads, head_size = shape
        num_columns = self.length + (max_length - self.length) * num_beams
        self._set_data(
            make((num_layers, 2, len(lengths), num_heads, num_columns, head_size), device=device, dtype=dtype)
        )
        self._starts = self.length - torch.tensor(lengths, device=device)  # (S,)
        self._mask: Tensor | None = None  # (S, B, columns), -inf for what a beam does not see
        if self.has_padding or num_beams > 1:
            columns, beams = torch.arange(num_columns, device=device), torch.arange(num_beams, device=device)
            is_other = (columns >= self.length) & (
                (columns - self.length) % num_beams != beams[:, None]
            )  # (B, columns)
            is_hidden = (columns < self._starts[:, None, None]) | is_other
            self._mask = torch.zeros(is_hidden.shape, device=device, dtype=dtype).masked_fill(is_hidden, -torch.inf)

    def _set_data(self, data: Tensor) -> None:
        self._data, by_head = data, data.flatten(2, 3)  # (L, 2, S, H, columns, K), (L, 2, S * H, columns, K)
        self._writable = data.permute(0, 2, 4, 1, 3, 5)  # (L, S, columns, 2, H, K)
        self._keys, self._values = by_head[:, 0].mT, by_head[:, 1]

    def _check_length(self) -> None:
        if self.length > self.max_length:
            raise ValueError(f"{self.length} tokens exceed the cache's max_length of {self.max_length}.")

    @property
    def _num_columns(self) -> int:
        """Number of columns in use."""
        return self._prompt_length + (self.length - self._prompt_length) * self.num_beams

    @property
    def positions(self) -> Int[Tensor, "R"]:
        """Position of the next token of each beam of each sequence."""
        positions = self.length - self._starts
        return positions if self.num_beams == 1 else positions.repeat_interleave(self.num_beams)

    def prompt_slots(self, positions: Int[Tensor, "N"]) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """Return each layer's writable block (S, P, 2, H, K), and each prompt token's sequence and column (N,)."""
        lengths = self.length - self._starts
        sequences = torch.arange(len(lengths), device=positions.device).repeat_interleave(lengths)
        return self._writable.unbind(), (sequences, positions + self._starts[sequences])

    def prompt(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield what `grow` does for the columns of prompts of equal length, P of each sequence."""
        return self._blocks(0, self._prompt_length)

    def grow(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Add a column for the next token of each beam.

        Yield for each layer where to write the new keys and values, (S, B, 2, H, K), and the keys
        (S * H, K, P) and values (S * H, P, K) of all P columns, the new ones included.
        """
        first, self.length = self._num_columns, self.length + 1
        self._check_length()
        return self._blocks(first, self.num_beams)

    def _blocks(self, first: int, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        new, keys = self._writable.narrow(2, first, number), self._keys.narrow(3, 0, first + number)
        values = self._values.narrow(2, 0, first + number)
        return zip(new.unbind(), keys.unbind(), values.unbind(), strict=True)

    def mask(self) -> Float[Tensor, "S B P"] | None:
        """Return the attention bias of all columns in use; None where all of them are seen."""
        return None if self._mask is None else self._mask[..., : self._num_columns]

    def select(self, sequences: Int[Tensor, "Q"]) -> None:
        """Keep these sequences in this order."""
        used = self._data.narrow(4, 0, self._num_columns)
        keep_rows(used, sequences, dim=2)
        self._set_data(self._data.narrow(2, 0, len(sequences)))
        self._starts = self._starts.index_select(0, sequences)
        if self._mask is not None:
            self._mask = keep_rows(self._mask, sequences)

    def reorder(self, parents: Int[Tensor, "S B"]) -> None:
        """Let each beam continue a beam of its sequence."""
        if self._mask is not None and self.num_beams > 1:
            past = self._mask[..., self._prompt_length : self._num_columns]
            past.copy_(past.gather(1, parents[..., None].expand_as(past)))


def keep_rows(x: Shaped[Tensor, "..."], rows: Int[Tensor, "Q"], dim: int = 0) -> Shaped[Tensor, "..."]:
    """Return these rows of `x`, moved to its front in place; only those that change their index are copied."""
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
    if len(moved):
        x.index_copy_(dim, moved, x.index_select(dim, rows[moved]))
    return x.narrow(dim, 0, len(rows))
