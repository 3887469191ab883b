"""A worker whose death TorchServe does not notice.

In asynchronous mode TorchServe (0.12) leaves a dead worker's requests unanswered, loses those that it had sent and nobody
had read, and shows the worker's successor as not READY for ever; and a request that comes while that one loads breaks the
load off. So a worker is two processes: the one that TorchServe started stands by; it has nothing but the connection, and
forked the other, which loads the model and serves. When that one dies, the first tells the clients of what was being
computed, and forks the next. What had not been read is still in the socket, or in the inbox that both map, and is answered
by the successor. It is the first that lives on because TorchServe reads what a worker prints, its log and metrics, only
while the process lives that it started.

Linux alone; elsewhere, and where the first process dies, a worker is as mortal as TorchServe makes it.
"""

import contextlib
import gc
import logging
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from handlers.requirements import leave_out_converters
from handlers.torchserve.frames import Answers, Incoming, loaded_message, lost_message
from handlers.torchserve.inbox import FrontendGone, Inbox
from handlers.torchserve.unanswered import GRPC, WHOLE, Unanswered, frontend_socket, tell_lost

logger = logging.getLogger(__name__)

LOADS = 3  # successors that may die while they load, one after the other
_CLOSING_MS = 100  # a frontend that ends closes the connection about when it ends its workers
_CLOSED = getattr(select, "POLLRDHUP", select.POLLHUP)
_HANDLED_SECONDS = 0.02  # until the frontend has handled a message, and sends what comes after it
_AMBIGUOUS = "the worker died while it sent answers; send the request again"


def is_asynchronous(context: Any) -> bool:
    """Whether TorchServe hands requests over one by one, as they come.

    Args:
        context: its own, while it initializes the handler.
    """
    return bool((context.model_yaml_config or {}).get("asyncCommunication")) and frontend_socket() is not None


def take_over(standby: "Standby", load: Callable[[], None], serve: Callable[[], None]) -> None:
    """Load the model, and let `serve` take the place of TorchServe's own asynchronous service from now on.

    Args:
        load: opens the handler; what it raises is raised. serve: returns when the frontend has gone.
    """
    import ts.async_service

    leave_out_converters()
    standby.fork(load, serve)
    if standby.unanswered.served:
        logger.error("a worker died with the process that stood by: their clients are told")
        standby.restart()
    standby.unanswered.take()
    load()
    ts.async_service.AsyncService.run = lambda theirs: leave(serve)


class Standby:
    """What the processes of one worker share.

    Args:
        link: the connection to the frontend.
    """

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.inbox = Inbox()
        self.unanswered = Unanswered()
        self._memory = mmap.mmap(-1, 2)  # whether it serves, and whether it is sending

    def serves(self) -> None:
        """From now on a death is no longer a failure to load."""
        self._memory[0] = 1
        self.unanswered.serves()

    def send(self, answers: Answers) -> None:
        """Answers on their way to the frontend; one thread at a time, and none beside it that notes a request."""
        if answers.empty:
            return
        message = answers.message()
        # A process that died then may have sent them or not, and a second answer to a request does harm.
        self._memory[1] = bool(answers.ids)
        for request_id in answers.ids:
            self.unanswered.end(request_id)
        self.link.sendall(message)
        self._memory[1] = 0

    def fork(self, load: Callable[[], None], serve: Callable[[], None]) -> None:
        """Stand by in this process, for as long as it lives, and return in another that serves.

        Args:
            load, serve: what its successors do; `serve` returns when the frontend has gone.
        """
        if sys.platform != "linux":
            return
        gc.collect()
        gc.freeze()  # what is there by now stays shared between the processes
        sys.stdout.flush()
        worker = os.fork()
        if worker:
            leave(lambda: self._stand_by(worker, load, serve))

    def _stand_by(self, worker: int, load: Callable[[], None], serve: Callable[[], None]) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        started, failures = worker, 0
        while True:
            _, status = os.waitpid(worker, 0)
            if self.closed(_CLOSING_MS):
                return
            if not self._memory[0]:
                failures += 1
                if worker == started or failures > LOADS:
                    _die_of(
                        status
                    )  # TorchServe sees how it ended and the connection close, and says what it always says
                time.sleep(2.0**failures / 2)
            else:
                failures = 0
                logger.error("the worker's process %d has died; another one takes its place", worker)
                if not self._settle():
                    return
            self._memory[0] = 0
            worker = os.fork()
            if worker == 0:
                leave(lambda: self._succeed(load, serve))

    def _settle(self) -> bool:
        """Tell the clients of what the dead process had read; False where what comes next cannot be read any more."""
        if self.inbox.moving:
            logger.error("it died within a message: the worker has to be started anew")
            self.link.sendall(lost_message(_AMBIGUOUS))
            return False
        if self._memory[1]:
            self.settle_all()
        tell_lost(self.link, self.unanswered.take())
        self._memory[1] = 0
        return True

    def restart(self) -> None:
        """In a worker that TorchServe has started after one that had served died with its standby: tell all clients.

        The first message lets the frontend forget the command to load: it stumbles over it at the next request otherwise,
        loses that, and starts the worker anew.
        """
        self.link.sendall(loaded_message())
        self.settle_all()

    def settle_all(self) -> None:
        """Where it is not known what the frontend waits for: it is told that all of that is lost.

        So it is when a process died while it sent answers (a second one to a request that the frontend has forgotten closes
        the connection), and when a worker died with its standby. What nobody has read yet is lost with it: over REST a
        second answer to that does no harm, as the first one has closed the client's connection; a gRPC call must not get
        one.
        """
        self.link.sendall(lost_message(_AMBIGUOUS))
        time.sleep(_HANDLED_SECONDS)
        unread: list[Incoming] = []
        with contextlib.suppress(FrontendGone):
            unread = self.inbox.requests(self.link, lambda: False, lambda request: None)
        noted = self.unanswered.take()
        rest = [(request.id, WHOLE) for request in unread if request.rest] + [one for one in noted if one[1] != GRPC]
        tell_lost(self.link, rest)

    def _succeed(self, load: Callable[[], None], serve: Callable[[], None]) -> None:
        self.unanswered.take()
        load()
        serve()

    def closed(self, milliseconds: int | None = None) -> bool:
        """Whether the frontend has closed the connection, or does within this time (None: wait until it does)."""
        poller = select.poll()
        poller.register(self.link, _CLOSED)
        return bool(poller.poll(milliseconds))


def leave(work: Callable[[], None]) -> NoReturn:
    """Do the rest of this process's work and end it, past all that it would have done after that."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0
    except BaseException:
        logger.exception("a process of this worker failed")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _die_of(status: int) -> NoReturn:
    """End as another process did, by its wait status: of a worker that was killed while it loaded TorchServe says so."""
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(os.waitstatus_to_exitcode(status) or 1)
