"""The examples in the docstrings of laws, linear algebra, ensembles and spectra give what they say."""

import doctest
import importlib
import pkgutil

import pytest


def _modules():
    for room in ("linalg", "laws", "ensembles", "spectra"):
        package = importlib.import_module(f"rmtjax.{room}")
        yield from (module.name for module in pkgutil.walk_packages(package.__path__, f"rmtjax.{room}."))


@pytest.mark.parametrize("name", list(_modules()))
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in _modules() for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 12
