"""What a run opens to the network: a live one, looked at from within and asked by somebody without the token."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.host import free_port
from launch.cluster.loopback import SWITCH
from launch.cluster.ray_job import auth_token
from tests.integration.runs import ROOT, leaving_nothing, small_run, start, wait_for_updates
from tests.listening import ROLES, Listener, listeners, reach
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(400)]

IDLE = ROLES["ray::"]
"""Ray starts and ends such workers as it likes, so that none may be there at the moment."""
AGENT = ROLES["ray::DashboardAgent"]
"""Its HTTP server has one port on every host, which another Ray may hold; then it has none."""
JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('joined', len(ray.nodes()))"


@dataclass(frozen=True)
class Live:
    """A run that trains, and what it listened on since it started."""

    directory: Path
    process: subprocess.Popen[str]
    seen: frozenset[Listener]
    now: frozenset[Listener]
    outside: dict[str, str]  # environment of somebody with another home and no token

    def ports(self, role: str) -> list[int]:
        return [listener.port for listener in self.now if listener.role == role]

    def ask(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """`python WORDS`, as the outsider."""
        command = [sys.executable, *words]
        pipe, environment = subprocess.PIPE, self.outside | environ
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def token() -> str:
    found = auth_token(os.environ, Path.home())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Live]:
    """Two updates on one host, with weights by `gloo`, which opens the most; it goes on until the tests are done."""
    directory, marked = tmp_path_factory.mktemp("network"), Marked()
    config = small_run(directory, model_dir, updates=100_000, publication={"transport": "gloo"})
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # So Ray takes a loopback address as it is, and gives up soon.
    outside |= {"HOME": str(directory), SWITCH: "0", "RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        with leaving_nothing(marked), pytest.MonkeyPatch.context() as patch:
            for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"):  # else the same for every Ray of this host
                patch.setenv(name, str(free_port()))
            process = start("train", str(config))
            seen: set[Listener] = set()
            deadline = time.monotonic() + 200
            while not (directory / "run" / "metrics.jsonl").is_file() and process.poll() is None:
                assert time.monotonic() < deadline
                seen |= listeners(marked.running())
                time.sleep(0.5)
            wait_for_updates(process, directory / "run", 2)
            now = listeners(marked.running())
            yield Live(directory, process, frozenset(seen | now), frozenset(now), outside)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
    finally:
        marked.end()


def documented() -> set[tuple[str, str, str]]:
    """The first three columns of the table of SECURITY.md about a run on one host."""
    text = (ROOT / "SECURITY.md").read_text("utf-8").partition("### A run on one host")[2].partition("\n#")[0]
    rows = re.findall(r"^\|([^|]*)\|([^|]*)\|([^|]*)\|", text, re.MULTILINE)
    return {(what.strip(), where.strip(), says.strip()) for what, where, says in rows[2:]}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "loopback"),
        ("127.0.0.2", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::", "all interfaces"),
        ("0.0.0.0", "all interfaces"),
        ("10.0.0.1", "one address"),
        ("::ffff:10.0.0.1", "one address"),
    ],
)
def test_who_reaches_a_socket_is_told_by_the_address_that_it_is_bound_to(host: str, expected: str) -> None:
    assert reach(host) == expected


def test_a_run_on_one_host_listens_where_the_documentation_says_and_nowhere_else(live: Live) -> None:
    seen = {(listener.role, listener.reach) for listener in live.seen}
    said = {(what, where) for what, where, _ in documented()}
    assert seen | {(IDLE, "loopback")} == said


def test_ray_starts_no_worker_that_no_actor_needs(live: Live) -> None:
    """It would start one for each core, and the run's start would wait for them."""
    assert IDLE not in {listener.role for listener in live.seen}


def test_without_the_token_every_port_of_a_run_says_what_the_documentation_says_and_no_more(live: Live) -> None:
    """Every method of every service is asked at every port. Asked in this way, torch's servers are silent."""
    out, err = live.ask("-m", "tests.outsider", *(str(listener.port) for listener in live.now)).communicate(timeout=200)
    given = json.loads(out or err)
    said: dict[str, set[str]] = {}
    for listener in live.now:
        said.setdefault(listener.role, set()).update(given[str(listener.port)])
    expected = {what: set(says.split(", ")) - {"nothing"} for what, _, says in documented()}
    missing = {(what, word) for what in said for word in expected[what] - said[what]}
    assert missing <= {(AGENT, "health")}
    assert all(said[what] <= expected[what] for what in said), said

    updates = len((live.directory / "run" / "metrics.jsonl").read_text().splitlines())
    wait_for_updates(live.process, live.directory / "run", updates + 2)  # the questions did the run no harm


def test_a_ray_client_joins_a_run_s_ray_with_its_token_and_not_without_or_with_another(live: Live) -> None:
    (port,) = live.ports("Ray's GCS")
    tokens = {"none": {}, "wrong": {"RAY_AUTH_TOKEN": "0" * 64}, "right": {"RAY_AUTH_TOKEN": token()}}
    asked = {
        name: live.ask("-c", JOIN, f"127.0.0.1:{port}", **given, **({"RAY_AUTH_MODE": "token"} if given else {}))
        for name, given in tokens.items()
    }
    said = {name: process.communicate(timeout=200) for name, process in asked.items()}
    assert {name: process.returncode for name, process in asked.items()} == {"none": 1, "wrong": 1, "right": 0}, said
    assert said["right"][0] == "joined 1\n"
    for name in ("none", "wrong"):
        assert "Failed to connect to Ray cluster" in said[name][1]
        assert "AuthenticationError" in said[name][1]


def test_with_its_token_the_port_that_refused_answers(live: Live) -> None:
    """The control of the questions above: they are understood."""
    (port,) = live.ports("Ray's GCS")
    out, err = live.ask("-m", "tests.outsider", str(port), OUTSIDER_TOKEN=token()).communicate(timeout=100)
    assert json.loads(out or err) == {str(port): ["/ray.rpc.NodeInfoGcsService/CheckAlive: OK", "health"]}
