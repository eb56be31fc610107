"""Tests never reach the hub; set before anything imports huggingface_hub, which reads it once."""

import os
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# tiny models are faster on one thread, and far faster where another process holds a core
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: as `harness.cli.kernels` sets them; nothing of ours is imported before the variables above are set
KERNELS = {
    name: os.environ.get(name) for name in ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
}


@pytest.fixture(autouse=True)
def kernels_as_they_were() -> Iterator[None]:
    """A command that holds its process to some kernels would hold the processes that later tests start."""
    _restore_kernels()  # a fixture of a module may have run such a command
    yield
    _restore_kernels()


def _restore_kernels() -> None:
    for name, value in KERNELS.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
