"""Ranks of the C interface as threads: a transport that copies between their memories."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from tests.embedding import c_interface as ci

TIMEOUT = 60.0


class Hub:
    """Where each rank's memory is; exchanges are copies between two barriers."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = [0] * size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)

    def transport(self, rank: int, fails_at: int = 0) -> ci.Transport:
        """`fails_at`: the number of the exchange that returns an error, from 1."""
        done = 0

        def exchange(memory: int, copy: Callable[[int], None]) -> int:
            nonlocal done
            done += 1
            if done == fails_at:
                self.barrier.abort()
                return 17
            try:
                self.memory[rank] = memory
                self.barrier.wait()
                for peer in range(self.size):
                    if peer != rank:
                        copy(peer)
                self.barrier.wait()
            except threading.BrokenBarrierError:
                return 18
            return 0

        def all_to_all(context: Any, data: int, pitch: int, size: int, rows: Any) -> int:
            def copy(peer: int) -> None:
                ctypes.memmove(rows[peer], self.memory[peer] + rank * pitch, size)

            return exchange(data, copy)

        def all_gather(context: Any, blocks: int, pitch: int, size: int) -> int:
            def copy(peer: int) -> None:
                ctypes.memmove(blocks + peer * pitch, self.memory[peer] + peer * pitch, size)

            return exchange(blocks, copy)

        return ci.Transport(
            rank=rank, size=self.size, all_to_all=ci.ALL_TO_ALL(all_to_all), all_gather=ci.ALL_GATHER(all_gather)
        )


def run(size: int, rank_main: Callable[[int, Hub], Any]) -> list[Any]:
    """What each rank returns, or the exception that it raised."""
    hub = Hub(size)
    results: list[Any] = [None] * size

    def main(rank: int) -> None:
        try:
            results[rank] = rank_main(rank, hub)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=main, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a rank hangs"
    return results
