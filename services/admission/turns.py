"""Who goes next where there is not enough for everybody."""

from collections.abc import Mapping


class Turns:
    """First the run, then of its workers the one, that has had the least. Whoever comes, or comes back, starts level
    with the one that has had the least, or it would have all turns for long."""

    def __init__(self) -> None:
        self._runs: dict[str, float] = {}
        self._workers: dict[str, float] = {}

    def is_among(self, worker: str, asking: Mapping[str, str], places: int) -> bool:
        """Whether `worker` is among the first `places` of those who ask; `asking` maps a worker to its run."""
        self._admit(asking)
        rank = {w: (self._runs[run], self._workers[w]) for w, run in asking.items()}
        return worker in rank and rank[worker] <= sorted(rank.values())[min(places, len(rank)) - 1]

    def is_due(self, worker: str, asking: Mapping[str, str], ahead: float) -> bool:
        """Whether neither the worker's run nor, in it, the worker has had more than `ahead` above the least. Somewhat
        ahead is allowed: were it always one worker's turn, all would wait until it asks."""
        self._admit(asking)
        if worker not in asking:
            return False
        crew = [self._workers[w] for w, run in asking.items() if run == asking[worker]]
        least = min(self._runs.values())
        return self._runs[asking[worker]] <= least + ahead and self._workers[worker] <= min(crew) + ahead

    def took(self, worker: str, run: str, amount: float) -> None:
        self._workers[worker] = self._workers.get(worker, 0.0) + amount
        self._runs[run] = self._runs.get(run, 0.0) + amount

    def _admit(self, asking: Mapping[str, str]) -> None:
        self._runs = _level(self._runs, set(asking.values()))
        self._workers = _level(self._workers, set(asking))


def _level(had: Mapping[str, float], present: set[str]) -> dict[str, float]:
    least = min((had[name] for name in present if name in had), default=0.0)
    return {name: had.get(name, least) for name in present}
