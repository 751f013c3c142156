"""Every example in a docstring of the package is run."""

import doctest
import importlib
import pkgutil

import pytest

import rvqlm

MODULES = [m.name for m in pkgutil.walk_packages(rvqlm.__path__, "rvqlm.")]


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert (
        sum(len(t.examples) for m in MODULES for t in finder.find(importlib.import_module(m))) > 9
    )


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failed
