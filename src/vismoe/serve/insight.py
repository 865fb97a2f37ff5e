"""What the page shows of a run: the experts on its images, computed once in the background, and its curves."""

import json
import logging
import threading
from typing import Any
from weakref import WeakKeyDictionary

from vismoe.adapt import run_splits
from vismoe.data import Data
from vismoe.explain import analyse_set
from vismoe.training import Run, without_nan

from .models import Served
from .requests.errors import ServiceError
from .requests.logs import log

MOST_IMAGES = 200
"""Largest number of images of the run on which the experts are shown: of its test split, or its validation split."""
MOST_LINES = 20_000
"""Lines of the metrics that are sent, at most: of longer runs every second, third, … line."""
REPORT = "report.json"


class Insight:
    """What experts do on the images of their model's run. Each model's is computed once, when it is first asked for."""

    def __init__(self) -> None:
        self._results: WeakKeyDictionary[Served, dict[str, Any] | ServiceError | None] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def close(self) -> None:
        """Ends what is computed, after its current batch: Python must not end while a thread is in PyTorch."""
        self._is_closed = True
        for thread in self._threads:
            thread.join()

    def experts(self, served: Served) -> dict[str, Any] | None:
        """What the experts do; None while it is computed.

        **Raises:** ServiceError where the model has no experts or no data set.
        """
        if served.run is None:
            raise ServiceError("no_data", "this model does not come from a run, so its data set is not known")
        if not served.facts["sparse"]:
            raise ServiceError("no_data", "this model has no experts: it is dense")
        with self._lock:
            if served not in self._results:
                self._results[served] = None
                thread = threading.Thread(target=self._compute, args=(served,), name="insight", daemon=True)
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]
                thread.start()
            result = self._results[served]
        if isinstance(result, ServiceError):
            raise ServiceError(result.code, result.message)
        return result

    def _compute(self, served: Served) -> None:
        assert served.run is not None
        result: dict[str, Any] | ServiceError
        try:
            with self._one_at_a_time:
                data = run_splits(served.run)
                images = data.val.subset(_spread(data, MOST_IMAGES))
                answer = analyse_set(served.predictor, images, data.classes, watch=self._check).to_json()
                result = {"status": "ready", "images": len(images), "classes": data.classes, **without_nan(answer)}
        except _ClosedError:
            return
        except Exception as error:
            log("the experts cannot be shown", logging.ERROR, error, model=served.name)
            result = ServiceError("no_data", "the data set of this model cannot be read: the service's log says why")
        with self._lock:
            self._results[served] = result

    def _check(self, done: int, total: int) -> None:
        if self._is_closed:
            raise _ClosedError


class _ClosedError(Exception):
    """The service stops."""


def _spread(data: Data, most: int) -> list[int]:
    """Numbers of at most so many images of the split, evenly spread: folders list one class after the other."""
    number = len(data.val)
    return list(range(number)) if number <= most else [place * number // most for place in range(most)]


def run_of(served: Served) -> dict[str, Any]:
    """The curves and the report of a model's run, as it is now.

    **Raises:** ServiceError for a model that does not come from a run.
    """
    run = served.run
    if run is None or not served.facts["run"]:
        raise ServiceError("no_run", "this model does not come from a run")
    try:
        lines = _lines(run)
        finished, steps, report = run.is_finished, run.recipe.steps, _report(run)
    except (OSError, ValueError) as error:
        log("a run cannot be read", logging.ERROR, error, model=served.name)
        raise ServiceError("no_run", "the run of this model cannot be read: the service's log says why") from error
    every = -(-len(lines) // MOST_LINES)
    shown = lines if every < 2 else [*lines[:-1:every], lines[-1]]
    return {"metrics": without_nan(shown), "steps": steps, "finished": finished, "report": report}


def _lines(run: Run) -> list[dict[str, Any]]:
    """The logged metrics; without a last line that is being written."""
    lines: list[dict[str, Any]] = []
    for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            break
        if isinstance(values, dict):
            lines.append(values)
    return lines


def _report(run: Run) -> Any:
    """The report of a fine-tuned network, else the summary of the run; None before its end."""
    for name in (REPORT, "summary.json"):
        if (run.path / name).is_file():
            return without_nan(json.loads((run.path / name).read_text(encoding="utf-8")))
    return None
