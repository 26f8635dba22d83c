// Memory over the rows of a tape: above, the bytes that are live; below, each value as a box of its place and its stay.

const MEMORY_LEFT = 74;

function startMemory() {
  const canvas = byId("memory");
  const redraw = sharpCanvas(canvas, drawMemory);
  onChange((kinds) => {
    if (kinds.has("scope")) noteMemory();
    redraw();
  });
  hoverable(canvas, (x, y) => findInMemory(canvas, x, y));
  canvas.addEventListener("keydown", (event) => walkRows(canvas, event));
  noteMemory();
  return (row) => {
    const box = canvas.getBoundingClientRect();
    const { left, width, live } = memoryFrame(box.width, box.height);
    const part = (row - model.bases[shownTape()] + 0.5) / shownMemory().live.length;
    return [box.left + left + part * width, box.top + live.y + live.height - 2];
  };
}

function shownMemory() {
  return model.tapes[shownTape()]?.memory ?? null;
}

function noteMemory() {
  const memory = shownMemory();
  const note = byId("memory-note");
  if (!memory?.live.length) {
    note.textContent = "No instruction ran.";
    return;
  }
  const saved = memory.saved ? `, ${memory.saved} less than ${sizeText(memory.unshared)} side by side` : "";
  const held = memory.held.slice(1).map(([kind, size]) => `${kind} ${size}`).join(", ");
  const name = model.tapes.length > 1 ? `${model.tapes[shownTape()].name}: ` : "";
  note.textContent = `${name}arena ${sizeText(memory.arena)}${saved}; peak ${sizeText(memory.live[memory.peak])} at row ${memory.peak}${held ? `; ${held}` : ""}`;
}

// The two drawings: { left, width, live: { y, height }, blocks: { y, height } }.
function memoryFrame(width, height) {
  const inner = height - 16 - 32 - 22;
  const upper = Math.round(inner * 0.42);
  return {
    left: MEMORY_LEFT,
    width: width - MEMORY_LEFT - 14,
    live: { y: 16, height: upper },
    blocks: { y: 16 + upper + 22, height: inner - upper },
  };
}

function drawMemory(context, width, height) {
  const memory = shownMemory();
  if (!memory?.live.length) return;
  const frame = memoryFrame(width, height);
  const count = memory.live.length;
  const top = Math.max(memory.arena, memory.live[memory.peak], 1) * 1.04;
  drawScale(context, frame, frame.live, top, "live bytes");
  drawScale(context, frame, frame.blocks, top, "place in the arena");
  drawBlocks(context, frame, memory, top);
  drawLive(context, frame, memory, top);
  drawRows(context, frame, count, height);
}

function drawScale(context, { left, width }, { y, height }, top, title) {
  rule(context, left, y + height + 0.5, left + width, y + height + 0.5, theme.soft);
  for (const bytes of ticks(0, top, clamp(height / 36, 1, 6), 2)) {
    const at = y + height * (1 - bytes / top);
    rule(context, left, at, left + width, at);
    write(context, sizeText(bytes), left - 6, at, { align: "right" });
  }
  write(context, title, left + 4, y - 7);
}

function drawLive(context, { left, width, live: { y, height } }, memory, top) {
  const each = width / memory.live.length;
  const place = (bytes) => y + height * (1 - bytes / top);
  context.beginPath();
  context.moveTo(left, y + height);
  memory.live.forEach((bytes, row) => {
    context.lineTo(left + row * each, place(bytes));
    context.lineTo(left + (row + 1) * each, place(bytes));
  });
  context.lineTo(left + width, y + height);
  context.fillStyle = hue(250);
  context.globalAlpha = 0.45;
  context.fill();
  context.globalAlpha = 1;
  context.strokeStyle = hue(250);
  context.lineWidth = 1.2;
  context.stroke();
  const base = model.bases[shownTape()];
  memory.live.forEach((bytes, row) => {
    if (state.hits && state.hits[base + row]) fill(context, hue(95), 0.45, left + row * each, y, Math.max(each, 1), height);
    if (focus[base + row]) fill(context, theme.accent, 0.35, left + row * each, y, Math.max(each, 1.5), height);
  });
  rule(context, left, place(memory.arena), left + width, place(memory.arena), theme.soft, [5, 4]);
  write(context, `arena ${sizeText(memory.arena)}`, left + width, y - 7, { align: "right" });
  const x = left + (memory.peak + 0.5) * each;
  rule(context, x, y, x, y + height, theme.accent, [3, 3]);
  const label = `peak ${sizeText(memory.live[memory.peak])} at row ${memory.peak}`;
  const right = x > left + width / 2;
  write(context, label, x + (right ? -5 : 5), y + height - 9, { colour: theme.ink, align: right ? "right" : "left" });
  context.beginPath();
  context.arc(x, place(memory.live[memory.peak]), 3.5, 0, 7);
  context.fillStyle = theme.accent;
  context.fill();
}

