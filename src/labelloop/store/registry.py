"""Models, their versions and files, which project uses which, and how to reach Label Studio."""

from __future__ import annotations

import difflib
import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, ModelNotFound
from labelloop.store import moves, schema
from labelloop.store.artifacts import Artifacts, hash_file
from labelloop.store.db import upsert
from labelloop.store.homes import Homes, read_served
from labelloop.store.moves import Move, Pointer
from labelloop.store.values import LENS, read_lens, read_versions

log = structlog.get_logger(__name__)

ATTEMPTS = 50
"""Each failed attempt means that another process added a version, so this is a limit on bugs, not on people."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


class ModelVersion(msgspec.Struct, frozen=True):
    """One version of one model; never changes once it is there. `digest` stands for everything that decides
    what it answers: the file and the card. `trained`: the loop made it for one project, so that it serves only where
    it is named by its number."""

    name: str
    number: int
    digest: str
    artifact: str
    card: ModelCard
    created_at: datetime
    trained: bool = False

    @property
    def id(self) -> str:
        """ "name@number"."""
        return f"{self.name}@{self.number}"


class Binding(msgspec.Struct, frozen=True):
    """Which model serves a project. `number` None follows the newest version that people added."""

    project_id: int
    name: str
    number: int | None
    reason: str
    moved_at: datetime

    @property
    def spec(self) -> str:
        """ "NAME" or "NAME@NUMBER"."""
        return moves.spec_of(self.name, self.number)


class Catalogue(msgspec.Struct, frozen=True):
    """Everything the registry knows, read at one moment."""

    versions: tuple[ModelVersion, ...] = ()
    bindings: Mapping[int, Binding] = {}
    said: Mapping[tuple[str, str], str] = {}
    """By model and project the versions that hosted models call themselves."""
    served: Mapping[int, str] = {}
    """By project the version that a server answers with though none is assigned: its `--model`."""
    lens: Mapping[str, Any] = {}
    """What the server that started last was told about drawing: its `threshold` and `aliases`."""

    def find(self, spec: str) -> ModelVersion:
        """The version that "NAME" or "NAME@NUMBER" means; a name alone means the newest version that people added, and
        where they added none the newest. Raises ModelNotFound with the near names."""
        name, number = parse_spec(spec)
        found = [v for v in self.versions if v.name == name and number in (None, v.number)]
        if found:
            return max(found, key=lambda version: (not version.trained, version.number))
        names = sorted({version.name for version in self.versions})
        near = difflib.get_close_matches(name, names, n=1)
        if any(version.name == name for version in self.versions):
            hint = f"Versions of {name}: {', '.join(str(v.number) for v in self.versions if v.name == name)}."
        elif near:
            hint = f"Did you mean {near[0]}?"
        else:
            hint = f"There are: {', '.join(names)}." if names else "Add one: labelloop models add FILE.onnx --name NAME"
        raise ModelNotFound(f"There is no model {spec}.", hint=hint)

    def of_project(
        self, project_id: int | None, *, default: str | None = None, served: bool = True
    ) -> ModelVersion | None:
        """The version that serves a project: its own, else `default`, else, with `served`, what a server answers it
        with, else the only model that people added, else None."""
        binding = None if project_id is None else self.bindings.get(project_id)
        if binding is not None:
            return None if binding.spec == moves.NOTHING else self.find(binding.spec)
        if default is not None:
            return self.find(default)
        told = self.served.get(project_id or 0) if served else None
        if told and any(version.id == told for version in self.versions):
            return self.find(told)
        added = {version.name for version in self.versions if not version.trained}
        return self.find(added.pop()) if len(added) == 1 else None

    def serving(self, project_id: int) -> tuple[ModelVersion | None, str]:
        """The version that serves a project, and what it calls itself there. Raises ModelNotFound."""
        version = self.of_project(project_id)
        return version, "" if version is None else self.called(version, project_id)

    def called(self, version: ModelVersion, project_id: int | None) -> str:
        """What a hosted model calls itself for a project, "" where it says nothing, and of every other model."""
        if version.card.task != "raw":  # another version of the same name may be hosted
            return ""
        return self.said.get((version.name, "" if project_id is None else str(project_id)), "")

    def meaning(self, spec: str) -> str:
        """The id of the version that `spec` means; `spec` itself where there is none any more."""
        try:
            return self.find(spec).id
        except ModelNotFound:
            return spec

    def meant(self, pointer: Pointer) -> list[tuple[str, datetime]]:
        """The versions that a pointer to a name has led to since it was set, oldest first, each with the moment when it
        was added; nothing for a pointer to a number."""
        name, number = parse_spec(pointer.spec)
        added = [v for v in self.versions if v.name == name and not v.trained and number is None]
        first = [version for version in added if version.created_at <= pointer.at][-1:]
        later = [version for version in added if version.created_at > pointer.at]
        return [(version.id, version.created_at) for version in [*first, *later]]

    def has(self, version: str, *, at: datetime) -> bool:
        """Whether the version that had this id at a moment is still there: the number of one that was removed may have
        been given to another since. Nothing is always there."""
        return version == moves.NOTHING or any(
            known.id == version and known.created_at <= at for known in self.versions
        )


class Registry:
    """The rows behind the catalogue, and `homes`: which project a number means. Safe to use from several threads and
    processes."""

    def __init__(self, engine: sa.Engine, artifacts: Artifacts) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self.homes = Homes(engine)

    def catalogue(self) -> Catalogue:
        """Read everything; five small queries."""
        with self._engine.connect() as connection:
            versions = connection.execute(sa.select(schema.versions).order_by("name", "number")).mappings().all()
            bindings = connection.execute(sa.select(schema.bindings)).mappings().all()
            said, served, lens = read_versions(connection), read_served(connection), read_lens(connection)
        return Catalogue(
            tuple(schema.as_struct(row, ModelVersion) for row in versions),
            {row["project_id"]: schema.as_struct(row, Binding) for row in bindings},
            said,
            served,
            lens,
        )

    def add(self, path: Path | None, card: ModelCard, *, trained: bool = False) -> ModelVersion:
        """Store a file with its completed card as the next version of `card.name`.

        The same file with the same card is the version that is already there; its stored file is replaced if it is
        lost or damaged. `path` None: the engine brings its own weights. `trained`: the loop made it, and it goes live
        nowhere by being there. Raises ModelError for a name that cannot be used, a file that cannot be read or one
        that cannot be stored.
        """
        if not NAME.fullmatch(card.name) or card.name == moves.NOTHING:
            raise ModelError(f"{card.name!r} cannot be a model name.", hint="Use letters, digits, '-', '_' and '.'.")
        try:
            card = msgspec.structs.replace(card, sha256=hash_file(path) if path else "")
        except OSError as error:
            raise ModelError(f"The model file {path} cannot be read: {error.strerror or error}.") from error
        digest = digest_of(card)
        known = self._find(card.name, digest)
        if known is not None:
            return self._mended(self._adopted(known) if known.trained and not trained else known, path)
        artifact = self._store(path, card.name, digest)
        version = self._insert(card, digest, artifact, trained=trained)
        if version.artifact != artifact:  # another process added the same meanwhile, with a copy of its own
            self._artifacts.remove(artifact)
        return version

    def _find(self, name: str, digest: str) -> ModelVersion | None:
        versions = self.catalogue().versions
        return next((v for v in versions if (v.name, v.digest) == (name, digest)), None)

    def _adopted(self, version: ModelVersion) -> ModelVersion:
        """A trained version that a person now added, as one of theirs."""
        query = sa.update(schema.versions).filter_by(name=version.name, number=version.number).values(trained=False)
        with self._engine.begin() as connection:
            connection.execute(query)
        return msgspec.structs.replace(version, trained=False)

    def _mended(self, version: ModelVersion, path: Path | None) -> ModelVersion:
        """`version`, with its file stored again when that is lost or damaged."""
        try:
            self.path(version)
        except ModelError as error:
            if path is None:
                raise
            log.warning("model file is stored again", model=version.id, reason=error.message)
            # under its old name: the same content by its hash, so whoever else mends or reads it is not disturbed
            self._artifacts.put(path, version.artifact)
        return version

    def _store(self, path: Path | None, name: str, digest: str) -> str:
        """A copy under a name that no other attempt has: whoever loses the race for the row deletes its own copy, never
        the one that the winner's row points to. A process that is killed before its row leaves a copy that nobody
        reads (see Artifacts.sweep)."""
        if path is None:
            return ""
        artifact = f"{name}/{digest[:8]}-{secrets.token_hex(8)}{path.suffix.lower()[:16]}"
        self._artifacts.put(path, artifact)
        return artifact

    def _insert(self, card: ModelCard, digest: str, artifact: str, *, trained: bool) -> ModelVersion:
        """A row with the next number; the row that is there when another process added the same meanwhile."""
        for _ in range(ATTEMPTS):  # another process may take the number between the look and the insert
            existing = [version for version in self.catalogue().versions if version.name == card.name]
            same = next((version for version in existing if version.digest == digest), None)
            if same is not None:
                return same
            number = max((version.number for version in existing), default=0) + 1
            version = ModelVersion(card.name, number, digest, artifact, card, schema.now(), trained)
            row = msgspec.to_builtins(version, builtin_types=(datetime,))
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.insert(schema.versions).values(**row))
            except sa.exc.IntegrityError:
                continue
            return version
        self._artifacts.remove(artifact)
        raise ModelError(f"The model {card.name} could not be added: others add to it all the time.", hint="Try again.")

    def remove(self, spec: str) -> tuple[ModelVersion, ...]:
        """Remove a version, or all versions of a name, with their files. Raises ModelError while a project uses it."""
        catalogue = self.catalogue()
        name, number = parse_spec(spec)
        catalogue.find(spec)
        gone = tuple(v for v in catalogue.versions if v.name == name and number in (None, v.number))
        stays = len(gone) < sum(v.name == name for v in catalogue.versions)
        users = [b for b in catalogue.bindings.values() if b.name == name and (not stays or b.number == number)]
        if users:
            projects = ", ".join(str(binding.project_id) for binding in users)
            raise ModelError(
                f"{spec} serves project {projects}.", hint="Assign another: labelloop models use PROJECT NAME"
            )
        with self._engine.begin() as connection:
            for version in gone:
                for table in (schema.versions, schema.lineage):
                    connection.execute(sa.delete(table).filter_by(name=version.name, number=version.number))
        for version in gone:
            if version.artifact:
                self._artifacts.remove(version.artifact)
        return gone

    def bind(
        self, project_id: int, spec: str, *, reason: str = "by hand", by: str = "", before: str | None = None
    ) -> ModelVersion | None:
        """Move the pointer of a project; every server on this store follows within two seconds. "none" leads to no
        model: a project begins without one although another model would serve whatever has none of its own.

        `by` says who, `before` which version served the project until now where none is assigned (`serve --model`): a
        rollback leads there. A name without any version that people added is pinned to its number, or the next
        candidate would be live at once. Raises ModelNotFound, and ModelError for a number that no project can have.
        """
        catalogue = self.catalogue()
        version = None if spec == moves.NOTHING else catalogue.find(spec)
        if schema.as_id(project_id) is None:
            raise ModelError(f"There is no project {project_id}.", hint="Its number is in its address: /projects/7/.")
        name, number = parse_spec(spec)
        target = moves.spec_of(name, version.number if version is not None and version.trained else number)
        only = catalogue.of_project(None)
        with self._engine.begin() as connection:
            now = moves.pointer(connection, project_id)
            source = catalogue.meaning(now.spec) if now else before or (only.id if only else None)
            serves = version.id if version is not None else moves.NOTHING
            self._move(connection, project_id, source, target, serves, reason=reason, by=by)
        return version

    def rollback(self, project_id: int, *, reason: str = "rolled back", by: str = "") -> Move:
        """Move the pointer to the version that served before; repeated, further back. The version is pinned: a name
        might mean another one by now. Versions that were removed meanwhile are passed over. Raises ModelError when
        there is nothing to go back to."""
        catalogue = self.catalogue()
        if schema.as_id(project_id) is None:
            raise _nothing_before(project_id, None)
        with self._engine.begin() as connection:
            now = moves.pointer(connection, project_id)
            source = catalogue.meaning(now.spec) if now else None
            earlier = [*moves.stack_of(moves.read(connection, project_id))[:-1], *(catalogue.meant(now) if now else ())]
            for target, at in reversed(earlier):
                if target != source and catalogue.has(target, at=at):
                    return self._move(connection, project_id, source, target, target, reason=reason, by=by, back=True)
            raise _nothing_before(project_id, source)

    def history(self, project_id: int) -> list[Move]:
        """The moves of a project's pointer, newest first."""
        if schema.as_id(project_id) is None:
            return []
        with self._engine.connect() as connection:
            return moves.read(connection, project_id)[::-1]

    def _move(
        self,
        connection: sa.Connection,
        project_id: int,
        source: str | None,
        target: str,
        version: str,
        *,
        reason: str,
        by: str,
        back: bool = False,
    ) -> Move:
        """Pointer and history; nothing for the history where the same `version` goes on serving."""
        move = Move(
            project_id=project_id,
            source=source,
            target=target,
            back=back,
            reason=schema.as_text(reason, limit=500),
            by=schema.as_text(by, limit=100),
            at=schema.now(),
        )
        name, number = parse_spec(target)
        moves.point(connection, move, name=name, number=number)
        if source != version:
            moves.remember(connection, move)
        return move

    def path(self, version: ModelVersion) -> Path | None:
        """A local path of the version's file, checked against its hash; None when the engine brings its own weights."""
        return self._artifacts.path(version.artifact, sha256=version.card.sha256) if version.artifact else None

    def save_connection(self, url: str, token: str) -> None:
        """Remember how to reach a Label Studio, so that `serve` can fetch its media."""
        row = {"token": token, "saved_at": schema.now()}
        with self._engine.begin() as connection:
            upsert(connection, schema.connections, {"url": url}, row)

    def save_lens(self, *, threshold: float | None, aliases: Mapping[str, str]) -> None:
        """Let commands and workers know what this server was told about drawing, for what they are not told themselves:
        their predictions are to carry the version that it says. The server that started last counts."""
        lens = {"threshold": threshold, "aliases": dict(aliases)} if aliases or threshold is not None else {}
        if self.catalogue().lens == lens:
            return
        with self._engine.begin() as connection:
            upsert(connection, schema.model_values, LENS, {"value": lens, "changed_at": schema.now()})

    def connections(self) -> list[tuple[str, str]]:
        """(url, token) of every Label Studio that was connected, newest first."""
        query = sa.select(schema.connections).order_by(schema.connections.c.saved_at.desc())
        with self._engine.connect() as connection:
            return [(row.url, row.token) for row in connection.execute(query)]


