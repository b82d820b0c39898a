"""Shared fixtures.

Real data is looked for in `$LCFBENCH_MIRROR`, then in a `shared/hub` beside the checkout; tests that
need it skip without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcfbench import registry
from lcfbench.models import conformance_store
from tests.helpers import BESIDE


@pytest.fixture(autouse=True, scope="session")
def records_of_models(tmp_path_factory) -> Iterator[None]:
    """What was checked of tiny models stays out of the user's cache folder."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conformance_store, "cache_dir", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def settings_as_they_were() -> Iterator[None]:
    """A test that leaves a setting behind fails itself, and not those that come after it in its process."""
    before = _settings()
    yield
    after = _settings()
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert after == before, "set with monkeypatch.setenv: a setting of this test outlives it"


def _settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(("LCFBENCH_", "HF_HUB_OFFLINE"))}


@pytest.fixture(autouse=True)
def names_as_they_were(settings_as_they_were, monkeypatch) -> None:
    """Names that a test gives to files of its own are forgotten after it."""
    monkeypatch.setattr(registry, "_given", dict(registry._given))


@pytest.fixture
def mirror(monkeypatch) -> Path:
    """A folder of Hub snapshots of the real data sets."""
    for place in (os.environ.get("LCFBENCH_MIRROR"), BESIDE / "hub"):
        if place and Path(place, "datasets").is_dir():
            monkeypatch.setenv("LCFBENCH_MIRROR", str(place))
            return Path(place)
    pytest.skip("no mirror of the real data sets: set LCFBENCH_MIRROR")
