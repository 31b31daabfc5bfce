"""The cache on disk: its cap, its order, its accidents."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from media_site import FakeOrigin, Site, jpeg, ref, threads

from labelloop.core.errors import MediaNotFound, MediaUndecodable
from labelloop.media.cache import Cache
from labelloop.media.load import MediaLoader

Make = Callable[..., MediaLoader]
KB = 1000


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "total"]


def disk_use(folder: Path) -> int:
    """Bytes in whole blocks, as the cap counts them."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files(folder))


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=100 * KB)
    for identity, body, etag in (("a", b"bytes", '"tag"'), ("ключ \udcff", b"", ""), ("b", os.urandom(40 * KB), "")):
        assert cache.get(identity) is None
        cache.put(identity, body, etag=etag)
        entry = cache.get(identity)
        assert entry is not None
        assert (entry.body, entry.etag) == (body, etag)
    cache.put("a", b"other")
    assert cache.get("a").body == b"other"  # type: ignore[union-attr]
    cache.discard("a")
    cache.discard("never there")
    assert cache.get("a") is None


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    Cache(tmp_path / "cache", max_bytes=100 * KB).put("a", b"bytes")
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / "cache").rglob("*")}
    assert modes == {0}


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=10 * 12288)
    for i in range(10):
        cache.put(str(i), b"x" * 10 * KB)
    assert cache.get("0") is not None  # used again: now the youngest
    for i in range(10, 13):
        cache.put(str(i), b"x" * 10 * KB)
    kept = [i for i in range(13) if cache.get(str(i))]
    assert kept == [0, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_the_cap_holds_at_every_moment(tmp_path: Path) -> None:
    cap = 200 * KB
    cache = Cache(tmp_path / "cache", max_bytes=cap)
    for i in range(300):
        cache.put(str(i % 170), b"x" * (i * 7919 % 50_000))
        if i % 10 == 0:
            assert disk_use(tmp_path / "cache") <= cap
    assert disk_use(tmp_path / "cache") > cap * 0.6


def test_one_huge_file_does_not_push_out_all_others(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=100 * KB)
    cache.put("small", b"x" * KB)
    cache.put("huge", b"x" * 60 * KB)
    assert cache.get("huge") is None
    assert cache.get("small") is not None


def test_no_cache_at_all(tmp_path: Path) -> None:
    Cache(tmp_path / "cache", max_bytes=100 * KB).put("old", b"bytes")
    cache = Cache(tmp_path / "cache", max_bytes=0)
    cache.put("a", b"bytes")
    assert cache.get("a") is cache.get("old") is None


def test_a_restart_keeps_the_files_and_a_smaller_cap_is_obeyed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    old = Cache(folder, max_bytes=500 * KB)
    for i in range(40):
        old.put(str(i), b"x" * 10 * KB)
    new = Cache(folder, max_bytes=100 * KB)
    assert new.get("39") is not None
    new.put("new", b"x" * 10 * KB)
    assert disk_use(folder) <= 100 * KB
    assert new.get("39") is not None
    assert new.get("0") is None


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "too long"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"\0" * 1000), "zeros"),
        (lambda path: path.unlink(), "gone"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder"),
    ],
)
def test_a_damaged_file_is_a_miss(tmp_path: Path, damage: Callable[[Path], object], what: str) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=100 * KB)
    cache.put("a", b"bytes" * 100)
    damage(files(tmp_path / "cache")[0])
    assert cache.get("a") is None, what
    cache.put("b", b"bytes")
    assert cache.get("b") is not None


