"""What listeners of a client have in common: nothing to hold back, work that ends with it, a worker at its pace."""

from typing import Protocol

from bellmare.http.call import Call


class Unpaced:
    """The part of an ExchangeListener whose few writes need no holding back, or whose client waits for the first."""

    __slots__ = ()

    def on_pause(self) -> None:
        """Nothing is held back."""

    def on_resume(self) -> None:
        """Nothing was."""


class Work(Protocol):
    """A task, a future, a job: what can be given up."""

    def cancel(self) -> object:
        """Give up; also after the end."""


class Leaver(Unpaced):
    """ExchangeListener that gives work up with its client."""

    __slots__ = ("_work",)

    def __init__(self, work: Work) -> None:
        self._work = work

    def on_disconnect(self) -> None:
        self._work.cancel()


class Paced:
    """The part of an ExchangeListener that keeps a worker to the pace of its client."""

    __slots__ = ()

    _call: Call | None

    def on_pause(self) -> None:
        if self._call is not None:
            self._call.pause()

    def on_resume(self) -> None:
        if self._call is not None:
            self._call.resume()

    def drop_call(self) -> None:
        """Ask the worker no more."""
        if self._call is not None:
            self._call.abort()
            self._call = None  # type: ignore[misc]  # the slot, or field, is the subclass's
