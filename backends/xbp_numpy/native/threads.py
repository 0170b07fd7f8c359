"""Threads that share the work of a step: every one runs the same code, and waits for the others after each group.

The helpers belong to the process. Between two steps they look for work for about a millisecond and then sleep, so a
training keeps them awake and nobody else is kept from a core. One Runner at a time has them; another that comes
meanwhile runs alone, to the same bits. So does one whose threads are kept from their cores by other programs: a step in
which each waits for the slowest a dozen times is faster on one core than on a part of two.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from .blas import blas_threads
from .compiler import Code, compiled

__all__ = ["MOST", "Team", "available_threads", "barrier", "team", "yield_address"]

PATIENCE = 100  # turns of waiting for one another before the core is offered to others
IDLE = 40_000  # turns of looking for work before a helper sleeps
MOST = max(4, min(os.cpu_count() or 1, 64))  # threads that ever work together
GLANCE = 0.02  # seconds of work after which it is looked at whether the threads had their cores
CROWDED = 0.9  # share of their time below which they had not
ALONE = (0.2, 6.4)  # seconds that are worked alone then: at first, and at most, doubling each time
LINE = 8  # 64-bit words of a cache line; each thread writes into one of its own

# The words of the block through which work is handed out.
SEQUENCE, FUNCTION, TABLE, ROWS, STEPS, THREADS, ASLEEP, FINISHED = 0, 1, 2, 3, 4, 5, LINE, LINE + MOST


def _pause(declarations: set[str]) -> str:
    """The instruction that tells the processor that somebody is waiting."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "i686"):
        declarations.add("declare void @llvm.x86.sse2.pause()")
        return "  call void @llvm.x86.sse2.pause()"
    if machine in ("aarch64", "arm64"):
        declarations.add("declare void @llvm.aarch64.hint(i32)")
        return "  call void @llvm.aarch64.hint(i32 1)"
    return "  fence acquire"


def barrier(declarations: set[str]) -> str:
    """Wait until all nt threads have called it as often as this one. Each counts in a cache line of its own."""
    return f"""
define internal void @barrier(ptr %sync, ptr %yield, i64 %tid, i64 %nt) noinline nounwind {{
entry:
  %at = mul i64 %tid, {LINE}
  %own = getelementptr i64, ptr %sync, i64 %at
  %old = load i64, ptr %own
  %now = add i64 %old, 1
  store atomic i64 %now, ptr %own release, align 8
  br label %each
each:
  %t = phi i64 [ 0, %entry ], [ %next, %here ]
  %place = mul i64 %t, {LINE}
  %other = getelementptr i64, ptr %sync, i64 %place
  br label %look
look:
  %turn = phi i64 [ 0, %each ], [ %turn1, %again ]
  %count = load atomic i64, ptr %other acquire, align 8
  %behind = icmp slt i64 %count, %now
  br i1 %behind, label %wait, label %here
wait:
  %turn1 = add i64 %turn, 1
  %patient = icmp slt i64 %turn1, {PATIENCE}
  br i1 %patient, label %pause, label %yields
pause:
{_pause(declarations)}
  br label %again
yields:
  %ignored = call i32 %yield()
  br label %again
again:
  br label %look
here:
  %next = add i64 %t, 1
  %more = icmp slt i64 %next, %nt
  br i1 %more, label %each, label %done
done:
  ret void
}}
"""


