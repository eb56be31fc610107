"""What a method's hooks raise, and what the engine or the runner then says of it."""

from __future__ import annotations

from typing import Any

from harness.core.errors import PrunebenchError


class ScoresError(PrunebenchError):
    """Scores that cannot be ranked, in `row` of the batch; found where tokens are selected, the engine says by whom and
    where."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


class PictureError(PrunebenchError):
    """A picture that cannot be shrunk so far: `asked` visual tokens at most were asked, and `fewest` are in reach."""

    def __init__(self, asked: int, fewest: int, message: str) -> None:
        super().__init__(message)
        self.asked, self.fewest = asked, fewest

    def __reduce__(self) -> tuple[Any, ...]:  # an exception pickles its message alone
        return type(self), (self.asked, self.fewest, str(self))