def _nothing_before(project_id: int, source: str | None) -> ModelError:
    if source is None:
        return ModelError(
            f"No model was ever assigned to project {project_id}.", hint=f"Run: labelloop models use {project_id} NAME"
        )
    return ModelError(
        f"Project {project_id} has used nothing before {source} that is still there.",
        hint=f"Choose one: labelloop models list, then labelloop models use {project_id} NAME@VERSION",
    )


def parse_spec(spec: str) -> tuple[str, int | None]:
    """ "NAME", "NAME@3" or the string in Label Studio "NAME@3.1a2b3c4d" -> name and number. Raises ModelNotFound."""
    name, _, version = spec.partition("@")
    number = parse_number(version.removeprefix("v").partition(".")[0])
    if version and number is None:
        raise ModelNotFound(f"{spec!r} is not NAME or NAME@VERSION.", hint="Write for instance yolox-nano@2.")
    return name, number


def parse_number(text: str) -> int | None:
    """A plain decimal number of at most 18 digits, else None: `'²'.isdigit()` is true and int() refuses it, and longer
    numbers do not fit into a column."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def digest_of(card: ModelCard) -> str:
    """sha256 over everything in the card that decides an answer (its sha256 field stands for the file)."""
    silent = msgspec.structs.replace(card, description="", licence="", name="")
    return hashlib.sha256(msgspec.json.encode(silent, order="deterministic")).hexdigest()
