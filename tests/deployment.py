"""A real Flower federation on loopback: SuperLink and SuperNodes as processes, with TLS and keys, ended by pid."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

BIN = Path(sys.executable).parent
TESTS = Path(__file__).resolve().parent
PATIENCE = 240
"""Seconds after which a test gives up on anything that it waits for."""


def needs(*programs: str) -> None:
    """Skip, saying why, where a program is missing."""
    missing = [name for name in programs if not (BIN / name).exists() and not shutil.which(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} is missing: install flwr beside this Python")


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_certificate(folder: Path) -> None:
    """A certificate authority, and a certificate for 127.0.0.1 that it signed."""
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)

    def make(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey) -> bytes:  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(name == issuer, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
                ),
                critical=False,
            )
        )
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, own = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    (folder / "ca.crt").write_bytes(make("test authority", "test authority", authority, authority))
    (folder / "server.pem").write_bytes(make("127.0.0.1", "test authority", own, authority))
    (folder / "server.key").write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@dataclass
class Federation:
    """The processes of one federation, and what they wrote."""

    folder: Path
    tls: bool
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """What every process gets: nothing is downloaded, nothing is reported."""
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(TESTS),  # for apps of the tests' own, such as faulty_app
            "FLORANA_FAULTS": str(self.folder / "faults"),
        }

    def spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own; its output goes into NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
            )  # fmt: skip
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        """What a process wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start_superlink(self) -> None:
        """The server's side, with a database, so that it can be restarted."""
        secure = ["--insecure"]
        if self.tls:
            if not (self.folder / "ca.crt").exists():
                write_certificate(self.folder)
            secure = ["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
            secure += ["--ssl-ca-certfile", "ca.crt", "--enable-supernode-auth"]
        self.spawn(
            "superlink", "flower-superlink", *secure, "--host", "127.0.0.1",
            "--port", str(self.port), "--database", "state.db",
        )  # fmt: skip
        home = self.folder / "flwr"
        home.mkdir(exist_ok=True)
        how = f'root-certificates = "{self.folder / "ca.crt"}"' if self.tls else "insecure = true"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\n{how}\n'
        )
        self.wait_for_port()

    def wait_for_port(self) -> None:
        """Until the SuperLink answers."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self.processes["superlink"].poll() is None, self.log("superlink")
            time.sleep(0.2)
        raise AssertionError(self.log("superlink"))

    def start_supernode(self, number: int, config: str) -> None:
        """A client's side; with TLS it has a key that is made and registered first."""
        secure = ["--insecure"]
        if self.tls:
            key = self.folder / f"node{number}"
            if not key.exists():
                made = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)]
                subprocess.run(made, check=True, timeout=60)
                told = self.flwr("supernode", "register", f"{key}.pub", "here")
                assert told.returncode == 0, told.stdout + told.stderr
            secure = ["--root-certificates", "ca.crt", "--auth-supernode-private-key", str(key)]
        self.spawn(
            f"node{number}", "flower-supernode", *secure, "--superlink", f"127.0.0.1:{self.port}",
            "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config,
        )  # fmt: skip

    def flwr(self, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """A ``flwr`` command."""
        return subprocess.run(
            ["flwr", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, app: Path, *overrides: str, timeout: float = PATIENCE) -> tuple[str, str]:
        """``flwr run APP here --stream``; how Flower says it ended, and what was streamed."""
        given = [part for override in overrides for part in ("-c", override)]
        done = self.flwr("run", str(app), "here", "--stream", *given, timeout=timeout)
        return self.status(), done.stdout + done.stderr

    def begin(self, name: str, app: Path, *overrides: str) -> subprocess.Popen[bytes]:
        """``flwr run`` that goes on beside the test; what is streamed goes into NAME.log."""
        given = [part for override in overrides for part in ("-c", override)]
        return self.spawn(name, "flwr", "run", str(app), "here", "--stream", *given)

    def status(self) -> str:
        """Status of the newest run."""
        return self.statuses()[-1]

    def statuses(self) -> list[str]:
        """Statuses of all runs, the newest last."""
        told = self.flwr("ls", "here", "--format", "json")
        runs = json.loads(told.stdout)["runs"]
        return [str(run["status"]) for run in sorted(runs, key=lambda run: str(run["pending-at"]))]

    def wait(self, what: str, happened: Callable[[], bool], *logs: str) -> None:
        """Wait for something, with the end of some logs if it does not happen."""
        end = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > end:
                tails = [f"--- {name}\n{self.log(name)[-6000:]}" for name in logs]
                raise AssertionError("\n".join([f"never happened: {what}", *tails]))
            time.sleep(0.2)

    def kill_alone(self, name: str) -> None:
        """SIGKILL for one process; those that it started are left to themselves."""
        process = self.processes[name]
        process.kill()
        process.wait(20)

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """End a process and everything that it started."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):  # what outlived its leader
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def federation(folder: Path, nodes: Sequence[str], *, tls: bool = False) -> Iterator[Federation]:
    """A SuperLink and a SuperNode for each ``--node-config``; all are gone at the end."""
    needs("flower-superlink", "flower-supernode", "flwr", *(["ssh-keygen"] if tls else []))
    made = Federation(folder, tls)
    try:
        made.start_superlink()
        for number, config in enumerate(nodes):
            made.start_supernode(number, config)
        yield made
    finally:
        for name in reversed(list(made.processes)):
            made.kill(name, signal.SIGTERM)
