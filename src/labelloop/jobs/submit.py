"""From what a person asks for to a row that workers find. The command line and the JSON API both come here."""

from __future__ import annotations

from labelloop.core.errors import JobError, LabelStudioRejected, SettingsError
from labelloop.core.settings import Settings
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import BadFilter, Filters, query_of
from labelloop.labelstudio.records import Project
from labelloop.labelstudio.wire import made_s_of
from labelloop.serving.projects import Lens, View, unassigned
from labelloop.store.jobs import Job, Jobs, Options, Work
from labelloop.store.registry import Registry


def address_of(settings: Settings, registry: Registry, *, url: str = "") -> tuple[str, str]:
    """Address and token of Label Studio: the settings', else what the last `labelloop connect` saved. `url` asks for a
    certain one, which must be among them. Raises SettingsError."""
    own, token = settings.label_studio_url, settings.label_studio_token.get_secret_value()
    saved = dict(reversed(registry.connections()))  # the newest comes last
    url = url.rstrip("/")
    if url and url not in {own, *saved}:
        hint = f"Run: labelloop connect PROJECT --url {url} --token …"
        raise SettingsError(f"{url} is not connected.", hint=hint)
    url = url or own or next(reversed(saved), "")
    if not url:
        hint = "Pass --url http://host:8080 or set LABEL_STUDIO_URL."
        raise SettingsError("Label Studio's address is not known.", hint=hint)
    return url, (token if own in ("", url) else "") or saved.get(url, "")


def known_project(client: Client, registry: Registry, project: int | str) -> Project:
    """The project with this id or title, as Label Studio has it. Raises LabelStudioError, and ProjectElsewhere when our
    rows mean another project by its number."""
    found = client.find_project(project)
    registry.homes.meet(found.id, made_s_of({"created_at": found.created_at}), label_studio=client.base_url)
    return found


def work_of(
    client: Client, settings: Settings, registry: Registry, project: int | str, model: str | None, options: Options
) -> Work:
    """What a prelabel job is about: the model version is settled now, and does not change while it runs.

    `project` is an id or a title, `model` NAME or NAME@VERSION, None for the one that serves the project. Raises
    LabelStudioError, ModelError or LabelConfigError, each with the next step.
    """
    found = known_project(client, registry, project)
    if options.filters:
        _try_filters(client, found, options.filters)
    view = view_of(settings, registry, found, model)
    return Work(client.base_url, found.id, view.version.id, view.name, options)


def _try_filters(client: Client, project: Project, filters: Filters) -> None:
    """A condition that Label Studio cannot use is a 500, which a job would take for an outage. Raises BadFilter."""
    try:
        client.tasks(project.id, page_size=1, include=("id",), query=query_of((), filters=filters))
    except LabelStudioRejected as error:
        if error.status not in (400, 500):
            raise
        hint = "Columns of the imported data are written data.NAME; the others are those of the Data Manager."
        reason = error.message.partition(" Choices are")[0]  # what follows are tables of its database
        raise BadFilter(f"The filter cannot be used. {reason}", hint=hint) from error


def submit(jobs: Jobs, work: Work) -> tuple[Job, bool]:
    """A queued job, and True; or the unfinished one that does this already, and False. Raises JobError where another
    job makes the predictions of this version, of fewer tasks or in another way: two at once would store some twice."""
    job, new = jobs.create(work)
    if not new and not job.options.covers(work.options):
        raise JobError(
            f"Job {job.id} makes predictions of {job.version} now, with other options ({_in_words(job.options)}).",
            hint=f"Start this again when it has ended (labelloop jobs show {job.id}), or end it: "
            f"labelloop jobs cancel {job.id}",
        )
    return job, new


def _in_words(options: Options) -> str:
    words = ["only missing" if options.only_missing else "all, replacing earlier ones"]
    words += ["filtered"] * (options.filters is not None)
    words += [f"at most {options.limit} tasks"] * (options.limit is not None)
    return ", ".join(words)


def view_of(settings: Settings, registry: Registry, project: Project, model: str | None) -> View:
    """A project as a version sees it: `model` as in `work_of`. Raises ModelError or LabelConfigError."""
    catalogue = registry.catalogue()
    version = catalogue.find(model) if model else catalogue.of_project(project.id)
    if version is None:
        raise unassigned(project.id)
    said = catalogue.called(version, project.id)
    return Lens.shared(settings, catalogue).view(version, project.label_config, said=said)
