import networkx as nx
import oracles
import pytest
from random_models import SHAPES, shape

import circuitvit as cv
from circuitvit.graph.edge_graph import (
    Edge,
    Node,
    edge_count,
    edge_names_of,
    edges_of,
    in_order,
    meant_by,
    node_named,
    readers_of,
    writers_of,
)


def config_of(depth, heads, **more):
    return cv.ViTConfig(depth=depth, heads=heads, width=heads * 64, **more)


@pytest.mark.parametrize(
    ("depth", "heads", "count"),
    [(12, 3, 2845), (12, 6, 9163), (12, 12, 32491), (24, 16, 231877), (6, 8, 3628)],
    ids=["DeiT-Ti", "DeiT-S", "ViT-B", "ViT-L", "the CIFAR-10 model"],
)
def test_the_counts_are_the_published_ones(depth, heads, count, as_users_call):
    graph = cv.edge_graph(config_of(depth, heads))
    assert graph.number_of_edges() == count
    blocks, h = depth, heads
    assert count == blocks * (5 * h + 2) + 1 + (3 * h + 1) * (h + 1) * blocks * (blocks - 1) // 2


def test_the_joint_count_is_the_formula():
    blocks, h = 5, 3
    graph = cv.edge_graph(config_of(blocks, h), qkv="joint")
    expected = blocks * (3 * h + 2) + 1 + (h + 1) ** 2 * blocks * (blocks - 1) // 2
    assert graph.number_of_edges() == expected


@pytest.mark.parametrize("qkv", ["split", "joint"])
@pytest.mark.parametrize("name", SHAPES)
def test_names_and_order_are_those_of_an_independent_listing(name, qkv):
    config = shape(name)
    assert list(edge_names_of(config, qkv)) == oracles.edges(config, qkv)
    assert list(readers_of(config, qkv)) == oracles.readers(config, qkv)
    assert list(writers_of(config)) == oracles.writers(config)
    graph = cv.edge_graph(config, qkv=qkv)
    assert {data["edge"].name for *_, data in graph.edges(data=True)} == set(
        edge_names_of(config, qkv)
    )


def test_the_first_and_last_edges_of_two_blocks():
    names = edge_names_of(shape())
    assert names[:4] == ("m1->logits", "a1.h1->logits", "a1.h0->logits", "m0->logits")
    assert names[7:9] == ("a1.h1->m1", "a1.h0->m1")
    assert names[13:15] == ("m0->a1.h1.v", "a0.h1->a1.h1.v")
    assert names[-3:] == ("embed->a0.h0.v", "embed->a0.h0.k", "embed->a0.h0.q")


def test_nodes_and_edges_are_frozen_objects_in_an_acyclic_graph():
    graph = cv.edge_graph(shape())
    assert nx.is_directed_acyclic_graph(graph)
    assert graph.nodes["a1.h0.q"]["node"] == Node("a1.h0.q", "head", 1, 0, "q")
    assert graph.nodes["m1"]["node"] == Node("m1", "mlp", 1)
    assert graph.edges["m0", "a1.h0.k"]["edge"] == Edge("m0", "a1.h0.k")
    assert not graph.has_edge("a1.h0.q", "a1.h0")  # a reader leads to its writer outside the graph
    with pytest.raises(AttributeError):
        graph.nodes["m1"]["node"].name = "m2"
    assert node_named("a1.h0.q").unit == "a1.h0"


def test_an_absent_sub_layer_has_no_nodes():
    graph = cv.edge_graph(shape("ragged"))  # heads (1, 0, 3), MLPs (5, 7, 0)
    assert "m2" not in graph
    assert not any(name.startswith("a1.") for name in graph)
    assert graph.has_edge("m0", "m1")


@pytest.mark.parametrize("name", ["a1", "a1.h", "a1.h0.x", "m", "embed.q", "block1", "", "m1.q"])
def test_names_of_nothing_are_refused(name):
    with pytest.raises(cv.CircuitError, match="names no writer or reader"):
        node_named(name)


def test_every_node_reads_back_its_name():
    config = shape()
    for name in cv.edge_graph(config):
        assert node_named(name).name == name


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_counted_and_ordered_without_the_graph_as_with_it(name, qkv):
    config = shape(name)
    names = edge_names_of(config, qkv)
    assert edge_count(config, qkv) == len(names)
    assert in_order(config, reversed(names), qkv) == (edges_of(config, qkv), ())
    wrong = ["embed", "", "->", "logits->embed", "m9->logits", "embed->a9.h9"]
    assert in_order(config, [names[0], *wrong, names[0]], qkv) == (
        (Edge(*names[0].split("->")),),
        tuple(wrong),
    )


def test_a_circuit_of_a_vit_22b_is_made_without_its_eight_million_edges():
    config = cv.ViTConfig(width=6144, depth=48, heads=48)
    circuit = cv.Circuit(config, ["a4.h2->logits", "embed->a0.h0.q"])
    assert edge_count(config) == 8_026_057
    assert circuit.edges == ("a4.h2->logits", "embed->a0.h0.q")
    assert set(circuit.graph().nodes) == {
        "embed", "logits", "a0.h0.q", "a0.h0", "a4.h2",
    }  # fmt: skip


def test_a_graph_that_no_computer_holds_is_refused_by_its_count():
    config = cv.ViTConfig(width=60, depth=1000, heads=60)
    for ask in (edge_count, edges_of, edge_names_of, cv.edge_graph):
        with pytest.raises(cv.CircuitError, match="5,515,281,501 edges .*at most 67,108,864"):
            ask(config)


def test_a_head_as_reader_means_its_query_key_and_value():
    parts = tuple(f"a0.h1->a1.h0.{part}" for part in "qkv")
    assert meant_by("a0.h1->a1.h0") == parts
    assert meant_by("a0.h1->a1.h0", "joint") == ("a0.h1->a1.h0",)
    for name in ("a0.h1->a1.h0.q", "a0.h1->m1", "m0->logits", "a0.h1", "m0->"):
        assert meant_by(name) == (name,)
    edges, unknown = in_order(shape(), ["a0.h1->a1.h0.k", "a0.h1->a1.h0", "m1->a1.h0", "m1->a9.h9"])
    assert [edge.name for edge in edges] == list(reversed(parts)), "each once, in the pinned order"
    assert unknown == ("m1->a1.h0", "m1->a9.h9"), "as they were given"
    (edge,), none = in_order(shape(), ["a0.h1->a1.h0", "a0.h1->a1.h0"], "joint")
    assert (edge.name, none) == ("a0.h1->a1.h0", ())
    assert in_order(shape(), ["a0.h1->a1.h0.q"], "joint")[1] == ("a0.h1->a1.h0.q",)
