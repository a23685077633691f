"""What a worker and the governor of its account say to each other, a few times a second."""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.call import RateHint
from services.admission.charging import Charging

Seconds = float
Amounts = Mapping[str, float]  # by `requests`, `tokens`, `input`, `output`

PERIOD_S = 0.25  # between two renewals of a busy worker
LEASE_S = 2.0  # how long a lease may be used, and how long a worker that is not heard of counts


class Report(NamedTuple):
    """What a worker says when it renews. Counts since the last time."""

    run: str
    worker: str
    limits: dict[str, float]
    concurrency: int | None
    waits: bool  # a call does, for a place or for what it wants
    wanted: dict[str, float]  # to add to what it keeps; {} where it wants nothing
    returned: dict[str, float]
    in_flight: int = 0
    peak: int = 0
    ended: int = 0  # attempts, whatever came of them
    answered: int = 0
    refused: int = 0
    ramp: int = 0
    overloaded: int = 0
    retry_after: Seconds = 0.0
    hint: RateHint | None = None
    hint_ages: tuple[Seconds, Seconds] = (0.0, 0.0)  # since its call was sent, and since its answer was there
    unused: float = 0.0  # tokens that answered calls could have used but did not
    closed: str = ""  # why no call of this account can succeed
    call: Amounts = {}  # what one takes


class Grant(NamedTuple):
    """What a worker may do for `LEASE_S` seconds."""

    amounts: dict[str, float]
    capacity: dict[str, float]  # of each limit; a larger demand may be sent once this much is held
    window: int
    charging: Charging
    pause_s: Seconds
    closed: str = ""  # another worker of the run found that no call can succeed
    wait_s: Seconds = 0.0  # until there is a request for who got none; 0: not known
