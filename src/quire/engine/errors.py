"""What an engine may raise to its client."""

from __future__ import annotations


class QueueFull(Exception):
    """Too much is waiting; nothing was queued. ``retry_after``: seconds until it is worth trying again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineDead(Exception):
    """The engine could not start, or ended and was not restarted. The message is one sentence for the user."""


class EngineFault(RuntimeError):
    """The runner fails whatever it is given: its device or process is past use."""
