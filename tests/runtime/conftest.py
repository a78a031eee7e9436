"""A live registry with a publisher, and a client for the robot."""

from __future__ import annotations

import numpy as np
import pytest

from neuraverse.client import Client
from neuraverse.registry import background


@pytest.fixture
def url(tmp_path):
    with background(tmp_path / "data") as address:
        yield address


@pytest.fixture
def author(url, publisher):
    with Client(url, home=publisher.home) as client:
        yield client


@pytest.fixture
def robot(url, key_store):
    with Client(url, home=key_store.home) as client:
        yield client


@pytest.fixture
def observation(interface):
    return {s.name: np.full(s.shape, 0.1, np.float32) for s in interface.observation}
