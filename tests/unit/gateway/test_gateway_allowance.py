"""Hints are bounded per client and over all clients, and so is what is remembered of who gave them."""

from bellmare.gateway import allowance
from bellmare.gateway.allowance import Allowance, Rates

S = 1_000_000
RATES = Rates(per_s=2.0, burst=4, all_per_s=10.0, all_burst=20)


def test_a_client_has_its_burst_and_then_its_rate():
    bucket = Allowance(RATES)
    assert [bucket.take("a", 1, 5 * S) for _ in range(5)] == [0, 0, 0, 0, S // 2]
    assert bucket.take("a", 2, 5 * S) == S
    assert bucket.take("a", 1, 5 * S + S // 2) == 0
    assert bucket.take("a", 4, 60 * S) == 0, "what was not used adds up"
    assert bucket.take("a", 1, 60 * S) > 0, "but to no more than the burst"


def test_who_is_refused_has_lost_nothing():
    bucket = Allowance(RATES)
    assert bucket.take("a", 3, 0) == 0
    assert bucket.take("a", 2, 0) > 0
    assert bucket.take("a", 1, 0) == 0


def test_one_clients_flood_leaves_anothers_allowance_alone():
    bucket = Allowance(RATES)
    for _ in range(100):
        bucket.take("flood", 1, 0)
    assert bucket.take("other", 4, 0) == 0


def test_many_names_of_one_flood_share_the_bucket_of_all():
    bucket = Allowance(RATES)
    given = sum(bucket.take(f"name-{number}", 1, 0) == 0 for number in range(1000))
    assert given == RATES.all_burst
    assert bucket.take("late", 1, 0) == S // 10
    given = sum(bucket.take(f"name-{number}", 1, S) == 0 for number in range(1000))
    assert given == 10


def test_buckets_are_bounded_and_whoever_took_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(allowance, "TENANTS_MAX", 3)
    bucket = Allowance(RATES)
    for name in ("a", "b", "c", "a", "d"):
        assert bucket.take(name, 4, 0) == 0 or name == "a"
    assert bucket.tenants == 3
    assert bucket.take("a", 1, 0) > 0, "it was looked at lately"
