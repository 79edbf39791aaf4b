"""TLS, and the addresses that a cluster listens on: nobody runs code by reaching a port.

Whoever connects to a scheduler or worker shows a certificate that the run itself signed, with a
key that only this user can read. Dask does not compare host names, so the certificates serve on
any host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError

if TYPE_CHECKING:
    from distributed.security import Security

LOOPBACK = "127.0.0.1"
FILES = ("ca_file", "cert", "key")


def run_security() -> Security:
    """Make certificate and key for one run; they lie in memory, and on disk only for jobs of a queue."""
    from distributed.security import Security

    security: Security = Security.temporary()
    return security


def security_of_files(tls: Mapping[str, str]) -> Security | None:
    """Return what connects to a running ``tls://`` scheduler; None where a cluster file names no files.

    Parameters
    ----------
    tls : mapping
        ``ca_file``, ``cert`` and ``key``.

    Raises
    ------
    InputError
        If one of them is not named, or cannot be read.
    """
    from distributed.security import Security

    if not tls:
        return None
    for name in FILES:
        if name not in tls:
            raise InputError(f"a tls:// scheduler needs {', '.join(FILES)} in [tls], and {name} is not there; add it")
        try:
            with open(tls[name], "rb"):
                pass
        except OSError as error:
            raise InputError(f"tls.{name} must be a file that you can read: {error}") from error
    return Security(
        tls_ca_file=tls["ca_file"], tls_client_cert=tls["cert"], tls_client_key=tls["key"], require_encryption=True
    )


def listening_options(interface: str | None, scheduler_options: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the one address that a scheduler for other hosts listens on; dashboards stay on loopback.

    Parameters
    ----------
    interface : str, optional
        Network that the hosts share; without it the one that leads out of this host.
    scheduler_options : mapping
        What the user says wins.
    """
    from distributed.utils import get_ip

    options = {"dashboard_address": f"{LOOPBACK}:0", **scheduler_options}
    if interface is None and not {"host", "interface"} & options.keys():
        options["host"] = get_ip()
    return options
