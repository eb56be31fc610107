"""The entry point that lmms-eval loads; behind the check of `prunebench`, for lmms-eval only logs an import that
fails."""

from harness.plugin import manifests

__all__ = ["manifests"]
