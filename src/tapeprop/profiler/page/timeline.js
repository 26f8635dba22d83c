// The timeline: for each thread a ruler of steps and phases, and below it a lane for each worker.

const GUTTER = 68;
const AXIS = 20;
const SHORTEST = 100e-9; // seconds across the canvas
const view = { from: 0, to: 1 };

function startTimeline() {
  const canvas = byId("timeline");
  const places = placeLanes();
  canvas.style.height = `${places.height}px`;
  const redraw = sharpCanvas(canvas, (context, width) => drawTimeline(context, width, places));
  onChange((kinds) => {
    if (kinds.has("scope")) showLastStep();
    redraw();
  });
  hoverable(canvas, (x, y) => findOnTimeline(canvas, places, x, y));
  listenToPointer(canvas);
  listenToKeys(canvas);
  byId("zoom-in").addEventListener("click", () => zoom(0.6));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 0.6));
  byId("zoom-step").addEventListener("click", showLastStep);
  byId("zoom-all").addEventListener("click", showAll);
  showLastStep();
  return (row) => timelinePlace(canvas, places, row);
}

// Where each lane stands: [{ lane, y, height, title }], and the height of all.
function placeLanes() {
  const count = model.tracks.reduce((sum, track) => sum + track.workers.length, 0);
  const height = [[2, 46], [4, 34], [8, 24]].find(([most]) => count <= most)?.[1] ?? 16;
  const placed = [];
  let y = AXIS;
  for (const track of model.tracks) {
    if (track.label) {
      placed.push({ title: track.label, y, height: 16 });
      y += 17;
    }
    for (const lane of track.lanes) {
      const own = lane.kind === "worker" ? height : 16;
      placed.push({ lane, y, height: own });
      y += own + (lane.kind === "phase" ? 4 : 2);
    }
    y += 6;
  }
  return { placed, height: Math.max(y, 70) };
}

function drawTimeline(context, width, { placed, height }) {
  const across = width - GUTTER;
  if (!model.tracks.length) {
    write(context, "No spans were kept.", GUTTER, height / 2);
    return;
  }
  drawAxis(context, across, height);
  for (const { lane, title, y, height: own } of placed) {
    if (title) write(context, title, 8, y + 9, { colour: theme.ink, width: width - 16 });
    if (!lane) continue;
    context.save();
    context.beginPath();
    context.rect(GUTTER, y - 2, across, own + 4);
    context.clip();
    context.translate(GUTTER, 0);
    drawLane(context, lane, view, across, y, own);
    context.restore();
    write(context, lane.label, 8, y + own / 2, { width: GUTTER - 12 });
  }
}

function drawAxis(context, across, height) {
  const marks = ticks(view.from, view.to, across / 110);
  const [factor, unit] = [[1, "s"], [1e3, "ms"], [1e6, "us"]].find(([f]) => view.to * f >= 1) ?? [1e9, "ns"];
  const step = marks.length > 1 ? (marks[1] - marks[0]) * factor : 1;
  const decimals = clamp(Math.ceil(-Math.log10(step) - 1e-6), 0, 9);
  for (const time of marks) {
    const x = GUTTER + ((time - view.from) / (view.to - view.from)) * across;
    rule(context, x, AXIS - 4, x, height);
    const text = `${(time * factor).toFixed(decimals)} ${unit}`;
    if (x + 3 + context.measureText(text).width < GUTTER + across) write(context, text, x + 3, AXIS / 2);
  }
}

function show(from, to) {
  const whole = Math.max(model.extent, SHORTEST);
  const length = clamp(to - from, SHORTEST, whole * 1.04);
  const start = clamp((from + to - length) / 2, Math.min(-0.02 * whole, 0), Math.max(1.02 * whole - length, 0));
  Object.assign(view, { from: start, to: start + length });
  changed("view");
}

function showAll() {
  show(-0.01 * model.extent, 1.01 * model.extent);
}

// Of the tape that is looked at; everything, where that is hardly more.
function showLastStep() {
  let last = null;
  let count = 0;
  for (const { steps } of model.tracks) {
    for (let i = 0; i < steps.begin.length; i++) {
      if (scope().tape !== null && steps.tape[i] !== scope().tape) continue;
      count++;
      if (!last || steps.end[i] > last.end) last = { begin: steps.begin[i], end: steps.end[i] };
    }
  }
  if (!last || count < 2) showAll();
  else show(last.begin - 0.03 * (last.end - last.begin), last.end + 0.03 * (last.end - last.begin));
}

// Makes what is seen `factor` times as long, around a place from 0 (left) to 1.
function zoom(factor, place = 0.5) {
  const length = view.to - view.from;
  const next = clamp(length * factor, SHORTEST, Math.max(model.extent, SHORTEST) * 1.04);
  const from = view.from + (length - next) * place;
  show(from, from + next);
}

function pan(part) {
  const by = part * (view.to - view.from);
  show(view.from + by, view.to + by);
}

