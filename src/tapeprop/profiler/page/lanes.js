// Draws one lane of boxes. What is narrower than a pixel is summed up by pixel, so that a frame costs one walk over the visible
// boxes and at most some thousand rectangles, however many boxes there are.

const FADED = 0.16;

// Which time each colour has within one pixel; boxes that stand out are told apart from those that are faded.
class Pixel {
  constructor(count) {
    this.sums = new Float64Array(count * 2);
    this.touched = [];
    this.x = -1;
  }

  add(x, colour, seconds) {
    this.x = x;
    if (this.sums[colour] === 0) this.touched.push(colour);
    // Even a box of no time must be seen.
    this.sums[colour] += Math.max(seconds, 1e-12);
  }

  // { colour, vivid, seconds }: the colour with most time, among those that stand out where there are any.
  take() {
    let best = -1;
    let seconds = 0;
    for (const colour of this.touched) {
      seconds += this.sums[colour];
      if (best < 0 || this.rank(colour) > this.rank(best)) best = colour;
    }
    for (const colour of this.touched) this.sums[colour] = 0;
    this.touched.length = 0;
    return { colour: best >> 1, vivid: best & 1, seconds };
  }

  rank(colour) {
    return (colour & 1) * 1e9 + this.sums[colour];
  }
}

// Neighbouring pixels that look alike, drawn as one rectangle.
class Stretch {
  constructor(context, list, y, height) {
    Object.assign(this, { context, list, y, height, from: 0, to: 0, colour: -1, alpha: 0 });
  }

  add(x, colour, alpha) {
    if (x !== this.to || colour !== this.colour || alpha !== this.alpha) {
      this.draw();
      Object.assign(this, { from: x, colour, alpha });
    }
    this.to = x + 1;
  }

  draw() {
    if (this.to > this.from) fill(this.context, this.list[this.colour], this.alpha, this.from, this.y, this.to - this.from, this.height);
    this.from = this.to;
  }
}

// How boxes of a kind look: { list of colours, number(i) into it, vivid(i), label(i), height of the text }.
function looksOf(lane) {
  if (lane.kind === "worker") {
    return {
      list: colours.list,
      number: (i) => colours.of[lane.item[i]],
      vivid: (i) => isHit(lane.item[i]) && inScope(lane.item[i]),
      label: (i) => model.rows[lane.item[i]].op,
      ink: theme["on-box"],
    };
  }
  const mine = (i) => scope().tape === null || lane.tape[i] === scope().tape;
  if (lane.kind === "phase") {
    const names = Object.keys(model.data.phases);
    return {
      list: Object.values(model.data.phases),
      number: (i) => names.indexOf(lane.item[i]),
      vivid: mine,
      label: (i) => lane.item[i],
      ink: theme["on-box"],
    };
  }
  return {
    list: [theme.panel, theme.line],
    number: (i) => lane.item[i] % 2,
    vivid: mine,
    label: (i) => (model.tapes.length > 1 ? `${model.tapes[lane.tape[i]].name} ` : "step ") + lane.item[i],
    ink: theme.ink,
  };
}

// view: { from, to } in seconds over `width` pixels.
function drawLane(context, lane, view, width, y, height) {
  const looks = looksOf(lane);
  const scale = width / (view.to - view.from);
  const pixel = new Pixel(looks.list.length);
  const place = (time) => clamp((time - view.from) * scale, -2, width + 2);
  const stretch = new Stretch(context, looks.list, y, height);
  const flush = () => {
    if (!pixel.touched.length) return;
    const { colour, vivid, seconds } = pixel.take();
    // Paler where there is more waiting; in eighths, so that neighbours are often alike.
    stretch.add(pixel.x, colour, vivid ? clamp(Math.ceil(seconds * scale * 8) / 8, 0.375, 1) : FADED);
  };
  for (let i = Math.max(lane.at(view.from), 0); i < lane.begin.length && lane.begin[i] < view.to; i++) {
    if (lane.wait[i] < view.from) continue;
    const [x, end, wait] = [place(lane.begin[i]), place(lane.end[i]), place(lane.wait[i])];
    if (wait - end >= 1) fill(context, theme.wait, 1, end, y + height * 0.25, wait - end, height * 0.5);
    if (end - x < 1.5) {
      if (Math.floor(x) !== pixel.x) flush();
      pixel.add(Math.floor(x), looks.number(i) * 2 + Number(looks.vivid(i)), lane.end[i] - lane.begin[i]);
      continue;
    }
    flush();
    stretch.draw();
    // A hair's breadth between boxes that are wide enough to spare it.
    const wide = end - x > 4 ? end - x - 0.6 : end - x;
    fill(context, looks.list[looks.number(i)], looks.vivid(i) ? 1 : FADED, x, y, wide, height);
    if (wide > 34 && height > 11) {
      const [from, to] = [Math.max(x, 0), Math.min(x + wide, width)];
      const colour = looks.vivid(i) ? looks.ink : theme.soft;
      if (to - from > 34) write(context, looks.label(i), from + 4, y + height / 2 + 0.5, { colour, width: to - from - 7 });
    }
  }
  flush();
  stretch.draw();
  if (lane.kind === "worker") drawFocus(context, lane, view, place, y, height);
}

function fill(context, colour, alpha, x, y, width, height) {
  context.fillStyle = colour;
  context.globalAlpha = alpha;
  context.fillRect(x, y, width, height);
  context.globalAlpha = 1;
}

// Every call of what is hovered or pinned gets a mark at its top, the very call a frame.
function drawFocus(context, lane, view, place, y, height) {
  if (!state.hover && !state.pinned) return;
  let last = -9;
  for (let i = Math.max(lane.at(view.from), 0); i < lane.begin.length && lane.begin[i] < view.to; i++) {
    if (!focus[lane.item[i]] || lane.end[i] < view.from) continue;
    const [x, end] = [place(lane.begin[i]), place(lane.end[i])];
    if (end - last < 1.5) continue;
    fill(context, theme.accent, 1, x, y, Math.max(end - x, 1.5), 3);
    last = end;
  }
  for (const span of [state.pinned?.span, state.hover?.span]) {
    if (span?.lane !== lane) continue;
    const [x, end] = [place(lane.begin[span.index]), place(lane.end[span.index])];
    context.strokeStyle = theme.accent;
    context.lineWidth = 2;
    context.strokeRect(x, y, Math.max(end - x, 2), height);
  }
}