def test_a_crash_leaves_nothing_that_counts(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    Cache(folder, max_bytes=100 * KB).put("a", b"x" * 10 * KB)
    (folder / "unfinished").write_bytes(b"x" * 50 * KB)  # killed while writing
    (folder / "total").write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f")  # and before counting
    cache = Cache(folder, max_bytes=100 * KB)
    for i in range(8):
        cache.put(str(i), b"x" * 10 * KB)
    assert all(cache.get(str(i)) for i in range(8))
    assert not (folder / "unfinished").exists()


def test_a_folder_deleted_under_way_and_one_that_cannot_be_made(tmp_path: Path) -> None:
    import shutil

    cache = Cache(tmp_path / "cache", max_bytes=100 * KB)
    cache.put("a", b"bytes")
    shutil.rmtree(tmp_path / "cache")
    assert cache.get("a") is None
    cache.put("b", b"bytes")
    cache.put("c", b"bytes")
    assert cache.get("c") is not None
    (tmp_path / "file").write_bytes(b"")
    blocked = Cache(tmp_path / "file" / "cache", max_bytes=100 * KB)
    blocked.put("a", b"bytes")
    assert blocked.get("a") is None


def test_many_threads(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=300 * KB)

    def work(seed: int) -> None:
        for i in range(60):
            name = str((i * 31 + seed * 17) % 60)
            entry = cache.get(name)
            assert entry is None or entry.body == name.encode() * 4000
            cache.put(name, name.encode() * 4000)

    with threads(6, work):
        pass
    assert disk_use(tmp_path / "cache") <= 300 * KB


PROCESS = """
import sys
from pathlib import Path
from labelloop.media.cache import Cache
cache = Cache(Path(sys.argv[1]), max_bytes=300_000)
for i in range(200):
    name = str((i * 31 + int(sys.argv[2])) % 60)
    entry = cache.get(name)
    assert entry is None or entry.body == name.encode() * 4000
    cache.put(name, name.encode() * 4000)
"""


def test_many_processes_stay_below_one_cap(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    running = [subprocess.Popen([sys.executable, "-c", PROCESS, str(folder), str(i)]) for i in range(3)]
    most = 0
    while any(process.poll() is None for process in running):
        if folder.is_dir():
            sizes = []
            for path in folder.glob("*/*"):
                try:
                    sizes.append(-(-path.stat().st_size // 4096) * 4096)
                except FileNotFoundError:  # evicted while we looked
                    continue
            most = max(most, sum(sizes))
    assert [process.wait() for process in running] == [0, 0, 0]
    assert 100 * KB < disk_use(folder) <= 300 * KB
    assert most <= 330 * KB  # looking takes time, in which files come and go


# --- through the loader -----------------------------------------------------------------------------


def test_uploads_are_fresh_for_ever(make_loader: Make, studio: Site) -> None:
    studio.answers["/data/upload/1/a.jpg"] = (200, {}, b"bytes")
    seen: Counter[str] = Counter()
    first = make_loader(media_cache_ttl_s=0, observe=lambda name, value: seen.update([name]))
    for _ in range(2):
        assert first.fetch(ref("/data/upload/1/a.jpg")) == b"bytes"
    assert make_loader(media_cache_ttl_s=0).fetch(ref("/data/upload/1/a.jpg")) == b"bytes"
    assert len(studio.seen) == 1
    assert seen == {"fetch": 2, "cache_miss": 1, "cache_hit": 1}


def test_others_for_a_time_and_then_by_their_etag(make_loader: Make, studio: Site) -> None:
    studio.answers["/data/local-files/"] = lambda handler: (
        (304, {}, b"") if handler.headers["If-None-Match"] == 'W/"1"' else (200, {"ETag": 'W/"1"'}, b"bytes")
    )
    fresh, stale = make_loader(media_cache_ttl_s=3600), make_loader(media_cache_ttl_s=0)
    for loader in (fresh, fresh, stale, stale):
        assert loader.fetch(ref("/data/local-files/?d=a")) == b"bytes"
    assert [seen.headers.get("if-none-match") for seen in studio.seen] == [None, 'W/"1"', 'W/"1"']
    studio.answers["/data/local-files/"] = (200, {"ETag": 'W/"2"'}, b"changed")
    assert stale.fetch(ref("/data/local-files/?d=a")) == b"changed"
    assert fresh.fetch(ref("/data/local-files/?d=a")) == b"changed"
    studio.answers["/data/local-files/"] = (404, {}, b"")
    with pytest.raises(MediaNotFound):
        stale.fetch(ref("/data/local-files/?d=a"))


def test_failures_are_not_kept(make_loader: Make, studio: Site) -> None:
    loader = make_loader()
    for bad in ((404, {}, b""), (200, {}, b"<html>log in</html>"), (200, {}, jpeg()[:-100])):
        studio.answers["/data/upload/a"] = bad
        with pytest.raises((MediaNotFound, MediaUndecodable)):
            loader.load(ref("/data/upload/a"))
    studio.answers["/data/upload/a"] = (200, {}, jpeg())
    assert loader.load(ref("/data/upload/a")).size == (64, 48)


def test_one_label_studio_does_not_get_the_pictures_of_another(make_loader: Make, studio: Site, other: Site) -> None:
    studio.answers["/data/upload/a"], other.answers["/data/upload/a"] = (200, {}, b"one"), (200, {}, b"two")
    assert make_loader().fetch(ref("/data/upload/a")) == b"one"
    assert make_loader(FakeOrigin(other.url)).fetch(ref("/data/upload/a")) == b"two"


@pytest.mark.parametrize("cache_size", [0, 10**8])
@pytest.mark.parametrize("status", [200, 404])
def test_ten_threads_download_once(make_loader: Make, studio: Site, cache_size: int, status: int) -> None:
    waiting = threading.Event()  # set when all threads are on their way

    def answer(handler: object) -> tuple[int, dict[str, str], bytes]:
        assert waiting.wait(60)
        return status, {}, b"bytes"

    studio.answers["/data/upload/a"] = answer
    loader = make_loader(media_cache_size=cache_size)
    outcomes: list[object] = []

    def work(i: int) -> None:
        try:
            outcomes.append(loader.fetch(ref("/data/upload/a")))
        except MediaNotFound as error:
            outcomes.append(error)

    with threads(10, work):
        waiting.set()
    assert len(outcomes) == 10
    if status == 200:
        assert set(outcomes) == {b"bytes"}
    else:
        assert len({id(outcome) for outcome in outcomes}) == 10  # each thread raised an exception of its own
    # without a copy in the cache, a thread that comes after the first has landed asks again
    assert len(studio.seen) == 1 or cache_size == 0 or status == 404


def test_memory_and_disk_do_not_grow_with_what_passes_through(make_loader: Make, studio: Site, tmp_path: Path) -> None:
    """60 MB through a cache of 2 MB; benchmarks/ does it with 2 GB through 200 MB."""
    body = os.urandom(200 * KB)
    studio.answers["/data/upload/x"] = (200, {}, body)
    loader = make_loader(media_cache_size=2000 * KB)
    for i in range(50):
        loader.fetch(ref(f"/data/upload/x?{i}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(250):
        loader.fetch(ref(f"/data/upload/x?{i + 50}"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB
    assert disk_use(tmp_path / "home" / "cache" / "media") <= 2000 * KB
