"""A wish to stop: heard from a signal, agreed on after a step, and nothing is lost by it."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.notice import Notice, Wish, ended_by_sigterm


def test_the_largest_wish_counts() -> None:
    notice = Notice()
    assert notice.heard() is Wish.GO_ON
    notice.leaving = lambda: True
    assert notice.heard() is Wish.MOVE
    notice.tell(Wish.END)
    notice.tell(Wish.MOVE)
    assert notice.heard() is Wish.END


def test_one_process_agrees_with_itself_after_a_step() -> None:
    notice, losses = Notice(), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    mesh = one_process(1, notice=notice)
    assert torch.equal(mesh.sum_step(losses), losses)
    assert notice.agreed is Wish.GO_ON
    notice.tell(Wish.END)
    mesh.sum_step(losses)
    assert notice.agreed is Wish.END


def test_sigterm_is_a_wish_once_and_then_what_it_was() -> None:
    notice, called, seen = Notice(), [], []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("old"))
    try:
        with ended_by_sigterm(notice, lambda: called.append("waiting")):
            os.kill(os.getpid(), signal.SIGTERM)
            assert (notice.told, called, seen) == (Wish.END, ["waiting"], [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == ["old"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["old", "old"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with ended_by_sigterm(Notice()):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize("wish", list(Wish))
def test_a_wish_is_true_unless_it_is_to_go_on(wish: Wish) -> None:
    assert bool(wish) == (wish is not Wish.GO_ON)
