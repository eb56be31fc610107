"""The list of methods with settings that all suites use is whole: no method, and nothing that the gate or a seeded
fault reaches, is missing."""

from __future__ import annotations

import pytest
from methods_with_settings import SETTINGS, WITH_KNOBS, MethodSetting, reached, shipped

from harness.core.paths import TOP as REPOSITORY
from harness.core.shape import SHAPES
from harness.proof.conformance import subject
from harness.proof.faults import FAULTS
from harness.proof.gate.command import CONFIG
from harness.runner import sweep

LISTED = set().union(*(reached(s.method, s.knobs) for s in SETTINGS.values()))


def missing(settings: dict[str, MethodSetting]) -> set[str]:
    """The shipped methods that a list lacks in the suites that take long, which need a setting of each."""
    return shipped().keys() - {s.method for s in settings.values() if s.everywhere and not s.knobs}


def test_every_shipped_method_is_in_the_list() -> None:
    assert missing(SETTINGS) == set()
    assert missing({label: s for label, s in SETTINGS.items() if s.method != "fastv"}) == {"fastv"}
    assert {s.method for s in SETTINGS.values()} == shipped().keys()


def test_every_method_with_published_defaults_is_listed_at_them() -> None:
    takes = {name for name, cls in shipped().items() if "native" in subject.Subject(cls, {}).variants()}
    assert {s.method for s in SETTINGS.values() if s.budget == "native" and not s.knobs} == takes


def test_what_the_gate_measures_is_in_the_list() -> None:
    plan = sweep.load(REPOSITORY / CONFIG)
    asked = set().union(*(reached(e.method, e.knobs) for e in plan.methods))
    assert asked, "the gate sets knobs"
    assert asked - LISTED == set()


def test_what_a_seeded_fault_is_looked_for_in_is_in_the_list() -> None:
    faults = [fault for fault in FAULTS if fault.method in shipped()]
    assert {fault.method for fault in faults} <= {s.method for s in SETTINGS.values()}
    asked = set().union(*(reached(fault.method, fault.knobs) for fault in faults))
    assert asked, "faults set knobs"
    assert asked - LISTED == set()


@pytest.mark.parametrize("label", WITH_KNOBS)
def test_a_setting_differs_from_the_methods_defaults(label: str) -> None:
    setting, prompt = WITH_KNOBS[label], SHAPES["llava-1.5-7b"].with_text(40)
    cls = shipped()[setting.method]
    usual = "count" if isinstance(cls.usual_budget, int) else cls.usual_budget
    plain = setting._replace(knobs={}, budget=setting.budget or (usual if cls.budget_knobs else ""))
    assert setting.build(64, prompt) != plain.build(64, prompt)


def test_no_setting_stands_twice() -> None:
    assert len({(s.method, s.budget, repr(sorted(s.knobs.items()))) for s in SETTINGS.values()}) == len(SETTINGS)
