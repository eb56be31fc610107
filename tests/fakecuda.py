"""A pretend CUDA device for machines without one: its tensors say cuda:0 and hold CPU data.

It finds two kinds of faults that a CPU hides. Mixing devices raises, as a GPU does. Every time the host waits for the
device is written down: a *read* takes a value from it (`.tolist()`, `bool(tensor)`, `nonzero`, a boolean index), an
*upload* copies host memory to it, which also waits until its queue has run empty. Speed, memory, kernels and rounding
are still the CPU's.

    with fakecuda.device() as gpu:
        model = gpu.moved(model)
        model(**gpu.moved(inputs))
    gpu.waits
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda:0")
#: operators that wait for the device because the size or the value of their result depends on data
READS = {
    "_local_scalar_dense",
    "equal",
    "allclose",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "multinomial",
    "repeat_interleave",
    "linalg_inv_ex",
    "linalg_solve_ex",
    "linalg_cholesky_ex",
    "linalg_eigh",
    "linalg_svd",
}
COPIES = {"copy_", "_to_copy"}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
#: operators beside pointwise ones that take a CPU tensor without dimensions as a number
TAKE_NUMBERS = {
    "masked_fill",
    "masked_fill_",
    "fill",
    "fill_",
    "where",
    "scatter",
    "scatter_",
    "full_like",
    "index_put",
    "index_put_",
}
ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(f"{ROOT / folder}/" for folder in ("harness", "methods", "tests/examples"))


@dataclass(frozen=True)
class Wait:
    """The host waited: `kind` is "read" or "upload", `where` the innermost line of ours or of transformers, `phase`
    what was set."""

    kind: str
    op: str
    where: str
    ours: bool
    phase: Any


class FakeTensor(torch.Tensor):
    """Says cuda:0 and holds `held`, a CPU tensor."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> FakeTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
            requires_grad=False,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a pretend CUDA tensor was used outside the device() block that made it")

    def tolist(self) -> Any:
        assert Device.active is not None
        Device.active.wait("read", "tolist")
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory"
            " first."
        )

    __array__ = numpy

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __repr__(self, **_: Any) -> str:
        return f"FakeTensor({self.held})"


