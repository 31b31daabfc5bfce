"""Predictions into Label Studio, each exactly once, through an import that deduplicates nothing.

Label Studio's bulk import stores whatever it gets, twice if it is sent twice; a lost answer says nothing about whether
the request arrived, and a request whose client was killed goes on inside the server. So, per page of a job:

0. A task is in one page only, and a page is in one worker's hands (`taken`): pages have numbers that the store gives
   out once, each reaches from where the one before it ended, and its holder is written with it (see reading).
1. What was predicted is written to our store (`predicted`) before anything is sent. A page in these two states was
   never sent: a process that dies here doubles nothing; whoever takes the page over predicts it, or sends it.
2. "An import begins now" is written (`sending`, with the moment) before each request, in one transaction with the
   check that the page is still ours and the job still runs. Only then the request goes out.
3. An answer in the 2xx ends it: `stored`, in one transaction with the failures. A page in this state is never sent.
4. A page found in `sending`, after a crash or an error without an answer, is *in doubt*. Label Studio is asked which of
   its tasks have a new prediction of this version. While some have none and the request is younger than `settle_s`, it
   may still be at work in the server: we ask again. What is missing then is sent, and only that.
5. A request can be slower than `settle_s`: pages that were ever in doubt are looked at once more when the job ends, and
   second predictions of the same task and version are deleted. So a double lives for minutes at worst, and none stays.

Two workers cannot both be in step 2 for one page: it is taken over only from a worker that is dead, and one that was
taken for dead by mistake is refused (JobLost) at its next write about the page. The moment between its last write and
its request is covered by 4 and 5, because the new holder finds the page in `sending`. The job ends when the worker that
owns it sees every page stored, so step 5 comes after the last import of all workers.

Predictions that are replaced (`--all`) are deleted one by one, by their ids, when the new ones are there. Label Studio
deletes many at once by task or by version only, and both mean the new predictions too: a request whose client was
killed may run in the server after the next worker's import, and takes away what nobody looks for any more. By id one
costs 0.1 to 0.3 s; so what a new prediction says that is there already, to the last digit, is not sent, and the old one
stays (see preannotate).

Pages travel together in one import; where it does not bring all of them in, for whatever reason, each goes on alone,
in doubt.

An import is refused as a whole when one task is unknown (deleted meanwhile: it is left out and the rest sent) or when
the installation validates strictly (400) or limits bodies (413): then pages are sent alone, then halves, down to the
items to blame. By default Label Studio drops invalid items and only counts: when `created` is too small, the missing
ones are looked up.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from labelloop.core.errors import LabelStudioError, LabelStudioRejected
from labelloop.jobs.patience import Patience, is_passing
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import chosen
from labelloop.store.pages import Ended, Failed, Item, Page, Pages

Items = Sequence[Item]

LOOK_AT = 100
"""Tasks asked about in one request: their ids travel in its address, and proxies allow about 4 kB."""
_ASK_EVERY_S = 0.5
_REFUSALS = (400, 413, 422)
_ANSWERED_S = 0.0
"""Moment of an import that was answered: long ago, so nobody waits for it to arrive."""


class _Outcome(msgspec.Struct):
    failed: list[Failed] = []
    skipped: int = 0
    doubted: bool = False


class Delivery:
    """Stores the pages of one job, at most `import_size` predictions at a time where a page has no more; used by one
    thread."""

    def __init__(
        self,
        client: Client,
        pages: Pages,
        *,
        project_id: int,
        version: str,
        patience: Patience,
        settle_s: float,
        import_size: int,
        tell: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._pages = pages
        self._project_id = project_id
        self._version = version
        self._patience = patience
        self._importing = patience.another()
        self._settle_s = settle_s
        self._import_size = import_size
        self._tell = tell

    def deliver(self, pages: Sequence[Page]) -> None:
        """Bring pages into Label Studio, whatever happened to them before."""
        fresh = [page for page in pages if page.state == "predicted"]
        alone = [page for page in pages if page.state != "predicted"]
        while fresh:
            together = fresh[: self._fitting(fresh)]
            del fresh[: len(together)]
            alone += self._together(together) if len(together) > 1 else together
        for page in alone:
            self._alone(page)

    def _fitting(self, pages: Sequence[Page]) -> int:
        """How many of them one import can take; at least one."""
        sizes = itertools.accumulate(len(page.items) for page in pages)
        return max(1, sum(size <= self._import_size for size in sizes))

    def _together(self, pages: Sequence[Page]) -> list[Page]:
        """One import for all. Returns the pages as being sent where it may not have brought all of them in."""
        items = [item for page in pages for item in page.items]
        if items and (sent_s := self._not_arrived(pages, items)) is not None:
            return [msgspec.structs.replace(page, state="sending", sent_s=sent_s) for page in pages]
        for page in pages:
            self._replace(page, set())
        self._pages.stored([Ended(page, stored=len(page.items), skipped=page.skipped) for page in pages])
        return []

    def _not_arrived(self, pages: Sequence[Page], items: Items) -> float | None:
        """The moment of an import that has not brought all in; None where it has."""
        sent_s = self._pages.sending(pages, doubted=False)
        try:
            return None if self._import(items) else _ANSWERED_S
        except LabelStudioRejected as error:
            if error.status == 413:  # what limits it now will limit it the next time
                self._import_size = max(1, len(items) // 2)
            if error.status in _REFUSALS:
                return _ANSWERED_S
            self._pause(error)
        except LabelStudioError as error:
            self._pause(error)
        return sent_s

    def _alone(self, page: Page) -> None:
        outcome = _Outcome(skipped=page.skipped)
        items: Items = page.items
        if page.state == "sending":
            sent_s = page.sent_s or _ANSWERED_S
            outcome.doubted = sent_s != _ANSWERED_S
            items = self._missing(page, items, sent_s=sent_s)
            self._tell(
                "info", f"Page {page.number}: {len(page.items) - len(items)} had arrived, {len(items)} go again."
            )
        self._send(page, items, outcome)
        failed = {failure.task_id for failure in outcome.failed}
        self._replace(page, failed)
        stored = len(page.items) - len(failed) - (outcome.skipped - page.skipped)
        self._pages.stored([Ended(page, stored, outcome.skipped, outcome.failed, outcome.doubted)])

    def clear_doubts(self) -> None:
        """Delete second predictions on pages that were ever in doubt."""
        for page in self._pages.doubted():
            for ids in self._look(page, page.task_ids).values():
                for double in sorted(ids)[1:]:
                    self._tell("warning", f"Page {page.number}: deleted the prediction {double}, a double.")
                    self._delete(double)
            self._pages.settled(page)

    # --- sending ------------------------------------------------------------------------------------------

    def _import(self, items: Items) -> bool:
        """Whether all are in Label Studio now."""
        answer = self._client.import_predictions(self._project_id, [item.json for item in items])
        self._importing.answered()
        return answer.dropped == 0

    def _pause(self, error: LabelStudioError) -> None:
        """Wait, longer each time, for what will pass; raises what will not."""
        if not is_passing(error):
            raise error
        self._importing.pause(error)

    def _send(self, page: Page, items: Items, outcome: _Outcome) -> None:
        while items:
            sent_s = self._pages.sending([page], doubted=outcome.doubted)
            try:
                if not self._import(items):
                    self._find_dropped(page, items, outcome)
                return
            except LabelStudioError as error:
                if isinstance(error, LabelStudioRejected) and error.status in _REFUSALS:
                    self._refused(page, items, error, outcome)
                    return
                self._pause(error)
                outcome.doubted = True
                items = self._missing(page, items, sent_s=sent_s)

    def _refused(self, page: Page, items: Items, error: LabelStudioRejected, outcome: _Outcome) -> None:
        """All were refused because of some: leave out the deleted, else narrow it down."""
        known = self._look(page, [item.task for item in items])
        outcome.skipped += self._without_deleted(page, items, known)
        # Some releases store in portions: what came before the bad item may be there.
        left = [item for item in items if known.get(item.task) == []]
        if len(known) < len(items):
            self._send(page, left, outcome)
        elif len(left) == 1:
            outcome.failed.append(Failed(left[0].task, "prediction-refused", str(error)))
        else:
            middle = len(left) // 2
            self._send(page, left[:middle], outcome)
            self._send(page, left[middle:], outcome)

    def _find_dropped(self, page: Page, items: Items, outcome: _Outcome) -> None:
        known = self._look(page, [item.task for item in items])
        outcome.skipped += self._without_deleted(page, items, known)
        dropped = [task for task, ids in known.items() if not ids]
        message = (
            "Label Studio dropped this prediction: it does not pass its check against the label config. Was the label "
            "config changed a moment ago? Then start the job again."
        )
        outcome.failed += [Failed(task, "prediction-invalid", message) for task in dropped]
        if dropped:
            self._tell("warning", f"Page {page.number}: Label Studio dropped {len(dropped)} predictions as invalid.")

    def _without_deleted(self, page: Page, items: Items, known: Mapping[int, Any]) -> int:
        deleted = [item.task for item in items if item.task not in known]
        if deleted:
            shown = ", ".join(map(str, deleted[:10])) + (", …" if len(deleted) > 10 else "")
            self._tell("info", f"Page {page.number}: {len(deleted)} tasks were deleted meanwhile: {shown}.")
        return len(deleted)

    # --- looking ------------------------------------------------------------------------------------------

    def _missing(self, page: Page, items: Items, *, sent_s: float) -> Items:
        """Those of `items` that did not arrive with the request of the moment `sent_s`."""
        while True:
            known = self._look(page, [item.task for item in items])
            # A deleted task counts as missing: the import will say so.
            missing = [item for item in items if not known.get(item.task)]
            left_s = sent_s + self._settle_s - time.time()
            if not missing or left_s <= 0:
                return missing
            self._patience.sleep(min(left_s, _ASK_EVERY_S))

    def _look(self, page: Page, task_ids: Sequence[int]) -> dict[int, list[int]]:
        """The tasks that exist, with the ids of their predictions of this version that the job did not find there."""
        found: dict[int, list[int]] = {}
        for start in range(0, len(task_ids), LOOK_AT):
            part = task_ids[start : start + LOOK_AT]
            for row in self._patience(lambda part=part: self._rows(part)):  # type: ignore[misc]
                ours = predictions_of(row, self._version)
                found[row["id"]] = [one for one in ours if one not in page.replaces.get(row["id"], ())]
        return found

    def _rows(self, task_ids: Sequence[int]) -> tuple[dict[str, Any], ...]:
        include = ("id", "predictions")
        return self._client.tasks(
            self._project_id, page_size=LOOK_AT, include=include, query=chosen(task_ids), everything=True
        ).tasks

    # --- replacing ----------------------------------------------------------------------------------------

    def _replace(self, page: Page, failed: set[int]) -> None:
        """Delete what was there before, where the new prediction is there now. Doing it twice does no harm."""
        new = {item.task for item in page.items} - failed
        for task, ids in page.replaces.items():
            for old in ids if task in new else ():
                self._delete(old)

    def _delete(self, prediction_id: int) -> None:
        self._patience(lambda: self._client.delete_prediction(prediction_id))


def predictions_of(row: Mapping[str, Any], version: str) -> list[int]:
    """Ids of a task's predictions that carry exactly this version; `row` as the task list gives it."""
    return [one["id"] for one in rows_of(row, version)]


def rows_of(row: Mapping[str, Any], version: str) -> list[Mapping[str, Any]]:
    """The same predictions, whole."""
    return [one for one in row.get("predictions") or () if one.get("model_version") == version]
