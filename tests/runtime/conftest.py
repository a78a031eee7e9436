"""A live registry with a publisher, and a client for the robot."""

from __future__ import annotations

import numpy as np
import pytest

from tests.client.conftest import author, net, robot, through, url  # noqa: F401


@pytest.fixture
def observation(interface):
    return {s.name: np.full(s.shape, 0.1, np.float32) for s in interface.observation}
