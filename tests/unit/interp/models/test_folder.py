"""Model folders that are replaced as one, and what a killed export leaves behind."""

import signal
import subprocess
import sys
from pathlib import Path

from interp.models.folder import replaced

KILLED = """
import os, signal, sys
from pathlib import Path
from interp.models.folder import replaced
with replaced(Path(sys.argv[1])) as partial:
    (partial / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_export_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "edited"
    ended = subprocess.run([sys.executable, "-c", KILLED, target], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left != target and [path.name for path in left.iterdir()] == ["model.safetensors"]
    with replaced(target) as partial:
        (partial / "config.json").write_text("{}", encoding="utf-8")
    assert list(tmp_path.iterdir()) == [target]
    assert [path.name for path in target.iterdir()] == ["config.json"]
