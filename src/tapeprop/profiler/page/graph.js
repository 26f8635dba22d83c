// The graph beside it all: each node coloured by its share of the time, placed where Python put it.

const SVG = "http://www.w3.org/2000/svg";
let graphScale = 1;

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function startGraph() {
  onChange((kinds) => {
    if (kinds.has("scope")) drawGraph();
    else if (kinds.has("search") || kinds.has("focus")) markNodes();
    if (kinds.has("focus") && state.pinned && !state.hover) showPinnedNode();
  });
  byId("graph-in").addEventListener("click", () => scaleGraph(graphScale * 1.25));
  byId("graph-out").addEventListener("click", () => scaleGraph(graphScale / 1.25));
  byId("graph-fit").addEventListener("click", fitGraph);
  byId("graph-scroll").addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    scaleGraph(graphScale * Math.exp(-event.deltaY * 0.002));
  }, { passive: false });
  drawGraph();
}

function shownOutline() {
  return model.data.outlines[model.tapes[shownTape()]?.outline] ?? null;
}

function drawGraph() {
  const box = byId("graph-scroll");
  const outline = shownOutline();
  const note = byId("graph-note");
  if (!outline?.nodes.length) {
    box.replaceChildren(element("p", { class: "empty" }, "No graph is known of this tape."));
    note.textContent = "";
    return;
  }
  const rows = rowsOfNodes();
  const shares = outline.nodes.map(([name]) => secondsOf(rows.get(name) ?? []).share);
  const most = Math.max(...shares, 1e-9);
  const drawing = svg("svg", { role: "group", "aria-label": "Nodes of the graph, darker where more time goes" }, arrowHead());
  for (const path of outline.paths) {
    const points = [];
    for (let i = 0; i < path.length; i += 2) points.push(`${path[i]},${path[i + 1]}`);
    drawing.append(svg("polyline", { class: "edge", points: points.join(" "), "marker-end": "url(#arrow)" }));
  }
  outline.nodes.forEach((node, i) => drawing.append(drawNode(node, outline.size, rows.get(node[0]) ?? [], shares[i], most)));
  box.replaceChildren(drawing);
  note.textContent = `${many(outline.nodes.length, "node")}, by time`;
  fitGraph();
  showInput(outline);
  markNodes();
}

// A wide graph begins somewhere in the middle.
function showInput(outline) {
  const [, , , , x, y] = outline.nodes.find(([, , , , , , isRoot]) => isRoot) ?? outline.nodes[0];
  const box = byId("graph-scroll");
  box.scrollLeft = x * graphScale - box.clientWidth / 2;
  box.scrollTop = (y - outline.size[3]) * graphScale;
}

function arrowHead() {
  const attributes = { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" };
  return svg("defs", {}, svg("marker", attributes, svg("path", { class: "arrow", d: "M0,0 L8,4 L0,8 z" })));
}

// Rows by node, of all tapes of this graph that are looked at.
function rowsOfNodes() {
  const outline = model.tapes[shownTape()].outline;
  const found = new Map();
  model.rows.forEach((row, i) => {
    if (model.tapes[row.tape].outline !== outline || !inScope(i)) return;
    if (!found.has(row.node)) found.set(row.node, []);
    found.get(row.node).push(i);
  });
  return found;
}

function drawNode([name, layer, merge, shape, x, y, isRoot, isTerm], [, , width, height], rows, share, most) {
  const [left, top] = [x - width / 2, y - height / 2];
  const figure = scope().figures.node.find((one) => one.key === name);
  const time = figure ? `${figure.texts.time}  ${figure.texts.share}` : "-";
  const part = Math.sqrt(share / most);
  const box = svg("rect", { x: left, y: top, width, height, rx: 6 });
  box.style.fill = `color-mix(in oklab, var(--paper), var(--hot) ${Math.round(part * 88)}%)`;
  const made = svg(
    "g",
    { class: `node${isRoot || isTerm ? " end" : ""}${part > 0.55 ? " dark" : ""}`, tabindex: "0", role: "button", "aria-label": `${name}: ${time}` },
    box,
    svg("text", { x: left + 8, y: top + 17 }, fitted(name, width - 16, "12px")),
    svg("text", { class: "small", x: left + 8, y: top + 32 }, time),
  );
  const ends = [isRoot ? "input" : "", isTerm ? "output" : ""].filter(Boolean).join(", ");
  const extra = [["layer", layer], ["merge", merge], ["shape", shape], ["of the graph", ends]];
  const selection = { rows, title: `node ${name}`, span: null, figure, extra };
  made.node = { name, rows };
  made.addEventListener("pointerenter", () => select("hover", selection));
  made.addEventListener("pointermove", (event) => showTip(event, describeGroup(selection)));
  made.addEventListener("pointerleave", () => {
    select("hover", null);
    hideTip();
  });
  made.addEventListener("click", () => select("pinned", state.pinned === selection ? null : selection));
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    select("pinned", state.pinned === selection ? null : selection);
  });
  return made;
}

function fitted(text, width, size) {
  const context = byId("timeline").getContext("2d");
  context.save();
  context.font = `${size} ${theme.font}`;
  const found = cut(context, text, width);
  context.restore();
  return found;
}

function scaleGraph(scale) {
  const drawing = byId("graph-scroll").querySelector("svg");
  const outline = shownOutline();
  if (!drawing || !outline) return;
  graphScale = clamp(scale, 0.08, 3);
  const [width, height] = outline.size.map((length) => length + 8);
  drawing.setAttribute("viewBox", `-4 -4 ${width} ${height}`);
  drawing.setAttribute("width", width * graphScale);
  drawing.setAttribute("height", height * graphScale);
}

// As wide as the panel, but no larger than it was laid out and no smaller than can be read.
function fitGraph() {
  const outline = shownOutline();
  if (outline) scaleGraph(clamp((byId("graph-scroll").clientWidth - 22) / (outline.size[0] + 8), 0.45, 1));
}

function markNodes() {
  for (const made of document.querySelectorAll("#graph-scroll .node")) {
    const { rows, name } = made.node;
    const found = state.hits !== null && rows.some(isHit);
    made.classList.toggle("hit", found);
    made.classList.toggle("miss", state.hits !== null && !found);
    const chosen = (state.hover ?? state.pinned)?.title === `node ${name}`;
    made.classList.toggle("on", chosen || rows.some((row) => focus[row]));
  }
}

function showPinnedNode() {
  const box = byId("graph-scroll");
  const made = box.querySelector(".node.on");
  if (!made) return;
  const [own, frame] = [made.getBoundingClientRect(), box.getBoundingClientRect()];
  if (own.top < frame.top || own.bottom > frame.bottom) box.scrollTop += own.top - frame.top - frame.height / 2;
  if (own.left < frame.left || own.right > frame.right) box.scrollLeft += own.left - frame.left - frame.width / 2;
}