function drawBlocks(context, { left, width, blocks: { y, height } }, memory, top) {
  const tape = shownTape();
  const each = width / memory.live.length;
  const base = model.bases[tape];
  for (const block of model.blocks[tape]) {
    const row = base + block.first;
    const box = [left + block.first * each, y + height * (1 - (block.offset + block.bytes) / top)];
    const size = [Math.max((block.last - block.first + 1) * each, 1), Math.max((height * block.bytes) / top, 0.6)];
    fill(context, colourOf(row), isHit(row) ? 0.85 : FADED, ...box, ...size);
    if (size[0] > 3 && size[1] > 3) {
      context.strokeStyle = focus[row] ? theme.accent : theme.paper;
      context.lineWidth = focus[row] ? 2 : 0.7;
      context.strokeRect(...box, ...size);
    }
  }
  rule(context, left, y + height * (1 - memory.arena / top), left + width, y + height * (1 - memory.arena / top), theme.soft, [5, 4]);
}

function drawRows(context, { left, width }, count, height) {
  for (const row of ticks(0, count - 1, Math.min(width / 70, count))) {
    if (row !== Math.round(row)) continue;
    write(context, String(row), left + ((row + 0.5) * width) / count, height - 20, { align: "center" });
  }
  write(context, "row of the tape", left + width / 2, height - 7, { align: "center" });
}

function findInMemory(canvas, x, y) {
  const memory = shownMemory();
  const frame = memoryFrame(canvas.clientWidth, canvas.clientHeight);
  if (!memory?.live.length || x < frame.left || x >= frame.left + frame.width) return null;
  const row = Math.floor(((x - frame.left) / frame.width) * memory.live.length);
  const block = blockAt(memory, frame, row, y);
  const number = model.bases[shownTape()] + (block ? block.first : row);
  return { selection: rowSelection(number), content: () => (block ? describeBlock(block) : describeLive(memory, row)) };
}

function blockAt(memory, { blocks: { y, height } }, row, at) {
  if (at < y || at > y + height) return null;
  const top = Math.max(memory.arena, memory.live[memory.peak], 1) * 1.04;
  const byte = (1 - (at - y) / height) * top;
  const inside = (b) => b.first <= row && row <= b.last && b.offset <= byte && byte < b.offset + b.bytes;
  return model.blocks[shownTape()].find(inside) ?? null;
}

function describeBlock(block) {
  return element("div", {}, element("div", { class: "title" }, block.label), pairs([
    ["size", sizeText(block.bytes)],
    ["from byte", whole(block.offset)],
    ["rows", `${block.first} to ${block.last}`],
  ]));
}

function describeLive(memory, row) {
  const here = model.blocks[shownTape()].filter((block) => block.first <= row && row <= block.last);
  here.sort((a, b) => b.bytes - a.bytes);
  const rest = here.length > 6 ? [["", `and ${whole(here.length - 6)} more`]] : [];
  const title = `${rowTitle(model.bases[shownTape()] + row)}: ${sizeText(memory.live[row])} live`;
  const list = here.slice(0, 6).map((block) => [sizeText(block.bytes), block.label]);
  return element("div", {}, element("div", { class: "title" }, title), pairs([...list, ...rest]));
}

// Arrow keys go from row to row; the peak where nothing is pinned yet.
function walkRows(canvas, event) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const memory = shownMemory();
  if (!by || !memory?.live.length) return;
  event.preventDefault();
  const base = model.bases[shownTape()];
  const own = state.pinned?.rows.length === 1 ? state.pinned.rows[0] - base : -1;
  const known = own >= 0 && own < memory.live.length;
  const row = known ? clamp(own + by, 0, memory.live.length - 1) : memory.peak;
  const here = model.blocks[shownTape()].filter((block) => block.first <= row && row <= block.last);
  const largest = here.reduce((a, b) => (a && a.bytes >= b.bytes ? a : b), null);
  const extra = [["live", sizeText(memory.live[row])], ["largest", largest ? `${largest.label}, ${sizeText(largest.bytes)}` : ""]];
  select("pinned", { ...rowSelection(base + row), extra });
}
