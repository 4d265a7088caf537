"""Dense key-value cache for decoding."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KeyValueCache:
    """Dense key-value cache of S sequences, left-padded: all end at the same column, and padding is masked.

    `shape` is the number of layers, of heads of keys (H), and the head size; `lengths` are those of the
    prompts, `max_length` (columns to allocate) includes new tokens, and `length` is the number of
    columns in use.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        lengths: Sequence[int],
        max_length: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.length, self.max_length = max(lengths), max_length
        self._check_length()
        # Whether sequences have different lengths.
        self.has_padding = min(lengths) < self.length
        # Padding is multiplied by zero, so it must be a finite number.
        make = torch.zeros if self.has_padding else torch.empty
        num_layers, num_heads, head_size = shape
        sizes = (num_layers, 2, len(lengths), num_heads, max_length, head_size)
        self._set_data(make(sizes, device=device, dtype=dtype))
        self._starts = self.length - torch.tensor(lengths, device=device)  # (S,)
        self._mask: Tensor | None = None  # (S, 1, 1, max_length), -inf for padding
        if self.has_padding:
            is_padding = torch.arange(max_length, device=device) < self._starts[:, None, None, None]
            self._mask = torch.zeros(is_padding.shape, device=device, dtype=dtype).masked_fill(is_padding, -torch.inf)

    def _set_data(self, data: Tensor) -> None:
        self._data, by_head = data, data.flatten(2, 3)  # (L, 2, S, H, max_length, K), (L, 2, S * H, max_length, K)
        self._writable = data.permute(0, 2, 4, 1, 3, 5)  # (L, S, max_length, 2, H, K)
        self._keys, self._values = by_head[:, 0].mT, by_head[:, 1]

    def _check_length(self) -> None:
        if self.length > self.max_length:
            raise ValueError(f"{self.length} tokens exceed the cache's max_length of {self.max_length}.")

    @property
    def positions(self) -> Int[Tensor, "S"]:
        """Position of each sequence's next token."""
        return self.length - self._starts

    def prompt_slots(self, positions: Int[Tensor, "N"]) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """Return each layer's writable block (S, P, 2, H, K), and each prompt token's sequence and column (N,)."""
        lengths = self.positions
        sequences = torch.arange(len(lengths), device=positions.device).repeat_interleave(lengths)
        return self._writable.unbind(), (sequences, positions + self._starts[sequences])

    def grow(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Add a column for the next token of each sequence.

        Yield for each layer where to write the new keys and values, (S, 2, H, K), and the keys
        (S * H, K, P) and values (S * H, P, K) of all P columns, the new one included.
        """
        column, self.length = self.length, self.length + 1
        self._check_length()
        new, keys = self._writable.select(2, column), self._keys.narrow(3, 0, self.length)
        values = self._values.narrow(2, 0, self.length)
        return zip(new.unbind(), keys.unbind(), values.unbind(), strict=True)

    def mask(self) -> Float[Tensor, "S 1 1 P"] | None:
        """Return the attention bias of all columns in use; None without padding."""
        return None if self._mask is None else self._mask[..., : self.length]

    def select(self, rows: Int[Tensor, "R"]) -> None:
        """Keep these sequences in this order, repeats allowed; more than before reallocate."""
        if torch.equal(rows, torch.arange(len(self._starts), device=rows.device)):
            return
        used = self._data.narrow(4, 0, self.length).index_select(2, rows)
        layers, two, sequences, *sizes = self._data.shape
        fits = len(rows) <= sequences
        self._set_data(self._data[:, :, : len(rows)] if fits else used.new_empty(layers, two, len(rows), *sizes))
        self._data.narrow(4, 0, self.length).copy_(used)
        self._starts = self._starts.index_select(0, rows)
        if self._mask is not None:
            self._mask = self._mask.index_select(0, rows)
