"""The page in a real browser: it shows the tenants, follows them, survives its server, asks for its token."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from .served import EPCGROUP, NEEDS, served

pytestmark = [pytest.mark.needs(*NEEDS, "chromium"), pytest.mark.timeout(240)]

HOSTILE = "<img src=x onerror=document.title='broken'>"
STRESS = ("stress", "--heap", "4M", "--seconds", "600", "--passes", "100000")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Chromium without a screen and without a network."""
    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-sync", "--disable-background-networking", "--disable-component-update",
        "--window-size=1280,860", f"--user-data-dir={tmp_path}/chromium",
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield started
    finally:
        started.quit()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)
    return answer


def rows(browser: webdriver.Chrome) -> list[list[str]]:
    """The table as it is shown."""
    script = "return [...document.querySelectorAll('.row')].map(r => [...r.children].map(c => c.textContent))"
    return sorted(browser.execute_script(script))


def visit(browser: webdriver.Chrome, port: int) -> str:
    """Open the page, as soon as it is there; its address."""

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(answers)
    browser.get(f"http://127.0.0.1:{port}/")
    return f"http://127.0.0.1:{port}/"


def text(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


@contextmanager
def tenant(machine: Any, group: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a cgroup of the machine."""
    process = subprocess.Popen(
        machine.argv(group, EPCGROUP, *words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_the_page_shows_the_tenants_and_follows_them(tmp_path: Path, browser: webdriver.Chrome) -> None:
    port = free_port()
    with served(tmp_path, "--web", str(port), epc="8M") as machine:
        for name in ("web", "batch", HOSTILE):
            machine.path(name).mkdir()
        machine.write("batch/misc.max", "sgx_epc 2097152")
        visit(browser, port)
        eventually(lambda: text(browser, "link") == "live")
        assert {row[0] for row in rows(browser)} == {"/", "web", "batch", HOSTILE}
        with tenant(machine, "/batch", *STRESS):
            # It pages against its limit: a rate, limit hits in the log, waiting.
            eventually(lambda: {r[0]: r[3] for r in rows(browser)}["batch"] not in ("0", "-"))
            eventually(lambda: "refused" in text(browser, "log"))
        machine.write("web/misc.max", "sgx_epc 4194304")
        eventually(lambda: {r[0]: r[2] for r in rows(browser)}["web"] == "4M")
        assert browser.title != "broken"
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert severe == []


def test_the_keyboard_chooses_a_cgroup_and_the_address_keeps_it(
    tmp_path: Path, browser: webdriver.Chrome
) -> None:
    port = free_port()
    with served(tmp_path, "--web", str(port)) as machine:
        for name in ("a", "b"):
            machine.path(name).mkdir()
        machine.write("b/cgroup.subtree_control", "+misc")
        machine.path("b/c").mkdir()
        visit(browser, port)
        eventually(lambda: len(rows(browser)) == 4)
        tree = browser.find_element(By.ID, "tree")
        tree.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
        eventually(lambda: text(browser, "chosen") == "/b/c")
        tree.send_keys(Keys.ARROW_LEFT)
        eventually(lambda: text(browser, "chosen") == "/b")
        browser.find_element(By.TAG_NAME, "body").send_keys("/")
        browser.switch_to.active_element.send_keys("c")
        eventually(lambda: [row[0] for row in rows(browser)] == ["/b/c"])
        browser.refresh()
        eventually(lambda: text(browser, "chosen") == "/b")


def test_the_page_survives_a_restart_of_the_server(tmp_path: Path, browser: webdriver.Chrome) -> None:
    port = free_port()
    with served(tmp_path, "--web", str(port)) as machine:
        machine.path("before").mkdir()
        visit(browser, port)
        eventually(lambda: {row[0] for row in rows(browser)} == {"/", "before"})
        eventually(lambda: machine.saved("before"))
        machine.stop()
        eventually(lambda: "does not answer" in text(browser, "link"))
    with served(tmp_path, "--web", str(port)) as machine:
        machine.path("after").mkdir()
        eventually(lambda: text(browser, "link") == "live")
        eventually(lambda: {row[0] for row in rows(browser)} == {"/", "before", "after"})


def test_without_the_token_the_browser_sees_nothing_and_with_it_all(
    tmp_path: Path, browser: webdriver.Chrome
) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123")
    token.chmod(0o600)
    port = free_port()
    with served(tmp_path, "--web", str(port), "--token-file", str(token)):
        address = visit(browser, port)
        assert "a token is needed" in browser.page_source
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}snapshot", timeout=60)
        browser.get(f"{address}?token={token.read_text()}")
        eventually(lambda: text(browser, "link") == "live")
        assert "token" not in browser.current_url


def test_a_tree_of_files_is_shown_without_a_server_of_ours(tmp_path: Path) -> None:
    """`epcgroup web --root DIR`: here on plain files, as a kernel shows them."""
    (tmp_path / "pods").mkdir()
    for place in (tmp_path, tmp_path / "pods"):
        (place / "cgroup.controllers").write_text("misc\n")
        (place / "misc.current").write_text("sgx_epc 8192\n")
    (tmp_path / "misc.capacity").write_text("sgx_epc 65536\n")
    (tmp_path / "pods" / "misc.max").write_text("sgx_epc 16384\n")
    words = [sys.executable, "-m", "epcgroup.cli.main", "web", "--listen", "0", "--root", str(tmp_path)]
    page = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    try:
        assert page.stderr is not None
        found = re.search(r"http://\S+", page.stderr.readline())
        assert found is not None
        address = f"{found[0]}snapshot"

        def groups() -> list[str]:
            try:
                with urllib.request.urlopen(address, timeout=60) as answer:
                    return [group["path"] for group in json.load(answer)["groups"]]
            except OSError:
                return []

        assert eventually(groups) == ["/", "/pods"]
    finally:
        page.terminate()
        _, errors = page.communicate(timeout=60)
    assert "Traceback" not in errors
