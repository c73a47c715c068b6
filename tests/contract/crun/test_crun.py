"""crun, unmodified. Before 1.18 it never enables misc in a parent; `serve --auto-delegate` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract import oci
from tests.contract.containers import NEEDS_ALL, make_rootfs
from tests.e2e.served import served

pytestmark = [pytest.mark.needs(*NEEDS_ALL, "crun"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def crun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oci.Runtime]:
    with served(tmp_path_factory.mktemp("crun"), "--auto-delegate") as machine:
        machine.path("pods").mkdir()
        yield oci.Runtime("crun", machine, make_rootfs(tmp_path_factory.mktemp("image")))


def test_a_container_holds_the_limit_of_its_bundle(crun: oci.Runtime, tmp_path: Path) -> None:
    oci.a_container_holds_the_limit_of_its_bundle(crun, tmp_path)


def test_a_detached_container_is_paused_killed_and_deleted(crun: oci.Runtime, tmp_path: Path) -> None:
    oci.a_detached_container_is_paused_killed_and_deleted(crun, tmp_path)


def test_a_process_that_joins_a_container_is_charged_there(crun: oci.Runtime, tmp_path: Path) -> None:
    oci.a_process_that_joins_a_container_is_charged_there(crun, tmp_path)


def test_a_program_sees_a_device_that_its_dev_does_not_have(crun: oci.Runtime, tmp_path: Path) -> None:
    oci.a_program_sees_a_device_that_its_dev_does_not_have(crun, tmp_path)


def test_an_enclave_lives_in_a_user_namespace(crun: oci.Runtime, tmp_path: Path) -> None:
    oci.an_enclave_lives_in_a_user_namespace(crun, tmp_path)
