"""Pages of layers that keep a state of fixed size a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.ops.backend import Pages
from quire.ops.shapes import DeltaShape


@dataclass(frozen=True)
class StatePages(Pages):
    """States of one layer: a page holds that after its last computed token, and at its end that of a whole prefix.

    So a page that is full can be shared like one of keys and values. Each page has two places, written in turns: a
    step that is computed again finds the state that it began with.

    ``k [pages, 2, channels, kernel - 1]``: what the convolution needs of earlier tokens, ``v [pages, 2, heads, K, V]``:
    the state of each head, both float32; ``position``: the token after which this is the state.
    """

    position: torch.Tensor  # [pages, 2] int64

    @classmethod
    def new(cls, shape: DeltaShape, num_pages: int, page_size: int, device: torch.device) -> StatePages:
        inputs = torch.empty((num_pages, 2, shape.channels, shape.kernel - 1), device=device)
        state = torch.empty((num_pages, 2, shape.value_heads, shape.key_dim, shape.value_dim), device=device)
        return cls(inputs, state, page_size, torch.full((num_pages, 2), -1, device=device))

    def place(self, page: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Where in ``page [S]`` the state after token ``position [S]`` is, if anywhere."""
        return (self.position[page, 0] != position).long()

    def found(self, page: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Whether ``page`` has that state; a sequence's beginning is always had."""
        return (self.position[page, self.place(page, position)] == position) | (position < 0)

    def load(self, page: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and states after token ``position`` (-1: the beginning); not-a-number where they are not had."""
        place = self.place(page, position)
        fill = torch.where(self.found(page, position), 0.0, torch.nan)
        inside = (position >= 0) & self.found(page, position)
        inputs, state = self.k[page, place], self.v[page, place]
        return (
            torch.where(inside[:, None, None], inputs, fill[:, None, None]),
            torch.where(inside[:, None, None, None], state, fill[:, None, None, None]),
        )

    def save(
        self, page: torch.Tensor, source: torch.Tensor, before: torch.Tensor, position: torch.Tensor,
        inputs: torch.Tensor, state: torch.Tensor,
    ) -> None:  # fmt: skip
        """Write the state after ``position`` to ``page``, beside that after ``before`` if that is there too."""
        entered = (page != source) | (before < 0)
        place = torch.where(entered, 0, 1 - self.place(source, before))
        self.position[page[entered], 1] = -1  # whatever an earlier sequence left there
        self.position[page, place] = position
        self.k[page, place] = inputs
        self.v[page, place] = state


def state_pages(pages: Pages) -> StatePages:
    """``pages`` if they hold states; raises otherwise."""
    if not isinstance(pages, StatePages):
        raise TypeError(f"These pages hold no states ({type(pages).__name__}).")
    return pages
