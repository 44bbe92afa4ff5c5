import base64
import json
import subprocess
import sys
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from random_models import SHAPES, random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of, edges_of, node_named, units_of
from circuitvit.intervene.ablated_run import EdgeMask

CONFIG = shape()


def circuit_of(*edges, **more):
    return cv.Circuit(CONFIG, edges, **more)


def test_edges_come_in_the_pinned_order_and_nothing_is_dropped():
    names = edge_names_of(CONFIG)
    circuit = cv.Circuit(CONFIG, reversed(names[::3]))
    assert circuit.edges == names[::3]
    assert len(circuit) == len(names[::3])
    assert names[3] in circuit
    assert names[1] not in circuit


def test_the_full_circuit_keeps_every_edge(as_users_call):
    assert cv.Circuit.full(CONFIG).edges == edge_names_of(CONFIG)
    assert cv.Circuit.full(CONFIG, qkv="joint").edges == edge_names_of(CONFIG, "joint")
    assert len(cv.Circuit.full(CONFIG).complement()) == 0
    with pytest.raises(cv.CircuitError, match=r"expected Circuit.full\(vit.config\), got a str"):
        cv.Circuit.full("vit")
    with pytest.raises(cv.CircuitError, match="qkv is 'both'"):
        cv.Circuit.full(CONFIG, qkv="both")


def test_a_head_as_reader_means_three_edges_unless_they_are_joint():
    whole, parts = "a0.h1->a1.h0", [f"a0.h1->a1.h0.{part}" for part in "qkv"]
    circuit = circuit_of(whole, "m1->logits")
    assert circuit == circuit_of(*parts, "m1->logits")
    assert set(circuit.edges) == {*parts, "m1->logits"}
    assert whole in circuit
    assert whole not in circuit_of(*parts[:2])
    assert set(circuit.keeping([whole])) == set(parts)
    joint = circuit_of(whole, qkv="joint")
    assert joint.edges == (whole,)
    assert whole in joint
    assert parts[0] not in joint
    vit = random_vit(CONFIG)
    images = random_images(vit, 3)
    runs = [
        cv.run_circuit(vit, one, images, ablation="zero")
        for one in (circuit.keeping([whole]), joint)
    ]
    torch.testing.assert_close(*runs)
    mask, expected = (EdgeMask.of(CONFIG, names) for names in ([whole], parts))
    assert all(torch.equal(*rows) for rows in zip(mask.attention, expected.attention, strict=True))
    with pytest.raises(cv.CircuitError, match=r"1 edges do not exist in this ViT \(m1->a1.h0\)"):
        circuit_of("m1->a1.h0")


def test_circuits_are_sets_of_edges():
    a, b = circuit_of("embed->m0", "m0->logits"), circuit_of("m0->logits", "m1->logits")
    assert set(a | b) == {"embed->m0", "m0->logits", "m1->logits"}
    assert set(a & b) == {"m0->logits"}
    assert set(a - b) == {"embed->m0"}
    assert set(a ^ b) == {"embed->m0", "m1->logits"}
    assert (a & b) <= a
    assert not a <= b
    assert len(a) + len(a.complement()) == len(edge_names_of(CONFIG))
    assert a == circuit_of("m0->logits", "embed->m0")
    origins = [cv.Provenance(metric="kl", ablation=name) for name in ("zero", "patch")]
    one, two = (circuit_of("m0->logits", provenance=origin) for origin in origins)
    assert ((one | two).provenance.metric, (one | two).provenance.ablation) == ("kl", None)
    assert (one | two).provenance.ablations == ("patch", "zero")
    assert (one & (two | one)).provenance.known("ablation") == ("patch", "zero")
    for found in (one | a, a - one, (a ^ one) & b):  # how `a` was found is not known
        assert found.provenance.ablation == "zero"
        assert (found.provenance.ablations, found.provenance.metric) == ((), "kl")
    assert (a | b).provenance.known("ablation") == ()
    assert hash(a) == hash(circuit_of("m0->logits", "embed->m0"))
    with pytest.raises(cv.CircuitError, match="different edges"):
        a | cv.Circuit(CONFIG, [], qkv="joint")