class Device(TorchDispatchMode):
    """The device while it is there, and what the host waited for. Set `phase` to tell waits apart."""

    active: Device | None = None

    def __init__(self) -> None:
        super().__init__()
        # below every other mode, so that a factory function with device="cuda" ends here and not in a CUDA kernel
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.waits: list[Wait] = []
        self.phase: Any = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():  # in inference mode, what is made of other operators comes here whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return _ran(func, args, kwargs, self)

    def wait(self, kind: str, op: str) -> None:
        where, ours = _site()
        self.waits.append(Wait(kind, op, where, ours, self.phase))

    def moved(self, what: Any) -> Any:
        """A tensor, a dict of tensors, or a copy of a model, on the device."""
        if isinstance(what, dict):
            return {key: self.moved(value) for key, value in what.items()}
        if isinstance(what, torch.Tensor):
            return FakeTensor(what)
        model = copy.deepcopy(what)
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(FakeTensor(parameter.detach()), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = FakeTensor(buffer)
        return model

    def table(self) -> str:
        """The waits by line, for people."""
        counted = Counter((w.kind, w.op, w.where) for w in self.waits if w.ours)
        return "\n".join(f"{n:4} {kind:6} {where}  [{op}]" for (kind, op, where), n in counted.most_common())


@contextmanager
def device() -> Iterator[Device]:
    """The pretend device, in inference mode: its tensors live inside the block only."""
    # as torch's own fake tensors do: torch.tensor(..., device="cuda") is then made on the CPU and copied
    lifts_only_cpu = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    torch._C._ensureCUDADeviceGuardSet()
    mode = Device()
    Device.active = mode
    try:
        # the fused kernels ask the CUDA driver for its card
        with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(), mode:
            yield mode
    finally:
        Device.active = None
        torch._C._set_only_lift_cpu_tensors(lifts_only_cpu)


def _site() -> tuple[str, bool]:
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(OURS):
            return f"{file.removeprefix(f'{ROOT}/')}:{frame.f_lineno} in {frame.f_code.co_name}", True
        if "/transformers/" in file:
            return (
                f"transformers/{file.rpartition('/transformers/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}",
                False,
            )
        frame = frame.f_back  # type: ignore[assignment]
    return "a test", False


def _on_cuda(x: object) -> bool:
    return isinstance(x, FakeTensor)


def _indices(args: Any) -> list[torch.Tensor]:
    return [i for i in args[1] if isinstance(i, torch.Tensor)]


def _ran(func: Any, args: Any, kwargs: Any, mode: Device) -> Any:
    """Run one operator on what the tensors hold, after the checks and notes of this file."""
    name = func._schema.name.removeprefix("aten::")
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    cuda, cpu = [x for x in flat if _on_cuda(x)], [x for x in flat if not _on_cuda(x)]
    named = kwargs.get("device")
    target = torch.device(named).type if named is not None else "cuda" if cuda else "cpu"
    _check_devices(func, name, args, cuda, cpu)
    generator = kwargs.get("generator")
    if target == "cuda" and generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    _note_waits(mode, name, args, bool(cuda), target)
    plain_args, plain_kwargs = tree_map(_held, args), tree_map(_held, kwargs)
    if plain_kwargs.get("pin_memory"):
        plain_kwargs["pin_memory"] = False
    out = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable and isinstance(out, torch.Tensor):
        for x in cuda:
            if x.held is out:  # type: ignore[attr-defined]
                return x
    is_view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
    # a view is an inference tensor if its base is one, whatever the mode
    with torch.inference_mode(cuda[0].is_inference() if is_view and cuda else torch.is_inference_mode_enabled()):
        return tree_map(
            lambda x: FakeTensor(x) if target == "cuda" and isinstance(x, torch.Tensor) and not _on_cuda(x) else x, out
        )


def _held(x: Any) -> Any:
    if isinstance(x, FakeTensor):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _check_devices(func: Any, name: str, args: Any, cuda: list[torch.Tensor], cpu: list[torch.Tensor]) -> None:
    if not cuda or not cpu or name in COPIES:
        return
    numbers = torch.Tag.pointwise in func.tags or name in TAKE_NUMBERS
    strange = [x for x in cpu if x.dim() > 0 or not numbers]
    if name in INDEXING and _on_cuda(args[0]):
        strange = [x for x in strange if not any(x is i for i in _indices(args))]
    if strange:
        shapes = f"{[tuple(x.shape) for x in cuda]} on cuda:0, {[tuple(x.shape) for x in strange]} on cpu"
        raise RuntimeError(f"Expected all tensors to be on the same device, found {shapes} in {name} at {_site()[0]}")


def _note_waits(mode: Device, name: str, args: Any, cuda: bool, target: str) -> None:
    if cuda and name in READS:
        mode.wait("read", name)
    elif name in INDEXING and cuda:
        given = _indices(args)
        # a mask that one number is written through becomes masked_fill
        one_number = "put" in name and args[2].numel() == 1 and len(given) == 1
        if any(i.dtype in (torch.bool, torch.uint8) and _on_cuda(i) for i in given) and not one_number:
            mode.wait("read", name)
        for index in given:
            if not _on_cuda(index) and index.dim() > 0:
                mode.wait("upload", name)
    elif name in COPIES:
        goes_to = ("cuda" if _on_cuda(args[0]) else "cpu") if name == "copy_" else target
        comes_from = args[1] if name == "copy_" else args[0]
        if comes_from.numel() and _on_cuda(comes_from) and goes_to == "cpu":
            mode.wait("read", name)
        if comes_from.numel() and not _on_cuda(comes_from) and goes_to == "cuda":
            mode.wait("upload", name)
