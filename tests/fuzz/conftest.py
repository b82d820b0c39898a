"""One small world of files for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.world import World


@pytest.fixture(scope="package")
def world(tmp_path_factory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()