def test_units_are_those_on_a_kept_path():
    circuit = circuit_of(
        "embed->a0.h0.q", "a0.h0->m1", "m1->logits",  # a path, through a query
        "embed->a0.h1.v",  # reaches nothing
        "a1.h0->logits",  # is reached by nothing
    )  # fmt: skip
    assert circuit.units() == ("a0.h0", "m1")
    assert circuit_of("embed->logits").units() == ()


def test_the_unit_circuit_has_every_edge_among_the_kept_units():
    circuit = circuit_of("embed->a0.h0.q", "a0.h0->m1", "m1->logits")
    inside = {"embed", "a0.h0", "m1", "logits"}
    expected = {
        edge.name
        for edge in edges_of(CONFIG)
        if edge.writer in inside and node_named(edge.reader).unit in inside
    }
    assert set(circuit.unit_circuit()) == expected
    assert len(expected) == 3 + 2 + 3


DANGLING = (
    "embed->a0.h0.v", "a0.h0->logits",  # the path
    "embed->a0.h1.v", "a0.h1->m0",  # a dead end of two steps
    "m0->a1.h0.k",  # … and of a third
    "a1.h1->m1", "m1->logits",  # never reached from embed
)  # fmt: skip


def test_without_dangling_drops_both_kinds_under_patch():
    kept = circuit_of(*DANGLING).without_dangling("patch")
    assert set(kept) == {"embed->a0.h0.v", "a0.h0->logits"}


def test_what_dangles_is_named_counted_and_told_when_it_goes():
    origin = cv.Provenance(method="acdc", ablation="patch", selection="the best")
    circuit = circuit_of(*DANGLING, provenance=origin)
    path, constant = ("a0.h0->logits", "embed->a0.h0.v"), ("m1->logits", "a1.h1->m1")
    assert circuit.dangling() == circuit.dangling("patch")
    assert set(circuit.dangling()) == set(circuit) - set(path)
    assert set(circuit.dangling("zero")) == set(circuit) - set(path) - set(constant)
    assert set(circuit_of(*DANGLING).dangling()) == set(circuit.dangling("mean"))
    assert list(circuit.dangling()) == [edge for edge in circuit.edges if edge not in path]
    assert repr(circuit) == "Circuit(7 of 46 edges, 5 dangling, acdc)"
    assert len(circuit.edges) == 7
    marked = [edge.name for *_, edge in circuit.graph().edges(data="edge")]
    idle = [bool(dangling) for *_, dangling in circuit.graph().edges(data="dangling")]
    assert {name for name, dangles in zip(marked, idle, strict=True) if dangles} == set(
        circuit.dangling()
    )
    shorter = circuit.without_dangling()
    assert shorter.dangling() == ()
    assert shorter.provenance.selection == "the best, without 5 dangling edges under patch"
    assert repr(shorter) == "Circuit(2 of 46 edges, acdc)"
    assert shorter.without_dangling().provenance == shorter.provenance
    assert circuit.provenance.selection == "the best"
    told = circuit_of(*DANGLING).without_dangling().provenance.selection
    assert told == "without 3 dangling edges"
    told = circuit_of("embed->m0", "embed->logits").without_dangling("zero").provenance.selection
    assert told == "without 1 dangling edge under zero"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_units_and_dangling_edges_equal_walks_of_networkx(name, qkv):
    config = shape(name)
    names = edge_names_of(config, qkv)
    for seed in range(6):
        drawn = np.random.default_rng(seed).random(len(names)) < 0.1 * (seed + 1)
        kept = [name for name, keep in zip(names, drawn, strict=True) if keep]
        flow = nx.DiGraph()
        flow.add_nodes_from(["embed", "logits"])
        flow.add_edges_from((w, node_named(r).unit) for w, r in (n.split("->") for n in kept))
        reached = nx.descendants(flow, "embed") | {"embed"}
        useful = nx.ancestors(flow, "logits") | {"logits"}
        circuit = cv.Circuit(config, kept, qkv=qkv)
        assert circuit.units() == tuple(u for u in units_of(config) if u in reached & useful)
        for ablation, live in (("patch", reached), ("zero", set(flow)), ("mean", set(flow))):
            left = [
                name
                for name in kept
                if node_named(name.split("->")[1]).unit in useful and name.split("->")[0] in live
            ]
            assert circuit.without_dangling(ablation).edges == tuple(left)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_without_dangling_drops_only_dead_ends_under_constants(ablation):
    kept = circuit_of(*DANGLING).without_dangling(ablation)
    assert set(kept) == {"embed->a0.h0.v", "a0.h0->logits", "a1.h1->m1", "m1->logits"}
    recorded = circuit_of(*DANGLING, provenance=cv.Provenance(ablation=ablation))
    assert recorded.without_dangling() == kept


