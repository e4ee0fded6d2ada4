# SPDX-License-Identifier: Apache-2.0
"""`gossamer doctor` tells what works on this machine, on one screen."""

import platform
import subprocess
import sys

from gossamer import _core
from gossamer._cli import doctor


def run_doctor(*command):
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=60)


def test_doctor_fits_a_screen_and_finds_nothing_broken_here():
    result = run_doctor("gossamer", "doctor")

    assert (0, "") == (result.returncode, result.stderr)
    assert len(result.stdout.splitlines()) <= 24
    assert platform.python_version() in result.stdout
    assert "ok   virtual threads" in result.stdout


def test_what_does_not_work_fails_the_doctor(monkeypatch, capsys):
    monkeypatch.setattr(_core, "spawn", lambda _function: 1 / 0)

    assert 1 == doctor.run_doctor()
    assert "bad  virtual threads  ZeroDivisionError" in capsys.readouterr().out


def test_limits_that_are_low_come_with_a_remedy(monkeypatch, capsys):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _which: (64, 128))
    monkeypatch.setattr(doctor, "_read", lambda _path: "100\n")

    doctor.run_doctor()

    told = capsys.readouterr().out
    assert "-> raise the hard limit" in told
    assert "-> sysctl vm.max_map_count" in told


def test_unknown_command_is_refused():
    result = run_doctor("gossamer", "surgeon")

    assert 2 == result.returncode
    assert "the commands are `run` and `doctor`" in result.stderr
