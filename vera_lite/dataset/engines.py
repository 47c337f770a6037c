"""Two ways to work through samples: processes of this machine, or Ray. What comes out is the same.

An engine decides where and when a sample is worked on, and nothing else: the store holds what is done, so an
engine needs no checkpoint of its own, and an interrupted run is continued by either.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from vera_lite.dataset.chain import process
from vera_lite.dataset.stage import Sample, Stage
from vera_lite.dataset.store import DEATHS, Store, Writer
from vera_lite.errors import UserError

#: One thread per process: processes share the cores already, and sums come out in one order.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)


class Worker:
    """Works on samples in one process; sent to it pickled, before it opens the store.

    Args:
        folder: of the store.
        run: name of the run.
        stages: what to do.
        timeout: seconds for one stage of one sample, after which the process ends itself; None: no limit,
            and the process is not watched.
    """

    def __init__(self, folder: Path, run: str, stages: Sequence[Stage], timeout: float | None):
        self.folder, self.run, self.stages, self.timeout = folder, run, stages, timeout
        self._writer: Writer | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_writer": None}

    def __call__(self, sample: Sample) -> None:
        """Take one sample through all stages."""
        if self._writer is None:
            self._writer = Writer(Store(self.folder), self.run)
            if self.timeout is not None:  # a crash writes its trace into the marker of its task
                faulthandler.enable(self._writer.marker)
        process(self._writer, self.stages, sample, self.timeout)

    def close(self) -> None:
        """Leave nothing in flight."""
        if self._writer is not None:
            if self.timeout is not None:
                faulthandler.disable()
            self._writer.close()
            self._writer = None


@contextmanager
def one_thread() -> Iterator[None]:
    """New processes compute on one thread each, and so does torch in this one."""
    import torch

    before, threads = {name: os.environ.get(name) for name in _THREADS}, torch.get_num_threads()
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_here(worker: Worker, samples: Sequence[Sample]) -> Iterator[None]:
    """One sample after the other in this process, which a crash would end; yields after each."""
    try:
        for sample in samples:
            yield worker(sample)
    finally:
        worker.close()


def run_local(worker: Worker, samples: Sequence[Sample], workers: int) -> Iterator[None]:
    """Processes of this machine; yields after each sample.

    Every process is a pool of its own. When one dies, it is known whose sample it was, the others go on, and
    a new process takes the sample up again; the store counts how often.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # what all need is imported once
        context.set_forkserver_preload(["vera_lite.dataset.engines", "vera_lite.media.video"])

    def pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, _start, (worker,))

    waiting = list(reversed(samples))
    idle = [pool() for _ in range(min(workers, len(samples)))]
    pools, busy, deaths = list(idle), {}, Counter()
    try:
        while waiting or busy:
            while idle and waiting:
                sample, free = waiting.pop(), idle.pop()
                busy[free.submit(_work, sample)] = (free, sample)
            done, _ = wait(busy, return_when=FIRST_COMPLETED)
            for future in done:
                free, sample = busy.pop(future)
                try:
                    future.result()
                except BrokenProcessPool:
                    deaths[sample.category, sample.key] += 1
                    if max(deaths.values()) > DEATHS * (len(worker.stages) + 1):
                        raise RuntimeError("processes die before they begin; see above.") from None
                    free.shutdown()
                    pools.remove(free)
                    free = pool()
                    pools.append(free)
                    waiting.append(sample)
                    idle.append(free)
                else:
                    idle.append(free)
                    yield None
        for result in [free.submit(_stop) for free in pools]:
            result.result()
    finally:
        for future in busy:
            future.cancel()
        for free in pools:
            free.shutdown(cancel_futures=True)


_mine: list[Worker] = []  # of a pool's process


def _start(worker: Worker) -> None:
    """Once in every process of a pool."""
    import torch

    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _mine.append(worker)


def _work(sample: Sample) -> None:
    _mine[0](sample)


def _stop() -> None:
    _mine[0].close()


def run_ray(worker: Worker, samples: Sequence[Sample], workers: int, address: str | None) -> Iterator[None]:
    """Ray Data; yields after each sample.

    Records alone travel, never pixels: the store has to be a folder that all machines see.

    Args:
        worker: what is done to each sample.
        samples: all of them.
        workers: CPUs of a cluster that is started here.
        address: of a cluster to join, such as "auto"; None starts one on this machine and ends it.

    Raises:
        UserError: Ray is not installed, or does not start.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        install = "pip install 'vera-lite[ray]', or use --executor local"
        raise UserError(f"Ray is not installed: {install}.") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        _start_ray(ray, workers, address)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # When a process dies, its whole block comes again, and what is done is passed over.
        blocks = max(1, min(len(samples), 8 * workers))
        # As text: Arrow would give all facts the same fields.
        rows = [{"sample": json.dumps(asdict(sample))} for sample in samples]

        def work(batch: dict) -> dict:
            try:
                for text in batch["sample"]:
                    worker(Sample(**json.loads(text)))
            finally:
                worker.close()
            return batch

        dataset = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(work, batch_size=None)
        for _ in dataset.iter_rows():
            yield None
    finally:
        if started:
            ray.shutdown()


def _start_ray(ray, workers: int, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network unless asked
    options = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
    for attempt in (1, 2):
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **options)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                where = f"cannot be joined at {address}" if address else "does not start on this machine"
                raise UserError(
                    f"Ray {where} ({' '.join(str(error).split())}); use --executor local."
                ) from error