@pytest.mark.parametrize("ablation", ["patch", "zero", "mean"])
def test_dropping_dangling_edges_leaves_the_output_unchanged(ablation):
    vit = random_vit(CONFIG)
    pairs, reference = random_pairs(vit, 4), random_images(vit, 5, seed=9)
    dropped = 0
    for seed in range(8):
        scores = cv.eap(vit, pairs, method="random", seed=seed)
        circuit = scores.top(12)
        shorter = circuit.without_dangling(ablation)
        dropped += len(circuit) - len(shorter)
        run = [
            cv.run_circuit(vit, c, pairs, ablation=ablation, reference=reference)
            for c in (circuit, shorter)
        ]
        assert (run[0] - run[1]).abs().max() < 1e-12
    assert dropped > 5


def test_the_graph_holds_the_kept_edges_with_their_scores():
    circuit = circuit_of("embed->a0.h0.q", "a0.h0->logits", scores={"embed->a0.h0.q": 0.5})
    graph = circuit.graph()
    assert isinstance(graph, nx.DiGraph)
    assert set(graph.edges) == {("embed", "a0.h0.q"), ("a0.h0", "logits")}
    assert graph.edges["embed", "a0.h0.q"]["score"] == 0.5
    assert graph.edges["embed", "a0.h0.q"]["edge"].name == "embed->a0.h0.q"
    assert [node.name for node in graph.graph["units"]] == ["embed", *units_of(CONFIG), "logits"]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_a_saved_circuit_loads_as_it_was(name, qkv, tmp_path):
    config = shape(name)
    names = edge_names_of(config, qkv)[::2]
    scores = {edge: 0.1 * index for index, edge in enumerate(names)}
    origin = cv.Provenance(method="acdc", tau=0.01, ties=(names[0],), versions={"torch": "2"})
    circuit = cv.Circuit(config, names, qkv=qkv, scores=scores, provenance=origin)
    path = circuit.save(tmp_path / "deep" / "circuit.json")
    loaded = cv.Circuit.load(path)
    assert loaded == circuit
    assert loaded.config == config
    assert loaded.scores == circuit.scores
    assert loaded.provenance == origin
    assert [file.name for file in path.parent.iterdir()] == ["circuit.json"]


def test_the_file_is_networkxs_node_link_layout(tmp_path):
    path = circuit_of("embed->m0", "m0->logits").save(tmp_path / "c.json")
    body = json.loads(path.read_text())
    graph = nx.node_link_graph(body["graph"], edges="edges")
    assert set(graph.edges) == {("embed", "m0"), ("m0", "logits")}
    assert body["schema"] == 1


