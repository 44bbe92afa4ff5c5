/* The page's behaviour: filter edges, light up paths, search, describe, download.
   Text is set through textContent only, so no name can become markup. Geometry comes from Python
   and is only unpacked and copied: an edge is `stride` points, the last of them NaN. */
(() => {
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("graph-data").textContent);
  const graph = readGraph(page);
  const { units, readers, writer, reader, score, all, edgeName, size, sign, isCounted, dangles, touched, items } = graph;
  const count = all.length;
  const sizes = Float64Array.from(all, size).sort();
  const counted = units.filter((_, place) => isCounted(place)).length;

  // ---- what is shown -----------------------------------------------------------------------

  const state = { threshold: 0, selected: [], lit: null };
  const hidden = { part: new Set(), sign: new Set() };
  const visible = new Uint8Array(count);

  function filter() {
    for (const edge of all)
      visible[edge] =
        !hidden.part.has(readers[reader[edge]].part) &&
        !hidden.sign.has(sign(edge)) &&
        size(edge) >= state.threshold;
    state.lit = state.selected.length ? graph.paths(state.selected, visible) : null;
  }

  const shown = () => all.filter((edge) => visible[edge]);

  // ---- drawing -----------------------------------------------------------------------------

  const { data: base, layout } = page.figure;
  const dots = base.pop();
  const packed = typed(page.points);
  const stride = packed.length / 2 / (count || 1) + 1;
  const whole = [0, 1].map((axis) => {
    const line = new Float32Array(count * stride).fill(NaN);
    for (let point = 0; point < packed.length / 2; point++)
      line[point + Math.floor(point / (stride - 1))] = page.corner[axis] + page.step[axis] * packed[2 * point + axis];
    return line;
  });
  const traceOf = page.counts.flatMap((edges, trace) => new Array(edges).fill(trace));
  // Without a GPU, WebGL is three times slower than SVG where it works at all.
  const gl = document.createElement("canvas").getContext("webgl");
  const unmasked = gl?.getExtension("WEBGL_debug_renderer_info")?.UNMASKED_RENDERER_WEBGL;
  const isSoftware = gl && /swiftshader|llvmpipe|software|basic render/i.test(gl.getParameter(unmasked ?? gl.RENDERER));
  const type = gl && !isSoftware ? dots.type : "scatter";
  for (const trace of [dots, ...base]) trace.type = type;
  // What is not lit lies under everything as one grey trace.
  const rest = { type, mode: "lines", hoverinfo: "skip", line: { color: "#9aa5b1", width: 0.8 } };
  rest.opacity = Math.min(0.32, 6 / Math.sqrt(count || 1));
  const settings = { responsive: true, scrollZoom: true, displaylogo: false, displayModeBar: false };
  layout.uirevision = "zoom stays";

  /* The points of some edges, as fresh arrays. */
  function gather(edges) {
    const [x, y] = whole.map((line) => {
      const part = new Float32Array(edges.length * stride);
      edges.forEach((edge, place) => part.set(line.subarray(edge * stride, (edge + 1) * stride), place * stride));
      return part;
    });
    return { x, y };
  }

  function traces() {
    const bright = base.map(() => []), dim = [];
    for (const edge of shown()) (!state.lit || state.lit.has(edge) ? bright[traceOf[edge]] : dim).push(edge);
    // Few edges can be plainer than many: faint strokes gain what the others left.
    const number = bright.reduce((sum, edges) => sum + edges.length, 1);
    const [plain, thick] = state.lit ? [Math.min(0.85, 8 / Math.sqrt(number)), 1.3] : [Math.min(0.35, 6 / Math.sqrt(number)), 0];
    const strokes = base.map((trace, place) => ({
      ...trace, ...gather(bright[place]), opacity: Math.max(trace.opacity, plain),
      line: { ...trace.line, width: Math.max(trace.line.width, thick) },
    }));
    return [{ ...rest, ...gather(dim) }, ...strokes, dotTrace()];
  }

  function dotTrace() {
    const { lit, selected } = state;
    const live = touched(shown()), bright = lit && touched([...lit]);
    const chosen = new Set(selected.map((name) => items.get(name).unit));
    const marker = { ...dots.marker, line: { ...dots.marker.line } };
    const look = (place) =>
      chosen.has(place) ? "chosen" : !live.has(place) && isCounted(place) ? "ghost"
        : bright && !bright.has(place) ? "dim" : "plain";
    const looks = units.map((_, place) => look(place));
    const pick = (table, plain) => looks.map((name, place) => table[name] ?? plain[place]);
    const { marker: { color, size: wide, line }, textfont } = dots;
    marker.color = pick({ ghost: page.ghost.fill, dim: "#c3ccd5" }, color);
    marker.size = looks.map((name, place) => wide[place] + (name === "chosen" ? 5 : 0));
    marker.line.color = pick({ chosen: "#a78bfa", ghost: page.ghost.line, dim: "#fff" }, line.color);
    marker.line.width = looks.map((name) => (name === "chosen" ? 4 : line.width));
    const text = pick({ ghost: page.ghost.text }, textfont.color);
    return { ...dots, marker, textfont: { ...textfont, color: text } };
  }

  let drawn = Promise.resolve(), waiting = false;
  /* Draws at the next frame; a slider that moves faster than that is drawn once. */
  function draw() {
    if (waiting) return;
    waiting = true;
    drawn = new Promise(requestAnimationFrame).then(() => {
      waiting = false;
      return Plotly.react("plot", traces(), layout, settings);
    });
  }

  function update() {
    filter();
    tell();
    describe();
    draw();
  }

  // ---- words -------------------------------------------------------------------------------

  function make(tag, text, attributes = {}, ...children) {
    const element = document.createElement(tag);
    if (text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const number = (value) => value.toLocaleString("en");
  const points = (value) =>
    Number.isNaN(value) ? "–" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Number(Math.abs(value).toPrecision(3))}`;

  function tell() {
    const edges = shown();
    const idle = edges.filter(dangles).length, live = graph.onPath(visible).length;
    const lit = state.lit ? ` · ${number(state.lit.size)} lit` : "";
    $("counts").textContent =
      `${number(edges.length)} of ${number(count)} edges${idle ? ` (${number(idle)} dangling)` : ""} · ${live} of ${counted} units${lit}`;
  }

  function edgeRow(edge, largest) {
    const name = edgeName(edge);
    const row = make("button", null, { type: "button", class: "edge", "data-edge": name, title: name },
      make("span", name), make("data", dangles(edge) ? "dangling" : points(score[edge]), { value: score[edge] }), make("i", null));
    row.style.setProperty("--tint", `var(--${sign(edge)})`);
    row.querySelector("i").style.width = `${(100 * size(edge)) / (largest || 1)}%`;
    row.addEventListener("click", (event) => select(name, event.shiftKey));
    return make("li", null, {}, row);
  }

  function edgeList(id, heading, edges, limit) {
    const strong = edges.filter((edge) => visible[edge]).sort((a, b) => size(b) - size(a));
    const more = strong.length > limit ? `, strongest of ${number(strong.length)}` : "";
    const rows = strong.slice(0, limit).map((edge) => edgeRow(edge, sizes[count - 1]));
    if (!rows.length) rows.push(make("li", "none visible", { class: "edge" }));
    return [make("h4", heading + more), make("ol", null, { id }, ...rows)];
  }

  function nameButtons(className, names, act) {
    const buttons = names.map((name) => {
      const button = make("button", name, { type: "button", "data-name": name });
      button.addEventListener("click", () => act(name));
      return button;
    });
    return make("div", null, { class: `pins ${className}` }, ...buttons);
  }

  /* Fills the panel; a keyboard user who pressed a button in it stays in it. */
  function describe() {
    const focused = $("selection").contains(document.activeElement);
    const name = state.selected.at(-1);
    $("selection").replaceChildren(...(name === undefined ? summary() : description(name)));
    if (focused) $("selection").querySelector("button")?.focus();
  }

  const summary = () => [
    make("h2", "Strongest edges"), ...edgeList("strongest", "In all", all.filter((edge) => !dangles(edge)), 8),
    make("p", "Click a unit to light up every path through it.", { class: "hint" }),
  ];

  function description(name) {
    const item = items.get(name);
    const clear = make("button", "Clear", { id: "clear", type: "button", title: "Clear the selection (Esc)" });
    clear.addEventListener("click", clearSelection);
    const parts = [
      make("h2", item.what),
      make("div", null, { class: "title" }, make("h3", name), clear),
      make("p", `${number(state.lit.size)} edges on ${state.selected.length > 1 ? "the" : "its"} paths`),
    ];
    if (item.what === "edge") {
      const ends = [units[writer[item.edge]].name, readers[reader[item.edge]].name];
      parts.push(nameButtons("ends", ends, (end) => select(end)));
      parts.push(...edgeList("this-edge", visible[item.edge] ? "Score" : "Hidden by the filter", [item.edge], 1));
    } else {
      parts.push(...edgeList("strongest-in", "Reads", item.up, 6));
      parts.push(...edgeList("strongest-out", "Is read by", item.down, 6));
    }
    if (state.selected.length > 1)
      parts.push(make("h4", "Pinned; click to let go"), nameButtons("held", state.selected, (pin) => select(pin, true)));
    return parts;
  }

  // ---- controls ----------------------------------------------------------------------------

  /* Selects a name; with `add` it joins or leaves the pins. */
  function select(name, add = false) {
    const { selected } = state;
    const held = selected.includes(name);
    if (add) state.selected = held ? selected.filter((other) => other !== name) : [...selected, name];
    else state.selected = [name];
    update();
  }

  function clearSelection() {
    state.selected = [];
    $("search").value = "";
    showMatches([]);
    update();
  }

  /* The slider moves through the sizes by rank, since most scores are small. */
  const last = Math.max(0, Math.min(count - 1, 1000));
  const sizeAt = (place) => (place <= 0 ? 0 : sizes[Math.round((place / last) * (count - 1))]);
  function startThreshold() {
    const slider = $("threshold"), field = $("threshold-value");
    slider.max = last;
    slider.disabled = field.disabled = !(sizes[count - 1] > 0);
    slider.addEventListener("input", () => {
      state.threshold = sizeAt(Number(slider.value));
      field.value = Number(state.threshold.toPrecision(4));
      slider.setAttribute("aria-valuetext", `|score| at least ${field.value}`);
      update();
    });
    field.addEventListener("change", () => {
      state.threshold = Math.max(0, Number(field.value) || 0);
      const below = sizes.filter((value) => value < state.threshold).length;
      slider.value = state.threshold ? Math.round((below / Math.max(count - 1, 1)) * last) : 0;
      update();
    });
  }

  function startChips() {
    const words = { joint: "head", positive: "hurts +", negative: "helps −", neutral: "none", dangling: "dangling" };
    const has = { part: new Set(readers.map((item) => item.part)), sign: new Set(all.map(sign)) };
    const order = { part: ["q", "k", "v", "joint", "mlp", "logits"], sign: ["positive", "negative", "neutral", "dangling"] };
    for (const kind of ["part", "sign"])
      for (const value of order[kind].filter((name) => has[kind].has(name))) {
        const box = make("input", null, { type: "checkbox", checked: "", [`data-${kind}`]: value });
        const label = make("label", null, { class: "chip" }, box, make("span", words[value] ?? value));
        if (kind === "sign") label.style.setProperty("--chip", `var(--${value})`);
        box.addEventListener("change", () => {
          hidden[kind][box.checked ? "delete" : "add"](value);
          update();
        });
        $(`${kind}s`).append(label);
      }
  }

  let matches = [], active = 0;
  function showMatches(names, at = 0) {
    [matches, active] = [names, at];
    const rows = names.map((name, place) => {
      const row = make("li", null, { role: "option", id: `match-${place}`, "aria-selected": place === at, "data-name": name },
        make("span", name), make("small", items.get(name).what));
      row.addEventListener("pointerdown", (event) => { event.preventDefault(); choose(name); });
      return row;
    });
    $("matches").replaceChildren(...rows);
    $("matches").hidden = !names.length;
    $("search").setAttribute("aria-expanded", names.length > 0);
    $("search").setAttribute("aria-activedescendant", names.length ? `match-${at}` : "");
  }

  function choose(name) {
    select(name);
    showMatches([]);
  }

  function startSearch() {
    const field = $("search");
    field.addEventListener("input", () => showMatches(graph.find(field.value, 8)));
    field.addEventListener("blur", () => showMatches([]));
    field.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step && matches.length) {
        event.preventDefault();
        showMatches(matches, (active + step + matches.length) % matches.length);
      }
      const name = matches[active] ?? graph.find(field.value, 1)[0];
      if (event.key === "Enter" && name !== undefined) choose(name);
    });
  }

  function startKeys() {
    document.addEventListener("keydown", (event) => {
      const typing = event.target.matches("input:not([type=range], [type=checkbox])");
      if (event.key === "/" && !typing) {
        event.preventDefault();
        $("search").focus();
        $("search").select();
      }
      if (event.key === "Escape") {
        clearSelection();
        if (typing) event.target.blur();
      }
    });
  }

  const fileName = page.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "circuit";
  function asJson() {
    const edges = shown().map((edge) => ({
      name: edgeName(edge), writer: units[writer[edge]].name, reader: readers[reader[edge]].name,
      score: Number.isNaN(score[edge]) ? null : score[edge],
    }));
    return JSON.stringify({ title: page.title, threshold: state.threshold, selected: state.selected, edges }, null, 1);
  }

  function startDownloads() {
    $("download-png").addEventListener("click", () =>
      Plotly.downloadImage("plot", { format: "png", scale: 2, filename: fileName }));
    $("download-json").addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([asJson()], { type: "application/json" }));
      make("a", null, { href: address, download: `${fileName}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 10_000);
    });
  }

  // ---- start -------------------------------------------------------------------------------

  if (typeof Plotly === "undefined") {
    $("plot").append(make("p", "plotly.min.js is missing: keep it beside this page.", { class: "notice" }));
    return;
  }
  window.circuitvit = {
    state: () => ({
      visibleEdges: shown().map(edgeName),
      visibleUnits: graph.onPath(visible).sort((a, b) => a - b).map((place) => units[place].name),
      highlightedEdges: [...(state.lit ?? [])].map(edgeName),
      selected: [...state.selected],
      threshold: state.threshold,
    }),
    drawn: () => drawn,
  };
  startThreshold();
  startChips();
  startSearch();
  startKeys();
  startDownloads();
  filter();
  tell();
  describe();
  Plotly.newPlot("plot", traces(), layout, settings).then((plot) => {
    plot.on("plotly_click", ({ points: [point], event }) => select(units[point.pointNumber].name, event.shiftKey));
    document.documentElement.dataset.ready = "true";
  });
})();
