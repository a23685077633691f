"""Start a Ray of one's own, or connect to one."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import LimbeckError, SpecError

OWN_PORTS = {"include_dashboard": False, "logging_level": "error", "log_to_driver": False}
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray's notice on a future change of the accelerator variable, printed at every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
# Of a Ray that ends with the run nobody scrapes metrics, and sampling for them cost 0.2 ms CPU a call. Nor does anybody
# read its workers' logs through the driver: looking for new ones ten times a second took 3 % of a core.
OWN = {
    "RAY_enable_metrics_collection": "0",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "86400",
    # A SIGTERM to the whole process group (`timeout`, a batch system) ends this Ray, too. A driver waited 60 s for it
    # to come back; one on this machine does not.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
CONNECTED: dict[str, bool] = {}  # Limbeck's connections, and whether it started that Ray
JOINED: set[str] = set()  # addresses of clusters that runs were told to work on, whoever connected to them
_starts = threading.Lock()
_at_work: list[object] = []  # runs, trainings and evaluations of this process
_born_with: dict[str, str] = {}  # the environment that Ray's workers have from it
STORE_BYTES = 200 * 2**20  # units and records pass through; rows are on disk, so 200 MiB is ample


def connect(address: str | None, variables: Sequence[str] = ()) -> None:
    """Connect to `address` (`auto`, host:port), or start a local Ray that ends with this process. One that an earlier
    call started is started anew where `variables`, which hold keys, have changed since: its workers know the old ones.
    A Ray that the program itself connected to is used where no `address` is given.

    `SpecError` where no cluster answers there, and where this process is busy with another one.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized() or not _stays(address, variables):
        _start() if address is None else _join(address)
    if address is not None:
        JOINED.add(_here())


def _start() -> None:
    """A local Ray."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    for name, value in OWN.items():
        os.environ.setdefault(name, value)
    with _Starting():
        ray.init(address="local", object_store_memory=STORE_BYTES, **OWN_PORTS)
    _keep_token_private()
    _born_with.clear()
    _born_with.update(os.environ)
    CONNECTED[_connection()] = True


def _join(address: str) -> None:
    """The cluster at `address`."""
    import ray

    try:
        ray.init(address=address, logging_level="error", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise SpecError(
            f"no Ray cluster answers at {address}: {first}",
            "where the cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE",
        ) from None
    CONNECTED[_connection()] = False


def _here() -> str:
    """host:port of the cluster that is connected."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _connection() -> str:
    """The one that is made now: a program may later connect to the same cluster itself."""
    import ray

    return f"{_here()} {ray.get_runtime_context().get_job_id()}"


def _stays(address: str | None, variables: Sequence[str]) -> bool:
    """Whether the Ray that is connected is the one that a run needs; else it is left. `SpecError` while another run is
    on it, and where it is not Limbeck's to leave."""
    import ray

    is_there = address is not None and _is_at(address, _here())
    if _connection() not in CONNECTED:
        if address is not None and not is_there:
            raise SpecError(
                f"{address} was asked for, and this process is connected to the Ray at {_here()}",
                "call ray.shutdown() first, or leave the address out",
            )
        return True
    changed = [name for name in variables if os.environ.get(name) != _born_with.get(name)] if is_own() else []
    if not changed and (is_there or (address is None and is_own())):
        return True
    if _at_work:
        what = f"{', '.join(changed)} has changed" if changed else f"{address or 'a local Ray'} was asked for"
        raise SpecError(
            f"{what} while another run of this process is under way",
            "wait for it to end: a process is connected to one Ray, whose workers keep their environment",
        )
    ray.shutdown()
    return False


def _is_at(address: str, here: str) -> bool:
    """Whether an address that was asked for is that of the cluster at `here`."""
    import ray

    address = _current_cluster() if address == "auto" else address
    host, _, port = address.rpartition("://")[2].partition(":")
    try:
        found = socket.gethostbyname(host)
    except OSError:
        return False
    if found.startswith("127."):
        found = ray.util.get_node_ip_address()
    ours, _, our_port = here.rpartition(":")
    return found == ours and ("://" in address or port == our_port)


@contextmanager
def connected(address: str | None, variables: Sequence[str] = ()) -> Iterator[None]:
    """`connect`, and meanwhile nobody else of this process starts that Ray anew."""
    me = object()
    with _starts:
        connect(address, variables)
        _at_work.append(me)
    try:
        yield
    finally:
        _at_work.remove(me)


class _Starting:
    """Ray 2.60 raises a bare `Exception` where a process of its own does not start, as on a full disk."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is Exception:
            raise LimbeckError(
                f"Ray did not start: {' '.join(str(error).split())[:160]}",
                "check free memory, disk, processes and open files; Ray's newest session folder has its logs",
            ) from None


def shares_keys() -> bool:
    """Whether keys are to be this process's, as on a Ray that it started, by whichever code. A cluster's nodes have
    their own."""

    return _here() not in JOINED


def is_own() -> bool:
    """Whether the Ray that is connected was started here and ends with this process."""
    import ray

    return ray.is_initialized() and CONNECTED.get(_connection(), False)


def has_died() -> bool:
    """Whether the Ray that was started here has ended by itself: nothing listens where its directory of actors did, and
    without that no call comes back."""
    if not is_own():
        return False
    host, _, port = _here().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionError:
        return True
    except OSError:
        pass
    return False


def check_address(address: str | None) -> None:
    """`SpecError` where nothing, or no Ray, listens at host:port: Ray itself tries such an address for minutes."""
    if address is None:
        return
    if address == "auto":
        address = _current_cluster()
    host, colon, port = address.rpartition("://")[2].partition(":")
    if not colon:
        if "://" in address:
            return
        raise SpecError(f"--address {address}: no address of a cluster", "as in 10.0.0.1:6379, or auto")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                _require_grpc(connection)
    except (OSError, ValueError) as error:
        hint = "ray start --head prints the address of a cluster; without --address a local one is started"
        raise SpecError(f"no Ray cluster answers at {address}: {error}", hint) from None


def _require_grpc(connection: socket.socket) -> None:
    """`OSError` where the other side does not greet as HTTP/2 does (RFC 9113, 3.4), on which Ray's gRPC is built."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # empty SETTINGS
    greeting = connection.recv(9, socket.MSG_WAITALL)
    if len(greeting) < 9 or greeting[3] != 4:
        raise OSError("what listens there is no Ray")


def _current_cluster() -> str:
    """The cluster that `auto` means: the one of RAY_ADDRESS, or the last that was started on this machine."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named and named != "auto":
        return named
    try:
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()  # noqa: S108 - Ray's own place
    except OSError:
        hint = "ray start --head starts one; without --address a local one is started"
        raise SpecError("--address auto: no Ray cluster was started on this machine", hint) from None


def _keep_token_private() -> None:
    """Ray 2.60 writes its token with the default umask (0644 seen here); nobody else needs to read it."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if token.is_file() and token.owner() == Path.home().owner():
        token.chmod(0o600)


def cpus() -> int:
    """Cores of the largest node, as Ray counts them."""
    import ray

    return max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1) or 1
