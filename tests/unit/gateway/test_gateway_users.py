"""Who gives a model back was its only client, or was not."""

from bellmare.core.units import InstantUs
from bellmare.gateway.users import LATELY_US, NAMES_MAX, Users


def at(us: int) -> InstantUs:
    return InstantUs(us)


def test_who_alone_asked_for_it_is_alone() -> None:
    users = Users()
    users.used("m", "one", at(10))
    users.used("m", "one", at(20))
    assert users.alone(["m"], "one", at(30))
    assert not users.alone(["m"], "other", at(30)), "who never asked for it cannot give it back for others"


def test_another_client_counts_for_five_minutes() -> None:
    users = Users()
    users.used("m", "other", at(10))
    users.used("m", "one", at(20))
    assert not users.alone(["m"], "one", at(20 + LATELY_US))
    assert users.alone(["m"], "one", at(21 + LATELY_US))
    users.used("m", "other", at(21 + LATELY_US))
    assert not users.alone(["m"], "one", at(22 + LATELY_US))


def test_what_is_not_known_is_not_alone_and_little_is_remembered() -> None:
    users = Users()
    assert not users.alone(["m"], "one", at(0))
    for number in range(NAMES_MAX + 1):
        users.used(f"m{number}", "one", at(number))
    assert not users.alone(["m0"], "one", at(NAMES_MAX))
    assert users.alone([f"m{NAMES_MAX}"], "one", at(NAMES_MAX))


def test_all_names_of_a_model_count() -> None:
    users = Users()
    users.used("m", "one", at(1))
    assert users.alone(["m", "same:8b"], "one", at(2))
    users.used("same:8b", "other", at(3))
    assert not users.alone(["m", "same:8b"], "one", at(4))
