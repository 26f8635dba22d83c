// The roofline: each row at its operations per byte and its operations per second, below the roofs that were measured.
// Williams, Waterman and Patterson, CACM 2009; a roof for each cache as in Ilic, Pratas and Sousa, IEEE CAL 2014.

const ROOF = { left: 62, right: 16, top: 14, bottom: 36 };

function startRoofline() {
  const canvas = byId("roofline");
  const redraw = sharpCanvas(canvas, drawRoofline);
  onChange((kinds) => {
    if (kinds.has("scope")) noteRoofline();
    redraw();
  });
  hoverable(canvas, (x, y) => findOnRoofline(canvas, x, y));
  noteRoofline();
  return (row) => {
    const box = canvas.getBoundingClientRect();
    const points = rooflinePoints();
    const frame = rooflineFrame(box.width, box.height, points, shownRoofs());
    const point = points.find((one) => one.row === row);
    return [box.left + frame.x(point.intensity), box.top + frame.y(point.rate)];
  };
}

// The rows that have a place on logarithmic axes, largest first so that small ones are drawn above them.
function rooflinePoints() {
  const found = [];
  for (const [row, { numbers }] of scope().ofRow) {
    const { flops, traffic } = model.rows[row];
    if (flops > 0 && traffic > 0 && numbers.time > 0) {
      found.push({ row, intensity: flops / traffic, rate: numbers["GFLOP/s"] * 1e9, share: numbers.share });
    }
  }
  return found.sort((a, b) => b.share - a.share);
}

// Only the peaks of dtypes that the rows compute in.
function shownRoofs() {
  const roofs = model.tapes[shownTape()]?.roofs;
  if (!roofs) return null;
  const used = new Set([...scope().ofRow.keys()].map((row) => model.rows[row].dtype));
  return { levels: roofs.levels, peaks: roofs.peaks.filter(([dtype]) => used.has(dtype)) };
}

function noteRoofline() {
  const points = rooflinePoints();
  const others = scope().ofRow.size - points.length;
  const roofs = shownRoofs();
  byId("roofline-note").textContent = [
    many(points.length, "instruction"),
    "area by time",
    others ? `${whole(others)} without operations or bytes or time not shown` : "",
    roofs ? "" : "no roofs were measured",
  ].filter(Boolean).join("; ");
}

// The ends of both axes in decades, and where a point lies on them.
function rooflineFrame(width, height, points, roofs) {
  const peaks = (roofs?.peaks ?? []).map(([, rate]) => rate).filter(Boolean);
  const levels = (roofs?.levels ?? []).map(([, rate]) => rate).filter(Boolean);
  const ridge = peaks.flatMap((peak) => levels.map((level) => peak / level));
  const across = [...points.map((p) => p.intensity), ...ridge];
  const up = [...points.map((p) => p.rate), ...peaks];
  const ends = (list, spare) => [Math.min(...list) / spare, Math.max(...list) * spare];
  const [left, right] = across.length ? ends(across, 2) : [0.1, 100];
  const [low, high] = up.length ? ends(up, 1.8) : [1e8, 1e11];
  const inner = { width: width - ROOF.left - ROOF.right, height: height - ROOF.top - ROOF.bottom };
  const part = (value, from, to) => Math.log(value / from) / Math.log(to / from);
  return {
    left, right, low, high,
    x: (value) => ROOF.left + part(value, left, right) * inner.width,
    y: (value) => ROOF.top + (1 - part(value, low, high)) * inner.height,
  };
}

function radius(share) {
  return clamp(Math.sqrt(share) * 48, 2.5, 40);
}

function drawRoofline(context, width, height) {
  const points = rooflinePoints();
  const roofs = shownRoofs();
  if (!points.length && !roofs) {
    write(context, "No instruction computes anything.", ROOF.left, height / 2);
    return;
  }
  const frame = rooflineFrame(width, height, points, roofs);
  drawDecades(context, frame, width, height);
  context.save();
  context.beginPath();
  context.rect(ROOF.left, 0, width - ROOF.left - ROOF.right, height - ROOF.bottom);
  context.clip();
  if (roofs) drawRoofs(context, frame, roofs);
  for (const point of points) drawPoint(context, frame, point);
  context.restore();
}

