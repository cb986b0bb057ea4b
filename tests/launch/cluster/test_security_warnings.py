"""Warnings about what others on the network could reach."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from actors.judges.config import EndpointJudgeConfig, GoldJudgeConfig
from launch.cluster import security_warnings, wiring
from launch.settings.run import ClusterConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1", "[::1]"])
def test_addresses_that_only_this_machine_reaches(host: str) -> None:
    assert security_warnings.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "node7", "", None])
def test_addresses_that_others_reach_or_whose_reach_no_one_knows(host: str | None) -> None:
    assert not security_warnings.is_loopback(host)


def test_a_ray_started_here_is_warned_of_only_where_its_token_was_turned_off() -> None:
    assert security_warnings.started_ray({}) is None
    assert security_warnings.started_ray({"RAY_AUTH_MODE": "token"}) is None
    warning = security_warnings.started_ray({"RAY_AUTH_MODE": "disabled"})
    assert warning is not None
    assert "can run any command as you; unset RAY_AUTH_MODE" in warning


@pytest.mark.parametrize(
    ("address", "mode", "token", "warned"),
    [
        ("auto", None, None, False),
        ("127.0.0.1:6379", None, None, False),
        ("[::1]:6379", "disabled", None, False),
        ("node7:6379", None, "t", False),
        ("node7:6379", "token", "t", False),
        ("node7:6379", None, None, True),
        ("ray://node7:10001", "disabled", "t", True),
    ],
)
def test_a_ray_joined_over_the_network_without_a_token_is_warned_of(
    address: str, mode: str | None, token: str | None, warned: bool
) -> None:
    environ = {} if mode is None else {"RAY_AUTH_MODE": mode}
    warning = security_warnings.joined_ray(address, environ, token)
    assert (warning is not None) == warned
    assert warning is None or f"the Ray at {address} is joined over the network without a token" in warning


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:8265", "https://node7:8265"])
def test_a_job_server_on_this_machine_or_behind_tls_is_not_warned_of(address: str) -> None:
    assert security_warnings.job_server(address, "t") is None


def test_a_token_told_in_the_clear_is_warned_of_without_what_the_address_hides() -> None:
    warning = security_warnings.job_server("http://ann:hunter2@node7:8265", "t")
    assert warning is not None
    assert "http://***@node7:8265 is neither https nor on this machine: its token and the job travel" in warning
    assert "hunter2" not in warning
    assert ": the job travels" in str(security_warnings.job_server("http://node7:8265", None))


@pytest.mark.parametrize(
    ("url", "key", "warned"),
    [
        ("http://node7:8000/v1", "KEY", True),
        ("http://node7:8000/v1", None, False),
        ("https://node7/v1", "KEY", False),
        ("http://127.0.0.1:8000/v1", "KEY", False),
    ],
)
def test_a_judge_that_is_told_its_key_in_the_clear_is_warned_of(url: str, key: str | None, warned: bool) -> None:
    judge = EndpointJudgeConfig(url=url, model="m", api_key_env=key)
    assert (security_warnings.http_judge(judge) is not None) == warned
    assert security_warnings.http_judge(GoldJudgeConfig()) is None


def test_the_warnings_that_there_are_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    security_warnings.warn(None, "first", None, "second")
    assert capsys.readouterr() == ("", "offbeat: warning: first\noffbeat: warning: second\n")


def test_a_run_that_joins_a_ray_says_so_before_it_connects(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wiring, "_init", lambda cluster, address: None)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with wiring.ray_session(ClusterConfig(address=f"{socket.gethostname()}:6379")):
        pass
    assert "is joined over the network without a token" in capsys.readouterr().err


def test_the_token_that_ray_writes_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    security_warnings.keep_token_private(tmp_path)
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("t")
    path.chmod(0o644)
    security_warnings.keep_token_private(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
