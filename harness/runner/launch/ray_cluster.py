"""A Ray cluster that is joined or started: its address, its nodes, and how many workers each of them holds."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.core.errors import Interrupted, PrunebenchError, unknown
from harness.core.spelling import given
from harness.runner.launch.processes import threads_each

EXECUTORS = ("processes", "ray")
#: seconds in which a cluster's address answers
CONNECT_SECONDS = 10.0
#: bytes of shared memory of a Ray that is started here: answers are small
STORE_BYTES = 200 << 20


@dataclass(frozen=True)
class Cluster:
    """Where to run. `address` "": a Ray of our own on this machine; "auto": the one that runs here; else HOST:PORT.
    `gpus_per_worker`: a share below 1 puts several workers on one GPU. `workers`: at most that many, None: all that
    fit. Raises PrunebenchError for an address or a share that cannot be."""

    address: str = ""
    gpus_per_worker: float = 1.0
    workers: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(auto|[^\s/]+:[0-9]{1,5})?", self.address):
            raise PrunebenchError(
                f"{given('address', self.address)}: expected auto or HOST:PORT, as in 10.0.0.1:6379; `ray start --head`"
                " prints it"
            )
        if not 0 < self.gpus_per_worker <= 1:
            raise PrunebenchError(
                f"{given('gpus_per_worker', self.gpus_per_worker)}: expected 1, or a share of a GPU above 0: a model is"
                " held by one GPU"
            )


def chosen(executor: str, address: str, gpus_per_worker: float, workers: int | None) -> Cluster | None:
    """The cluster that the words of a command mean; None: processes of this machine. Raises PrunebenchError where they
    do not go together, and as `Cluster`."""
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if executor == "ray":
        return Cluster(address, gpus_per_worker, workers)
    for name, value, default in (("address", address, ""), ("gpus_per_worker", gpus_per_worker, 1.0)):
        if value != default:
            raise PrunebenchError(f"{given(name, value)} is for {given('executor', 'ray')}: give both, or neither")
    return None


class Node(NamedTuple):
    """A node that lives. `slots`: workers that it holds; `cpus` and `gpus`: of each of them."""

    id: str
    name: str
    slots: int
    cpus: int
    gpus: float


def nodes(cluster: Cluster, device: str) -> list[Node]:
    """The nodes that can hold workers on "cuda", or on "cpu": there one a node, or as many as `workers` wants."""
    import ray

    kind, each = ("GPU", cluster.gpus_per_worker) if device == "cuda" else ("CPU", 1.0)
    fitting = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get(kind, 0) >= each]
    found = []
    for node in sorted(fitting, key=lambda n: str(n["NodeID"])):
        resources = node["Resources"]
        # a share is one of one GPU: 4 GPUs hold 4 workers of 0.7 each
        slots = int(resources[kind]) * int(1 / each + 1e-9)
        if device == "cpu":
            slots = min(slots, -(-(cluster.workers or 1) // len(fitting)))
        name = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        gpus = each if device == "cuda" else 0.0
        found.append(Node(node["NodeID"], name, slots, int(resources.get("CPU", 0)) // slots, gpus))
    return found


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Be a driver of the cluster inside. Raises PrunebenchError where Ray is not installed or the address does not
    answer."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise PrunebenchError(
            f"{given('executor', 'ray')}: expected the package ray, found none: `pip install 'prunebench[ray]'`"
        ) from None
    started: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": threads_each(1),
        "object_store_memory": STORE_BYTES,
    }
    joined = {"address": _reached(cluster.address)} if cluster.address else started
    # Ray takes SIGTERM from the command, which writes what was answered
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**joined, logging_level="error")
    except SystemExit:  # Ray's own answer to SIGTERM while it connects
        if main and callable(before):
            before(signal.SIGTERM, None)
        raise
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise PrunebenchError(_unreached(cluster.address, str(error))) from None
    try:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)
        yield
    except SystemError as error:  # how a compiled call of Ray ends in which a signal raised
        if isinstance(error.__cause__, Interrupted):
            raise error.__cause__ from None
        raise
    finally:
        ray.shutdown()


def _reached(address: str) -> str:
    """HOST:PORT of what answers there: Ray itself tries for minutes where nothing does."""
    from ray._private import services  # no public function says which address "auto" is

    try:
        found = str(services.canonicalize_bootstrap_address_or_die(address))
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise PrunebenchError(_unreached(address, str(error))) from None
    return found


def _unreached(address: str, why: str) -> str:
    if not address:
        return f"Ray does not start on this machine: {why.strip()}"
    return (
        f"{given('address', address)}: expected a Ray cluster with a node on this machine, found none"
        f" ({why.strip()[:300]}): start one with `ray start --head`, or leave {given('address')} out"
    )
