"""A sweep on two raylets gives what it gives in this process; addresses and options that do not fit are refused."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from raylets import assert_equal, counts, journalled, over_ray, plan, raylets

from harness.core.errors import PrunebenchError
from harness.runner import sweep
from harness.runner.launch import ray_cluster
from harness.runner.launch.ray_actor import different
from harness.runner.launch.ray_cluster import Cluster, chosen, connected
from harness.runner.run import Options


def test_two_raylets_measure_what_this_process_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = plan(tmp_path / "work", 24)
    sweep.run(wanted, Options(tmp_path / "alone"), lambda _: None)
    plan(tmp_path / "work", 24, meet="2")
    with raylets(1, 1) as cluster, journalled(monkeypatch) as found:
        said = over_ray(cluster, wanted, tmp_path / "spread", chunk=1)
    assert_equal(tmp_path / "spread", tmp_path / "alone")
    assert set(found.values()) == {1}, "no answer went to a journal twice"
    n = sum(found.values())
    assert sum(counts(said)) == n
    assert [one > n / 5 for one in counts(said)] == [True, True], said


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(PrunebenchError, match=r"executor='ray': .*pip install 'prunebench\[ray\]'"),
        connected(Cluster()),
    ):
        pass


def test_an_address_where_nothing_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 2.0)
        expected = f"address='{address}': .*ray start --head"
        with pytest.raises(PrunebenchError, match=expected), connected(Cluster(address)):
            pass


@pytest.mark.parametrize("address", ["ray://host:10001", "host", "host:port", "a b:1"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(PrunebenchError, match="expected auto or HOST:PORT"):
        Cluster(address)


@pytest.mark.parametrize("share", [0.0, -1.0, 2.0, float("nan")])
def test_a_worker_has_one_gpu_or_a_share(share: float) -> None:
    with pytest.raises(PrunebenchError, match="expected 1, or a share of a GPU above 0"):
        Cluster(gpus_per_worker=share)


def test_what_differs_is_named() -> None:
    assert different({"torch": "2.12", "code": "ab"}, {"code": "ab", "torch": "2.13"}) == (
        "torch: expected 2.12, found 2.13"
    )
    assert different({"code": "ab"}, {"code": "ab"}) == ""


def test_the_words_of_a_command_name_a_cluster() -> None:
    assert chosen("ray", "auto", 0.5, 3) == Cluster("auto", 0.5, 3)
    assert chosen("processes", "", 1.0, 3) is None
    with pytest.raises(PrunebenchError, match="unknown executor 'rai'; did you mean 'ray'"):
        chosen("rai", "", 1.0, None)
    for words, said in (("auto", 1.0), "address='auto'"), (("", 0.5), "gpus_per_worker=.*0.5"):
        with pytest.raises(PrunebenchError, match=f"{said}.* is for executor='ray': give both, or neither"):
            chosen("processes", *words, None)
