"""The list of faults to plant fits the program; `tests/tools/planted_faults.py` plants them, by hand."""

import pytest

from tests.tools.planted_faults import ROOT, Fault, faults

LIST = faults()


@pytest.mark.parametrize("module", sorted({fault.module for fault in LIST}))
def test_places_of_faults_are_there_once_and_their_tests_exist(module: str) -> None:
    for fault in (fault for fault in LIST if fault.module == module):
        text = (ROOT / fault.file).read_text("utf-8")
        compile(fault.in_text(text), fault.file, "exec")  # a fault of grammar would prove nothing
        assert all((ROOT / "tests" / name).exists() for name in fault.tests)


def test_a_place_that_is_gone_or_not_the_only_one_is_named() -> None:
    fault = Fault("sfumato.x", "a + b", "a - b", ())
    assert fault.in_text("c = a + b") == "c = a - b"
    for text in ("c = a * b", "c = a + b + a + b"):
        with pytest.raises(ValueError, match=r"sfumato\.x has 'a \+ b' (0|2) times"):
            fault.in_text(text)
