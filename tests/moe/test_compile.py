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
    ran = {}

    def of(checks):
        names = [check.__name__ for check in checks]
        if not ran.keys() >= set(names):
            command = [forked, "-m", compiled_checks.__name__, *names]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            ran.update(dict.fromkeys(names) | json.loads(done.stdout.splitlines()[-1]))
        return ran

    return of


@pytest.mark.parametrize("check", compiled_checks.CHECKS, ids=lambda check: check.__name__)
def test_compiled(errors, check):
    """What each check's own docstring promises holds."""
    error = errors(compiled_checks.CHECKS)[check.__name__]
    assert error is None, error


@pytest.mark.slow
@pytest.mark.parametrize("check", compiled_checks.VARIANTS, ids=lambda check: check.__name__)
def test_compiled_variants(errors, check):
    """What each check's own docstring promises holds."""
    error = errors(compiled_checks.VARIANTS)[check.__name__]
    assert error is None, error
