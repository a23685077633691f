"""The driver's side of the fan-out: start the actors, watch them, replace the dead, and say how it ended."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import BudgetExhausted, Interrupted, LaneUnusable, LimbeckError, SpecError, raised_there
from schemas.lane import Teacher, lane_names
from schemas.manifest import SPENT
from schemas.weights import gguf_weights
from services import cluster
from services.fanout.feed import Feed
from services.fanout.sender import End
from services.fanout.units import Plan, Progress
from services.fanout.worker import FREE_WINDOW, Post, Worker, is_governed, lane_governor, places
from services.journal.index import Totals
from services.journal.place import Journal
from services.journal.writer import GONE_WITHIN_S
from services.ledger.books import Caps, Excess
from services.ledger.cashier import cashier
from services.teachers import embedded
from services.teachers.credentials import credential_id, key_variables

NONE_ABSENT: tuple[frozenset[int], frozenset[int]] = frozenset(), frozenset()
POLL_S = 0.25
PLACED_S = 20.0  # for an actor's process to start; after that it is cores that it waits for
REPLACEMENTS = 5  # deaths of workers in one lane before the run gives up
LIGHT = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}  # API-bound: asks for no cores, repeats nothing


@dataclass(slots=True)
class Lane:
    """One teacher of the spec, as the driver knows it."""

    number: int
    teacher: Teacher
    account: str = ""  # that it must be, where its workers are to have this process's keys
    base_url: str | None = None
    server: Any = None
    node: str | None = None
    placed: Any = None  # of an embedded teacher: answered once it has its cores
    coming: Any = None  # and once it serves
    asked_at: float = 0.0
    waits: str = ""
    deaths: int = 0
    closed: str = ""
    spent: bool = False  # the budget does not cover another call of it


@dataclass(slots=True)
class Fleet:
    """All actors of one run. Use as a context manager; on exit segments are sealed and actors end."""

    teachers: list[Teacher]
    journal: Journal
    caps: Caps
    spent: Totals
    workers_per_lane: int
    tag: str
    retry_failed: bool = False  # ask again for what a lane could not answer in an earlier start
    recordings: Mapping[int, str] = field(default_factory=dict)  # by lane: the folder of a recorded teacher's index
    _lanes: list[Lane] = field(init=False, default_factory=list)
    _workers: dict[str, tuple[Lane, Any]] = field(init=False, default_factory=dict)
    _cashier: Any = field(init=False, default=None)
    _feed: Any = field(init=False, default=None)
    _born: int = field(init=False, default=0)
    _failure: LimbeckError | OSError | None = field(init=False, default=None)
    _absent: tuple[frozenset[int], frozenset[int]] = field(init=False, default=NONE_ABSENT)

    def __enter__(self) -> "Fleet":
        import ray

        ours = cluster.shares_keys()
        accounts = [credential_id(t, None) if ours and key_variables([t]) else "" for t in self.teachers]
        named = enumerate(zip(self.teachers, accounts, strict=True))
        self._lanes = [Lane(n, *lane, self.recordings.get(n)) for n, lane in named]
        servers = [lane for lane in self._lanes if lane.teacher.provider == "embedded"]
        for lane in servers:
            _open_server(lane, len(servers))
        if self.caps.any:
            names = {lane.number: lane.teacher.name for lane in self._lanes}
            excess = {n: Excess(*self.spent.over[name]) for n, name in names.items() if name in self.spent.over}
            self._cashier = cashier(self.caps, self.spent.amount, excess, self.journal)
        for lane in self._lanes:
            if lane.teacher.provider != "embedded":
                for _ in range(self.workers_per_lane):
                    self._hire(lane)
        self._feed = ray.remote(Feed).options(**LIGHT).remote(self.teachers, self.journal, self.retry_failed)
        if cluster.is_own():
            # Its workers would start it, once they are up themselves; on a cluster only they know the key for certain.
            for lane in self._lanes:
                if lane.server is None and is_governed(lane.teacher):
                    lane_governor(lane.teacher, None)
        return self

    def _crew(self, lane: Lane) -> int:
        """Workers of a lane: never more than calls may be in flight, and one beside a server on the same cores."""
        if lane.teacher.provider == "embedded":
            return 1
        return min(self.workers_per_lane, lane.teacher.limits.concurrency or self.workers_per_lane)

    def _window(self, lane: Lane) -> int:
        """Calls in flight of each worker of a lane that has no governor."""
        return max(1, (places(lane.teacher) or FREE_WINDOW) // self._crew(lane))

    def _banked(self, lane: Lane) -> bool:
        """Whether calls of a lane count against a cap of the run."""
        return self.caps.tokens is not None or self.caps.calls is not None or not lane.teacher.rates.free

    def _hire(self, lane: Lane) -> str | None:
        """Start a worker, if the lane has room for one; its name."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if sum(1 for other, _ in self._workers.values() if other is lane) >= self._crew(lane):
            return None
        name = f"{self.tag}-{self._born:04d}"
        self._born += 1
        options: dict[str, Any] = dict(LIGHT)
        if lane.node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(lane.node, soft=False)
        run = f"{self.journal.root.parent}:{self.tag}"
        known = lane.teacher.name in self.spent.models
        post = Post(
            name, run, lane.number, lane.teacher, lane.base_url, self._window(lane), self.journal, known, lane.account
        )
        actor = ray.remote(Worker).options(**options).remote(post, self._cashier if self._banked(lane) else None)
        self._workers[name] = (lane, actor)
        return name

    def run(self, plan: Plan, watch: Callable[[Progress], None], stopping: Callable[[], bool]) -> Progress:
        """Send every call of `plan` that is not paid for yet; its counters.

        `watch` sees the counters a few times a second; `stopping` asks for a graceful end. Raises `Interrupted`,
        `BudgetExhausted` or `LaneUnusable` where calls are left, after all that were in flight are on disk.
        """
        import ray

        try:
            return self._run(plan, watch, stopping)
        except ray.exceptions.RayError as error:  # the feed, the cashier or Ray itself is gone
            if stopping():
                raise Interrupted("interrupted", "run the same command again to go on") from None
            raise LimbeckError(
                f"Ray lost an actor that the run needs ({type(error).__name__})",
                "run the same command again: what was paid for is kept",
            ) from None

    def _run(self, plan: Plan, watch: Callable[[Progress], None], stopping: Callable[[], bool]) -> Progress:
        import ray

        ray.get(self._feed.load.remote(plan))
        self._absent = NONE_ABSENT
        for lane in self._lanes:
            lane.spent = False
            if lane.server is None or lane.base_url:  # not a local teacher that loads, or that could not
                lane.closed = ""
                for _ in range(self._crew(lane)):
                    self._hire(lane)
        ends: list[End] = []
        before = -1
        while True:
            known = self._absent
            self._round(ends, watch, stopping)
            if self._failure is not None:
                raise self._failure
            if ray.get(self._feed.finished.remote()):
                break
            # A lane that closed late gave calls back after the other lanes had run dry: they take them over. Not those
            # of its own workers that had ended before: they would take the calls, and close without sending any.
            for name in [name for name, (lane, _) in self._workers.items() if lane.closed]:
                self._bury(name)
            now: Progress = ray.get(self._feed.progress.remote())
            moved = now.sent + now.failed
            # What is left fits no lane that is left. Not so where lanes have closed since: others may now have it.
            stuck = not self._workers or (moved == before and self._absent == known)
            before = moved
            if _has_stopped(ends) or (stuck and not self._coming):
                self._show(watch)
                raise self._unfinished(ends)
        progress = self._progress()
        watch(progress)
        return progress

    def _round(self, ends: list[End], watch: Callable[[Progress], None], stopping: Callable[[], bool]) -> None:
        """All workers at work, until none has anything to do; `ends` grows by how they end, and by a stop."""
        import ray

        known = self._absent
        running = {actor.run.remote(self._feed): name for name, (_, actor) in self._workers.items()}
        while running or self._is_awaited(ends):
            done, _ = ray.wait([*running, *(lane.coming for lane in self._coming)], timeout=POLL_S)
            for ref in set(done) & running.keys():
                self._note_end(ref, running, ends)
            self._welcome(running)
            self._show(watch)
            if stopping() and not _has_stopped(ends):
                # Beside the workers' own: a stop before a plan's first unit ends them as done.
                ends.append(End("stopped"))
                ray.get(self._feed.stop.remote())
            if self._absent != known and not running:
                return  # calls that waited for another lane may now be its own

    @property
    def _coming(self) -> list[Lane]:
        """Embedded teachers that do not serve yet."""
        return [lane for lane in self._lanes if lane.coming is not None]

    def _is_awaited(self, ends: Sequence[End]) -> bool:
        """Whether a teacher that does not serve yet has something to do."""
        import ray

        if not self._coming or _has_stopped(ends) or self._failure is not None:
            return False
        return not ray.get(self._feed.finished.remote())

    def _welcome(self, running: dict[Any, str]) -> None:
        """Put workers before the embedded teachers that serve by now, and note what the others wait for."""
        import ray

        for lane in self._coming:
            if ray.wait([lane.coming], timeout=0)[0]:
                ref, lane.coming, lane.waits = lane.coming, None, ""
                try:
                    lane.base_url, lane.node = _address(ref)
                except LimbeckError as error:
                    self._give_up(lane, error)
                    continue
                name = self._hire(lane)
                assert name is not None
                running[self._workers[name][1].run.remote(self._feed)] = name
            elif ray.wait([lane.placed], timeout=0)[0]:
                lane.waits = ""
            elif time.monotonic() - lane.asked_at > PLACED_S:
                lane.waits = "has not started, most often for want of free cores"
        self._tell_absent()

    def _give_up(self, lane: Lane, error: LimbeckError) -> None:
        """An embedded teacher does not start: the others go on without it, where there are any."""
        lane.closed = error.message
        if len(self._lanes) == 1:
            self._fail(error)

    def _tell_absent(self) -> None:
        """Tell the feed of lanes that do not work, lest calls are left to them alone, and of those that will not again
        before the next plan."""
        import ray

        staffed = {lane.number for lane, _ in self._workers.values()}
        gone = frozenset(lane.number for lane in self._lanes if lane.closed or lane.waits)
        spent = {lane.number for lane in self._lanes if lane.spent} - staffed
        over = frozenset(spent | {lane.number for lane in self._lanes if lane.closed})
        if (gone, over) != self._absent:
            self._absent = gone, over
            ray.get(self._feed.absent.remote(gone, over))

    def _fail(self, error: LimbeckError | OSError) -> None:
        """The run ends; the workers first finish what they have sent, for it is paid for."""
        import ray

        self._failure = self._failure or error
        ray.get(self._feed.stop.remote())

    def _progress(self) -> Progress:
        """What the workers have reported, and the lanes that do not work."""
        import ray

        now: Progress = ray.get(self._feed.progress.remote())
        for name, lane in zip(lane_names(self.teachers), self._lanes, strict=True):
            if why := f"closed, {lane.closed}" if lane.closed else SPENT if lane.spent else lane.waits:
                now.absent[name] = why
        return now

    def _show(self, watch: Callable[[Progress], None]) -> None:
        """Tell `watch` where the plan stands. Where it fails, as on a full disk, the run ends."""
        if self._failure is not None:
            return
        try:
            watch(self._progress())
        except OSError as error:
            self._fail(error)

    def _note_end(self, ref: Any, running: dict[Any, str], ends: list[End]) -> None:
        """A worker's run is over, or the worker is; where another is hired in its place, that one runs on."""
        name = running.pop(ref)
        try:
            if end := self._end_of(ref, name):
                ends.append(end)
            elif not self._failure and (replacement := self._replace(name)):
                running[self._workers[replacement][1].run.remote(self._feed)] = replacement
        except LimbeckError as error:
            self._fail(error)

    def _end_of(self, ref: Any, name: str) -> End | None:
        """How a worker's run ended; None if it died."""
        import ray

        lane, _ = self._workers[name]
        try:
            end: End = _get(ref)
        except ray.exceptions.RayActorError:
            return None
        if end.reason in ("closed", "exhausted"):
            # Its calls go back: a lane with another account, or one that is free, may take them.
            if end.reason == "closed":
                lane.closed = end.detail
            lane.spent |= end.reason == "exhausted"
            self._bury(name)
            self._tell_absent()
        elif end.reason == "failed":
            raise LimbeckError(end.detail, "what was paid for is in the journal; run again to resume")
        return end

    def _bury(self, name: str) -> None:
        """Give a worker's calls and money back; its segment stays, with everything that it paid for."""
        import ray

        _, actor = self._workers.pop(name)
        ray.kill(actor)
        ship_everywhere(self.journal, f"{name}.")
        _, spent = ray.get(self._feed.bury.remote(name))
        if self._cashier is not None:
            ray.get(self._cashier.bury.remote(name, spent))

    def _replace(self, name: str) -> str | None:
        lane, _ = self._workers[name]
        self._bury(name)
        lane.deaths += 1
        if lane.deaths > REPLACEMENTS:
            raise LimbeckError(
                f"{lane.deaths} workers of {lane.teacher.name} died; what was paid for is kept",
                "Ray's logs say why (the session folder's logs/, most often memory); then run again",
            )
        return self._hire(lane)

    def _unfinished(self, ends: Sequence[End]) -> LimbeckError:
        """The error for a plan that has calls left."""
        reasons = {end.reason for end in ends}
        if "stopped" in reasons:
            return Interrupted("interrupted", "run the same command again to go on")
        if "exhausted" in reasons:
            caps = sorted({cap for end in ends if end.reason == "exhausted" for cap in end.detail.split(" and ")})
            return BudgetExhausted(
                "the budget does not cover another call",
                f"raise {' and '.join(caps)} and run again: what is done is kept",
            )
        named = zip(lane_names(self.teachers), self._lanes, strict=True)
        why = "; ".join(f"{name}: {lane.closed}" for name, lane in named if lane.closed)
        hints = {
            "bad_request": "rejected/ keeps what the teacher said; check model, max_tokens and json_schema",
            "auth": "check the key that api_key names",
            "out_of_money": "top the account up, then run again",
            "timeout": "raise timeout_s where the teacher takes longer for one call, then run again to resume",
            "unreachable": "check base_url and that the server runs, then run again",
            "did not start": "check free memory (the weights of a local teacher and 1 GiB), then run again",
            "malformed_answer": "check base_url: what answers there is not this API (rejected/ keeps what it said)",
            "misdirected": "check base_url (it ends in /v1) and the model's name",
        }
        if all(lane.server is not None for lane in self._lanes if lane.closed):
            hints["unreachable"] = "a local teacher has ended, most often for want of memory; run again to go on"
        hint = next((text for kind, text in hints.items() if kind in why), "run again later to resume")
        if why and not all(lane.closed for lane in self._lanes):
            return LaneUnusable(f"what is left no other lane takes; {why}", hint)
        return LaneUnusable(f"no lane can be used: {why or 'workers ended early'}", hint)

    def __exit__(self, *exc: object) -> None:
        import ray

        closing = [actor.close.remote() for _, actor in self._workers.values()]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=5)
        actors = [actor for _, actor in self._workers.values()]
        actors += [lane.server for lane in self._lanes if lane.server is not None]
        actors += [a for a in (self._feed, self._cashier) if a is not None]
        for actor in actors:
            ray.kill(actor)
        self._workers.clear()


