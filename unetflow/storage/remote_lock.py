"""The lock of a folder behind a URL: an object that names its holder.

It is created exclusively where the store can do that (S3, Google, Azure: one conditional request)
and written anew at each heartbeat. A stale one is replaced under a second object, the guard, which
is created in the same way: of many that find a stale lock one looks again and replaces it.

Where a store writes although the object is there (older S3-like servers), that is noticed by a
second attempt, which must fail; then each waits for a moment and reads back, and the last wins.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator

from unetflow.storage.holder import Holder, held, is_stale
from unetflow.storage.objects import Objects

NAME, GUARD_NAME = "lock", "lock.guard"
SETTLE_SECONDS = 1.0


class LockObject:
    """A lock recorded in an object; each attempt to take it has content of its own."""

    def __init__(self, url: str, holder: Holder) -> None:
        self._objects = Objects(url)
        self._content = json.dumps({"holder": holder.to_json(), "attempt": uuid.uuid4().hex}).encode()

    def take(self) -> None:
        """Create the object, or replace a stale one."""
        if self._create(NAME):
            return
        found = self._objects.get(NAME)
        self._refuse_living(found, time.time())
        with self._guard():
            if self._objects.get(NAME) != found:
                raise held(self._objects.url, None, 0.0)
            self._refuse_living(found, self._modified(GUARD_NAME))
            self._objects.put(NAME, self._content)

    def refuse_living(self) -> None:
        """Refuse where the object names a living holder."""
        self._refuse_living(self._objects.get(NAME), time.time())

    def is_ours(self) -> bool:
        """Say whether the object is what this attempt wrote."""
        return self._objects.get(NAME) == self._content

    def touch(self) -> None:
        """Write the object anew, which sets its time."""
        self._objects.put(NAME, self._content)

    def remove(self) -> None:
        """Delete the object."""
        self._objects.delete(NAME)

    def _create(self, name: str) -> bool:
        """Create an object that only one of many creates."""
        if self._objects.get(name) is not None or not self._objects.create(name, self._content):
            return False
        if not self._objects.create(name, self._content):
            return True
        time.sleep(SETTLE_SECONDS)
        return self._objects.get(name) == self._content

    def _refuse_living(self, content: bytes | None, now: float, name: str = NAME) -> None:
        """Refuse where the holder of a lock or guard lives, by the store's clock."""
        if content is not None:
            holder, age = _holder(content), now - self._modified(name)
            if not is_stale(holder, age):
                raise held(self._objects.url, holder, age)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Let one process at a time replace the lock."""
        if not self._create(GUARD_NAME):
            self._refuse_living(self._objects.get(GUARD_NAME), time.time(), GUARD_NAME)
            self._objects.delete(GUARD_NAME)  # its maker died in between
            if not self._create(GUARD_NAME):
                raise held(self._objects.url, None, 0.0)
        try:
            yield
        finally:
            self._objects.delete(GUARD_NAME)

    def _modified(self, name: str) -> float:
        """Return when an object was written; now, where it is gone or the store does not tell."""
        with contextlib.suppress(FileNotFoundError):
            return self._objects.modified(name) or time.time()
        return time.time()


def _holder(content: bytes) -> Holder | None:
    try:
        return Holder.from_json(json.loads(content)["holder"])
    except (ValueError, TypeError, KeyError):
        return None
