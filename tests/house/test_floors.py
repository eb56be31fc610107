""".ci/floors and .ci/run try the lowest declared versions and the hashed files."""

from harness.core import tested
from harness.core.paths import TOP

RUN = (TOP / ".ci/run").read_text()


def test_ci_runs_the_floors_and_installs_locked() -> None:
    assert "\n.ci/floors\n" in RUN
    assert "\nmake venv LOCKED=1\n" in RUN
    assert (TOP / ".ci/floors").stat().st_mode & 0o111


def test_every_direct_dependency_has_a_floor_that_is_not_typed_twice() -> None:
    floors = (TOP / ".ci/floors").read_text()
    for name, versions in tested.tested_ranges().items():
        assert str(versions.floor), name
        assert f"{name}==" not in floors
        assert f"{name}>=" not in floors