def _has_stopped(ends: Sequence[End]) -> bool:
    return any(end.reason == "stopped" for end in ends)


def _get(ref: Any) -> Any:
    """`ray.get` with our own errors as they were raised in the actor."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise raised_there(error) from None


def _open_server(lane: Lane, servers: int) -> None:
    """Start an embedded teacher on its part of a node's cores. A share of one where there are more than cores: else the
    last would wait for ever."""
    import ray

    cores = cluster.cpus()
    threads = max(1, cores // servers)
    actor = ray.remote(embedded.LlamaServer).options(num_cpus=min(threads, cores / servers), max_restarts=0)
    lane.server = actor.remote(str(gguf_weights(lane.teacher.model)), threads)
    lane.asked_at = time.monotonic()
    lane.placed, lane.coming = lane.server.is_placed.remote(), lane.server.address.remote()


def _address(coming: Any) -> tuple[str, str]:
    """(base URL, node) of an embedded teacher that serves."""
    import ray

    try:
        found: tuple[str, str] = _get(coming)
        return found
    except ray.exceptions.RayActorError as error:
        raise LimbeckError(
            f"the local teacher did not start ({type(error).__name__})", "check free memory (the weights and 1 GiB)"
        ) from None


def ship_everywhere(journal: Journal, writer: str = "") -> None:
    """Where the journal is on an object store: seal what dead writers left on each machine of the cluster, or what the
    one writer did. `SpecError` where one is alive after some seconds. Until then nobody knows what was spent."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if journal.store is None:
        return
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    task = ray.remote(num_cpus=0, max_retries=0)(shipped)
    asked = [task.options(scheduling_strategy=place).remote(journal, writer) for place in places]
    if sum(_get(one) for one in asked):
        raise SpecError(f"journal {journal.store} is being written by another limbeck run", "wait for it to end")


def shipped(journal: Journal, writer: str = "") -> int:
    """Seal what dead writers left on the machine where this runs; how many are alive."""
    return journal.ship(GONE_WITHIN_S, writer=writer)


def tag_for(journal: Path, now: float | None = None) -> str:
    """A segment-name prefix that sorts after those of every earlier start."""
    existing = [int(p.name[:6]) for p in journal.glob("*.seg")] if journal.exists() else []
    # The last part tells two machines apart that start on one journal within a second.
    stamp = int(now if now is not None else time.time())
    return f"{max(existing, default=0) + 1:06d}-{stamp}-{secrets.token_hex(2)}"
