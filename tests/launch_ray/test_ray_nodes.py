"""How many workers a node holds, with which share of it, and what is said where none holds any."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from harness.core.errors import PrunebenchError
from harness.runner.launch import ray_crew
from harness.runner.launch.ray_board import Board
from harness.runner.launch.ray_cluster import Cluster, nodes
from harness.runner.launch.ray_crew import Crew


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name * 8, "NodeManagerHostname": name, "Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("share", "device", "workers", "expected"),
    [
        (1.0, "cuda", None, [("a", 4, 8, 1.0), ("b", 1, 16, 1.0)]),
        (0.5, "cuda", None, [("a", 8, 4, 0.5), ("b", 2, 8, 0.5)]),
        (0.7, "cuda", None, [("a", 4, 8, 0.7), ("b", 1, 16, 0.7)]),
        (1.0, "cpu", None, [("a", 1, 32, 0.0), ("b", 1, 16, 0.0), ("c", 1, 3, 0.0)]),
        (1.0, "cpu", 4, [("a", 2, 16, 0.0), ("b", 2, 8, 0.0), ("c", 2, 1, 0.0)]),
        (1.0, "cpu", 20, [("a", 7, 4, 0.0), ("b", 7, 2, 0.0), ("c", 3, 1, 0.0)]),
    ],
)
def test_workers_of_a_node(
    share: float, device: str, workers: int | None, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        node("b", CPU=16, GPU=1),
        node("a", CPU=32, GPU=4),
        node("c", CPU=3),
        node("d", memory=1e9),
        node("e", alive=False, CPU=8, GPU=8),
    ]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    said = nodes(Cluster("", share, workers), device)
    assert [(one.name.partition(" ")[0], one.slots, one.cpus, one.gpus) for one in said] == expected


def test_a_cluster_without_a_gpu_is_refused_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node("a", CPU=32)])
    monkeypatch.setattr(ray, "put", lambda what: None)
    monkeypatch.setattr(ray_crew, "JOIN_SECONDS", 0.0)
    crew = Crew(Cluster(), "cuda", {}, b"", Board({"image": [("a", "0")]}, 1), lambda _: None)
    with pytest.raises(PrunebenchError, match="expected a node with a GPU within 0 s, found none"):
        crew.look()