def test_a_damaged_or_foreign_file_is_refused_with_the_reason(tmp_path):
    path = circuit_of("embed->m0", "m0->logits").save(tmp_path / "c.json")
    text = path.read_text()
    damaged = {
        "cut short": text[: len(text) // 2],
        "altered after it was saved": text.replace("m0", "m1"),
        "lacks the mark": '{"nodes": []}',
        "circuit schema 99, this version reads 1": text.replace('"schema": 1', '"schema": 99'),
        "lacks the mark ": "[1, 2]",
    }
    for reason, content in damaged.items():
        path.write_text(content)
        with pytest.raises(cv.CircuitError, match=reason):
            cv.Circuit.load(path)
    with pytest.raises(cv.CircuitError, match="no such file"):
        cv.Circuit.load(tmp_path / "missing.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(cv.CircuitError, match="is not a whole circuit"):
        cv.Circuit.load(path)


def test_an_unwritable_place_is_refused_and_nothing_stays_behind(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(cv.CircuitError, match="cannot write"):
        circuit_of("embed->m0").save(tmp_path / "file" / "c.json")
    (tmp_path / "c.json").mkdir()
    with pytest.raises(cv.CircuitError, match="cannot write"):
        circuit_of("embed->m0").save(tmp_path / "c.json")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c.json", "file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_edges_that_do_not_exist_are_refused():
    with pytest.raises(cv.CircuitError, match=r"2 edges do not exist .*embed->m9.*46 edges"):
        circuit_of("embed->m0", "embed->m9", "m0->a0.h0.q")


def test_a_circuit_shows_itself():
    circuit = circuit_of("embed->m0", "m0->logits", provenance=cv.Provenance(method="eap"))
    assert repr(circuit) == "Circuit(2 of 46 edges, eap)"
    shown = circuit._repr_html_()
    drawn = base64.b64decode(shown.split("base64,")[1].split('"')[0]).decode()
    assert ">m0<" in drawn
    assert len(circuit.figure().data) >= 2


def test_circuits_are_read_and_drawn_without_torch(tmp_path):
    path = circuit_of("embed->m0", "m0->logits").save(tmp_path / "c.json")
    code = (
        "import sys, circuitvit as cv;"
        f"c = cv.Circuit.load({str(path)!r}); c.to_html({str(tmp_path / 'c.html')!r});"
        "cv.edge_graph(c.config); c.without_dangling(); c.units();"
        "heavy = {'torch', 'transformer_lens', 'datasets', 'transformers', 'torchvision'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "c.html").stat().st_size > 1e6


def test_an_unknown_ablation_is_refused(as_users_call):
    for ask in (circuit_of("embed->m0").without_dangling, circuit_of("embed->m0").dangling):
        for name in ("zebra", ""):
            with pytest.raises(cv.CircuitError, match=f"ablation is '{name}'"):
                ask(name)
    other = circuit_of(*DANGLING, provenance=cv.Provenance(ablation="resample"))
    assert repr(other) == "Circuit(7 of 46 edges, 3 dangling, hand)"
    assert other.dangling() == circuit_of(*DANGLING).dangling()
    assert "dangling" in other._repr_html_()
    assert len(other.without_dangling("zero")) == 4


def test_circuits_and_their_provenance_are_immutable():
    circuit = circuit_of("embed->m0", scores={"embed->m0": 1.0})
    with pytest.raises(TypeError):
        circuit.scores["embed->m0"] = 2.0
    assert isinstance(hash(circuit.provenance), int)
    with pytest.raises(AttributeError, match="circuits are immutable, so edges"):
        circuit.edges = ()


def test_a_circuit_is_made_of_a_config_and_names(as_users_call):
    for args in ((random_vit(CONFIG), ["embed->m0"]), (CONFIG, "embed->m0")):
        with pytest.raises(
            cv.CircuitError, match=r"expected Circuit\(vit.config, \[edge names\]\)"
        ):
            cv.Circuit(*args)
    origin = cv.Provenance(method="acdc")
    assert replace(origin, tau=1.0).tau == 1.0
    with pytest.raises(AttributeError):
        origin.tau = 2.0


def test_scores_under_a_joint_name_are_refused():
    config = cv.ViTConfig(depth=2, heads=2, width=8)
    with pytest.raises(
        cv.CircuitError, match=r"1 scores have names of three edges each \(a0.h1->a1"
    ):
        cv.Circuit(config, ["a0.h1->a1.h0"], scores={"a0.h1->a1.h0": 1.0, "a0.h1->m1": 2.0})
    joint = cv.Circuit(config, ["a0.h1->a1.h0"], qkv="joint", scores={"a0.h1->a1.h0": 1.0})
    assert joint.scores == {"a0.h1->a1.h0": 1.0}
    split = cv.Circuit(config, ["a0.h1->a1.h0"], scores={"a0.h1->a1.h0.q": 1.0, "a0.h1": 3.0})
    assert split.scores == {"a0.h1->a1.h0.q": 1.0, "a0.h1": 3.0}
