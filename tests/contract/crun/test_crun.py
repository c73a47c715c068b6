"""crun, unmodified. Before 1.18 it never enables misc in a parent; `serve --auto-delegate` does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.contract.containers import NEEDS_ALL
from tests.contract.oci import (  # noqa: F401 - tests of this module
    Runtime,
    serving,
    test_a_container_holds_the_limit_of_its_bundle,
    test_a_detached_container_is_paused_killed_and_deleted,
    test_a_process_that_joins_a_container_is_charged_there,
    test_a_program_sees_a_device_that_its_dev_does_not_have,
    test_an_enclave_lives_in_a_user_namespace,
)

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "crun"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with serving("crun", tmp_path_factory, "--auto-delegate") as crun:
        yield crun
