"""What `make faults` plants can be planted: the code it stands in for is where it is said to be."""

from pathlib import Path

import pytest

from .faults import FAULTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_its_place(fault):
    assert (ROOT / fault.file).read_text().count(fault.good) == 1
    assert fault.bad != fault.good
