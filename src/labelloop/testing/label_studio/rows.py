"""The fake's records as Label Studio 1.23.2 writes them; a test compares the names with recorded answers."""

from __future__ import annotations

import uuid
from typing import Any

from labelloop.testing.label_studio.state import Backend, Project, State, Task, Webhook, timestamp
from labelloop.testing.label_studio.validation import controls_in, objects_in

RELEASE = "1.23.2"
EMAIL = "admin@example.com"

STATE_NAMES = {"CO": "Connected", "DI": "Disconnected", "ER": "Error", "TR": "Training", "PR": "Predicting"}


def error_row(status: int, detail: str, validation_errors: Any = None) -> dict[str, Any]:
    """Every error of the JSON API. Mind the `id`: an unchecked answer looks like a created row."""
    row = {
        "id": str(uuid.uuid4()),
        "status_code": status,
        "version": RELEASE,
        "detail": detail,
        "exc_info": None,
    }
    return row | ({"validation_errors": validation_errors} if validation_errors else {})


def user_row(created_s: float) -> dict[str, Any]:
    return {
        "id": 1,
        "first_name": "",
        "last_name": "",
        "username": "",
        "email": EMAIL,
        "last_activity": timestamp(created_s),
        "avatar": None,
        "initials": "ad",
        "phone": "",
        "active_organization": 1,
        "active_organization_meta": {"title": "Label Studio", "email": EMAIL},
        "allow_newsletters": None,
        "date_joined": timestamp(created_s),
    }


def parsed_label_config(label_config: str) -> dict[str, Any]:
    objects = objects_in(label_config)
    return {
        control.name: {
            "type": control.tag,
            "to_name": list(control.to_names),
            "inputs": [
                {"type": objects[name][0], "valueType": None, "value": objects[name][1].removeprefix("$")}
                for name in control.to_names
                if name in objects
            ],
            "labels": list(control.labels),
            "labels_attrs": {label: {"value": label} for label in control.labels},
        }
        for control in controls_in(label_config).values()
    }


def project_row(state: State, project: Project) -> dict[str, Any]:
    parsed = parsed_label_config(project.label_config)
    annotations = (
        [row for task in project.task_ids for row in state.annotations.get(task, ())] if state.annotations else []
    )
    annotated = {row["task"] for row in annotations if not row["was_cancelled"]}
    predictions = sum(len(state.predictions.get(task, ())) for task in project.task_ids) if state.predictions else 0
    weights = {
        name: {"overall": 1.0, "type": control["type"], "labels": dict.fromkeys(control["labels"], 1.0)}
        for name, control in parsed.items()
    }
    return {
        "id": project.id,
        "title": project.title,
        "description": project.description,
        "label_config": project.label_config,
        "expert_instruction": "",
        "show_instruction": False,
        "show_skip_button": True,
        "enable_empty_annotation": True,
        "show_annotation_history": False,
        "organization": 1,
        "color": "#FFFFFF",
        "maximum_annotations": 1,
        "is_published": False,
        "model_version": project.model_version,
        "is_draft": False,
        "created_by": {"id": 1, "first_name": "", "last_name": "", "email": EMAIL, "avatar": None},
        "created_at": timestamp(project.created_s),
        "min_annotations_to_start_training": project.min_annotations_to_start_training,
        "start_training_on_annotation_update": project.min_annotations_to_start_training > 0,
        "show_collab_predictions": project.show_collab_predictions,
        "num_tasks_with_annotations": len(annotated),
        "task_number": len(project.task_ids),
        "useful_annotation_number": sum(not row["was_cancelled"] for row in annotations),
        "ground_truth_number": sum(row["ground_truth"] for row in annotations),
        "skipped_annotations_number": sum(row["was_cancelled"] for row in annotations),
        "total_annotations_number": len(annotations),
        "total_predictions_number": predictions,
        "sampling": project.sampling,
        "show_ground_truth_first": False,
        "annotator_evaluation_enabled": False,
        "show_overlap_first": False,
        "overlap_cohort_percentage": 100,
        "task_data_login": None,
        "task_data_password": None,
        "control_weights": weights,
        "parsed_label_config": parsed,
        "evaluate_predictions_automatically": project.evaluate_predictions_automatically,
        "config_has_control_tags": bool(parsed),
        "skip_queue": "REQUEUE_FOR_OTHERS",
        "reveal_preannotations_interactively": False,
        "pinned_at": None,
        "finished_task_number": len(annotated),
        "queue_total": len(project.task_ids),
        "queue_done": len(annotated),
        "config_suitable_for_bulk_annotation": False,
        "state": None,
    }


def webhook_project_row(state: State, project: Project) -> dict[str, Any]:
    """The project inside event payloads: other fields than the API's, and its secret `token`."""
    row = project_row(state, project)
    for name in (
        "config_has_control_tags",
        "queue_total",
        "queue_done",
        "config_suitable_for_bulk_annotation",
        "state",
    ):
        del row[name]
    del row["start_training_on_annotation_update"]
    return row | {
        "created_by": 1,
        "updated_at": timestamp(state.clock()),
        "token": project.token,
        "label_config_hash": hash(project.label_config),
        "result_count": 0,
        "data_types": {value.removeprefix("$"): tag for tag, value in objects_in(project.label_config).values()},
        "custom_task_lock_ttl": None,
        "deleted_at": None,
        "purge_at": None,
        "search_vector": None,
        "deleted_by": None,
    }


