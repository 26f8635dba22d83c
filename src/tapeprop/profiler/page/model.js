// The data of the page, made ready to be drawn: rows of all tapes counted through, and lanes of boxes in order of time.

// Boxes on a line, none over another. Box i goes from begin[i] to end[i] (seconds), and what waits behind it to wait[i];
// item[i] is a row, the number of a step or the name of a phase; slowest[i] how long the slowest worker took for the same call.
class Lane {
  constructor(kind, label) {
    Object.assign(this, { kind, label, begin: [], end: [], wait: [], item: [], tape: [], slowest: [] });
  }

  add(begin, end, wait, item, tape) {
    this.begin.push(begin);
    this.end.push(end);
    this.wait.push(wait);
    this.item.push(item);
    this.tape.push(tape);
  }

  // Typed arrays, as they are walked through at each frame.
  freeze() {
    for (const name of ["begin", "end", "wait", "slowest"]) this[name] = Float64Array.from(this[name]);
    if (this.kind === "worker") this.item = Int32Array.from(this.item);
    return this;
  }

  // The last box that begins at `time` or before it, -1 for none.
  at(time) {
    let low = -1;
    let high = this.begin.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.begin[middle] <= time) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

function readModel(data) {
  const text = (number) => data.strings[number];
  const rows = readRows(data, text);
  const tracks = readTracks(data, rows, text);
  const ends = tracks.flatMap((track) => track.lanes.map((lane) => lane.wait.at(-1) ?? 0));
  return {
    data,
    rows,
    tracks,
    extent: Math.max(0, ...ends),
    tapes: data.tapes,
    scopes: data.scopes.map((scope) => readScope(scope, text)),
    blocks: data.tapes.map((tape) =>
      tape.memory.blocks.map(([label, offset, bytes, first, last]) => ({ label: text(label), offset, bytes, first, last })),
    ),
    bases: basesOf(data),
  };
}

function basesOf(data) {
  const bases = [0];
  for (const tape of data.tapes) bases.push(bases.at(-1) + tape.rows.length);
  return bases;
}

function readRows(data, text) {
  return data.tapes.flatMap((tape, t) =>
    tape.rows.map(([phase, op, node, layer, operands, results, kernel, flops, traffic, barrier, after, median, dtype], row) => ({
      tape: t,
      row,
      phase: text(phase),
      op: text(op),
      node: text(node),
      layer: text(layer),
      operands: operands.map(text),
      results: results.map(text),
      kernel: text(kernel),
      flops,
      traffic,
      barrier: Boolean(barrier),
      after,
      median,
      dtype: text(dtype),
    })),
  );
}

const COLUMNS = ["time", "share", "calls", "FLOPs", "GFLOP/s", "bytes", "GB/s", "roof", "wait", "imbalance"];

function readScope(scope, text) {
  const figures = {};
  for (const [by, list] of Object.entries(scope.figures)) {
    figures[by] = list.map(([key, rows, numbers, texts, names]) => ({
      key: text(key),
      rows,
      numbers: Object.fromEntries(COLUMNS.map((column, i) => [column, numbers[i]])),
      texts: Object.fromEntries(COLUMNS.map((column, i) => [column, text(texts[i])])),
      names: Object.fromEntries(["phase", "op", "node", "layer"].map((name, i) => [name, text(names[i])])),
    }));
  }
  const ofRow = new Map(figures.instruction.map((figure) => [figure.rows[0], figure]));
  return { tape: scope.tape, name: scope.name, unit: scope.unit, facts: scope.facts, figures, ofRow };
}

function readTracks(data, rows, text) {
  const threads = new Set(data.tracks.map(([thread]) => thread));
  const tracks = data.tracks.map(([thread, level]) => ({
    label: [threads.size > 1 ? text(thread) : "", level ? "inside a run" : ""].filter(Boolean).join(", "),
    steps: new Lane("step", "steps"),
    phases: new Lane("phase", "phases"),
    workers: [],
  }));
  const bases = basesOf(data);
  for (const run of data.runs) addRun(run, tracks[run.track], rows, bases[run.tape]);
  for (const track of tracks) {
    track.workers = track.workers.filter((lane) => lane.begin.length); // the others never took part
    track.lanes = [track.steps, track.phases, ...track.workers];
    for (const lane of track.lanes) lane.freeze();
  }
  return tracks;
}

// A run's spans are gaps and lengths, worker after worker: see spans.py.
function addRun(run, track, rows, base) {
  const slots = run.rows.length;
  const begins = new Float64Array(slots * run.steps).fill(Infinity);
  const ends = new Float64Array(slots * run.steps).fill(-Infinity);
  const slowest = new Float64Array(slots * run.steps);
  const added = [];
  let at = 0;
  for (let worker = 0; worker < run.workers; worker++) {
    track.workers[worker] ??= new Lane("worker", `worker ${worker}`);
    const lane = track.workers[worker];
    const first = lane.begin.length;
    const calls = [];
    let now = run.begin;
    for (let i = 0; i < slots * run.steps; i++, at += 2) {
      const length = run.spans[at + 1];
      if (length < 0) continue;
      const begin = now + run.spans[at];
      now = begin + length;
      begins[i] = Math.min(begins[i], begin);
      ends[i] = Math.max(ends[i], now);
      slowest[i] = Math.max(slowest[i], length);
      calls.push(i);
      lane.add(begin / 1e9, now / 1e9, 0, base + run.rows[i % slots], run.tape);
    }
    added.push([lane, first, calls]);
  }
  const last = ends.reduce((a, b) => Math.max(a, b), -Infinity) / 1e9;
  for (const [lane, first, calls] of added) {
    calls.forEach((call, i) => {
      lane.wait[first + i] = lane.begin[first + i + 1] ?? last;
      lane.slowest[first + i] = slowest[call] / 1e9;
    });
  }
  addRuler(run, track, rows, base, begins, ends);
}

// The steps and, inside them, stretches of one phase. Workers need not wait for each other, so that one may be in the next
// phase before the last one has left the one before: a stretch begins where the one before ends at the earliest.
function addRuler(run, track, rows, base, begins, ends) {
  const slots = run.rows.length;
  let reached = 0;
  for (let step = 0; step < run.steps; step++) {
    let from = Infinity;
    let begin = Infinity;
    let phase = null;
    for (let slot = 0; slot <= slots; slot++) {
      const next = slot < slots ? rows[base + run.rows[slot]].phase : null;
      if (next !== phase && phase !== null && begin < reached) {
        track.phases.add(begin / 1e9, reached / 1e9, reached / 1e9, phase, run.tape);
      }
      if (slot === slots) break;
      const i = step * slots + slot;
      if (next !== phase) begin = Math.max(begins[i], reached);
      phase = next;
      from = Math.min(from, Math.max(begins[i], track.steps.end.length ? track.steps.end.at(-1) * 1e9 : 0));
      reached = Math.max(reached, ends[i]);
    }
    if (from < reached) track.steps.add(from / 1e9, reached / 1e9, reached / 1e9, run.number + step + 1, run.tape);
  }
}
