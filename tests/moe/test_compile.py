"""Compiled, recomputed and exported, the layer is the eager one: see compiled_checks.py.

pytest tests/moe/test_compile.py
"""

import json
import subprocess
from pathlib import Path

import pytest

from . import compiled_checks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def errors(forked):
    """Error of each check that failed, by name, from one process: what is compiled first takes longest."""
    command = [forked, "-m", compiled_checks.__name__]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", compiled_checks.CHECKS, ids=lambda check: check.__name__)
def test_compiled(errors, check):
    """What each check's own docstring promises holds."""
    assert check.__name__ not in errors, errors[check.__name__]