function drawDecades(context, frame, width, height) {
  const decades = (from, to) => {
    const first = Math.ceil(Math.log10(from));
    return Array.from({ length: Math.max(Math.floor(Math.log10(to)) - first + 1, 0) }, (_, i) => 10 ** (first + i));
  };
  const bottom = height - ROOF.bottom;
  for (const value of decades(frame.left, frame.right)) {
    rule(context, frame.x(value), ROOF.top, frame.x(value), bottom);
    write(context, digits(value), frame.x(value), bottom + 10, { align: "center" });
  }
  for (const value of decades(frame.low, frame.high)) {
    rule(context, ROOF.left, frame.y(value), width - ROOF.right, frame.y(value));
    write(context, `${countText(value)}`, ROOF.left - 6, frame.y(value), { align: "right" });
  }
  rule(context, ROOF.left, bottom, width - ROOF.right, bottom, theme.soft);
  rule(context, ROOF.left, ROOF.top, ROOF.left, bottom, theme.soft);
  write(context, "operations per byte", (ROOF.left + width) / 2, height - 9, { align: "center" });
  context.save();
  context.translate(11, (ROOF.top + bottom) / 2);
  context.rotate(-Math.PI / 2);
  write(context, "operations per second", 0, 0, { align: "center" });
  context.restore();
}

// Each bandwidth rises until it meets the highest peak; peaks lie flat to the right of where the fastest bandwidth meets them.
function drawRoofs(context, frame, { peaks, levels }) {
  const highest = Math.max(...peaks.map(([, rate]) => rate), 0) || frame.high;
  const fastest = Math.max(...levels.map(([, rate]) => rate), 0);
  for (const [name, rate] of levels) {
    const end = Math.min(highest / rate, frame.right);
    rule(context, frame.x(frame.left), frame.y(rate * frame.left), frame.x(end), frame.y(rate * end), theme.soft);
    // The name goes where the line is inside the drawing, along it.
    const begin = Math.max(frame.left, frame.low / rate);
    const [x0, y0, x1, y1] = [frame.x(begin), frame.y(rate * begin), frame.x(end), frame.y(rate * end)];
    context.save();
    context.translate(x0, y0);
    context.rotate(Math.atan2(y1 - y0, x1 - x0));
    write(context, `${name} ${digits(rate / 1e9)} GB/s`, 8, -7, { colour: theme.ink });
    context.restore();
  }
  for (const [name, rate] of peaks) {
    const begin = fastest ? Math.max(rate / fastest, frame.left) : frame.left;
    rule(context, frame.x(begin), frame.y(rate), frame.x(frame.right), frame.y(rate), theme.soft);
    write(context, `${name} ${digits(rate / 1e9)} GFLOP/s`, frame.x(frame.right) - 4, frame.y(rate) - 7, { colour: theme.ink, align: "right" });
  }
}

function drawPoint(context, frame, point) {
  const [x, y] = [frame.x(point.intensity), frame.y(point.rate)];
  context.beginPath();
  context.arc(x, y, radius(point.share), 0, 7);
  context.globalAlpha = isHit(point.row) ? 0.6 : 0.12;
  context.fillStyle = colourOf(point.row);
  context.fill();
  context.globalAlpha = isHit(point.row) ? 1 : 0.25;
  context.strokeStyle = focus[point.row] ? theme.accent : theme.paper;
  context.lineWidth = focus[point.row] ? 3 : 0.7;
  context.stroke();
  context.globalAlpha = 1;
}

function findOnRoofline(canvas, x, y) {
  const points = rooflinePoints();
  const frame = rooflineFrame(canvas.clientWidth, canvas.clientHeight, points, shownRoofs());
  const away = (point) => Math.hypot(frame.x(point.intensity) - x, frame.y(point.rate) - y);
  const below = points.filter((point) => away(point) <= radius(point.share) + 2);
  const met = below.sort((a, b) => away(a) - away(b))[0];
  if (!met) return null;
  return { selection: rowSelection(met.row), content: () => describeRow(met.row) };
}
