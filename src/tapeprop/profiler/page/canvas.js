// What all drawings share: sharp canvases, colours of the theme, and the box with details beside the pointer.

let theme = {};
let colours = { of: [], list: [], names: [] };

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "panel", "ink", "soft", "line", "accent", "wait", "hit", "lightness", "chroma", "on-box"];
  theme = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  theme.font = getComputedStyle(document.body).fontFamily;
}

function hue(angle) {
  return `oklch(${theme.lightness} ${theme.chroma} ${angle % 360})`;
}

// colours.of[row] is a number into colours.list. What takes longest gets its colour first; the golden angle keeps neighbours apart.
function chooseColours() {
  const by = state.colour;
  const time = new Map();
  model.rows.forEach((row, i) => {
    const figure = scope().ofRow.get(i);
    time.set(row[by], (time.get(row[by]) ?? 0) + (figure?.numbers.time ?? 0));
  });
  const names = [...time.keys()];
  const { phases } = model.data; // { name: colour }, in order, of one list for all pictures
  if (by === "phase") names.sort((a, b) => Object.keys(phases).indexOf(a) - Object.keys(phases).indexOf(b));
  else names.sort((a, b) => time.get(b) - time.get(a));
  const number = new Map(names.map((name, i) => [name, i]));
  colours = {
    of: Int16Array.from(model.rows, (row) => number.get(row[by])),
    names,
    time: names.map((name) => time.get(name)),
    list: names.map((name, i) => (by === "phase" ? phases[name] : hue(250 + 137.5 * i))),
  };
}

function colourOf(row) {
  return colours.list[colours.of[row]];
}

// Calls draw(context, width, height) in CSS pixels now and whenever the canvas changes its size; gives the same to call.
function sharpCanvas(canvas, draw) {
  const redraw = () => {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `11px ${theme.font}`;
    context.textBaseline = "middle";
    draw(context, width, height);
  };
  new ResizeObserver(redraw).observe(canvas);
  return redraw;
}

function write(context, text, x, y, { colour = theme.soft, align = "left", width = Infinity } = {}) {
  context.fillStyle = colour;
  context.textAlign = align;
  context.fillText(width === Infinity ? text : cut(context, text, width), x, y);
}

function rule(context, x0, y0, x1, y1, colour = theme.line, dash = []) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.setLineDash(dash);
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
  context.setLineDash([]);
}

// Round numbers between two ends, about `count` of them.
function ticks(from, to, count, base = 10) {
  const raw = (to - from) / Math.max(count, 1);
  if (!(raw > 0)) return [from];
  const power = base ** Math.floor(Math.log(raw) / Math.log(base) + 1e-9);
  const step = power * ((base === 2 ? [1, 2] : [1, 2, 5, 10]).find((f) => f * power >= raw * 0.999) ?? base);
  const found = [];
  for (let i = Math.ceil(from / step); i * step <= to; i++) found.push(i * step);
  return found;
}

function showTip(event, content) {
  const tip = byId("tip");
  tip.replaceChildren(content);
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const right = event.clientX + 14 + width <= window.innerWidth;
  const below = event.clientY + 14 + height <= window.innerHeight;
  tip.style.left = `${Math.max(4, right ? event.clientX + 14 : event.clientX - 10 - width)}px`;
  tip.style.top = `${Math.max(4, below ? event.clientY + 14 : event.clientY - 10 - height)}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

// Pointer over a drawing: find(x, y) gives { selection, content } or null. A click pins the selection.
function hoverable(canvas, find) {
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) return;
    const box = canvas.getBoundingClientRect();
    const found = find(event.clientX - box.left, event.clientY - box.top);
    select("hover", found?.selection ?? null);
    if (found) showTip(event, found.content());
    else hideTip();
  });
  canvas.addEventListener("click", (event) => {
    if (canvas.dataset.dragged) return;
    const box = canvas.getBoundingClientRect();
    select("pinned", find(event.clientX - box.left, event.clientY - box.top)?.selection ?? null);
  });
  canvas.addEventListener("pointerleave", () => {
    select("hover", null);
    hideTip();
  });
}
