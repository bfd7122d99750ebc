"""Running a piece of Python in a process of its own, with a limit in place of a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from fastfactor import _core

LIMIT = 120  # seconds; what runs here takes a few


def built_levels():
    """The instruction-set levels that this build holds and this processor runs, best first."""
    built = _core.built_levels()
    return [level for level in _core.supported_levels() if level in built]


def run_python(code, *arguments, environment=None, limit=LIMIT):
    """The finished process, its output as text. `environment` is added to this one's."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit,
        env={**os.environ, **(environment or {})},
    )


def output_of(code, *arguments, environment=None, limit=LIMIT):
    """What the code prints; it must succeed."""
    done = run_python(code, *arguments, environment=environment, limit=limit)
    assert done.returncode == 0, done.stderr
    return done.stdout
