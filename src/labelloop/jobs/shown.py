"""After the pointer moved by hand: let Label Studio show the version that serves now.

Label Studio sorts by, and shows, the predictions of the version that the project names. Those of an earlier version
still have the scores of its order, so naming it brings both back. The pointer has moved already: this may fail.
"""

from __future__ import annotations

from labelloop.core.errors import LabelloopError
from labelloop.core.settings import Settings
from labelloop.jobs.submit import address_of
from labelloop.labelstudio.client import Client
from labelloop.serving.projects import Lens
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
            return _show(client, project_id, version, settings, said=said)
    except LabelloopError as error:
        return f"Label Studio still shows the predictions of before: {error}"


def _show(client: Client, project_id: int, version: ModelVersion, settings: Settings, *, said: str) -> str:
    project = client.project(project_id)
    name = Lens.of(settings).view(version, project.label_config, said=said).name
    if all(row.model_version != name for row in client.model_versions(project_id)):
        return f"Label Studio has no predictions of {name}; make them: labelloop prelabel {project_id}"
    if project.model_version != name:
        client.set_project(project_id, model_version=name)
    return f"Label Studio shows the predictions of {name}, in the order of their scores."
