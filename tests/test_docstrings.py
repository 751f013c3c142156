"""Every example in a docstring of the package is run."""

import doctest
import importlib
import pkgutil

import pytest

import rvqlm

FINDER = doctest.DocTestFinder(exclude_empty=True)
MODULES = [importlib.import_module(m.name) for m in pkgutil.walk_packages(rvqlm.__path__, "rvqlm.")]
WITH_EXAMPLES = [m for m in MODULES if any(t.examples for t in FINDER.find(m))]


@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=lambda m: m.__name__)
def test_examples(module):
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert not failed


def test_there_are_examples():
    assert len(WITH_EXAMPLES) > 20
