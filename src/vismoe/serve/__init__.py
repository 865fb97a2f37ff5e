"""The HTTP service: predictions, features and routing of models, and the page."""

from .application import Service
from .models import Models, open_served
from .process import run_service
from .settings import Settings, read_token

__all__ = ["Models", "Service", "Settings", "open_served", "read_token", "run_service"]
