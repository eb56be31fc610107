"""Answers on disk: journals, sealed cells, leases and their verification. No torch."""
