"""Many files: while the network is at one, the next is read and the one before is written."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from .._files import remove_halves
from ..restorer import Restorer
from . import places
from .job import How, Job, Watch
from .listing import Item
from .records import Record, Summary

READERS, WRITERS = 2, 2  # threads
AHEAD, BEHIND = 4, 4  # files that wait for the network, and to be written, at most
AHEAD_BYTES = 2**28  # of pixels above which no other file is read ahead
# Pixels of a `Job`'s `whole`. On a CPU the threads of torch are the network's: those that it would start for
# others' threads would be in its way.
WHOLE = {"cpu": 0}
WHOLE_ELSEWHERE = 2**25


def restore_files(
    items: Iterable[Item],
    restorer: Restorer,
    how: How = How(),  # noqa: B008
    tell: Callable[[Record], object] = lambda record: None,
    settled: Iterable[Record] = (),
    watch: Watch | None = None,
) -> Summary:
    """Restore files one after the other; a bad one is told, and the others are restored all the same.

    The network runs in the calling thread. KeyboardInterrupt, and a disk without space left, end the run:
    what is with the network is dropped, what is restored already is written. A second KeyboardInterrupt is
    raised; writers may be at work then.

    What a run that was killed left of files half written is removed first.

    Args:
        items: as `listed` gives them.
        tell: called in the calling thread with what became of each file, in order.
        settled: of other files, told first.
        watch: called in the calling thread while the network is at a large file: watch(item, part, forecast)
            with the part of it that is done, and, when a page of it begins, what that will take.
    """
    begin, summary = time.perf_counter(), Summary()
    items = list(items)
    for folder in places.folders(item.output for item in items):
        remove_halves(folder)
    for record in settled:
        summary.add(record)
        tell(record)
    done = summary.told
    waiting = iter(items)
    whole = WHOLE.get(restorer.device.type, WHOLE_ELSEWHERE)
    current: Job | None = None  # neither with the readers nor with the writers
    reading: deque[Future[Job]] = deque()
    writing: deque[Future[Job]] = deque()

    def finish(job: Job) -> None:
        if job.no_space:
            summary.stopped = "no space is left for results"
        summary.add(job.record)
        tell(job.record)

    def finish_first() -> None:
        job = writing[0].result()  # here an interrupt may come, and the others are to be finished then
        writing.popleft()
        finish(job)

    def read_ahead() -> None:
        while len(reading) < AHEAD:
            held = sum(future.result().waiting_bytes for future in reading if future.done())
            item = None if held > AHEAD_BYTES and reading else next(waiting, None)
            if item is None:
                return
            reading.append(readers.submit(Job(item, how, whole).read))

    readers = ThreadPoolExecutor(READERS, "mirnet_fast-read")
    writers = ThreadPoolExecutor(WRITERS, "mirnet_fast-write")
    try:
        read_ahead()
        while reading and summary.stopped is None:
            current = reading[0].result()
            reading.popleft()
            read_ahead()
            writing.append(writers.submit(current.run(restorer, watch).write))
            current = None
            while writing and (len(writing) > BEHIND or writing[0].done()):
                finish_first()
        while writing:
            finish_first()
    except KeyboardInterrupt:
        summary.interrupted, summary.stopped = True, "interrupted"
    finally:
        for future in reading:
            future.cancel()
        while writing:
            finish_first()
        readers.shutdown(cancel_futures=True)
        writers.shutdown()
        if current is not None and current.done:  # interrupted just after it went to a writer
            finish(current)
        elif current is not None:
            current.drop()
        for future in reading:
            if not future.cancelled():
                future.result().drop()
    summary.left = len(items) - (summary.told - done)
    summary.seconds = time.perf_counter() - begin
    return summary