def _serve() -> str:
    """serve(block, tid, seen): look for work and do it; returns the number of the last work done, when it is idle.
    lead(block, wake, f, ...): hand out work, wake who sleeps, and do one's own part.

    A helper says that it sleeps before it looks for the last time, and the leader writes the work before it looks who
    sleeps: one of the two always sees the other. It returns when every helper has left the code, which may go away
    then. The number of the work is odd while it is being written, so that a helper that looks in on it, because it was
    left out the last time, does not take half of one work for another.
    """
    declarations: set[str] = set()
    pause = _pause(declarations)
    word = "getelementptr i64, ptr %block, i64"
    return (
        f"""
define i64 @serve(ptr %block, i64 %tid, i64 %seen0) nounwind {{
entry:
  %place = add i64 %tid, {ASLEEP}
  %asleep = getelementptr i64, ptr %block, i64 %place
  br label %fresh
fresh:
  %seen = phi i64 [ %seen0, %entry ], [ %now, %finished ]
  store atomic i64 0, ptr %asleep seq_cst, align 8
  br label %look
look:
  %turn = phi i64 [ 0, %fresh ], [ %turns, %wait ]
  %now = load atomic i64, ptr %block seq_cst, align 8
  %odd = and i64 %now, 1
  %writing = icmp ne i64 %odd, 0
  %old_news = icmp eq i64 %now, %seen
  %idle = or i1 %writing, %old_news
  br i1 %idle, label %wait0, label %work
wait0:
  %turn1 = add i64 %turn, 1
  %last = icmp eq i64 %turn1, {IDLE}
  br i1 %last, label %drowsy, label %check
drowsy:
  store atomic i64 1, ptr %asleep seq_cst, align 8
  br label %wait
check:
  %over = icmp sgt i64 %turn1, {IDLE}
  br i1 %over, label %sleep, label %wait
wait:
  %turns = phi i64 [ %turn1, %check ], [ %turn1, %drowsy ], [ 0, %work ]
{pause}
  br label %look
sleep:
  ret i64 %seen
work:
  %f_at = {word} {FUNCTION}
  %f = load atomic ptr, ptr %f_at monotonic, align 8
  %table_at = {word} {TABLE}
  %table = load atomic ptr, ptr %table_at monotonic, align 8
  %n_at = {word} {ROWS}
  %n = load atomic i64, ptr %n_at monotonic, align 8
  %steps_at = {word} {STEPS}
  %steps = load atomic i64, ptr %steps_at monotonic, align 8
  %nt_at = {word} {THREADS}
  %nt = load atomic i64, ptr %nt_at monotonic, align 8
  fence acquire
  %still = load atomic i64, ptr %block seq_cst, align 8
  %torn = icmp ne i64 %still, %now
  br i1 %torn, label %wait, label %whole
whole:
  %mine = icmp slt i64 %tid, %nt
  br i1 %mine, label %go, label %finished
go:
  call void %f(ptr %table, i64 %n, i64 %steps, i64 %tid, i64 %nt)
  br label %finished
finished:
  %done_place = add i64 %tid, {FINISHED}
  %done = getelementptr i64, ptr %block, i64 %done_place
  store atomic i64 %now, ptr %done release, align 8
  br label %fresh
}}

define void @lead(ptr %block, ptr %wake, ptr %f, ptr %table, i64 %n, i64 %steps, i64 %nt) nounwind {{
entry:
  %before = atomicrmw add ptr %block, i64 1 seq_cst
  %f_at = {word} {FUNCTION}
  store atomic ptr %f, ptr %f_at monotonic, align 8
  %table_at = {word} {TABLE}
  store atomic ptr %table, ptr %table_at monotonic, align 8
  %n_at = {word} {ROWS}
  store atomic i64 %n, ptr %n_at monotonic, align 8
  %steps_at = {word} {STEPS}
  store atomic i64 %steps, ptr %steps_at monotonic, align 8
  %nt_at = {word} {THREADS}
  store atomic i64 %nt, ptr %nt_at monotonic, align 8
  %old = atomicrmw add ptr %block, i64 1 seq_cst
  br label %each
each:
  %t = phi i64 [ 1, %entry ], [ %next, %awake ]
  %place = add i64 %t, {ASLEEP}
  %bed = getelementptr i64, ptr %block, i64 %place
  %sleeps = atomicrmw xchg ptr %bed, i64 0 seq_cst
  %deep = icmp ne i64 %sleeps, 0
  br i1 %deep, label %call, label %awake
call:
  %heard = call i32 %wake(i64 %t)
  %again = icmp eq i32 %heard, 0
  br i1 %again, label %call, label %awake
awake:
  %next = add i64 %t, 1
  %more = icmp slt i64 %next, %nt
  br i1 %more, label %each, label %begin
begin:
  call void %f(ptr %table, i64 %n, i64 %steps, i64 0, i64 %nt)
  %number = add i64 %old, 1
  br label %each_done
each_done:
  %u = phi i64 [ 1, %begin ], [ %u1, %left ]
  %u_place = add i64 %u, {FINISHED}
  %u_done = getelementptr i64, ptr %block, i64 %u_place
  br label %stay
stay:
{pause}
  %their = load atomic i64, ptr %u_done acquire, align 8
  %inside = icmp ne i64 %their, %number
  br i1 %inside, label %stay, label %left
left:
  %u1 = add i64 %u, 1
  %rest = icmp slt i64 %u1, %nt
  br i1 %rest, label %each_done, label %end
end:
  ret void
}}
"""
        + "\n".join(sorted(declarations))
        + "\n"
    )


