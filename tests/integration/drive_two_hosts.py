"""Run a pass from one host on a worker of another, and let strangers knock; prints what happened as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from block_tasks import Marked

from unetflow.geometry import BlockGrid, Box
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client

KNOCK = """
import sys
from distributed import Client
from distributed.security import Security
security = Security.temporary() if sys.argv[2] == "stranger" else None
try:
    Client(sys.argv[1], timeout=1.5, security=security, set_as_default=False)
except (OSError, TypeError, RuntimeError) as error:  # a client without keys cannot even speak tls://
    print("refused", type(error).__name__)
else:
    print("let in")
"""


def main(folder: str, elsewhere: list[str]) -> None:
    options = {"cores": 1, "memory": "1GB", "walltime": "10", "interface": "ib0", "job_extra_directives": []}
    done: dict[int, Any] = {}
    with open_client("slurm", workers=1, log_folder=f"{folder}/logs", options={"options": options}) as client:
        assert client is not None
        address = client.scheduler.address
        workers = list(client.nthreads())
        run_pass(Marked(folder), BlockGrid(Box.of_shape((9,)), (1,)), client=client, record=done.__setitem__, name="p")
        knocks = {
            who: subprocess.run(
                [*elsewhere, sys.executable, "-c", KNOCK, url, who], capture_output=True, text=True, check=False
            ).stdout.strip()
            for who, url in (("plain", address.replace("tls:", "tcp:")), ("none", address), ("stranger", address))
        }
        still_there = len(client.nthreads())
    found = {"scheduler": address, "workers": workers, "done": sorted(done), "knocks": knocks, "left": still_there}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
