"""From settings to networks: which class each method trains. A method not named here is one :class:`Encoder`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gnnmr_dist.config import ModelSettings
from gnnmr_dist.errors import InputError
from gnnmr_dist.models.a2cmhne import A2CMHNE, ContentEncoder
from gnnmr_dist.models.encoder import Encoder, Network, make_layer
from gnnmr_dist.models.inputs import Kind
from gnnmr_dist.models.layers import Layer
from gnnmr_dist.models.pmgt import PMGT

Inputs = Sequence[tuple[Kind, int]]
Builder = Callable[[int, int, Inputs, ModelSettings, int], Network]


def build_network(
    num_users: int, num_items: int, inputs: Inputs, settings: ModelSettings, num_layers: int, key: int
) -> Network:
    """A method's freshly initialised network; a function of ``key`` alone (the global RNG is left alone).

    Args:
        num_users, num_items: U and I.
        inputs: kind and size of each modality it reads.
        settings: of the model.
        num_layers: L.
        key: of the initial weights.
    """
    build = NETWORKS.get(settings.method, make_encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key % 2**63)
        return build(num_users, num_items, inputs, settings, num_layers)


def build_encoder(
    num_users: int, num_items: int, inputs: Inputs, settings: ModelSettings, num_layers: int, key: int
) -> Encoder:
    """As :func:`build_network`, of GNNMR's own kind whatever the method."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key % 2**63)
        return make_encoder(num_users, num_items, inputs, settings, num_layers)


def make_encoder(
    num_users: int,
    num_items: int,
    inputs: Inputs,
    settings: ModelSettings,
    num_layers: int,
    of: type[Encoder] = Encoder,
) -> Encoder:
    """An encoder by the settings, of class ``of``, from the global RNG."""
    return of(
        num_users,
        num_items,
        inputs,
        make_layers(settings, num_layers),
        embedding_dim=settings.embedding_dim,
        combination=settings.layer_combination,
        activation=settings.activation,
        item_id=settings.item_id,
    )


def make_layers(settings: ModelSettings, num_layers: int) -> list[Layer]:
    """L layers by the settings, from the global RNG."""
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
        for _ in range(num_layers)
    ]


def a2cmhne(
    num_users: int, num_items: int, inputs: Inputs, settings: ModelSettings, num_layers: int
) -> A2CMHNE:
    """See :class:`A2CMHNE`."""
    shape, how = (num_users, num_items), (settings, num_layers)
    structure = make_encoder(*shape, (), *how)
    contents = [make_encoder(*shape, [some], *how, of=ContentEncoder) for some in inputs]
    layers = num_layers + 1 if settings.layer_combination == "concat" else 1
    width = settings.embedding_dim * layers
    return A2CMHNE(structure, [c for c in contents if isinstance(c, ContentEncoder)], width)


def pmgt(num_users: int, num_items: int, inputs: Inputs, settings: ModelSettings, num_layers: int) -> PMGT:
    """See :class:`PMGT`; raises InputError when there are layers of message passing, of which it has none."""
    if num_layers:
        raise InputError(f"num_neighbors: expected none with method pmgt, got {num_layers} layers")
    return PMGT(num_users, num_items, inputs, width=settings.embedding_dim, heads=settings.heads)


NETWORKS: dict[str, Builder] = {"a2cmhne": a2cmhne, "pmgt": pmgt}
