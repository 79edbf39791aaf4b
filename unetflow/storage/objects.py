"""Small objects below a URL, read and written whole: what ledger and lock of a remote store lie in."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, TypeVar

from unetflow.errors import is_away
from unetflow.storage import store as stores

T = TypeVar("T")
AWAY_SECONDS = 60.0  # for which a store that does not answer is asked again
FIRST_WAIT, MAX_WAIT = 1.0, 15.0
log = logging.getLogger(__name__)
_TIMES = ("LastModified", "updated", "last_modified", "mtime", "created")


class Objects:
    """The objects below one URL. Every request goes to the store; nothing is remembered.

    Raises
    ------
    OSError
        From each method, where the store cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        store = stores.open_store(url, read_only=False)
        assert isinstance(store, stores.CheckedRemoteStore)
        self._fs, self._root = store.fs, store.path.rstrip("/")

    def get(self, name: str) -> bytes | None:
        """Return the content of an object, or None where there is none."""
        try:
            return bytes(self._run(self._fs._cat_file, self._path(name)))
        except (FileNotFoundError, PermissionError):  # a bucket that may not be listed says 403 of what is missing
            return None

    def put(self, name: str, content: bytes) -> None:
        """Write an object whole, in the place of what was there."""
        self._run(self._fs._pipe_file, self._path(name), content)

    def upload(self, name: str, file: str) -> None:
        """Write an object from a local file, which need not fit memory."""
        self._run(self._fs._put_file, file, self._path(name))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that is not there yet, and say whether it was not.

        Where the file system cannot do this in one step it looks first; some S3-like servers
        write in any case and always say yes.
        """
        try:
            self._run(self._fs._pipe_file, self._path(name), content, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):  # a file system without this mode
            if self.get(name) is not None:
                return False
            self.put(name, content)
        return True

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        try:
            self._run(self._fs._rm_file, self._path(name))
        except FileNotFoundError:
            return

    def modified(self, name: str) -> float | None:
        """Return when an object was written, by the store's clock, in seconds; None where it does not tell."""
        info = self._run(self._fs._info, self._path(name))
        found = next((info[key] for key in _TIMES if info.get(key)), None)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        return found.timestamp() if isinstance(found, datetime) else found

    def names(self) -> list[str]:
        """Return the names right below the URL, those of folders too."""
        try:
            entries = self._run(self._fs._ls, self._root, detail=False)
        except FileNotFoundError:
            return []
        own = self._root.strip("/")  # an empty object of this name stands for a folder
        paths = (str(entry).strip("/") for entry in entries)
        return sorted(path.rpartition("/")[2] for path in paths if path != own)

    def delete_all(self, name: str) -> None:
        """Remove an object, or all that lies below a name."""
        try:
            self._run(self._fs._rm, self._path(name), recursive=True)
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        """Make a request; a store that is away is asked again for a minute, at growing intervals."""
        until, wait = time.monotonic() + AWAY_SECONDS, FIRST_WAIT
        while True:
            try:
                return self._request(function(*args, **options))
            except OSError as error:
                if not is_away(error) or time.monotonic() + wait > until:
                    raise
            log.warning("%s is away; asked again in %.0f s", self.url, wait)
            time.sleep(wait)
            wait = min(2 * wait, MAX_WAIT)

    def _request(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return stores.run(coroutine)
        except (OSError, TypeError, NotImplementedError, ValueError):
            raise
        except Exception as cause:  # each protocol has its own errors for no network and no permission
            raise OSError(errno.EIO, f"{type(cause).__name__}: {cause}", self.url) from cause
