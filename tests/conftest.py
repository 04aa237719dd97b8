"""Shared fixtures. Every random test draws from `rng`; FASTKL_TEST_SEED chooses the seed, which pytest prints."""

import os
import zlib

import numpy as np
import pytest

SEED = int(os.environ.get("FASTKL_TEST_SEED", "20260113"))


def pytest_report_header(config):
    return f"fastkl seed: {SEED} (set FASTKL_TEST_SEED to change it)"


@pytest.fixture
def rng(request):
    """A generator that depends on the seed and on the test's name; both are shown when the test fails."""
    name = request.node.nodeid
    print(f"seed {SEED}, test {name}")
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])
