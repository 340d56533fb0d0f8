"""A token bucket: so many in the long run, so many at once, and each key its own."""

from service import rate
from service.rate import RateLimiter


class Monotonic:
    """Seconds that move only when a test moves them."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _taken(limiter: RateLimiter, key: str, tries: int) -> int:
    return sum(limiter.take(key) == 0 for _ in range(tries))


def test_a_burst_and_then_the_rate() -> None:
    clock = Monotonic()
    limiter = RateLimiter(2.0, burst=10, monotonic=clock)
    assert _taken(limiter, "a", 20) == 10
    assert limiter.take("a") == limiter.delay("a") == 0.5
    clock.now += 0.5
    assert _taken(limiter, "a", 20) == 1
    for _ in range(100):
        clock.now += 1
        assert _taken(limiter, "a", 20) == 2
    clock.now += 3600
    assert _taken(limiter, "a", 20) == 10, "what is not asked for is not saved up"


def test_each_key_is_its_own() -> None:
    limiter = RateLimiter(1.0, burst=3, monotonic=Monotonic())
    assert [_taken(limiter, key, 9) for key in ("a", "b")] == [3, 3]


def test_asking_for_the_delay_takes_nothing() -> None:
    limiter = RateLimiter(1.0, burst=1, monotonic=Monotonic())
    assert [limiter.delay("a") for _ in range(5)] == [0.0] * 5
    assert limiter.take("a") == 0


def test_what_is_remembered_is_bounded() -> None:
    clock = Monotonic()
    limiter = RateLimiter(1.0, burst=1, monotonic=clock)
    for number in range(rate._MAX_KEYS + 10):
        limiter.take(f"key {number}")
    assert len(limiter._buckets) == rate._MAX_KEYS
    assert limiter.delay(f"key {rate._MAX_KEYS}") > 0
