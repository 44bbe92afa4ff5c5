"""Pass: heads and MLPs from which no live edge leads on to the logits are not run."""

from dataclasses import replace

from circuitvit.compiler.program import Program
from circuitvit.graph.edge_graph import node_named
from circuitvit.models.vit import PARTS


def drop_dead(program: Program) -> Program:
    """The program without the readers of nodes that nobody reads.

    A constant unit is folded into tables, so that nobody reads it either.
    """
    needed, waiting = {"logits"}, ["logits"]
    while waiting:
        for writer in program.live(waiting.pop()):
            node = node_named(writer)
            if node.kind == "embed":
                continue
            readers = [writer] if node.kind == "mlp" else [f"{writer}.{part}" for part in PARTS]
            new = [name for name in readers if name in program.kept and name not in needed]
            needed.update(new)
            waiting += new
    kept = {name: writers for name, writers in program.kept.items() if name in needed}
    return replace(program, kept=kept)
