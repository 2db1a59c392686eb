"""What each look sets, on a session that stands still, moves, and stops: rates, ages, ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gnnmr_dist.checkpoint import FitState
from gnnmr_dist.distributed.mesh import Mesh, one_process
from gnnmr_dist.gauges import PER_MODALITY, PER_RUN, PER_WORKER, Look
from gnnmr_dist.pace import Pace


class Scene:
    """A session of 4 steps of 10 samples whose clock and steps the test moves."""

    def __init__(self, mesh: Mesh) -> None:
        self.now, self.set = 0.0, dict[tuple[str, ...], float]()
        self.session: Any = SimpleNamespace(state=FitState(), num_steps=4, mesh=mesh)
        self.pace = Pace(mesh, 4, 10, 40, every=100, clock=lambda: self.now)
        self.look = Look(self.session, self.pace, "shop", self.take, lambda: self.now)

    def take(self, name: str, value: float, tags: dict[str, str]) -> None:
        assert tags["run"] == "shop"
        self.set[(name, *(v for k, v in sorted(tags.items()) if k != "run"))] = value

    def step(self, seconds: float, waited: float) -> None:
        self.now += seconds
        self.session.mesh.waited["scores"] += waited
        state = self.session.state
        losses = {"text": {"bpr": 3.0, "kl": 0.5}}
        self.pace.take({"kind": "step", "epoch": state.epoch, "step": state.step, "losses": losses})
        state.step += 1


def test_a_worker_of_rank_0_tells_all() -> None:
    scene = Scene(one_process(1))
    scene.look()
    assert scene.set == {
        ("epoch",): 0,
        ("step",): 0,
        ("checkpoint_age_seconds",): 0,
        ("step_age_seconds", "0"): 0,
    }
    scene.step(0.5, 0.1)
    scene.step(1.5, 0.3)
    scene.now += 3
    scene.look()
    assert scene.set[("samples_per_second",)] == 10.0
    assert scene.set[("exchange_seconds", "0")] == 0.2
    assert scene.set[("supervised_loss", "text")] == 3.0
    assert scene.set[("distillation_loss", "text")] == 0.5
    assert scene.set[("step",)] == 2
    assert {name for name, *_ in scene.set} == {*PER_RUN, *PER_MODALITY, *PER_WORKER}
    scene.now += 40
    scene.look()
    assert scene.set[("step_age_seconds", "0")] == 40.0
    assert scene.set[("checkpoint_age_seconds",)] == 45.0
    assert scene.set[("samples_per_second",)] == 10.0
    scene.pace.saved()
    scene.now += 7
    scene.look()
    assert scene.set[("checkpoint_age_seconds",)] == 7.0


def test_other_workers_tell_what_holds_them_up() -> None:
    mesh = Mesh(1, 2, 2, 2, one_process(1).device)
    scene = Scene(mesh)
    mesh.waited["row gradients"] += 2.0
    scene.session.state.epoch = 1
    scene.look()
    assert scene.set == {("exchange_seconds", "1"): 0.5, ("step_age_seconds", "1"): 0.0}