def backend_row(row: Backend, now_s: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "state": row.state,
        "readable_state": STATE_NAMES[row.state],
        "is_interactive": row.is_interactive,
        "url": row.url,
        "error_message": row.error_message,
        "title": row.title,
        "auth_method": row.auth_method,
        "basic_auth_user": row.basic_auth_user,
        "basic_auth_pass_is_set": bool(row.basic_auth_pass),
        "description": row.description,
        "extra_params": row.extra_params,
        "model_version": row.model_version,
        "timeout": row.timeout,
        "created_at": timestamp(row.created_s),
        "updated_at": timestamp(now_s),
        "auto_update": row.auto_update,
        "project": row.project_id,
    }


def webhook_row(row: Webhook, now_s: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "organization": 1,
        "project": row.project_id,
        "url": row.url,
        "send_payload": row.send_payload,
        "send_for_all_actions": row.send_for_all_actions,
        "headers": row.headers,
        "is_active": row.is_active,
        "actions": row.actions,
        "created_at": timestamp(row.created_s),
        "updated_at": timestamp(now_s),
    }


def bare_task_row(state: State, task: Task) -> dict[str, Any]:
    """What all forms of a task share."""
    annotations = state.annotations.get(task.id, ())
    return {
        "id": task.id,
        "data": task.data,
        "meta": {},
        "created_at": timestamp(task.created_s),
        "updated_at": timestamp(task.updated_s),
        "is_labeled": any(not row["was_cancelled"] for row in annotations),
        "overlap": 1,
        "inner_id": task.inner_id,
        "total_annotations": sum(not row["was_cancelled"] for row in annotations),
        "cancelled_annotations": sum(row["was_cancelled"] for row in annotations),
        "total_predictions": len(state.predictions.get(task.id, ())),
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": task.project_id,
        "updated_by": [],
        "file_upload": task.file_upload,
        "comment_authors": [],
    }


def predict_task_row(state: State, task: Task, *, interactive: bool = False) -> dict[str, Any]:
    """A task in a /predict request: with every annotation and the predictions of every version."""
    row = bare_task_row(state, task) | {
        "updated_by": None,
        "annotations": state.annotations.get(task.id, []),
        "predictions": state.predictions.get(task.id, []),
    }
    if not interactive:
        return row
    for name in ("is_labeled", "overlap"):
        del row[name]
    return row | {"drafts": [], "allow_skip": True, "file_upload": upload_name(state, task)}


def webhook_task_row(state: State, task: Task) -> dict[str, Any]:
    """A task in an event: without annotations and predictions."""
    annotator = 1 if state.annotations.get(task.id) else None
    return bare_task_row(state, task) | {"allow_skip": True, "precomputed_agreement": None, "updated_by": annotator}


def list_task_row(state: State, task: Task, *, everything: bool) -> dict[str, Any]:
    """A task of GET /api/tasks; `everything` is `fields=all`."""
    predictions = state.predictions.get(task.id, [])
    versions = sorted({row["model_version"] for row in predictions}, reverse=True)
    row = bare_task_row(state, task) | {
        "drafts": [],
        "annotators": [],
        "annotations_results": "",
        "predictions_results": "",
        "file_upload": upload_name(state, task),
        "storage_filename": None,
        "annotations_ids": ",".join(str(item["id"]) for item in state.annotations.get(task.id, ())),
        "predictions_model_versions": ",".join(versions),
    }
    if not everything:
        return row
    return row | {
        "predictions": predictions,
        "annotations": state.annotations.get(task.id, []),
        "completed_at": None,
        "predictions_score": predictions_score(state, task),
        "avg_lead_time": None,
        "draft_exists": False,
    }


def next_task_row(state: State, task: Task, *, queue: str) -> dict[str, Any]:
    """What an annotator gets: only the predictions of the selected version (of a live backend: its current one)."""
    version = state.projects[task.project_id].model_version
    live = next((row for row in state.backends_of(task.project_id) if row.title == version), None)
    wanted = live.model_version if live else version
    return bare_task_row(state, task) | {
        "predictions": [row for row in state.predictions.get(task.id, ()) if wanted and row["model_version"] == wanted],
        "annotations": [],
        "drafts": [],
        "unique_lock_id": str(uuid.uuid4()),
        "queue": queue,
    }


def predictions_score(state: State, task: Task) -> float | None:
    """The sort key: the mean over the selected version; over all versions when `model_version` is null."""
    version = state.projects[task.project_id].model_version
    scores = [
        row["score"]
        for row in state.predictions.get(task.id, ())
        if row["score"] is not None and (version is None or row["model_version"] == version)
    ]
    return sum(scores) / len(scores) if scores else None


def upload_name(state: State, task: Task) -> str | None:
    upload = state.uploads.get(task.file_upload) if task.file_upload else None
    return upload.name if upload else None
