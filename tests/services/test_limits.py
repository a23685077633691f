"""Limits in simulation: minutes of workers, a governor and a provider's limiter, of calls that are alike or not."""

import itertools
import random
import statistics
from collections import Counter

import pytest
from simulation import Provider, Simulation

from schemas.call import Reply, Verdict, VerdictKind
from schemas.money import Amount
from services.admission.charging import Charging
from services.admission.window import START
from services.fanout.size import Demand
from services.ledger.books import Books, Caps

WORKERS = {"a": "run", "b": "run"}
FOUR = dict.fromkeys("abcd", "run")
TWO_RUNS = {"a": "first", "b": "first", "c": "second", "d": "second"}
MEASURED = (5.0, 60.0)


def demand(max_tokens: int) -> Demand:
    return Demand(100, max_tokens, Amount(), max_tokens)


def unequal(rng: random.Random) -> int:
    return rng.randint(20, 180)


def simulated(
    provider: Provider, workers: dict[str, str], limits: dict[str, float], max_tokens: int = 200,
    concurrency: int | None = None,
) -> Simulation:  # fmt: skip
    simulation = Simulation(provider, workers, limits, demand(max_tokens), unequal, concurrency)
    simulation.run(MEASURED[1])
    return simulation


@pytest.mark.parametrize("burst_s", [1.0, 60.0], ids=["second", "minute"])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
@pytest.mark.parametrize("workers", [WORKERS, FOUR, TWO_RUNS], ids=["two", "four", "runs"])
def test_a_request_limit_is_used_whole_and_never_broken(burst_s: float, headers: bool, workers: dict[str, str]) -> None:
    provider = Provider({"requests": 6000}, burst_s, headers=headers)
    simulation = simulated(provider, workers, {"requests": 6000})
    assert simulation.used(*MEASURED, 6000, tokens=False) >= 0.97
    assert simulation.refused_share <= 0.005
    assert max(provider.served_in_any_minute()) <= 6000


@pytest.mark.parametrize("rpm", [30, 60, 90, 300])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
@pytest.mark.parametrize("workers", [{"a": "run"}, WORKERS, TWO_RUNS], ids=["one", "two", "runs"])
def test_a_small_request_limit_is_used_whole_too(rpm: int, headers: bool, workers: dict[str, str]) -> None:
    provider = Provider({"requests": rpm}, headers=headers, latency_s=0.3)  # it holds one request, or a few
    simulation = Simulation(provider, workers, {"requests": rpm}, demand(200), unequal)
    simulation.run(300.0)
    assert simulation.used(5.0, 300.0, rpm, tokens=False) >= 0.97
    assert simulation.refused_share <= 0.005


@pytest.mark.parametrize("jitter_s", [0.03, 0.06])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
def test_on_a_path_of_uneven_length_requests_leave_further_apart(jitter_s: float, headers: bool) -> None:
    provider = Provider({"requests": 60}, headers=headers, latency_s=0.3)
    simulation = Simulation(provider, WORKERS, {"requests": 60}, demand(200), unequal, jitter_s=jitter_s)
    simulation.run(300.0)
    assert simulation.used(30.0, 300.0, 60, tokens=False) >= 0.88
    assert simulation.refused_share <= 0.03


@pytest.mark.parametrize(("told", "true"), [(75, 60), (100, 60), (500, 60), (60, 40)])
@pytest.mark.parametrize("workers", [{"a": "run"}, WORKERS], ids=["one", "two"])
def test_a_small_limit_that_is_lower_than_the_spec_says_leaves_no_gaps(
    told: int, true: int, workers: dict[str, str]
) -> None:
    provider = Provider({"requests": true}, headers=False, latency_s=0.3)
    simulation = Simulation(provider, workers, {"requests": told}, demand(200), unequal)
    simulation.run(300.0)
    times = [when for when, _ in provider.admitted]
    assert simulation.used(5.0, 300.0, true, tokens=False) >= 0.6
    assert max(b - a for a, b in itertools.pairwise(times)) <= 5.0