@cache
def yield_address() -> int:
    """The system's function that lets another thread have the core."""
    if os.name == "nt":
        function: Any = ctypes.WinDLL("kernel32").SwitchToThread  # type: ignore[attr-defined]
    else:
        function = ctypes.CDLL(None).sched_yield
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


class Team:
    """The helper threads of this process."""

    def __init__(self) -> None:
        self._code: Code = compiled(_serve())
        self._serve: Any = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
            self._code.address("serve")
        )
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._lead: Any = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, pointer, count, count, count)(
            self._code.address("lead")
        )
        self._wake = ctypes.CFUNCTYPE(ctypes.c_int, count)(self._wake_up)
        self._wake_address = ctypes.cast(self._wake, pointer).value
        self._block = np.zeros(LINE + 2 * MOST, np.int64)
        self._address = self._block.ctypes.data
        self._beds: list[threading.Semaphore] = []
        self._taken = threading.Lock()
        self.sync = np.zeros(MOST * LINE, np.int64)
        self._wall = self._busy = 0.0  # seconds of work so far, and what of it the threads had cores for
        self._alone, self._alone_until = ALONE[0], 0.0

    @contextlib.contextmanager
    def together(self, threads: int) -> Iterator[int]:
        """Have the helpers for a while; gives the number of threads that there are, 1 where somebody else has them, or
        other programs their cores.
        """
        threads = min(threads, MOST)  # each has its place in the blocks below, and in the scratch memory of products
        crowded = time.monotonic() < self._alone_until
        if threads < 2 or crowded or not self._taken.acquire(blocking=False):
            yield 1
            return
        try:
            while len(self._beds) < threads - 1 and self._hire():
                pass
            yield min(threads, 1 + len(self._beds))
        finally:
            self._taken.release()

    def _hire(self) -> bool:
        """One helper more; False where the system has no thread to give."""
        bed, tid = threading.Semaphore(0), 1 + len(self._beds)
        self._block[ASLEEP + tid] = 0
        seen = int(self._block[SEQUENCE])
        try:
            threading.Thread(target=self._live, args=(bed, tid, seen), name=f"xbp-{tid}", daemon=True).start()
        except RuntimeError:
            return False
        self._beds.append(bed)
        return True

    def _live(self, bed: threading.Semaphore, tid: int, seen: int) -> None:
        while True:
            seen = self._serve(self._address, tid, seen)
            bed.acquire()

    def _wake_up(self, tid: int) -> int:
        """Called by compiled code, until it answers 1: a Ctrl-C in here must not leave the others waiting."""
        self._beds[tid - 1].release()
        return 1

    def work(self, function: int, table: int, n: int, steps: int, threads: int) -> None:
        """Call a function on all threads, the caller being number 0. One call of compiled code, so nothing is left half
        done by an interrupt.
        """
        # Helpers that sat out the last time have counted fewer barriers.
        self.sync[LINE : threads * LINE : LINE] = self.sync[0]
        wall, busy = time.monotonic(), time.process_time()
        self._lead(self._address, self._wake_address, function, table, n, steps, threads)
        self._wall += time.monotonic() - wall
        self._busy += (time.process_time() - busy) / threads
        if self._wall >= GLANCE:
            self._look()

    def _look(self) -> None:
        """Work alone for a while where the threads, which never sleep over their work, had no core for part of it."""
        if self._busy < CROWDED * self._wall:
            self._alone_until = time.monotonic() + self._alone
            self._alone = min(2 * self._alone, ALONE[1])
        else:
            self._alone = ALONE[0]
        self._wall = self._busy = 0.0


_team: Team | None = None
_lock = threading.Lock()


def team() -> Team:
    """The helpers of this process, made when they are first needed."""
    global _team
    with _lock:
        if _team is None:
            _team = Team()
        return _team


def available_threads() -> int:
    """As many threads as NumPy's products may have: OMP_NUM_THREADS and threadpoolctl count, and so do the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, blas_threads(), MOST))


def _forget() -> None:
    """After a fork the child has no helpers, whatever it remembers."""
    global _team, _lock
    _team, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
