"""The house rules, checked: style, types, import order, locks, documents.

Each rule is in CONTRIBUTING.md. A rule that no test holds is a wish.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from tests.beforehand import alone

from epcgroup.cli import main

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "epcgroup"
MODULES = sorted(SOURCE.rglob("*.py"))
LOCKS = [ROOT / "requirements" / name for name in ("demo.txt", "test.txt", "bench.txt")]
DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST = 400  # lines of one module

# Third-party packages that run-time code may import: everywhere, and by place (paths below epcgroup).
CORE = {"cryptography", "rich"}
EXTRAS = {
    "pictures.py": {"matplotlib"},
    "*/plot.py": {"matplotlib"},
    "testing/strategies.py": {"hypothesis"},
    "cgroupfs/fuse.py": {"mfusepy"},
    "cli/serve.py": {"mfusepy"},  # looks whether it is there
    "sim/*": {"llvmlite", "numpy", "polars", "pyarrow"},
    "live/paging/compiled/*": {"llvmlite"},
    "conform/compiled_replay.py": {"llvmlite", "numpy", "polars", "pyarrow"},
    "observe/exporter.py": {"prometheus_client"},
    "observe/top/*": {"textual"},
    "observe/web/*": {"starlette", "uvicorn"},
    "cli/web.py": {"starlette", "uvicorn"},  # looks whether they are there
    "*/audit/*": {"yaml"},
}

# Never in a tracked file: where packages come from, where the author's machine keeps things.
# Written in pieces, so that this file does not hold what it looks for.
TRACES = [
    "py" + "pi\\.org", "python" + "hosted", "deb\\.deb" + "ian\\.org", "registry\\.npm" + "js",
    "(?<!no-emit-)(index" + "-url|find" + "-links)",
    "/wo" + "rk/", "/op" + "t/", "/ro" + "ot/", "/ho" + "me/", "sha" + "red/(?!golden)",
]  # fmt: skip


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of the environment at the top of the checkout; its output is kept for the report."""
    tool = str(Path(sys.executable).parent / command[0])
    return subprocess.run(
        [tool, *command[1:]], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip


def tracked() -> list[Path]:
    """Every text file under version control that is there now."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]  # whoever owns the checkout
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()]


def pins(lock: Path) -> dict[str, str]:
    """Package to version of one lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock.read_text(), re.MULTILINE))


# -- style, types, order -----------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("ruff", "check", "--no-cache"), id="ruff"),
        pytest.param(("mypy",), id="mypy"),
        pytest.param(("lint-imports", "--no-cache"), id="imports"),
    ],
)
def test_the_checks_of_make_check_pass(command: tuple[str, ...]) -> None:
    with alone(command[0]):
        done = run(*command)
    assert done.returncode == 0, done.stdout


def test_make_check_runs_the_same_checks() -> None:
    recipe = (ROOT / "Makefile").read_text()
    for command in ("ruff check", "mypy", "lint-imports"):
        assert f"$(BIN)/{command}" in recipe


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), "the module has no docstring"


def test_run_time_code_needs_cryptography_and_rich_only() -> None:
    """What an extra brings is the business of the places that are named with it."""
    strangers = []
    for path in MODULES:
        may = CORE | {"epcgroup"} | extras_of(path)
        for name in imported(path):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in may:
                strangers.append(f"{path.relative_to(ROOT)} imports {name}")
    assert strangers == []


def extras_of(path: Path) -> set[str]:
    """The packages of extras that one module may import."""
    place = path.relative_to(SOURCE).as_posix()
    return {package for pattern, some in EXTRAS.items() if fnmatch(place, pattern) for package in some}


