"""Ray jobs: addresses, exit codes and broken logs on stand-ins; the real thing against a head of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from actors.errors import RunError, UsageError
from benchmarks.cluster import free_port
from launch.cluster import ray_job as rayjob
from launch.cluster.ray_job import RayJob
from launch.submit.compose import FILES
from tests.processes import Marked

ROOT = Path(rayjob.__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ("http://a:1/", {"RAY_API_SERVER_ADDRESS": "http://b:2"}, "http://a:1"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://b:2", "RAY_ADDRESS": "http://c:3"}, "http://b:2"),
        (None, {"RAY_ADDRESS": "http://c:3"}, "http://c:3"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_the_address_given_wins_over_the_environment(given, environ, expected):
    assert rayjob.job_server(given, environ) == expected


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://h:10001", "http://"])
def test_an_address_that_is_not_a_job_server_is_refused(address):
    with pytest.raises(UsageError, match="http://HOST:8265"):
        rayjob.job_server(address, {})


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", None, 1),
        ("FAILED", -9, 137),
        ("STOPPED", 0, 1),
        ("STOPPED", -15, 143),
    ],
)
def test_only_success_is_exit_code_0(status, code, expected):
    assert rayjob.exit_code(status, code) == expected


class DroppingClient:
    """A job server whose log breaks off in the middle; each new connection starts over."""

    def __init__(self, logs: list[list[str | Exception]], final: str = "SUCCEEDED") -> None:
        self.logs, self.final = logs, final

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for chunk in self.logs.pop(0):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def get_job_info(self, job_id: str) -> Any:
        status = job_status("RUNNING" if self.logs else self.final)
        return SimpleNamespace(status=status, driver_exit_code=None if self.logs else 0)


def job_status(name: str) -> Any:
    from ray.job_submission import JobStatus

    return JobStatus(name)


def test_a_log_that_broke_off_is_taken_up_where_it_broke(capsys):
    client = DroppingClient([["abc", "de", RuntimeError("dropped")], ["ab", "cdef"], ["abcdefg"]])
    assert rayjob.wait_for_job(client, "job", pause=lambda _: None) == ("SUCCEEDED", 0)
    assert capsys.readouterr().out == "abcdefg"


def test_a_job_server_that_stays_away_is_an_error_that_says_the_job_may_be_running():
    client = DroppingClient([[OSError("gone")]] * 5)
    with pytest.raises(RunError, match=r"job-7 may still be running.*`ray job stop job-7`"):
        rayjob.wait_for_job(client, "job-7", patience=2, pause=lambda _: None)
    assert len(client.logs) == 2


def test_an_unreachable_address_is_one_sentence_and_exit_code_1(tmp_path):
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RunError, match=r"no Ray job server answers at .*`ray start --head`") as caught:
        rayjob.run_ray_job(RayJob("true", tmp_path), address)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_the_token_is_found_where_ray_keeps_it(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the user\n")
    (tmp_path / "token").write_text("of the cluster\n")
    path = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert rayjob.auth_token({}, tmp_path) == "of the user"
    assert rayjob.auth_token(path, tmp_path) == "of the cluster"
    assert rayjob.auth_token(path | {"RAY_AUTH_TOKEN": "itself"}, tmp_path) == "itself"
    assert rayjob.auth_token({}, tmp_path / "elsewhere") is None
    with pytest.raises(UsageError, match=r"RAY_AUTH_TOKEN_PATH=.*none: No such file"):
        rayjob.auth_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, tmp_path)


# For real.


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("page", "last"), [("launching.md", "ray start --head"), ("docker.md", "docker compose -f")])
def test_the_documented_commands_make_the_token_that_the_cluster_and_its_jobs_use(page, last, tmp_path):
    """Typed as printed, they once ended in Ray's AuthenticationError: nothing made the token."""
    text = (ROOT / "docs" / page).read_text()
    [block] = [each for each in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE) if "get-auth-token" in each]
    typed = textwrap.dedent(block)
    before = typed[: typed.index(last)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{environ['PATH']}"}
    script = f'set -e\n{before}\necho "${{RAY_AUTH_TOKEN_PATH:-}}"'
    ended = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    token = rayjob.auth_token({}, tmp_path)
    assert len(token or "") >= 32
    assert ended.stdout.strip() in ("", str(tmp_path / ".ray" / "auth_token"))


@dataclass
class Head:
    address: str
    agent: str
    node: str  # HOST:PORT that other nodes join
    directory: Path
    environ: dict[str, str]
    token: str

    def status(self, path: str, token: str | None, body: Any = None, server: str | None = None) -> int:
        """The status of an answer to GET, or to POST of a `body`, with a token or without."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request((server or self.address) + path, data, headers), timeout=60) as answer:
                return answer.status
        except HTTPError as error:
            return error.code

    def add_node(self) -> None:
        """Add a second node on this machine, as a worker of a cluster is."""
        command = ["ray", "start", "--block", "--address", self.node, "--num-cpus", "1", "--disable-usage-stats"]
        command += ["--object-store-memory", "100000000", "--dashboard-agent-listen-port", "0"]
        with (self.directory / "log").open("a") as log:
            subprocess.Popen(command, env=self.environ | {"RAY_AUTH_MODE": "token"}, stdout=log, stderr=log)

    def submit(self, tree: Path, words: list[str], **environ: str) -> subprocess.Popen[str]:
        """A process of its own, as on a command line."""
        program = (
            "import sys; from pathlib import Path; from launch.cluster.ray_job import RayJob, run_ray_job\n"
            "from actors.errors import OffbeatError\n"
            "job = RayJob(sys.argv[3], Path(sys.argv[2]), {'GREETING': 'hello there'})\n"
            "try: sys.exit(run_ray_job(job, sys.argv[1]))\n"
            "except OffbeatError as error: print(error); sys.exit(error.exit_code)"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, self.address, str(tree), shlex.join(words)],
            env=self.environ | {"PYTHONPATH": str(ROOT)} | environ,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # A short name: Ray keeps sockets in it, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp", ignore_cleanup_errors=True) as name:
        marked = Marked()
        try:
            yield _started(Path(name), marked)
        finally:
            marked.end()


def _started(directory: Path, marked: Marked) -> Head:
    from ray.util import get_node_ip_address

    port, agent, path, token = free_port(), free_port(), directory / "token", secrets.token_hex(32)
    path.write_text(token)
    environ = marked.environ | {"RAY_AUTH_TOKEN_PATH": str(path)}
    node = free_port()
    command = ["ray", "start", "--head", "--block", "--port", str(node), "--num-cpus", "1"]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(port), "--temp-dir", str(directory / "ray")]
    command += ["--object-store-memory", "100000000", "--ray-client-server-port", str(free_port())]
    # Ray's default is one fixed port for the agent that starts jobs: a second Ray on this host would have none.
    command += ["--dashboard-agent-listen-port", str(agent)]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, env=environ | {"RAY_AUTH_MODE": "token"}, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            servers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{agent}"
            return Head(*servers, f"{get_node_ip_address()}:{node}", directory, environ, token)
        except OSError:
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_job_runs_from_the_upload_and_its_exit_code_comes_back(head, tmp_path):
    """One head for four submissions: a failure with its own code, a success, a wrong token, and Ctrl-C."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "big.bin").write_text("stays here")
    (tmp_path / "job.py").write_text(
        "import os, sys, time\n"
        "print(os.environ['GREETING'], os.path.exists('runs'), sys.argv[1:], flush=True)\n"
        "time.sleep(float(sys.argv[2]))\nsys.exit(int(sys.argv[1]))\n"
    )

    failing = head.submit(tmp_path, ["python", "job.py", "3", "0", "two words"])
    output, _ = failing.communicate(timeout=90)
    assert failing.returncode == 3, output
    assert "hello there False ['3', '0', 'two words']" in output
    assert "FAILED, exit code 3" in output

    succeeding = head.submit(tmp_path, ["python", "job.py", "0", "0"])
    output, _ = succeeding.communicate(timeout=90)
    assert (succeeding.returncode, "SUCCEEDED, exit code 0" in output) == (0, True), output

    refused = head.submit(tmp_path, ["python", "job.py", "0", "0"], RAY_AUTH_TOKEN="0" * 64)
    output, _ = refused.communicate(timeout=90)
    assert refused.returncode == 1, output
    assert "refused" in output
    assert "RAY_AUTH_TOKEN_PATH" in output

    endless = head.submit(tmp_path, ["python", "job.py", "0", "600"])
    for line in endless.stdout:  # the log is followed live: the job prints this while it runs
        if "hello there" in line:
            break
    endless.send_signal(signal.SIGINT)
    output, _ = endless.communicate(timeout=60)
    assert endless.returncode == rayjob.INTERRUPTED, output
    assert "interrupted: stopping raysubmit_" in output
    assert "is STOPPED" in output


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_job_on_two_nodes_is_followed_and_its_failure_is_reported_as_a_failure(head, tmp_path):
    """Each node has one core, so that two actors of a core each are on both."""
    head.add_node()
    (tmp_path / "job.py").write_text(
        "import ray, sys, time\n"
        "ray.init(logging_level='ERROR', log_to_driver=False)\n"
        "deadline = time.monotonic() + 120\n"
        "while ray.cluster_resources().get('CPU', 0) < 2 and time.monotonic() < deadline: time.sleep(0.5)\n"
        "@ray.remote(num_cpus=1)\n"
        "class Part:\n"
        "    def node(self): return ray.get_runtime_context().get_node_id()\n"
        "parts = [Part.remote(), Part.remote()]\n"
        "print('nodes:', len(set(ray.get([part.node.remote() for part in parts], timeout=120))), flush=True)\n"
        "sys.exit(4)\n"
    )
    failing = head.submit(tmp_path, ["python", "job.py"])
    output, _ = failing.communicate(timeout=300)
    assert failing.returncode == 4, output
    assert "nodes: 2" in output
    assert "FAILED, exit code 4" in output


@pytest.mark.ray
@pytest.mark.slow
def test_the_health_check_of_the_compose_file_passes_on_a_real_head_and_fails_without_its_token(head):
    """In the container the token's file is named by the same variables."""
    check = yaml.safe_load((FILES / "compose.yaml").read_text())["services"]["head"]["healthcheck"]["test"]
    program, *words = (word.replace("http://127.0.0.1:8265", head.address) for word in check)
    assert program == "CMD"
    environ = head.environ | {"RAY_AUTH_MODE": "token"}
    assert subprocess.run(words, env=environ, capture_output=True, timeout=100).returncode == 0
    for wrong in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_port()}"}):
        assert subprocess.run(words, env=environ | wrong, capture_output=True, timeout=100).returncode != 0


