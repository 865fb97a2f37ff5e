"""Reports of what the experts do, as folders with a self-contained HTML page."""

from .images import CAPACITIES, add_image
from .page import Page
from .sets import add_comparison, add_set, add_without

__all__ = ["CAPACITIES", "Page", "add_comparison", "add_image", "add_set", "add_without"]
