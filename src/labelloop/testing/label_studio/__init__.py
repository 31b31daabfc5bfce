"""A fake Label Studio with a real HTTP server."""

from labelloop.testing.label_studio.outgoing import Timeouts
from labelloop.testing.label_studio.server import FakeLabelStudio

__all__ = ["FakeLabelStudio", "Timeouts"]
