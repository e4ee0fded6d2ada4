# SPDX-License-Identifier: Apache-2.0
"""Steps are logged, end in time, and leave nothing running."""

import os
import select
import sys
from pathlib import Path

import pytest
from steps import StepFailed, Steps

LONGEST = 30  # seconds for a process that was killed to be gone
LEAVE_A_CHILD = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid, flush=True)"


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path / "logs", tmp_path)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def ends(pid: int) -> bool:
    """Waits for the end of a process that is not our child; says whether it came."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(descriptor):
        return bool(select.select([descriptor], [], [], LONGEST)[0])


def test_the_end_of_a_failed_steps_output_is_shown(steps: Steps, capsys: pytest.CaptureFixture[str]):
    code = steps.run("job", "step", python("import sys; print('a' * 3); sys.exit('why it failed')"), seconds=60)

    assert 1 == code
    assert "    | why it failed\n" in capsys.readouterr().out
    assert "aaa\nwhy it failed\n" == steps.log("job", "step").read_text()


def test_the_lines_that_tell_why_steps_failed_are_kept_for_the_end(steps: Steps):
    steps.run("job", "good", python("print('FAILED, it says')"), seconds=60)
    steps.run("job", "bad", python("print('hint'); print('FAILED test_a - assert'); raise SystemExit(3)"), seconds=60)

    [failure] = steps.failures()

    assert failure.startswith("job: bad FAILED with exit code 3")
    assert failure.endswith("\n    FAILED test_a - assert")


def test_a_step_has_no_standard_input(steps: Steps):
    assert 0 == steps.run("job", "step", python("import sys; assert sys.stdin.read() == ''"), seconds=60)


def test_a_step_that_takes_too_long_is_killed(steps: Steps):
    """Also one that does not heed SIGTERM; its process id would be left otherwise."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"

    assert steps.run("job", "step", python(code), seconds=0.5) < 0

    assert "killed: still running" in steps.log("job", "step").read_text()


def test_what_a_step_left_running_is_killed(steps: Steps):
    """A test that forgets its server must not hold up or disturb the next step."""
    steps.run("job", "step", python(LEAVE_A_CHILD), seconds=60)

    assert ends(int(steps.log("job", "step").read_text()))


def test_a_step_that_may_be_tried_again_is(steps: Steps, tmp_path: Path):
    """As a download that fails once."""
    fail_once = "import pathlib, sys; p = pathlib.Path('there'); sys.exit(0 if p.exists() else p.touch() or 1)"

    steps.must("job", "step", python(fail_once), seconds=60, attempts=2)

    assert (tmp_path / "there").exists()


def test_a_step_that_must_not_fail_ends_the_job(steps: Steps):
    with pytest.raises(StepFailed, match="job: step"):
        steps.must("job", "step", python("raise SystemExit(1)"), seconds=60, attempts=2)


def test_nothing_starts_once_all_was_stopped(steps: Steps):
    steps.stop()

    with pytest.raises(StepFailed):
        steps.run("job", "step", python(f"import os; os.kill({os.getpid()}, 9)"), seconds=60)
