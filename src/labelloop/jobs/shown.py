"""What annotators are shown: after the pointer moved by hand the version that serves now; and what to do where it is
not what a job has stored.

Label Studio sorts by, and shows, the predictions of the version that the project names. Those of an earlier version
still have the scores of its order, so naming it brings both back. The pointer has moved already: this may fail.
"""

from __future__ import annotations

from labelloop.core.errors import LabelloopError
from labelloop.core.settings import Settings
from labelloop.jobs.submit import address_of
from labelloop.labelstudio.client import Client
from labelloop.serving.projects import Lens
from labelloop.store.jobs import Job
from labelloop.store.loops import Loops
from labelloop.store.registry import ModelVersion, Registry

TIMEOUT_S = 2.0


def show_serving(settings: Settings, registry: Registry, loops: Loops, project_id: int) -> str:
    """Name the version that serves a project in Label Studio; what came of it, in a sentence for people. Never raises a
    LabelloopError."""
    try:
        catalogue = registry.catalogue()
        version = catalogue.of_project(project_id)
        if version is None:
            return ""
        loop = loops.find(project_id)
        address, token = address_of(settings, registry, url=loop.label_studio if loop else "")
        with Client(address, token, timeout_s=TIMEOUT_S, attempts=1) as client:
            said = catalogue.called(version, project_id)
            return _show(client, project_id, version, Lens.shared(settings, catalogue), said=said)
    except LabelloopError as error:
        return f"Label Studio still shows the predictions of before: {error}"


def not_shown(registry: Registry, job: Job) -> str:
    """Why annotators do not get what a job has stored, and what to do, in a sentence; empty where they do, or where
    nobody can say. Never raises a LabelloopError."""
    token = dict(reversed(registry.connections())).get(job.label_studio, "")
    try:
        with Client(job.label_studio, token, timeout_s=TIMEOUT_S, attempts=1) as client:
            project = client.project(job.project_id)
            stored = {row.model_version for row in client.model_versions(job.project_id)}
    except LabelloopError:
        return ""
    where = f"{job.label_studio}/projects/{job.project_id}/settings/annotation"
    if not project.show_collab_predictions:
        return f"The project does not show predictions to annotators. Switch it on: {where}"
    if project.model_version in stored - {job.version}:
        return (
            f"Annotators still get the predictions of {project.model_version}. To give them these, most uncertain "
            f"first: labelloop order {job.project_id}; or select them: {where}"
        )
    return ""


def _show(client: Client, project_id: int, version: ModelVersion, lens: Lens, *, said: str) -> str:
    project = client.project(project_id)
    name = lens.view(version, project.label_config, said=said).name
    if all(row.model_version != name for row in client.model_versions(project_id)):
        return f"Label Studio has no predictions of {name}; make them: labelloop prelabel {project_id}"
    if project.model_version != name:
        client.set_project(project_id, model_version=name)
    return f"Label Studio shows the predictions of {name}, in the order of their scores."
