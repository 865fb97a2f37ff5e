"""Logs as JSON, one line an event, on stderr."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("vismoe.serve")


class JsonFormatter(logging.Formatter):
    """An event as one line of JSON. Control characters are escaped, so that a request cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "values", {}),
        }
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=True, default=str)


def log_as_json() -> None:
    """Makes the service, uvicorn, asyncio and warnings log as JSON on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    levels = {"vismoe.serve": logging.INFO} | dict.fromkeys(("uvicorn", "asyncio", "py.warnings"), logging.WARNING)
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log(event: str, level: int = logging.INFO, error: BaseException | None = None, **values: Any) -> None:
    """Logs an event with values by name; with an error also its trace."""
    LOGGER.log(level, event, extra={"values": values}, exc_info=error)
