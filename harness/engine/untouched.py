"""A method reads the model and never changes it: what is compared before an answer is given, and when `attach` ends."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from harness.core.errors import PrunebenchError

#: models that were found changed, and by which method: none of them answers again
_CHANGED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class _Kept(NamedTuple):
    """A tensor of a checkpoint as it was: which one, where its numbers lie, and how often they were written."""

    tensor: Tensor
    place: int
    version: int


class Untouched:
    """A model as it was found. Raises PrunebenchError for one that was changed before.

    Version counters cost nothing to compare. Writing through `.data` passes them by; the conformance kit compares
    every number.
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        if model in _CHANGED:
            raise PrunebenchError(_CHANGED[model])
        self._model, self._method = model, method
        self._weights = _weights(model)
        self._modes = {name: module.training for name, module in model.named_modules()}

    def check(self) -> None:
        """Raise PrunebenchError naming the method and the first tensor or module that differs."""
        self.look()
        if self._model in _CHANGED:
            raise PrunebenchError(_CHANGED[self._model])

    def look(self) -> None:
        """Remember a change, where another error is on its way."""
        found = self._difference()
        if found is not None:
            _CHANGED.setdefault(
                self._model,
                f"{self._method} changed the model: {found}. A method reads the model and returns orders. Load the"
                " model again before anything else is measured with it",
            )

    def _difference(self) -> str | None:
        now = _weights(self._model)
        if now.keys() != self._weights.keys():
            return f"{min(now.keys() ^ self._weights.keys())} came or went"
        for name, was in self._weights.items():
            if now[name].tensor is not was.tensor or now[name].place != was.place:
                return f"{name} is another tensor"
            if now[name].version != was.version:
                return f"{name} was written in place"
        modes = {name: module.training for name, module in self._model.named_modules()}
        if modes != self._modes:
            name = min(name for name in modes.keys() | self._modes if modes.get(name) != self._modes.get(name))
            return f"the module {name or 'itself'} is in another mode, or another module"
        return None


def _weights(model: nn.Module) -> dict[str, _Kept]:
    """What a checkpoint of the model would hold, by name; tables that a model computes anew are not among them."""
    return {
        name: _Kept(tensor, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
