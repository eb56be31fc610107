"""One set of CPU kernels for commands that compare numbers across machines."""

from __future__ import annotations

import os
import platform

#: read by torch, MKL and oneDNN when torch is imported
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def hold() -> None:
    """Hold this process and those that it starts to AVX2 kernels on x86, whatever the processor has; call it before
    torch is imported. What the environment already says stays.

    VisPruner's set hangs on the last bit of its features: AVX-512 kernels of some processors give other sets.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        for name, value in AVX2.items():
            os.environ.setdefault(name, value)
