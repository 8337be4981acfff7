"""Embeddings of captions that a frozen text tower need not compute twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mvcore.parts import StoredTexts


class TextCache:
    """Caption -> row of a table on the device, in float32; keeps what came first when it is full.

    What came first stays, because a run goes through its captions in turn: with more captions than room, dropping the
    oldest would drop each caption just before it comes round again.

    Args:
        width: dimensions of an embedding.
        max_bytes: how large the table may become.
    """

    def __init__(self, width: int, max_bytes: int) -> None:
        self._width = width
        self._max_rows = max_bytes // (4 * width)
        self._rows: dict[str, int] = {}
        self._table: Tensor | None = None
        self._valid_for: object = None

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Forgets everything and frees the table."""
        self._rows.clear()
        self._table = None

    def get(
        self, captions: Sequence[str], encode: Callable[[list[str]], Tensor], *, device: torch.device, valid_for: object
    ) -> Tensor:
        """(len(captions), width) float32 embeddings without gradient; only captions not in the table are encoded.

        Args:
            captions: any number, repeated or not.
            encode: gives the embeddings of a list of distinct captions.
            device: where the table is kept.
            valid_for: what the embeddings depend on; when it differs from the last call's, the table is emptied.
        """
        if valid_for != self._valid_for:
            self.clear()
            self._valid_for = valid_for
        # Leaving inference mode keeps the table usable in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            fresh = [caption for caption in dict.fromkeys(captions) if caption not in self._rows]
            embedded = encode(fresh).float() if fresh else None
            n_kept = min(len(fresh), self._max_rows - len(self._rows))
            if embedded is not None and n_kept > 0:
                self._append(fresh[:n_kept], embedded[:n_kept], device)
            if embedded is None or n_kept == len(fresh):
                assert self._table is not None
                return self._table.index_select(0, on_device([self._rows[c] for c in captions], device))
            return self._mixed(captions, fresh, embedded, device)

    def _append(self, captions: list[str], embedded: Tensor, device: torch.device) -> None:
        start, stop = len(self._rows), len(self._rows) + len(captions)
        if self._table is None or self._table.shape[0] < stop:
            size = min(self._max_rows, max(stop, 2 * start, 256))
            grown = torch.empty(size, self._width, device=device)
            if self._table is not None:
                grown[:start] = self._table[:start]
            self._table = grown
        self._table[start:stop] = embedded
        self._rows.update(zip(captions, range(start, stop), strict=True))

    def _mixed(self, captions: Sequence[str], fresh: list[str], embedded: Tensor, device: torch.device) -> Tensor:
        """Rows from the table and from what was just encoded, when the table is full."""
        position = {caption: row for row, caption in enumerate(fresh)}
        out = torch.empty(len(captions), self._width, device=device)
        new = [i for i, caption in enumerate(captions) if caption in position]
        kept = [i for i, caption in enumerate(captions) if caption not in position]
        out[on_device(new, device)] = embedded[on_device([position[captions[i]] for i in new], device)]
        if kept and self._table is not None:
            out[on_device(kept, device)] = self._table[on_device([self._rows[captions[i]] for i in kept], device)]
        return out


def with_stored(
    captions: list[str],
    stored: Sequence[StoredTexts],
    encode: Callable[[list[str]], Tensor],
    *,
    width: int,
    device: torch.device,
) -> Tensor:
    """(len(captions), width) float32 embeddings: the stored ones, and those that `encode` gives of the others."""
    out = torch.empty(len(captions), width, device=device)
    left = list(range(len(captions)))
    for lookup in stored:
        places, vectors = lookup([captions[i] for i in left])
        out[on_device([left[place] for place in places], device)] = vectors.to(device)
        found = set(places)
        left = [i for place, i in enumerate(left) if place not in found]
    if left:
        out[on_device(left, device)] = encode([captions[i] for i in left]).float()
    return out


def on_device(indices: Sequence[int], device: torch.device) -> Tensor:
    """(len(indices),) int64 on `device`; from page-locked memory, so that the step does not wait for the copy."""
    host = torch.tensor(indices, dtype=torch.int64)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
