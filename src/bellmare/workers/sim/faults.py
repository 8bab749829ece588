"""Faults that a test or a demo asks for through ``POST /sim/fault`` (only with the extension)."""

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.twin.messages import CrashRunner, FailLoad, HangRunner, Slow
from bellmare.workers.sim.driver import Driver

ALWAYS = 1 << 30


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``kind``: crash, hang, fail_load (of ``model``); error_after ``tokens``, refuse (the next ``count`` requests);
    fail_pull (the next ``count`` downloads break half-way);
    freeze (nothing is answered any more, not even /); slow (spans of generations times ``percent`` / 100); clear.
    """

    kind: str
    model: str = ""
    tokens: int = 0
    count: int = 0
    """Zero: for error_after once, for refuse until cleared."""
    percent: int = 100


class Faults:
    """The switches as they stand."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.frozen = False
        self._refusals = 0
        self._broken_pulls = 0
        self._errors = 0
        self._error_tokens = 0

    def set(self, fault: Fault) -> None:
        """Raises :class:`InvalidRequest` for an unknown kind or model."""
        match fault.kind:
            case "crash" | "hang" | "fail_load":
                model = self._driver.twin.model(fault.model)
                if model is None:
                    raise InvalidRequest(f"model '{fault.model}' not found", status=404)
                kinds = {"crash": CrashRunner, "hang": HangRunner, "fail_load": FailLoad}
                self._driver.give(kinds[fault.kind](model.blob))
            case "error_after":
                self._errors, self._error_tokens = fault.count or 1, fault.tokens
            case "fail_pull":
                self._broken_pulls = fault.count or 1
            case "refuse":
                self._refusals = fault.count or ALWAYS
            case "freeze":
                self.frozen = True
            case "slow" if fault.percent > 0:
                self._driver.give(Slow(fault.percent))
            case "clear":
                self.frozen = False
                self._refusals = self._errors = self._broken_pulls = 0
                self._driver.give(Slow(100))
            case _:
                raise InvalidRequest(f"unknown fault {fault.kind!r}")

    def take_refusal(self) -> bool:
        """Whether this request is to be cut."""
        if not self._refusals:
            return False
        self._refusals -= 1
        return True

    def take_pull_failure(self) -> bool:
        """Whether this download is to break."""
        if not self._broken_pulls:
            return False
        self._broken_pulls -= 1
        return True

    def take_error_after(self) -> int:
        """Tokens after which this generation is to fail; negative: it is not."""
        if not self._errors:
            return -1
        self._errors -= 1
        return self._error_tokens
