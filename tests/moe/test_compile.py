"""Compiled, recomputed and exported, the layer is the eager one: see compiled_checks.py.

pytest tests/moe/test_compile.py
"""

import json
import os
import subprocess
import sys

import pytest

from . import compiled_checks


@pytest.fixture(scope="module")
def errors():
    """Error of each check that failed, by name, from one process: starting it takes longer than a check."""
    command = [sys.executable, compiled_checks.__file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", compiled_checks.CHECKS, ids=lambda check: check.__name__)
def test_compiled(errors, check):
    """What each check's own docstring promises holds."""
    assert check.__name__ not in errors, errors[check.__name__]
