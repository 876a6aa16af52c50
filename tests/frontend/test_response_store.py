"""The store of past responses: bounded, shared between frontends, and private to a tenant."""

import asyncio
import os
import subprocess
from pathlib import Path

from frontend.response_store import MOST_DOCUMENTS, RECOUNT_EVERY, ResponseStore


async def test_documents_are_kept_and_forgotten(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path), 1000)
    assert await store.put("", "a", b"1")
    assert await store.get("", "a") == b"1"
    assert await store.get("other", "a") is None
    assert await store.delete("", "a")
    assert not await store.delete("", "a")
    assert await store.get("", "a") is None


async def test_it_is_bounded_in_bytes(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path), 100)
    assert not await store.put("", "large", b"x" * 101)
    for i in range(10):
        assert await store.put("", str(i), b"x" * 30)
    found = [i for i in range(10) if await store.get("", str(i)) is not None]
    assert found == [7, 8, 9]
    assert await store.put("", "9", b"y" * 40)
    assert await store.get("", "9") == b"y" * 40
    assert sum(path.stat().st_size for path in (tmp_path / "0").iterdir()) == 100


async def test_it_is_bounded_in_documents(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path), 1 << 20, num_frontends=MOST_DOCUMENTS // 2)
    for i in range(5):
        await store.put("", str(i), b"x")
    assert [i for i in range(5) if await store.get("", str(i)) is not None] == [3, 4]


async def test_the_last_version_counts_whoever_wrote_it(tmp_path: Path) -> None:
    first, second = (ResponseStore(str(tmp_path), 400, index=i, num_frontends=2) for i in range(2))
    await first.put("", "a", b"begun")
    await second.put("", "a", b"taken over")
    assert [await one.get("", "a") for one in (first, second)] == [b"taken over"] * 2
    await first.put("", "a", b"done")
    assert [await one.get("", "a") for one in (first, second)] == [b"done"] * 2
    assert sum(len(os.listdir(tmp_path / folder)) for folder in "01") == 1


async def test_frontends_find_each_others_and_their_predecessors(tmp_path: Path) -> None:
    first, second = (ResponseStore(str(tmp_path), 400, index=i, num_frontends=2) for i in range(2))
    await first.put("", "a", b"x" * 150)
    assert await second.get("", "a") is not None
    reborn = ResponseStore(str(tmp_path), 400, index=0, num_frontends=2)
    assert await reborn.get("", "a") is not None
    await reborn.put("", "b", b"x" * 150)
    assert await second.get("", "a") is None
    assert await second.delete("", "b")
    assert await reborn.get("", "b") is None


def test_what_a_predecessor_still_writes_is_left_alone(tmp_path: Path) -> None:
    """It retires, and finishes its streams. What one that is dead has begun goes."""
    ResponseStore(str(tmp_path), 400)
    with subprocess.Popen(["true"]) as dead:
        pass
    writing, abandoned = (tmp_path / "0" / f"{'ab' * 16}.{pid}.new" for pid in (os.getpid(), dead.pid))
    for path in (writing, abandoned):
        path.write_bytes(b"half")
    ResponseStore(str(tmp_path), 400)
    assert writing.exists()
    assert not abandoned.exists()


async def test_what_a_predecessor_stores_late_counts(tmp_path: Path) -> None:
    """It retires, and its streams end after its successor has begun."""
    old = ResponseStore(str(tmp_path), 100)
    new = ResponseStore(str(tmp_path), 100)
    assert await old.put("", "late", b"x" * 60)
    for i in range(RECOUNT_EVERY + 1):
        assert await new.put("", str(i), b"x")
    assert await new.get("", "late") is not None  # it is there, and counts
    assert await new.put("", "large", b"x" * 80)
    assert await new.get("", "late") is None
    assert sum(path.stat().st_size for path in (tmp_path / "0").iterdir()) <= 100


async def test_nothing_is_kept_without_a_folder() -> None:
    store = ResponseStore("", 1000)
    assert not await store.put("", "a", b"1")
    assert await store.get("", "a") is None
    assert not await store.delete("", "a")


async def test_a_folder_that_is_gone_costs_only_the_document(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path / "x"), 1000)
    (tmp_path / "x" / "0").rmdir()
    assert not await store.put("", "a", b"1")


async def test_the_account_is_right_whatever_happens_at_once(tmp_path: Path) -> None:
    """The same response ends in two connections at once, while others make room."""
    store = ResponseStore(str(tmp_path), 100)
    tasks = [asyncio.ensure_future(store.put("", str(i % 3), b"x" * (i + 20))) for i in range(60)]
    await asyncio.sleep(0)
    for task in tasks[::7]:
        task.cancel()  # its client is gone
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is True or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert await store.put("", "last", b"x" * 90)
    (path,) = (tmp_path / "0").iterdir()
    assert path.stat().st_size == 90


async def test_only_we_can_read_it(tmp_path: Path) -> None:
    store = ResponseStore(str(tmp_path), 1000)
    await store.put("", "a", b"1")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "0").iterdir()] == [0o600]
