"""docs/deploy.md, followed: every command as it is printed, in order, in an empty folder.

With FLORANA_TRANSCRIPT=FILE what was typed and what came back is written there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from deployment import BIN, PATIENCE, needs

pytestmark = pytest.mark.deployment

PAGE = Path(__file__).resolve().parent.parent / "docs" / "deploy.md"
PORTS = (9092, 9100, 9101, 9102)


def blocks() -> list[str]:
    """The page's shell blocks."""
    return [part.split("```")[0] for part in PAGE.read_text().split("```sh\n")[1:]]


def goes_on(block: str) -> bool:
    """Whether a block starts something that is meant to stay."""
    return block.startswith(("flower-superlink", "flower-supernode"))


def is_listening(port: int) -> bool:
    """Whether somebody has the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_the_page_is_followed_as_it_is_printed(tmp_path: Path, minilm: object) -> None:
    """Certificate, keys, SuperLink, three SuperNodes with data of their own, a run, its report."""
    needs("flower-superlink", "flower-supernode", "flwr", "openssl", "ssh-keygen")
    if any(map(is_listening, PORTS)):
        pytest.skip(f"a port of the page is taken: {PORTS}")
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr home"),
        "COLUMNS": "240",  # flwr ls cuts its table to the terminal
        "OMP_NUM_THREADS": "1",
    }
    exports, processes, typed = "set -e\n", [], list[tuple[str, str]]()
    log = (tmp_path / "processes.log").open("wb")
    try:
        for block in blocks():
            if block.startswith("export"):
                exports += block
                typed.append((block, ""))
            elif goes_on(block):
                processes.append(
                    subprocess.Popen(
                        ["bash", "-c", exports + "exec " + block], cwd=tmp_path, env=env, stdout=log,
                        stderr=log, start_new_session=True,
                    )
                )  # fmt: skip
                wait_until_up(block)
                typed.append((block, "(goes on)\n"))
            else:
                done = subprocess.run(
                    ["bash", "-c", exports + block], cwd=tmp_path, env=env, capture_output=True,
                    text=True, timeout=PATIENCE, check=False,
                )  # fmt: skip
                told = done.stdout + done.stderr + (tmp_path / "processes.log").read_text()[-4000:]
                assert done.returncode == 0, f"{block}\n{told}"
                typed.append((block, done.stdout + done.stderr))
                if "flwr run" in block:
                    assert "Global model: accuracy" in done.stdout, told
                if block.startswith("flwr ls"):
                    assert "completed" in done.stdout, told
    finally:
        for process in reversed(processes):
            end(process)
        log.close()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] == 2
    for name in ("report.html", "final/adapter_config.json", "metrics.jsonl"):
        assert (tmp_path / "run" / name).is_file()
    assert len(list(tmp_path.glob("state*/cache/*.safetensors"))) == 3
    if "FLORANA_TRANSCRIPT" in os.environ:
        write_transcript(Path(os.environ["FLORANA_TRANSCRIPT"]), typed, tmp_path)


def write_transcript(path: Path, typed: list[tuple[str, str]], folder: Path) -> None:
    """What was typed behind a prompt, what came back below it, without colours and this machine's paths."""
    parts = []
    for block, came in typed:
        prompt = "\n> ".join(block.rstrip("\n").split("\n"))
        plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r", "", came)
        lines = (line.rstrip() for line in plain.replace(str(folder), "~/federation").splitlines())
        parts.append("\n".join([f"$ {prompt}", *lines]))
    path.write_text("\n\n".join(parts) + "\n", "utf-8")


def wait_until_up(block: str) -> None:
    """Until the SuperLink answers; a SuperNode needs no wait, since the run waits for it."""
    words = shlex.split(block)
    if words[0] != "flower-superlink":
        return
    port, limit = int(words[words.index("--port") + 1]), time.monotonic() + PATIENCE
    while not is_listening(port):
        assert time.monotonic() < limit, "the SuperLink does not answer"
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
