"""Puts this folder on the import path, so that any test can import the shared ``strategies``."""


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="record the golden files anew")
