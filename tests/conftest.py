"""Tests never reach the hub; set before anything imports huggingface_hub, which reads it once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# tiny models are faster on one thread, and far faster where another process holds a core
os.environ.setdefault("OMP_NUM_THREADS", "1")
