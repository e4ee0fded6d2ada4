# SPDX-License-Identifier: Apache-2.0
"""Python children of a program under `gossamer run` run on Gossamer, through a line in site-packages."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import gossamer
import pytest

SOURCE = Path(gossamer.__file__).resolve().parents[1]
IS_VIRTUAL = "from gossamer import _core; print(_core.is_virtual(), _core.statistics()['main_is_virtual'])"
CHILD = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter with Gossamer in its site-packages, as the wheel puts it there."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "a_path.pth").write_text(f"{SOURCE}\n")
    (site_packages / "gossamer.pth").write_text((SOURCE / "gossamer.pth").read_text())
    return folder / "bin" / "python"


def run(python, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOSSAMER", "PYTHON"))}
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, timeout=60, env={**clean, **environment}
    )


def run_child(python, *child, options=()):
    return run(python, "-m", "gossamer", "run", *options, "-c", CHILD, *child)


@pytest.mark.parametrize("options", [(), ("-I",), ("-E",), ("-B", "-W", "error")])
def test_child_runs_on_gossamer(python, options):
    result = run_child(python, *options, "-c", IS_VIRTUAL)

    assert (0, "True True\n", "") == (result.returncode, result.stdout, result.stderr)


def test_child_without_site_is_plain_python(python):
    result = run_child(python, "-S", "-c", "import sys; print('gossamer' in sys.modules)")

    assert "False\n" == result.stdout


def test_child_is_plain_python_if_so_wished(python):
    result = run_child(python, "-c", "import sys; print('gossamer' in sys.modules)", options=["--no-inherit"])

    assert "False\n" == result.stdout


def test_process_without_the_variable_does_not_import_gossamer(python):
    result = run(python, "-c", "import sys; print('gossamer' in sys.modules)")

    assert ("False\n", "") == (result.stdout, result.stderr)


def test_child_inherits_os_threads(python):
    program = (
        "import threading; threading.Thread(target=lambda: print(__import__('gossamer')._core.is_virtual())).start()"
    )

    assert "True\n" == run_child(python, "-c", program).stdout
    assert "False\n" == run_child(python, "-c", program, options=["--os-threads"]).stdout


def test_grandchild_inherits_too(python):
    result = run_child(python, "-c", CHILD, "-c", IS_VIRTUAL)

    assert "True True\n" == result.stdout


def test_lost_error_does_not_fail_a_child(python):
    program = "import threading; threading.Thread(target=int, args=('x',)).start()"

    result = run_child(python, "-c", program)

    assert 0 == result.returncode
    assert "invalid literal" in result.stderr


def test_child_can_be_gossamer_run_with_options_of_its_own(python):
    program = "import threading; threading.Thread(target=int, args=('x',)).start()"

    assert 1 == run_child(python, "-m", "gossamer", "run", "-c", program).returncode


def test_exit_code_of_a_child_is_its_own(python):
    assert 3 == run_child(python, "-c", "raise SystemExit(3)").returncode


def test_child_whose_variable_is_spoilt_says_so_and_is_plain_python(python):
    result = run(python, "-c", "print('runs')", GOSSAMER_RUN="nonsense")

    assert (0, "runs\n") == (result.returncode, result.stdout)
    assert "GOSSAMER_RUN" in result.stderr


def test_variable_without_gossamer_does_no_harm():
    """Uninstalled, or an interpreter that cannot import it: site tells of the error and goes on."""
    line = (SOURCE / "gossamer.pth").read_text()
    program = (
        "import sys, os; sys.modules['gossamer'] = None; os.environ['GOSSAMER_RUN'] = ''\n"
        f"try: exec({line!r})\n"
        "except ImportError: print('an error that site reports')\n"
    )

    assert "an error that site reports\n" == run(sys.executable, "-c", program).stdout
