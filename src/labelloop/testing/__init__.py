"""Floor 8: the fakes that our own tests use, for yours as well: a Label Studio and an ML backend with real servers."""

from labelloop.testing.backend import FakeBackend
from labelloop.testing.engine import FakeEngine
from labelloop.testing.label_studio import FakeLabelStudio
from labelloop.testing.serve import LoopbackServer

__all__ = ["FakeBackend", "FakeEngine", "FakeLabelStudio", "LoopbackServer"]
