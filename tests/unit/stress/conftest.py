"""A key for all tests of the room: drawing one takes a second."""

from __future__ import annotations

import pytest

from epcgroup.sgx.sign import SigningKey


@pytest.fixture(scope="session")
def signing_key() -> SigningKey:
    return SigningKey.generate()
