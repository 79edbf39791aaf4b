"""The few errors that the command line turns into exit codes, and which others pass by themselves."""

from __future__ import annotations

import errno


class InputError(ValueError):
    """Refuse what a user gave: the rule, the value, the cure, in that order (exit 2)."""


class StageError(RuntimeError):
    """Report that a stage failed for good, for a reason outside its input (exit 1)."""


class BlockError(StageError):
    """Name the stage, the pass and the block in which work failed (exit 1)."""

    def __init__(self, stage: str, pass_name: str, number: int, cause: str) -> None:
        super().__init__(f"{stage}, pass {pass_name}, block {number}: {cause}")
        self.place = (stage, pass_name, number, cause)

    def __reduce__(self) -> tuple[type[BlockError], tuple[str, str, int, str]]:
        """Let the error travel between processes with all that it says."""
        return type(self), self.place


class Interrupted(RuntimeError):
    """Report a stop after which the same command goes on (exit 75)."""


class RankLost(RuntimeError):
    """Report that another rank of a training is gone; the training is begun again from its checkpoint."""


_AWAY_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNREFUSED",
        "ECONNRESET", "ECONNABORTED", "EPIPE", "EREMOTEIO",
    )
    if hasattr(errno, name)
)  # fmt: skip
# Of botocore, aiohttp, urllib3, gcsfs, requests: known by name, for their packages may not be there.
_AWAY_NAMES = frozenset({
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "ConnectTimeout",
    "ReadTimeout", "ClientConnectorError", "ClientOSError", "ServerDisconnectedError", "ServerTimeoutError",
    "ClientPayloadError", "NewConnectionError", "MaxRetryError", "FSTimeoutError", "HttpError503", "ProtocolError",
})  # fmt: skip


def is_away(error: BaseException | None) -> bool:
    """Say whether an error, or what caused it, is that of a store or a network that may come back.

    Examples
    --------
    >>> is_away(ConnectionRefusedError()), is_away(OSError(errno.ENOSPC, "full")), is_away(ValueError())
    (True, False, False)
    """
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__name__ in _AWAY_NAMES:
            return True
        if isinstance(error, OSError) and error.errno in _AWAY_NUMBERS:
            return True
        error = error.__cause__ or error.__context__
    return False
