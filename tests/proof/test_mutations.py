"""Every seeded fault is caught by the conformance kit or by a recorded official run."""

import pytest

from harness.core.errors import PrunebenchError
from harness.proof import faults
from harness.proof.faults import (
    FAULTS,
    Caught,
    Fault,
    failing_cases,
    failing_properties,
    markdown,
    seeded,
    try_fault,
    try_sound,
)


@pytest.mark.parametrize(
    # those of shared prefixes are quick, and neither the kit nor a recorded run sees them
    "fault",
    [pytest.param(f, id=f.name, marks=[] if f.sharing else [pytest.mark.slow]) for f in FAULTS],
)
def test_fault_is_caught(fault: Fault) -> None:
    caught = try_fault(fault)
    assert not caught.survived
    # the fault is gone again
    assert failing_cases(fault.cases[:1]) == ()


@pytest.mark.slow
def test_nothing_fails_without_a_fault() -> None:
    try_sound()


def test_each_method_is_tried_once_without_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    for name in ("failing_properties", "failing_sharing", "failing_cases"):
        monkeypatch.setattr(faults, name, lambda *subject, name=name: tried.append((name, *subject)) or ())
    try_sound()
    assert 10 < len(tried) < len(FAULTS)
    assert all(one not in tried[:n] for n, one in enumerate(tried))


def test_there_are_at_least_twenty_and_no_name_twice() -> None:
    assert len({f.name for f in FAULTS}) == len(FAULTS) >= 20


@pytest.mark.parametrize("fault", FAULTS, ids=[f.name for f in FAULTS])
def test_fault_still_fits_the_code(fault: Fault) -> None:
    with seeded(fault):
        pass


def test_one_fault_quickly() -> None:
    fault = next(f for f in FAULTS if f.name.startswith("top-k ascending"))
    assert try_fault(fault).kit == ("most attended token kept",)
    assert failing_properties(fault.method, fault.knobs) == ()


def test_a_fault_that_no_longer_fits_is_refused_and_a_survivor_is_shown() -> None:
    fault = Fault("harmless", "harness.method.ranking:keep_top", "no such text", "", "fastv")
    with (
        pytest.raises(
            PrunebenchError,
            match=r"expected 'no such text' once in harness\.method\.ranking:keep_top, found it 0 times",
        ),
        seeded(fault),
    ):
        pass
    table = markdown([Caught(fault, (), ())])
    assert "0 of 1 faults caught" in table
    assert "**SURVIVED**" in table
