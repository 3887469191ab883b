"""A worker whose death TorchServe does not notice.

In asynchronous mode TorchServe (0.12) leaves a dead worker's requests unanswered, loses those that it had sent and nobody
had read, and shows the worker's successor as not READY for ever; and a request that comes while that one loads breaks the
load off. So a worker is two processes: the one that TorchServe started stands by; it has nothing but the connection, and
forked the other, which loads the model and serves. When that one dies, the first sends the rest of what it was sending,
tells the clients of what was being computed, and forks the next. What had not been read is still in the socket, or in the
inbox that both map, and is answered by the successor. It is the first that lives on because TorchServe reads what a worker
prints, its log and metrics, only while the process lives that it started.

Linux alone; elsewhere, and where the first process dies, a worker is as mortal as TorchServe makes it.
"""

import contextlib
import gc
import logging
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
from handlers.torchserve.standby.inbox import FrontendGone, Inbox
from handlers.torchserve.standby.outbox import Outbox
from handlers.torchserve.standby.shared import Shared
from handlers.torchserve.standby.unanswered import WHOLE, Unanswered, frontend_socket, tell_lost

logger = logging.getLogger(__name__)

LOADS = 3  # successors that may die while they load, one after the other
_CLOSING_MS = 100  # a frontend that ends closes the connection about when it ends its workers
_CLOSED = getattr(select, "POLLRDHUP", select.POLLHUP)
_HANDLED_MS = 50  # until the frontend has handled a message, and sends what comes after it
_LOST = "the worker died; another one has taken its place: send the request again"


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
        self.outbox = Outbox()
        self.unanswered = Unanswered()
        self._serves = Shared(0).numbers  # the first: whether it does

    def serves(self) -> None:
        """From now on a death is no longer a failure to load."""
        self._serves[0] = 1
        self.unanswered.serves()

    def send(self, answers: Answers) -> None:
        """Answers on their way to the frontend; one thread at a time, and none beside it that notes a request."""
        if answers.empty:
            return
        self.outbox.send(self.link, answers.message(), answers.ids)
        for request_id in answers.ids:
            self.unanswered.end(request_id)
        self.outbox.done()

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
            if not self._serves[0]:
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
            self._serves[0] = 0
            worker = os.fork()
            if worker == 0:
                leave(lambda: self._succeed(load, serve))

    def _settle(self) -> bool:
        """Bring to its end what the dead process was at; False where nobody knows what that was."""
        if self.outbox.lost or not self.inbox.settle(self.link):
            logger.error("it died within a message: the worker has to be started anew")
            return False
        # What was just being sent, or read, may be noted or not: it is answered all the same, or will be.
        settled = self.outbox.finish(self.link) | self.inbox.unread()
        tell_lost(self.link, [one for one in self.unanswered.take() if one[0] not in settled])
        return True

    def restart(self) -> None:
        """In a worker that TorchServe has started after one that had served died with its standby: tell all clients.

        The first message lets the frontend forget the command to load: it stumbles over it at the next request
        otherwise, loses that, and starts the worker anew. What the dead ones had not read is lost, and not noted: the
        clients of all that the frontend has given away are told. It forgets none of them with that, and closes the
        connection when it tells a gRPC call for the second time, which would be at every start from then on: after one
        in vain it is left out.

        A request may be noted although it is answered, of a worker that died between the two. The frontend has forgotten
        it, and closes the connection at a second answer before it reads on: what comes next is left to the next worker.
        """
        self.link.sendall(loaded_message())
        left = self.unanswered.take()
        tell_lost(self.link, left)
        if left and self.closed(_HANDLED_MS):
            raise SystemExit(1)
        if not self.unanswered.tell_all():
            return
        self.link.sendall(lost_message(_LOST))
        closed, unread = self.closed(_HANDLED_MS), list[Incoming]()
        with contextlib.suppress(FrontendGone):
            unread = self.inbox.requests(self.link, lambda: False, lambda one: self.unanswered.begin(one.id, one.rest))
        if closed:
            raise SystemExit(1)  # the next worker tells those that have come since
        # The frontend must forget them, too; over REST a second answer does no harm.
        tell_lost(self.link, [(request.id, WHOLE) for request in unread if request.rest])

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
