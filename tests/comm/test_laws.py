"""The laws of ``vitrail.testing.comm`` on our own backends, through the door that is open to others."""

import os

import pool
import pytest

from vitrail.comm import InProcess
from vitrail.testing.comm import CommLaws, OnSimulator

PROFILE = os.environ.get("VITRAIL_PROFILE", "fast")


class TestSimulated(CommLaws):
    simulator = OnSimulator(
        examples={"fast": 25, "ci": 100, "long": 400}[PROFILE], stirred={"fast": 0, "ci": 1, "long": 5}[PROFILE]
    )

    @classmethod
    def bench(cls):
        return cls.simulator


class TestInProcess(CommLaws):
    backend = InProcess
    examples = {"fast": 6, "ci": 20, "long": 150}[PROFILE]


class TestGloo(CommLaws):
    """Real gloo ranks, in processes that live on from law to law."""

    backend = pool.PooledGloo
    examples = {"fast": 3, "ci": 12, "long": 150}[PROFILE]

    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def processes():
        yield
        pool.PooledGloo.end()
