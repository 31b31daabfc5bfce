"""What an optional part needs and this installation lacks."""

from __future__ import annotations

from importlib.util import find_spec

PACKAGES = {"sklearn": "scikit-learn"}
"""Where the package has another name than its module."""


def not_installed(*modules: str) -> str | None:
    """Which of these modules of the extra `train` are missing, as a sentence that says what to do; None if all are
    there. Nothing is imported."""
    missing = [PACKAGES.get(module, module) for module in modules if find_spec(module) is None]
    return f"{' and '.join(missing)} is not installed: pip install 'labelloop[train]'." if missing else None
