"""`docker-compose.yml`: what it promises, and its own commands run as processes on this machine, without containers."""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Limbeck, wait_until
from teacher_server import free_port

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
HEAD, WORKER = COMPOSE["services"]["head"], COMPOSE["services"]["worker"]
RAY = str(Path(sys.executable).with_name("ray"))


def test_head_and_worker_share_one_image_that_is_built_here() -> None:
    assert HEAD["image"] == WORKER["image"]
    assert (ROOT / HEAD["build"]["context"] / HEAD["build"]["dockerfile"]).is_file()
    assert HEAD["volumes"] == WORKER["volumes"] == ["runs:/runs"]


def test_nothing_is_published_beyond_this_machine_and_the_token_is_no_variable() -> None:
    assert HEAD["ports"] == ["127.0.0.1:8265:8265"]
    assert "ports" not in WORKER
    for service in (HEAD, WORKER):
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert "RAY_AUTH_TOKEN" not in service["environment"]
        assert all(value is None for name, value in service["environment"].items() if name.endswith("_KEY"))


def test_a_node_has_time_to_stop_memory_for_objects_and_files_for_sockets() -> None:
    for service in (HEAD, WORKER):
        assert service["init"] is True
        assert service["stop_grace_period"] == "90s"
        assert service["shm_size"] == "2gb"
        assert service["ulimits"]["nofile"]["soft"] >= 65536
        assert service["healthcheck"]["test"][:2] == ["CMD", "curl"]
    assert WORKER["depends_on"]["head"]["condition"] == "service_healthy"


def test_the_image_copies_what_is_there_and_every_package_of_the_project() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in shlex.split(line)[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    rooms = re.findall(r'"(\w+)"', (ROOT / "pyproject.toml").read_text().split("packages = [")[1].split("]")[0])
    assert set(rooms) <= set(copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{name}" in ignored or f"!{name}/" in ignored for name in copied)


@contextmanager
def node(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A Ray node as compose would start it. `ray start --block` ends its own processes on SIGTERM."""
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def answers(url: str) -> int:
    """The HTTP status of `url`, 0 where nothing listens."""
    try:
        with urllib.request.urlopen(url, timeout=4) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def probe(service: dict[str, Any], port: int) -> str:
    """The health check's address at another port."""
    return re.sub(r":\d+/", f":{port}/", service["healthcheck"]["test"][-1])


@pytest.mark.ray
def test_its_commands_make_a_cluster_that_wants_the_token_and_runs_a_job(
    limbeck: Limbeck, job: Callable[..., Path], questions: Path, tmp_path: Path
) -> None:
    gcs, dashboard, head_agent, agent = (free_port() for _ in range(4))
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    fixed = {name: value for name, value in HEAD["environment"].items() if value is not None}
    environment = {**os.environ, **fixed, "RAY_AUTH_TOKEN_PATH": str(token)}
    head = [part.replace("6379", str(gcs)).replace("0.0.0.0", "127.0.0.1") for part in HEAD["command"][1:]]
    head += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={head_agent}"]
    worker = [part.replace("head:6379", f"127.0.0.1:{gcs}") for part in WORKER["command"][1:]]
    worker += [f"--dashboard-agent-listen-port={agent}", "--num-cpus=2"]
    with node([RAY, *head], environment, tmp_path / "head.log"):
        wait_until(lambda: answers(probe(HEAD, dashboard)) == 200, "the head")
        assert answers(f"http://127.0.0.1:{dashboard}/api/jobs/") == 401
        with node([RAY, *worker], environment, tmp_path / "worker.log"):
            wait_until(lambda: answers(probe(WORKER, agent)) == 200, "the worker")
            run, address = tmp_path / "run", f"127.0.0.1:{gcs}"
            done = limbeck(
                "run", job(questions), "--out", run, "--address", address,
                RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished" and manifest["rows"]["accepted"] == 40
