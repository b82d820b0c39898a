"""A Hub of our own for the tests of adapters."""

from __future__ import annotations

import pytest

from tests.hub_server import served


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub of our own, an empty cache, no token, no mirror."""
    with served(monkeypatch, tmp_path) as made:
        yield made
