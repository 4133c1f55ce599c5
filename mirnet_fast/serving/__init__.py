"""A page on this machine where photos are dropped, restored and fetched. Needs Gradio (the extra `serve`)."""

from .app import HOST, PORT, ServingError, serve
from .work import LIMITS, Outcome, restored

__all__ = ["HOST", "LIMITS", "PORT", "Outcome", "ServingError", "restored", "serve"]