@pytest.mark.parametrize("tpm", [24_000, 60_000])
@pytest.mark.parametrize("gives_back", [True, False], ids=["actual", "reserved"])
@pytest.mark.parametrize("workers", [{"a": "run"}, WORKERS, TWO_RUNS], ids=["one", "two", "runs"])
def test_a_small_token_limit_is_used_whole_too(tpm: int, gives_back: bool, workers: dict[str, str]) -> None:
    provider = Provider({"tokens": tpm}, gives_back=gives_back, latency_s=0.3)
    # We take a call's text for a third more tokens than the server does.
    short = Demand(40, 64, Amount(), 64)
    provider.counts_input = 30
    simulation = Simulation(provider, workers, {"tokens": tpm}, short, lambda rng: rng.randint(5, 60))
    simulation.run(300.0)
    assert simulation.used(30.0, 300.0, tpm, tokens=True) >= 0.97
    assert simulation.refused_share <= 0.01


@pytest.mark.parametrize(
    ("rpm", "tpm", "gives_back", "headers"),
    [(60, 20_000, True, False), (60, 9_000, True, False), (75, 15_000, False, True), (120, 24_000, False, True),
     (200, 40_000, True, True), (500, 200_000, True, False)],
)  # fmt: skip
@pytest.mark.parametrize("workers", [{"a": "run"}, TWO_RUNS], ids=["one", "runs"])
def test_two_small_limits_together_are_used_to_the_scarcer_one(
    rpm: int, tpm: int, gives_back: bool, headers: bool, workers: dict[str, str]
) -> None:
    """A call takes more tokens, or about as many, as a server holds that holds one second's worth."""
    provider = Provider({"requests": rpm, "tokens": tpm}, gives_back=gives_back, headers=headers, latency_s=0.3)
    simulation = Simulation(provider, workers, {"requests": rpm, "tokens": tpm}, demand(200), unequal)
    simulation.run(300.0)
    shares = [simulation.used(10.0, 300.0, limit, tokens) for limit, tokens in ((rpm, False), (tpm, True))]
    assert max(shares) >= 0.95
    assert simulation.refused_share <= 0.03


def of_size(text: int, max_tokens: int = 64) -> Demand:
    return Demand(text, max_tokens, Amount(), max_tokens)


def short_answer(rng: random.Random) -> int:
    return rng.randint(5, 60)


@pytest.mark.parametrize(("tpm", "used", "refused"), [(600_000, 0.97, 0.005), (40_000, 0.5, 0.08)])
@pytest.mark.parametrize("gives_back", [True, False], ids=["actual", "reserved"])
def test_a_run_of_long_calls_has_its_half_beside_one_of_short_calls(
    tpm: int, used: float, refused: float, gives_back: bool
) -> None:
    sizes = {"first": 2_000, "second": 30}
    provider = Provider({"tokens": tpm}, gives_back=gives_back)
    simulation = Simulation(
        provider, TWO_RUNS, {"tokens": tpm}, lambda worker, rng: of_size(sizes[TWO_RUNS[worker]]), short_answer
    )
    simulation.run(120.0)
    long, short = (
        sum(n * (sizes[run] + 64) for w, n in simulation.sent.items() if TWO_RUNS[w] == run) for run in sizes
    )
    assert 0.6 * long <= short <= 1.6 * long  # of what they reserved
    assert simulation.used(10.0, 120.0, tpm, tokens=True) >= used
    assert simulation.refused_share <= refused


EIGHT = dict.fromkeys("abcdefgh", "run")


@pytest.mark.parametrize(("tpm", "workers"), [(9_000, FOUR), (24_000, WORKERS), (24_000, FOUR), (40_000, EIGHT)])
def test_calls_of_mixed_sizes_all_get_their_turn(tpm: int, workers: dict[str, str]) -> None:
    provider = Provider({"tokens": tpm}, headers=False, latency_s=0.3)
    simulation = Simulation(
        provider, workers, {"tokens": tpm}, lambda worker, rng: of_size(rng.choice((40, 600))), short_answer
    )
    assert longest_gap(simulation, 240.0) <= 8.0
    assert simulation.used(10.0, 240.0, tpm, tokens=True) >= 0.85
    assert simulation.refused_share <= 0.05
    assert min(simulation.sent.values()) >= 0.6 * max(simulation.sent.values())