function findOnTimeline(canvas, { placed }, x, y) {
  const lane = placed.find((one) => one.lane && y >= one.y && y <= one.y + one.height)?.lane;
  if (!lane || x < GUTTER || !lane.begin.length) return null;
  const second = (view.to - view.from) / (canvas.clientWidth - GUTTER);
  const time = view.from + (x - GUTTER) * second;
  let index = lane.at(time);
  // A box of less than a pixel can be met from beside it.
  const next = Math.min(index + 1, lane.begin.length - 1);
  if (index < 0 || (lane.end[index] < time && lane.begin[next] > time && lane.begin[next] - time < Math.min(second * 2, time - lane.end[index]))) index = next;
  if (time < lane.begin[index] - second * 2) return null;
  const near = time <= Math.max(lane.end[index], lane.begin[index] + second * 2);
  if (lane.kind === "worker") {
    if (!near && time > lane.wait[index]) return null;
    const span = { lane, index, waits: !near };
    return { selection: rowSelection(lane.item[index], span), content: () => describeRow(lane.item[index], span) };
  }
  if (!near) return null;
  const list = [["time", secondsText(lane.end[index] - lane.begin[index])], ["from", secondsText(lane.begin[index])]];
  const tape = model.tapes[lane.tape[index]];
  const title = lane.kind === "phase" ? lane.item[index] : `step ${lane.item[index]} of ${tape.name}`;
  const rows = lane.kind === "phase" ? rowsOf((row) => row.tape === lane.tape[index] && row.phase === title) : [];
  return {
    selection: rows.length ? { rows, title: `phase ${title}`, span: null } : null,
    content: () => element("div", {}, element("div", { class: "title" }, title), pairs(list)),
  };
}

// Where the middle of a row's last call is seen: [x, y] in the window.
function timelinePlace(canvas, { placed }, row) {
  const { lane, index } = lastSpan(row);
  const box = canvas.getBoundingClientRect();
  const time = (lane.begin[index] + lane.end[index]) / 2;
  const own = placed.find((one) => one.lane === lane);
  const part = (time - view.from) / (view.to - view.from);
  return [box.left + GUTTER + part * (box.width - GUTTER), box.top + own.y + own.height / 2];
}

function rowsOf(wanted) {
  return model.rows.flatMap((row, i) => (wanted(row) ? [i] : []));
}

function listenToPointer(canvas) {
  let from = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    hideTip();
    const across = Math.abs(event.deltaX) > Math.abs(event.deltaY) ? event.deltaX : event.shiftKey ? event.deltaY : 0;
    if (across) return pan(across / 1000);
    const place = (event.offsetX - GUTTER) / (canvas.clientWidth - GUTTER);
    return zoom(Math.exp(clamp(event.deltaY, -300, 300) * 0.002), clamp(place, 0, 1));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, at: { ...view }, top: byId("timeline-scroll").scrollTop };
    delete canvas.dataset.dragged;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return;
    const moved = event.clientX - from.x;
    if (Math.abs(moved) + Math.abs(event.clientY - from.y) < 4 && !canvas.dataset.dragged) return;
    canvas.dataset.dragged = "yes";
    canvas.classList.add("dragging");
    hideTip();
    const by = (-moved / (canvas.clientWidth - GUTTER)) * (from.at.to - from.at.from);
    show(from.at.from + by, from.at.to + by);
    byId("timeline-scroll").scrollTop = from.top - (event.clientY - from.y);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      from = null;
      canvas.classList.remove("dragging");
    });
  }
  canvas.addEventListener("dblclick", showAll);
}

function listenToKeys(canvas) {
  const keys = {
    w: () => zoom(0.7),
    "+": () => zoom(0.7),
    "=": () => zoom(0.7),
    s: () => zoom(1 / 0.7),
    "-": () => zoom(1 / 0.7),
    a: () => pan(-0.2),
    d: () => pan(0.2),
    0: showAll,
    Home: showAll,
    f: showPinned,
    ArrowLeft: () => walk(-1),
    ArrowRight: () => walk(1),
  };
  // Letters work wherever nothing is typed, arrows only on the timeline itself, as they scroll elsewhere.
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    const own = event.target === canvas;
    const action = keys[event.key];
    if (!action || typing || event.ctrlKey || event.metaKey || event.altKey || (event.key.length > 1 && !own)) return;
    event.preventDefault();
    action();
  });
}

// The last call of a row on any worker.
function lastSpan(row) {
  for (const track of model.tracks) {
    for (const lane of track.workers) {
      const index = lane.item.lastIndexOf(row);
      if (index >= 0) return { lane, index };
    }
  }
  return null;
}

function showPinned() {
  const { pinned } = state;
  const span = pinned && (pinned.span ?? lastSpan(pinned.rows[0]));
  if (!span) return;
  const [begin, end] = [span.lane.begin[span.index], span.lane.end[span.index]];
  const length = Math.max((end - begin) * 6, SHORTEST);
  show((begin + end - length) / 2, (begin + end + length) / 2);
}

// Pins the next box of the same lane, and moves it into sight.
function walk(by) {
  let span = state.pinned?.span;
  if (!span) {
    const lane = model.tracks.find((track) => track.workers.length)?.workers[0];
    if (!lane?.begin.length) return;
    span = { lane, index: Math.max(lane.at((view.from + view.to) / 2), 0) - by };
  }
  const { lane } = span;
  const index = clamp(span.index + by, 0, lane.begin.length - 1);
  select("pinned", rowSelection(lane.item[index], { lane, index }));
  const length = view.to - view.from;
  if (lane.begin[index] < view.from || lane.end[index] > view.to) {
    show(lane.begin[index] - length / 2, lane.begin[index] + length / 2);
  }
}
