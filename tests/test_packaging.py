"""The package is complete: every folder is listed, installed under its name, and documented."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from pwopt import env

ROOT = Path(__file__).parents[1]
MAPPED = ("passes", "targets", "models")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def source_packages() -> set[str]:
    """Dotted names of all folders with an ``__init__.py``, as installed."""
    found = set()
    for top in ("pwopt", *MAPPED):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            if parts[0] == "pwopt" and len(parts) > 1 and parts[1] in MAPPED:
                continue  # through the link
            found.add(".".join(parts if parts[0] == "pwopt" else ("pwopt", *parts)))
    return found


def test_package_list_is_complete() -> None:
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == source_packages()


@pytest.mark.parametrize("name", MAPPED)
def test_links_are_relative(name: str) -> None:
    link = ROOT / "pwopt" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"


@pytest.mark.parametrize("name", MAPPED)
def test_bare_import_is_refused(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"pwopt.{name}" in done.stderr.splitlines()[-1]


def test_import_is_light() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import pwopt; "
        "print(time.perf_counter() - start); "
        "print(*{'tvm', 'tvm_ffi', 'onnx', 'onnxruntime', 'networkx', 'numpy'} & set(sys.modules))"
    )
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        seconds, loaded = done.stdout.splitlines()
        assert loaded == ""
        times.append(float(seconds))
    assert min(times) < 0.3


def test_every_public_name_loads() -> None:
    import pwopt

    for name in pwopt.__all__:
        assert getattr(pwopt, name) is not None
    assert set(pwopt.__all__) <= set(dir(pwopt))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        pwopt.optimise  # noqa: B018


def test_public_functions_are_not_shadowed_by_modules() -> None:
    import pwopt

    modules = {path.stem for path in (ROOT / "pwopt").glob("*.py")}
    assert not modules & set(pwopt.__all__)


@pytest.mark.slow
def test_wheel_holds_every_module(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves its build folder beside the source
    skipped = shutil.ignore_patterns(".*", "build", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-q", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in source_packages():
        assert f"{package.replace('.', '/')}/__init__.py" in names
    assert "pwopt/py.typed" in names
    assert {"pwopt/models/manifest.json", "pwopt/targets/native.c"} < names
    assert "pwopt/targets/pwopt.h" in names
    assert not {name for name in names if name.split("/")[0] in {*MAPPED, "tests"}}


def readme_command(marker: str) -> str:
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"<!-- {marker} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert match, f"README.md has no block after <!-- {marker} -->"
    return match.group(1)


def test_readme_has_both_commands() -> None:
    first, tests = readme_command("first command"), readme_command("test command")
    assert "pwopt optimize" in first
    assert "pwopt compare" in first
    assert "pytest" in tests
    (model,) = set(re.findall(r"\S+\.onnx", first))
    assert (ROOT / model).is_file()


def test_readme_lists_every_variable() -> None:
    text = (ROOT / "README.md").read_text()
    for name in env.VARIABLES:
        assert f"`{name}`" in text
    assert set(re.findall(r"PWOPT_[A-Z_]+", text)) == set(env.VARIABLES)
