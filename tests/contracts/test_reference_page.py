"""docs/reference.md is what the code says of its commands, heads and entries."""

import importlib.util

from tests.conftest import REPOSITORY


def test_the_reference_is_what_the_code_says():
    """If it is not: ``make reference`` writes it anew."""
    file = REPOSITORY / "scripts" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", file)
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    shown = (REPOSITORY / "docs" / "reference.md").read_text()
    assert shown.splitlines() == reference.page().splitlines()
