"""What a fault looks like from inside: a deadline that ends work, a run that two servers want, causes in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from hypothesis import given
from hypothesis import strategies as st

from florana.config import load_config
from florana.errors import AdapterError, FederationError, RunError
from florana.experiments import runner
from florana.experiments.deadline import within
from florana.experiments.run_folder import RunFolder
from florana.federation.local_grid import LocalGrid
from florana.federation.replies import content_of
from florana.federation.watched_grid import LONGEST_PAUSE, SHORTEST_PAUSE, pause
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, what_it_left, write_texts


def test_work_that_outlives_its_message_is_broken_off() -> None:
    """By an error that says what to do; the timer is gone afterwards, as is its handler."""
    before = signal.getsignal(signal.SIGALRM)
    with (
        pytest.raises(FederationError, match=r"not done after 0\.05 s.*deadline_seconds"),
        within(0.05),
    ):
        time.sleep(60)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_work_in_time_is_left_alone() -> None:
    """Nothing comes later, even if the time is over then."""
    with within(0.05):
        done = True
    time.sleep(0.1)
    assert done


HOLD = """
import sys, time
from pathlib import Path
from florana.experiments.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_cannot_do_one_run(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """The second is refused and changes nothing; SIGKILL of the first is enough for the second to go on."""
    settings = tiny_settings(kinds["own head"], write_texts(tmp_path / "texts.csv"))
    run, stop = tmp_path / "run", RuntimeError("stopped by hand")

    def watch(event: object) -> None:
        if getattr(event, "server_round", None) == 2 and hasattr(event, "score"):
            raise stop

    with pytest.raises(RuntimeError, match="by hand"):
        runner.start(load_config(None, [*settings, f"output='{run}'"]), watch)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        left = what_it_left(run)
        with pytest.raises(RunError, match="is at work in another process"):
            runner.resume(run, lambda _event: None)
        assert what_it_left(run) == left
    finally:
        first.kill()
        first.wait()
        if first.stdout is not None:
            first.stdout.close()
    runner.resume(run, lambda _event: None)
    tiny_run(settings, tmp_path / "unbroken")
    assert what_it_left(run) == what_it_left(tmp_path / "unbroken")


def test_a_hold_ends_with_its_block(tmp_path: Path) -> None:
    """And leaves nothing in the folder."""
    for _ in range(2):
        with RunFolder(tmp_path).held():
            assert not list(tmp_path.iterdir())


def test_a_long_reason_keeps_its_end() -> None:
    """Where Ray puts what the client raised; nobody's traceback fills the log."""
    LocalGrid(lambda *_: None, 1)  # type: ignore[arg-type]  # gives messages their sender
    asked = Message(RecordDict(), 1000, "train")
    reason = "RayTaskError: " + "somewhere in a file\n" * 200 + "Message: the disk is gone"
    with pytest.raises(AdapterError) as caught:
        content_of(Message(Error(2, reason), reply_to=asked))
    assert str(caught.value).startswith("it failed: RayTaskError: somewhere")
    assert str(caught.value).endswith("Message: the disk is gone")
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "it failed: the reason"),
        (ErrorCode.MESSAGE_UNAVAILABLE, r"no reply came .*federation\.deadline_seconds\): the reason"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "its reply was lost on the way.*: the reason"),
        (ErrorCode.NODE_UNAVAILABLE, "its SuperNode is gone: the reason"),
        (ErrorCode.CLIENT_APP_CRASHED, "its process died: it was killed, or out of memory: the reason"),
    ],
)  # fmt: skip
def test_an_error_is_told_by_its_cause(code: int, cause: str) -> None:
    """Flower's codes in words, with Flower's own reason behind them."""
    LocalGrid(lambda *_: None, 1)  # type: ignore[arg-type]  # gives messages their sender
    asked = Message(RecordDict(), 1000, "train")
    with pytest.raises(AdapterError, match=cause):
        content_of(Message(Error(code, "the  reason"), reply_to=asked))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_pauses_between_looks_grow_with_the_time_that_has_passed(one: float, other: float) -> None:
    """At most a twentieth of it, never shorter than the first and never longer than Flower's own."""
    earlier, later = sorted((one, other))
    assert SHORTEST_PAUSE <= pause(earlier) <= pause(later) <= LONGEST_PAUSE
    assert pause(later) <= max(SHORTEST_PAUSE, later / 20)