@pytest.mark.parametrize("burst_s", [1.0, 60.0], ids=["second", "minute"])
@pytest.mark.parametrize("workers", [WORKERS, FOUR, TWO_RUNS], ids=["two", "four", "runs"])
def test_a_few_long_calls_do_not_slow_the_short_ones(workers: dict[str, str], burst_s: float) -> None:
    provider = Provider({"tokens": 600_000}, burst_s)
    simulation = Simulation(
        provider, workers, {"tokens": 600_000},
        lambda worker, rng: of_size(9_000 if rng.random() < 0.02 else 300, 200), unequal,
    )  # fmt: skip
    simulation.run(60.0)
    assert simulation.used(*MEASURED, 600_000, tokens=True) >= 0.95
    assert simulation.refused_share <= 0.005


@pytest.mark.parametrize(("tpm", "text", "max_tokens"), [(24_000, 3_000, 500), (600_000, 12_000, 9_000)])
@pytest.mark.parametrize("workers", [{"a": "run"}, WORKERS], ids=["one", "two"])
def test_what_a_call_larger_than_the_limit_did_not_use_lets_no_other_out(
    tpm: int, text: int, max_tokens: int, workers: dict[str, str]
) -> None:
    provider = Provider({"tokens": tpm}, latency_s=0.4)
    simulation = Simulation(
        provider, workers, {"tokens": tpm}, of_size(text, max_tokens), lambda rng: rng.randint(20, max_tokens // 8)
    )
    simulation.run(300.0)
    assert simulation.used(10.0, 300.0, tpm, tokens=True) >= 0.95
    assert simulation.refused_share <= 0.005


@pytest.mark.parametrize("latency_s", [0.2, 1.0])
@pytest.mark.parametrize("workers", [WORKERS, FOUR], ids=["two", "four"])
def test_tokens_that_come_back_are_used_again(latency_s: float, workers: dict[str, str]) -> None:
    provider = Provider({"tokens": 600_000}, latency_s=latency_s)
    simulation = Simulation(
        provider, workers, {"tokens": 600_000}, of_size(500, 4_000), lambda rng: rng.randint(500, 1_500)
    )
    simulation.run(60.0)
    assert simulation.used(*MEASURED, 600_000, tokens=True) >= 0.95
    assert simulation.refused_share <= 0.005


def test_after_an_outage_in_which_all_was_refused_a_guessed_limit_is_found_again() -> None:
    def served_after(seed: int) -> int:
        provider = Provider({"requests": 1200}, headers=False)
        simulation = Simulation(provider, WORKERS, {}, demand(200), unequal, seed=seed)
        simulation.run(30.0)
        meter = provider.meters.meters["requests"]
        meter.level = -12 * meter.per_minute / 60  # for twelve seconds
        simulation.run(42.0)
        before = len(provider.admitted)
        simulation.run(120.0)
        return sum(1 for _, amount in provider.admitted[before:] if amount == 100)

    assert statistics.median(served_after(seed) for seed in range(3)) >= 0.6 * 20 * 78


def test_a_limit_that_headers_lower_in_mid_run_is_followed_at_once() -> None:
    provider = Provider({"requests": 6000})
    simulation = Simulation(provider, WORKERS, {}, demand(200), unequal)
    simulation.run(30.0)
    meter = provider.meters.meters["requests"]
    meter.per_minute, meter.level = 600, 0.0
    before = provider.refused
    simulation.run(90.0)
    times = [30.0, *(when for when, amount in provider.admitted if amount == 100 and when > 30.0)]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 5.0
    assert simulation.used(32.0, 90.0, 600, tokens=False) >= 0.9
    assert provider.refused - before <= 60


@pytest.mark.parametrize(("slots", "used"), [(2, 0.8), (3, 0.95)])
def test_a_request_is_not_kept_for_when_a_place_is_free(slots: int, used: float) -> None:
    provider = Provider({"requests": 60}, headers=False, latency_s=2.0)
    simulation = Simulation(provider, WORKERS, {"requests": 60}, demand(200), unequal, slots)
    simulation.run(240.0)
    assert simulation.used(5.0, 240.0, 60, tokens=False) >= used
    assert simulation.refused_share <= 0.005


@pytest.mark.parametrize("gives_back", [True, False], ids=["actual", "reserved"])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
@pytest.mark.parametrize("workers", [WORKERS, FOUR, TWO_RUNS], ids=["two", "four", "runs"])
def test_a_token_limit_is_used_whole_however_the_provider_counts(
    gives_back: bool, headers: bool, workers: dict[str, str]
) -> None:
    provider = Provider({"tokens": 600_000}, gives_back=gives_back, headers=headers)
    simulation = simulated(provider, workers, {"tokens": 600_000})
    assert simulation.used(*MEASURED, 600_000, tokens=True) >= 0.97
    assert simulation.refused_share <= 0.005


@pytest.mark.parametrize(
    ("tpm", "max_tokens", "answers", "workers"),
    [(600_000, 512, (20, 500), FOUR), (600_000, 2_048, (20, 600), WORKERS), (200_000, 1_024, (20, 180), WORKERS)],
)  # fmt: skip
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
def test_a_server_that_keeps_what_calls_do_not_use_is_known_by_its_first_refusals(
    tpm: int, max_tokens: int, answers: tuple[int, int], workers: dict[str, str], headers: bool
) -> None:
    refused = []
    for seed in range(3):
        provider = Provider({"tokens": tpm}, gives_back=False, headers=headers)
        simulation = Simulation(
            provider, workers, {"tokens": tpm}, of_size(60, max_tokens), lambda rng: rng.randint(*answers), seed=seed
        )
        simulation.run(MEASURED[1])
        assert simulation.used(*MEASURED, tpm, tokens=True) >= 0.93
        refused.append(provider.refused)
    assert statistics.median(refused) <= 6  # 7 to 10 where it took twenty calls to judge


@pytest.mark.parametrize("first", [(10,), (10, 11)], ids=["one", "two"])
def test_a_refusal_or_two_do_not_cost_a_silent_server_s_limit_for_good(first: tuple[int, ...]) -> None:
    class Stray(Provider):
        calls = 0

        def take(self, demand: Demand, output: int, now: float) -> Reply | None:
            self.calls += 1
            if self.calls in first:
                self.refusals.append(now)
                return Reply(Verdict(VerdictKind.RATE_LIMITED), 429)
            return super().take(demand, output, now)

    simulation = Simulation(
        Stray({"tokens": 600_000}, headers=False, latency_s=0.3), WORKERS, {"tokens": 600_000}, of_size(60, 256),
        short_answer,
    )  # fmt: skip
    simulation.run(150.0)
    since = 5.0 if len(first) == 1 else 75.0
    assert simulation.used(since, 150.0, 600_000, tokens=True) >= 0.97


def test_a_server_with_headers_is_used_whole_for_minutes_on_end() -> None:
    provider = Provider({"tokens": 600_000}, latency_s=0.3)
    simulation = Simulation(provider, WORKERS, {"tokens": 600_000}, of_size(60, 256), short_answer)
    simulation.run(300.0)
    for start in range(20, 300, 20):
        assert simulation.used(start, start + 20.0, 600_000, tokens=True) >= 0.9


@pytest.mark.parametrize("answers", [(20, 180), (100, 900)])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
def test_the_odd_refusal_is_not_taken_for_a_server_that_keeps_what_calls_do_not_use(
    answers: tuple[int, int], headers: bool
) -> None:
    provider = Provider({"tokens": 200_000}, headers=headers, latency_s=1.0)
    simulation = Simulation(
        provider, WORKERS, {"tokens": 200_000}, of_size(80, 1_024), lambda rng: rng.randint(*answers)
    )
    simulation.run(120.0)
    assert simulation.used(5.0, 120.0, 200_000, tokens=True) >= 0.85


def test_answers_far_below_max_tokens_do_not_waste_the_limit() -> None:
    simulation = simulated(Provider({"tokens": 600_000}), WORKERS, {"tokens": 600_000}, max_tokens=2_000)
    assert simulation.pool.charging is Charging.LIVE  # learned: the server counts what is used
    assert simulation.used(*MEASURED, 600_000, tokens=True) >= 0.97


def test_two_runs_on_one_account_get_half_each() -> None:
    simulation = simulated(Provider({"requests": 6000}), TWO_RUNS, {"requests": 6000})
    first, second = (sum(n for w, n in simulation.sent.items() if TWO_RUNS[w] == run) for run in ("first", "second"))
    assert abs(first - second) <= 0.1 * first


@pytest.mark.parametrize("slots", [5, 6, 10, 13, 50])
@pytest.mark.parametrize(
    "workers", [TWO_RUNS, {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "1", "c": "1", "d": "2"}],
    ids=["two-two", "three", "three-one"],
)  # fmt: skip
def test_runs_have_equal_parts_of_the_calls_in_flight_though_they_do_not_divide_evenly(
    slots: int, workers: dict[str, str]
) -> None:
    provider = Provider({}, headers=False)
    simulation = simulated(provider, workers, {}, concurrency=slots)
    sent = Counter[str]()
    for worker, number in simulation.sent.items():
        sent[workers[worker]] += number
    assert max(sent.values()) <= 1.15 * min(sent.values())
    assert sent.total() >= 0.8 * slots * MEASURED[1] / provider.latency_s


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_two_runs_take_turns_where_there_are_fewer_calls_in_flight_than_workers(slots: int) -> None:
    provider = Provider({}, headers=False, in_flight_limit=slots)
    simulation = simulated(provider, TWO_RUNS, {}, concurrency=slots)
    first, second = (sum(n for w, n in simulation.sent.items() if TWO_RUNS[w] == run) for run in ("first", "second"))
    assert abs(first - second) <= 0.15 * first
    assert provider.refused == 0
    assert first + second >= 0.6 * slots * MEASURED[1] / provider.latency_s  # a turn changes with a renewal


@pytest.mark.parametrize("limit", [6000, 600, 120])
@pytest.mark.parametrize("workers", [WORKERS, TWO_RUNS], ids=["two", "runs"])
def test_a_limit_that_nobody_named_is_learned_from_the_headers_at_once(limit: int, workers: dict[str, str]) -> None:
    """Those that were refused had left before the first answer told the limit; they are not held against it."""
    simulation = simulated(Provider({"requests": limit}), workers, {})
    assert simulation.used(*MEASURED, limit, tokens=False) >= 0.95
    before = simulation.provider.refused_until(1.0)
    assert simulation.provider.refused - before <= max(2, 0.005 * sum(simulation.sent.values()))
    assert before <= 2 * START


@pytest.mark.parametrize("limit", [120, 600, 3000])
def test_a_day_s_limit_in_the_headers_is_not_taken_for_a_minute_s(limit: int) -> None:
    """Groq's x-ratelimit-limit-requests counts days."""
    used = []
    for seed in range(3):
        provider = Provider({"requests": limit}, told={"requests": 14_400})
        simulation = Simulation(provider, WORKERS, {}, demand(200), unequal, seed=seed)
        simulation.run(MEASURED[1])
        used.append(simulation.used(*MEASURED, limit, tokens=False))
        since = provider.refused - provider.refused_until(MEASURED[0])
        assert since <= 0.25 * limit * (MEASURED[1] - MEASURED[0]) / 60
    assert statistics.median(used) >= 0.6


@pytest.mark.parametrize("told", [{"requests": 6000.0}, {}], ids=["told twice as much", "told nothing"])
def test_a_guessed_limit_settles_just_below_the_true_one(told: dict[str, float]) -> None:
    provider = Provider({"requests": 3000}, told=told, headers=bool(told))
    simulation = Simulation(provider, WORKERS, {}, demand(200), unequal)
    simulation.run(30.0)
    sent, refused = sum(simulation.sent.values()), provider.refused
    simulation.run(150.0)
    assert provider.refused - refused <= 0.015 * (sum(simulation.sent.values()) - sent)
    assert simulation.used(30.0, 150.0, 3000, tokens=False) >= 0.93


def longest_gap(simulation: Simulation, seconds: float) -> float:
    """Seconds in which nothing was admitted, at the most."""
    simulation.run(seconds)
    times = [0.0, *(when for when, _ in simulation.provider.admitted), seconds]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("workers", [{"a": "first", "b": "second"}, FOUR, TWO_RUNS], ids=["runs", "four", "both"])
@pytest.mark.parametrize(("limit", "slots"), [(30, 1), (60, 2), (120, 1)])
def test_turns_at_calls_in_flight_and_turns_at_requests_do_not_wait_for_each_other(
    workers: dict[str, str], limit: int, slots: int
) -> None:
    provider = Provider({"requests": limit}, headers=False)
    simulation = Simulation(provider, workers, {"requests": limit}, demand(200), unequal, slots)
    assert longest_gap(simulation, 120.0) <= 4 * 60 / limit
    assert simulation.used(0.0, 120.0, limit, tokens=False) >= 0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("workers", [{"a": "first", "b": "second"}, FOUR], ids=["runs", "four"])
def test_nobody_waits_long_under_a_day_s_limit(workers: dict[str, str], seed: int) -> None:
    provider = Provider({"requests": 120}, told={"requests": 14_400})
    simulation = Simulation(provider, workers, {}, demand(200), unequal, seed=seed)
    assert longest_gap(simulation, 180.0) <= 3.0
    assert simulation.used(0.0, 180.0, 120, tokens=False) >= 0.75


def test_a_limit_that_is_lower_than_the_spec_says_is_found_without_headers() -> None:
    simulation = simulated(Provider({"requests": 3000}, headers=False), WORKERS, {"requests": 6000})
    assert simulation.used(*MEASURED, 3000, tokens=False) >= 0.9
    assert simulation.refused_share <= 0.1


@pytest.mark.parametrize(("slots", "latency_s"), [(50, 0.2), (8, 0.8), (4, 0.8), (8, 5.0), (2, 0.2)])
def test_where_nothing_is_known_calls_in_flight_find_their_level(slots: int, latency_s: float) -> None:
    provider = Provider({}, in_flight_limit=slots, headers=False, latency_s=latency_s)
    simulation = simulated(provider, WORKERS, {})
    possible = slots / provider.latency_s * (MEASURED[1] - MEASURED[0])
    served = sum(1 for when, amount in provider.admitted if when >= MEASURED[0] and amount == 100)
    # A call more is a large step where there is room for few, so that much of the time is spent finding out.
    assert served >= (0.7 if slots >= 50 else 0.6 if slots > 2 else 0.35) * possible
    assert simulation.refused_share <= (0.05 if slots >= 50 else 0.4)


@pytest.mark.parametrize("rpm", [None, 60.0, 1200.0])
@pytest.mark.parametrize(("workers", "window"), [(2, 1), (4, 1), (4, 2), (4, 3), (8, 4), (3, 8), (2, None)])
@pytest.mark.parametrize("wild", [0, 50_000], ids=["counting known", "counting unknown"])
def test_a_budget_ends_every_worker_however_little_there_is_of_all_else(
    workers: int, window: int | None, wild: int, rpm: float | None
) -> None:
    """Places in flight, rates and money are shared out apart: whoever has the one must come by the others."""
    provider = Provider({"requests": rpm}, headers=False, in_flight_limit=window)
    call = Demand(100, 64, Amount(1_000, 164, 1), 64)
    books = Books(Caps(100_000), Amount())
    names = {f"w{i}": "run" for i in range(workers)}
    limits = {} if rpm is None else {"requests": rpm}
    simulation = Simulation(provider, names, limits, call, lambda rng: 64, books=books, wild=Amount(wild, 0, 0))
    simulation.run(400.0)
    assert simulation.ended == set(names)
    assert sum(simulation.answers.values()) == 100
