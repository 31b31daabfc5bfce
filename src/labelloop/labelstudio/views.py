"""Tabs of the Data Manager that are ours by their title: made once, kept up to date, never a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labelloop.core.errors import LabelStudioRejected
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import Filters
from labelloop.labelstudio.records import View

DEFAULT = "Default"
"""What the web page calls the tab that it makes for a project without any."""

SHOWN = ("tasks:id", "tasks:predictions_score", "tasks:total_annotations", "tasks:predictions_model_versions")
"""Columns of a new tab, beside the task's data."""

_SHOWN_BY_DEFAULT = (
    "tasks:id",
    "tasks:completed_at",
    "tasks:total_annotations",
    "tasks:cancelled_annotations",
    "tasks:total_predictions",
    "tasks:annotators",
)

_COLUMNS = (
    "tasks:inner_id",
    "tasks:completed_at",
    "tasks:reviews_rejected",
    "tasks:cancelled_annotations",
    "tasks:total_predictions",
    "tasks:annotators",
    "tasks:annotations_results",
    "tasks:annotations_ids",
    "tasks:predictions_score",
    "tasks:predictions_model_versions",
    "tasks:predictions_results",
    "tasks:total_annotations",
    "tasks:file_upload",
    "tasks:storage_filename",
    "tasks:created_at",
    "tasks:updated_at",
    "tasks:updated_by",
    "tasks:avg_lead_time",
    "tasks:draft_exists",
)


def put_tab(
    client: Client,
    project_id: int,
    title: str,
    *,
    ordering: Sequence[str] = ("tasks:id",),
    filters: Filters | None = None,
    shown: Sequence[str] = SHOWN,
) -> View:
    """The tab of this title, with this ordering ("tasks:predictions_score", "-tasks:id"; an empty one would
    leave the ordering that is there) and these filters.

    Columns, widths and whatever else people set on a tab that is there already stays as it is. Several tabs of this
    title (Label Studio lets people make them, and two of us may run at the same moment) become one, the oldest. The tab
    is opened once: one that Label Studio cannot show (a column that does not exist) gets back what it had, or is
    deleted if it is new, and LabelStudioRejected is raised.

    A project whose Data Manager nobody opened has no tabs, and the web page makes its own only then: it gets that one
    too, or people would see nothing but ours and miss the tasks that it filters out.
    """
    wanted: dict[str, Any] = {"title": title, "ordering": list(ordering)}
    wanted["filters"] = filters or {"conjunction": "and", "items": []}
    views = client.views(project_id)
    if not views:
        client.create_view(project_id, {"title": DEFAULT, **_appearance(_SHOWN_BY_DEFAULT)})
    found = _titled(views, title)
    before: dict[str, Any] | None = None
    if found:
        before = found[0].data
        view = client.update_view(found[0], {**before, **wanted})
    else:
        view = client.create_view(project_id, _appearance(shown) | wanted)
    try:
        client.tasks(project_id, page_size=1, include=("id",), view=view.id)
    except LabelStudioRejected:
        if before is None:
            client.delete_view(view.id)
        else:
            client.update_view(view, before)
        raise
    oldest, *others = _titled(client.views(project_id), title) or [view]
    for double in others:
        client.delete_view(double.id)
    return oldest if oldest.id == view.id else client.update_view(oldest, {**oldest.data, **wanted})


def remove_tab(client: Client, project_id: int, title: str) -> int:
    """Delete the tabs of this title; returns how many there were."""
    found = _titled(client.views(project_id), title)
    for view in found:
        client.delete_view(view.id)
    return len(found)


def _titled(views: Sequence[View], title: str) -> list[View]:
    """Oldest first."""
    return sorted((view for view in views if view.title == title), key=lambda view: view.id)


def _appearance(shown: Sequence[str]) -> dict[str, Any]:
    """What the web page expects of a tab."""
    hidden = [column for column in _COLUMNS if column not in shown]
    return {
        "type": "list",
        "target": "tasks",
        "hiddenColumns": {"explore": hidden, "labeling": hidden},
        "columnsWidth": {},
        "columnsDisplayType": {},
        "gridWidth": 4,
        "semantic_search": [],
    }
