"""Puts this folder on the import path, so that any test can import the shared ``strategies``."""

import os

from hypothesis import HealthCheck, settings

# what a test takes says how busy the machine is, not whether the code is right
settings.register_profile("moesim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("moesim")

# two workers on two cores each, and small matrices: threads of the linear algebra would only contend
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="record the golden files anew")
