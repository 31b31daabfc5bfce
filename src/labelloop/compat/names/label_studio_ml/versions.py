"""Model versions: three numbers that can be bumped, where a text is that."""

from __future__ import annotations

import re
from functools import total_ordering
from typing import Any

_NUMBERS = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")


@total_ordering
class Version:
    """MAJOR.MINOR.PATCH as semantic versioning has it. Bumping gives a new one."""

    def __init__(self, major: int, minor: int = 0, patch: int = 0) -> None:
        self.major, self.minor, self.patch = major, minor, patch

    @classmethod
    def parse(cls, text: Any) -> Version:
        """Raises ValueError for what is no version of three numbers."""
        found = _NUMBERS.fullmatch(str(text))
        if found is None:
            raise ValueError(f"{text!r} is not MAJOR.MINOR.PATCH")
        return cls(*(int(number) for number in found.groups()))

    def bump_major(self) -> Version:
        return Version(self.major + 1)

    def bump_minor(self) -> Version:
        return Version(self.major, self.minor + 1)

    def bump_patch(self) -> Version:
        return Version(self.major, self.minor, self.patch + 1)

    def _numbers(self) -> tuple[int, int, int]:
        return self.major, self.minor, self.patch

    def __str__(self) -> str:
        return ".".join(map(str, self._numbers()))

    def __repr__(self) -> str:
        return f"Version({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        try:
            return self._numbers() == Version.parse(other)._numbers()
        except ValueError:
            return NotImplemented

    def __lt__(self, other: object) -> bool:
        try:
            return self._numbers() < Version.parse(other)._numbers()
        except ValueError:
            return NotImplemented

    def __hash__(self) -> int:
        return hash(self._numbers())