def imported(path: Path) -> list[str]:
    """The absolute names of the modules that one file imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
    return names


def test_extras_are_loaded_only_by_the_module_that_is_about_them() -> None:
    """A command must not fail, nor wait, for a package that it does not use."""
    plain = [path for path in MODULES if path.stem != "__main__" and not extras_of(path)]
    modules = [*map(dotted, plain), "epcgroup.sim", "epcgroup.cli.serve"]  # these load theirs when called
    assert loaded_by(modules, set().union(*EXTRAS.values())) == []


def test_the_stress_client_loads_nothing_of_the_emulator() -> None:
    """It must also run on a machine with real SGX, where no emulator is."""
    modules = [dotted(path) for path in sorted((SOURCE / "stress").rglob("*.py"))] + ["epcgroup.cli.stress"]
    rooms = r"units|errors|cli(\.stress)?|stress(\..+)?|sgx(\.(layouts|measure|sign))?"
    allowed = re.compile(rf"epcgroup(\.({rooms}))?")
    assert [name for name in loaded_by(modules, {"epcgroup"}) if not allowed.fullmatch(name)] == []


def dotted(path: Path) -> str:
    """The name by which a file of the source is imported."""
    name = path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


def loaded_by(modules: list[str], packages: set[str]) -> list[str]:
    """The modules of ``packages`` that a new interpreter holds after importing ``modules``."""
    program = (
        f"import importlib, json, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in sys.modules if name.partition('.')[0] in {packages!r}]))"
    )
    done = run("python", "-c", program)
    assert done.returncode == 0, done.stdout
    loaded: list[str] = json.loads(done.stdout)
    return loaded


# -- locks -------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes(lock: Path) -> None:
    entries = re.split(r"\n(?=[a-z])", lock.read_text().partition("\n")[2].strip())
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_locks_agree_and_the_larger_holds_the_smaller() -> None:
    """The set-up counts on it: who has the larger one installed has the smaller."""
    demo, test, bench = (pins(lock) for lock in LOCKS)
    assert demo.items() <= test.items()
    assert all(test[name] == bench[name] for name in test.keys() & bench.keys())


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    demo = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["plot"]]
    test = [need for name in extras if name != "bench" for need in extras[name]] + demo
    for lock, wanted in zip(LOCKS, (demo, test, extras["bench"]), strict=True):
        names = {re.split(r"[<>=!~ ]", requirement)[0] for requirement in wanted}
        assert names <= pins(lock).keys()


# -- what is published -------------------------------------------------------


def test_no_tracked_file_names_a_download_address_or_the_authors_machine() -> None:
    pattern = re.compile("|".join(TRACES))
    found = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_documents_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        code = re.findall(r"^    .*$|`[^`\n]+`", path.read_text(), re.MULTILINE)
        named = {target for text in code for target in re.findall(r"\bmake ([a-z]+)\b", text)}
        assert named <= targets, path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_shows_is_understood(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands, options and their values; nothing is run. Not those with a placeholder in them."""
    shown = re.findall(
        r"\bepcgroup ([a-z]+\b.*?)(?= {2}|\s*(?:$|[|;#>&)`\\]))", "\n".join(code_lines(path)), re.MULTILINE
    )
    for words in (shlex.split(text) for text in shown if not re.search(r"…|\[|^COMMAND", text)):
        if words[0] in main.COMMANDS:
            with contextlib.suppress(SystemExit):  # --help
                main._parsed(words)
            assert capsys.readouterr().err == "", words


def test_the_readme_names_commands_that_exist() -> None:
    commands = set(re.findall(r"\bepcgroup ([a-z]+)\b", "\n".join(code_lines(ROOT / "README.md"))))
    assert commands
    assert commands <= main.COMMANDS.keys()


def code_lines(path: Path) -> list[str]:
    """The indented lines of a Markdown file."""
    return [line for line in path.read_text().splitlines() if line.startswith("    ")]


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in DOCUMENTS:
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
        missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
        broken += [f"{path.relative_to(ROOT)} -> {target}" for target in missing]
    assert broken == []


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md"]
    assert [page for page in pages if f"]({page})" not in index] == []


def test_the_licence_is_the_one_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_the_change_log_knows_the_version() -> None:
    import epcgroup

    assert f"## [{epcgroup.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
