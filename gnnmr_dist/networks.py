"""From settings to networks: which class each method trains. A method not named here is one :class:`Encoder`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.config import ModelSettings
from gnnmr_dist.errors import InputError
from gnnmr_dist.models.a2cmhne import A2CMHNE, ContentEncoder
from gnnmr_dist.models.chosen_value import ChosenValue
from gnnmr_dist.models.encoder import Encoder, Network, make_layer
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.models.inputs import Kind
from gnnmr_dist.models.layers import Layer
from gnnmr_dist.models.mmgcn import MMGCN
from gnnmr_dist.models.pmgt import PMGT
from gnnmr_dist.models.vbpr import VBPR


@dataclass(frozen=True)
class Plan:
    """What a network is made from: U, I, kind and size of each modality it reads, settings, L, maker of ID tables."""

    num_users: int
    num_items: int
    inputs: Sequence[tuple[Kind, int]]
    settings: ModelSettings
    num_layers: int
    make: Maker


def build_network(
    num_users: int,
    num_items: int,
    inputs: Sequence[tuple[Kind, int]],
    settings: ModelSettings,
    num_layers: int,
    key: int,
    make: Maker = torch.zeros,
) -> Network:
    """A method's freshly initialised network; a function of ``key`` alone (the global RNG is left alone).

    Args:
        num_users, num_items: U and I.
        inputs: kind and size of each modality it reads.
        settings: of the model.
        num_layers: L.
        key: of the initial weights.
        make: makes the ID tables.

    Raises:
        InputError: the method has no layers of message passing, and some are asked for.
    """
    plan = Plan(num_users, num_items, inputs, settings, num_layers, make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key % 2**63)
        return NETWORKS.get(settings.method, make_encoder)(plan)


def make_encoder(plan: Plan, of: type[Encoder] = Encoder) -> Encoder:
    """An encoder by the settings, of class ``of``, from the global RNG."""
    layers, settings = make_layers(plan), plan.settings
    return of(
        plan.num_users,
        plan.num_items,
        plan.inputs,
        layers,
        embedding_dim=settings.embedding_dim,
        combination=settings.layer_combination,
        activation=settings.activation,
        item_id=settings.item_id,
        make=plan.make,
    )


def make_layers(plan: Plan) -> list[Layer]:
    """L layers by the settings, from the global RNG."""
    settings = plan.settings
    return [
        make_layer(
            settings.encoder,
            settings.embedding_dim,
            heads=settings.heads,
            self_loops=settings.self_loops,
            negative_slope=settings.negative_slope,
            degree_scaling=settings.degree_scaling,
            identity=settings.identity_init,
        )
        for _ in range(plan.num_layers)
    ]


def a2cmhne(plan: Plan) -> A2CMHNE:
    """See :class:`A2CMHNE`."""
    structure = make_encoder(replace(plan, inputs=()))
    contents = [make_encoder(replace(plan, inputs=[some]), ContentEncoder) for some in plan.inputs]
    layers = plan.num_layers + 1 if plan.settings.layer_combination == "concat" else 1
    width = plan.settings.embedding_dim * layers
    return A2CMHNE(structure, [c for c in contents if isinstance(c, ContentEncoder)], width)


def pmgt(plan: Plan) -> PMGT:
    """See :class:`PMGT`."""
    _refuse_layers(plan)
    settings = plan.settings
    return PMGT(
        plan.num_users,
        plan.num_items,
        plan.inputs,
        width=settings.embedding_dim,
        heads=settings.heads,
        make=plan.make,
    )


def vbpr(plan: Plan) -> VBPR:
    """See :class:`VBPR`."""
    _refuse_layers(plan)
    return VBPR(
        plan.num_users, plan.num_items, plan.inputs, width=plan.settings.embedding_dim, make=plan.make
    )


def mmgcn(plan: Plan) -> MMGCN:
    """See :class:`MMGCN`; ``as_published`` leaves the tables untrained."""
    network = MMGCN(
        plan.num_users,
        plan.num_items,
        plan.inputs,
        width=plan.settings.embedding_dim,
        num_layers=plan.num_layers,
        make=plan.make,
    )
    if plan.settings.as_published:
        network.freeze_tables()
    return network


def chosen_value(plan: Plan) -> ChosenValue:
    """See :class:`ChosenValue`; nothing of the plan matters to it."""
    del plan
    return ChosenValue()


def _refuse_layers(plan: Plan) -> None:
    if plan.num_layers:
        method = plan.settings.method
        raise InputError(f"num_neighbors: expected none with method {method}, got {plan.num_layers} layers")


NETWORKS: dict[str, Callable[[Plan], Network]] = {
    "a2cmhne": a2cmhne,
    "pmgt": pmgt,
    "vbpr": vbpr,
    "mmgcn": mmgcn,
    **dict.fromkeys(CLOSED_FORM, chosen_value),
}
