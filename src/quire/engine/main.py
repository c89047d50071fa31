"""The engine's process: ``python -m quire.engine.main``, its settings as one line of JSON on stdin.

stdin stays open: when the parent goes, it closes, and this process ends.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import time
import traceback
from typing import NoReturn

import msgspec
import zmq

from quire.engine.boot import Boot, runner_factory
from quire.engine.messages import ClientMessage, DeltaBatch, EngineFailed, Progress, Rejected, Shutdown
from quire.engine.service import EngineService, refuse_undecodable
from quire.weights.errors import WeightsError

log = logging.getLogger("quire.engine")

_PR_SET_PDEATHSIG = 1
_LINGER_MS = 1000


def main() -> None:
    boot = msgspec.json.decode(sys.stdin.buffer.readline(), type=Boot)
    _die_with_parent(boot.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever interrupts all processes of the name: the front decides
    signal.signal(signal.SIGTERM, _exit_on_signal)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=boot.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")

    line = Line(boot)
    try:
        runner = runner_factory(boot.runner)(boot.config, lambda phase: line.send(Progress(phase)))
        service = EngineService(runner, boot.config)
        line.send(msgspec.structs.replace(service.ready, phases=_ledger(boot, runner.phases)))
        gc.collect()
        gc.freeze()  # the model's objects live for ever: never look at them again
        line.serve(service)
    except Exception as error:
        line.fail(error)
    line.close()


class Line:
    """The two sockets to the parent."""

    def __init__(self, boot: Boot) -> None:
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._outbox = self._context.socket(zmq.PUSH)
        for socket, address in ((self._inbox, boot.inbox), (self._outbox, boot.outbox)):
            socket.set_hwm(0)
            socket.linger = _LINGER_MS
            socket.connect(address)
        self._decoder = msgspec.msgpack.Decoder(ClientMessage)
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: msgspec.Struct) -> None:
        self._outbox.send(self._encoder.encode(message))

    def serve(self, service: EngineService) -> None:
        """Work until told to stop or left alone. Sleeps while there is nothing to do."""
        poller = zmq.Poller()
        poller.register(self._inbox, zmq.POLLIN)
        poller.register(sys.stdin.fileno(), zmq.POLLIN)
        while True:
            for socket, _ in poller.poll(0 if service.core.has_work else None):
                if socket == sys.stdin.fileno() or not self._drain(service):
                    return
            if service.core.has_work:
                for message in service.step():
                    self.send(message)

    def _drain(self, service: EngineService) -> bool:
        """Handle all messages that wait; ``False`` when one says to stop."""
        while self._inbox.poll(0):
            frame = self._inbox.recv()
            answer: DeltaBatch | Rejected | None
            try:
                message = self._decoder.decode(frame)
            except (msgspec.DecodeError, ValueError, RecursionError):
                answer = refuse_undecodable(frame)
            else:
                if isinstance(message, Shutdown):
                    return False
                answer = service.handle(message)
            if answer is not None:
                self.send(answer)
        return True

    def fail(self, error: Exception) -> NoReturn:
        """Tell the parent why this ends, in a sentence; the log gets the trace unless the user can cure it."""
        if not isinstance(error, (ValueError, OSError, WeightsError)):
            traceback.print_exc()
        self.send(EngineFailed(str(error) or type(error).__name__))
        self.close()
        raise SystemExit(1)

    def close(self) -> None:
        self._context.destroy(linger=_LINGER_MS)


def _ledger(boot: Boot, phases: dict[str, float]) -> dict[str, float]:
    """The runner's phases after what went before them, so that all sum to the time since the process was spawned."""
    return {"starting the engine": max(time.time() - boot.spawned - sum(phases.values()), 0.0), **phases}


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it went before the line above
        raise SystemExit(1)


def _exit_on_signal(*_: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
