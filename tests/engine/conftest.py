import pytest

import mirnet_fast

from .common import make


@pytest.fixture(autouse=True)
def released():
    mirnet_fast.release_workspace()
    yield
    mirnet_fast.release_workspace()


@pytest.fixture
def network():
    return make()
