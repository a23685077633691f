"""What calls wait for besides a limit, money or a server that is away, and what runs share: nothing gathers meanwhile,
nobody gets more. In simulation."""

import pytest
from simulation import Provider, Simulation
from test_limits import FOUR, TWO_RUNS, WORKERS, demand, simulated, unequal

from schemas.money import Amount
from services.fanout.size import Demand
from services.ledger.books import Books, Caps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("latency_s", [0.2, 1.0, 2.5])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
@pytest.mark.parametrize("workers", [WORKERS, {f"w{i}": "run" for i in range(8)}], ids=["two", "eight"])
@pytest.mark.parametrize("usd", [5, 0.02], ids=["much", "little"])
def test_leases_do_not_gather_while_calls_wait_for_money(
    latency_s: float, headers: bool, workers: dict[str, str], usd: float
) -> None:
    """At a server that may count anything, the money lets but few calls out at first."""
    provider = Provider({"requests": 6000}, headers=headers, latency_s=latency_s)
    call = Demand(100, 200, Amount(1_000, 300, 1), 200)
    books = Books(Caps(int(usd * 10**9)), Amount())
    simulation = Simulation(
        provider, workers, {"requests": 6000}, call, unequal, books=books, wild=Amount(600_000_000, 65_536, 0)
    )  # fmt: skip
    simulation.run(60.0)
    assert simulation.refused_share <= 0.005
    assert simulation.used(max(5.0, 6 * latency_s), 60.0, 6000, tokens=False) >= 0.97


@pytest.mark.parametrize("rpm", [300, 600, 1200])
@pytest.mark.parametrize("headers", [True, False], ids=["headers", "silent"])
@pytest.mark.parametrize("usd", [0.02, 0.002])
def test_many_workers_that_wait_for_money_do_not_all_hold_a_call_s_lease(rpm: int, headers: bool, usd: float) -> None:
    provider = Provider({"requests": rpm}, headers=headers, latency_s=1.5)
    call = Demand(100, 200, Amount(1_000, 300, 1), 200)
    books = Books(Caps(int(usd * 10**9)), Amount())
    names = {f"w{i}": "run" for i in range(8)}
    simulation = Simulation(
        provider, names, {"requests": rpm}, call, unequal, books=books, wild=Amount(600_000_000, 65_536, 0)
    )  # fmt: skip
    simulation.run(60.0)
    assert simulation.refused_share <= 0.005
    assert simulation.used(10.0, 60.0, rpm, tokens=False) >= 0.97


@pytest.mark.parametrize("latency_s", [0.2, 1.0])
@pytest.mark.parametrize("workers", [WORKERS, FOUR], ids=["two", "four"])
def test_leases_do_not_gather_while_a_server_is_away(latency_s: float, workers: dict[str, str]) -> None:
    provider = Provider({"requests": 6000}, headers=False, latency_s=latency_s, away=(10.0, 15.0))
    simulation = simulated(provider, workers, {"requests": 6000})
    assert simulation.refused_share <= 0.005
    assert simulation.used(18.0, 60.0, 6000, tokens=False) >= 0.97


@pytest.mark.parametrize("rpm", [600, 6000])
@pytest.mark.parametrize(("asks_s", "soon", "later"), [(1.0, 0.9, 0.95), (4.0, 0.5, 0.8), (10.0, 0.25, 0.6)])
def test_a_server_that_asks_for_long_waits_has_its_unknown_limit_found_and_used(
    rpm: int, asks_s: float, soon: float, later: float
) -> None:
    """Nothing leaves before the time that it names, so each time that its limit is passed costs as much."""
    provider = Provider({"requests": rpm}, headers=False, asks_s=asks_s)
    simulation = Simulation(provider, WORKERS, {}, demand(200), unequal)
    simulation.run(180.0)
    assert simulation.used(0.0, 60.0, rpm, tokens=False) >= soon
    assert simulation.used(60.0, 180.0, rpm, tokens=False) >= later


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "limit",
    [("requests", 600), ("requests", 900), ("requests", 1200), ("tokens", 24_000), ("tokens", 60_000)],
    ids=lambda limit: f"{limit[1]}-{limit[0]}",
)
def test_two_runs_have_half_each_for_as_long_as_they_last(limit: tuple[str, int], seed: int) -> None:
    """From the second minute on it is the sum of a minute that decides, and no longer the refill."""
    limits = dict([limit])
    provider = Provider(limits, headers=False)
    simulation = Simulation(provider, TWO_RUNS, limits, demand(60), unequal, seed=seed)
    before, both = 0, 0
    for end in range(40, 300, 40):
        simulation.run(end)
        first, all_sent = simulation.sent["a"] + simulation.sent["b"], sum(simulation.sent.values())
        assert abs((first - before) / (all_sent - both) - 0.5) <= 0.05, end
        before, both = first, all_sent
    assert simulation.used(5.0, end, limit[1], tokens=limit[0] == "tokens") >= 0.97