@pytest.mark.ray
@pytest.mark.slow
def test_the_job_server_and_the_dashboard_refuse_whoever_has_no_token_or_another(head, tmp_path):
    """Without a token 401, with a wrong one 403, whatever is asked for; what a stranger submits never runs."""
    pages = ["/api/jobs/", "/api/version", "/nodes?view=summary", "/api/cluster_status", "/api/v0/actors", "/logs"]
    done, never = tmp_path / "done", tmp_path / "never"

    def job(path: Path) -> dict[str, str]:
        return {"entrypoint": f"touch {shlex.quote(str(path))}"}

    assert {page: head.status(page, head.token) for page in pages[:3]} == dict.fromkeys(pages[:3], 200)
    assert head.status("/api/jobs/", head.token, job(done)) == 200
    deadline = time.monotonic() + 200
    while not done.exists():  # then the agent, to which the job server gives the job, is there too
        assert time.monotonic() < deadline
        time.sleep(0.1)

    for token, status in ((None, 401), ("0" * 64, 403)):
        assert {page: head.status(page, token) for page in pages} == dict.fromkeys(pages, status)
        assert head.status("/api/jobs/", token, job(never)) == status
        assert head.status("/api/job_agent/jobs/", token, job(never), server=head.agent) == status
    open_to_all = ["/", "/api/gcs_healthz", "/api/authentication_mode"]  # the page asks for the token
    assert {page: head.status(page, None) for page in open_to_all} == dict.fromkeys(open_to_all, 200)
    assert not never.exists()
