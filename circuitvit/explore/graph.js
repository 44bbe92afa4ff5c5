/* The graph as page.js uses it: its edges as numbers, what a name means, and the walk along paths.
   Knows nothing of the screen. Edges come trace by trace, as Python drew them. */
"use strict";

/* Unpacks an array that Python wrote as `{dtype, bdata}`. */
function typed({ dtype, bdata }) {
  const kinds = { f8: Float64Array, u2: Uint16Array };
  return new kinds[dtype](Uint8Array.from(atob(bdata), (letter) => letter.charCodeAt(0)).buffer);
}

function readGraph(page) {
  const { units, readers } = page;
  const writer = typed(page.writer), reader = typed(page.reader), score = typed(page.score);
  const all = Array.from(score, (_, edge) => edge);
  const owner = (edge) => readers[reader[edge]].unit;
  const edgeName = (edge) => `${units[writer[edge]].name}->${readers[reader[edge]].name}`;
  const dangles = (edge) => edge < page.dangling; // they come first
  const size = (edge) => (!dangles(edge) && Math.abs(score[edge])) || 0; // no score counts as zero
  const sign = (edge) => (dangles(edge) ? "dangling" : score[edge] > 0 ? "positive" : score[edge] < 0 ? "negative" : "neutral");
  const isCounted = (place) => units[place].kind === "head" || units[place].kind === "mlp";
  const touched = (edges) => new Set(edges.flatMap((edge) => [writer[edge], owner(edge)]));

  const into = units.map(() => []), from = units.map(() => []);
  for (const edge of all) {
    into[owner(edge)].push(edge);
    from[writer[edge]].push(edge);
  }

  /* What a name means: the edges it starts from, upwards and downwards. Units come first, since
     an MLP is its own reader; edges come strongest first, which is the order of a search. */
  const items = new Map();
  units.forEach((unit, place) =>
    items.set(unit.name, { what: unit.kind, unit: place, up: into[place], down: from[place] }));
  readers.forEach(({ name, unit, part }, place) => {
    const up = into[unit].filter((edge) => reader[edge] === place);
    if (!items.has(name)) items.set(name, { what: `${part} reader`, unit, up, down: from[unit] });
  });
  for (const edge of [...all].sort((a, b) => size(b) - size(a)))
    items.set(edgeName(edge), { what: "edge", edge, up: [edge], down: [edge] });

  /* Adds to `lit` every visible edge that a walk meets; each unit's edges are looked at once. */
  function walk(start, edgesOf, farEnd, visible, lit) {
    const reached = new Set(), queue = [...start];
    while (queue.length) {
      const edge = queue.pop();
      if (!visible[edge]) continue;
      lit.add(edge);
      const unit = farEnd(edge);
      if (reached.has(unit)) continue;
      reached.add(unit);
      for (const next of edgesOf[unit]) queue.push(next);
    }
  }

  /* The visible edges on any path through any of the names: up to `embed`, down to `logits`. */
  function paths(names, visible) {
    const lit = new Set();
    for (const name of names) {
      const { up, down } = items.get(name);
      walk(up, into, (edge) => writer[edge], visible, lit);
      walk(down, from, owner, visible, lit);
    }
    return lit;
  }

  /* The heads and MLPs on a path of visible edges from `embed` to `logits`. */
  function onPath(visible) {
    const reached = (kind, edgesOf, farEnd) => {
      const seen = new Set(), queue = units.flatMap((unit, place) => (unit.kind === kind ? [place] : []));
      while (queue.length) {
        const place = queue.pop();
        if (seen.has(place)) continue;
        seen.add(place);
        for (const edge of edgesOf[place]) if (visible[edge]) queue.push(farEnd(edge));
      }
      return seen;
    };
    const useful = reached("logits", into, (edge) => writer[edge]);
    return [...reached("embed", from, owner)].filter((place) => useful.has(place) && isCounted(place));
  }

  /* The names that hold the query: whole names first, then beginnings, then the rest. */
  function find(query, limit) {
    const wanted = query.trim().toLowerCase();
    const ranked = [[], [], [], []];
    const rank = (name) => {
      const place = name.toLowerCase().indexOf(wanted);
      return place < 0 ? 3 : place > 0 ? 2 : name.length > wanted.length ? 1 : 0;
    };
    for (const name of items.keys()) ranked[rank(name)].push(name);
    return wanted ? ranked.slice(0, 3).flat().slice(0, limit) : [];
  }

  return { units, readers, writer, reader, score, all, owner, edgeName, size, sign, isCounted, dangles, touched, items, paths, onPath, find };
}
