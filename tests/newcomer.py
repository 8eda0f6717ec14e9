"""A new user of aegis: an empty directory, no settings and no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vendor_llama_cpp import converter_tree

ROOT = Path(__file__).parents[1]

# every socket but a local one (the lock and the event loops of libraries use none) ends the process
NO_NETWORK = """
import socket
def refuse(*_args, **_kwargs):
    raise SystemExit("a socket was opened")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
"""


class Newcomer:
    """Runs aegis in an empty directory without network."""

    def __init__(self, home: Path) -> None:
        self.home = home
        guard = home / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
        paths = [str(guard), str(ROOT / "pipeline"), str(ROOT)]
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("AEGIS_", "HF_"))},
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUTF8": "1",
            "AEGIS_CACHE_DIR": str(home / "cache"),
            "LLAMA_CPP_DIR": str(converter_tree()),
        }

    def aegis(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "aegis", *arguments],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=800,
            check=False,
        )
