// What is told of an instruction or of a group of them, beside the pointer and in the panel of what is pinned.

function rowTitle(number) {
  const row = model.rows[number];
  const tape = model.tapes.length > 1 ? `${model.tapes[row.tape].name} ` : "";
  return `${tape}${row.row} ${row.op}`;
}

// A figure for a row, of the tape that it is in; none where the row never ran.
function figureOf(number) {
  const own = model.scopes.find((one) => one.tape === model.rows[number].tape);
  return scope().ofRow.get(number) ?? own?.ofRow.get(number);
}

function describeRow(number, span = null) {
  const row = model.rows[number];
  const figure = figureOf(number);
  const list = [["phase", row.phase], ["node", row.node], ["layer", row.layer === row.node ? "" : row.layer]];
  if (span) list.push(...describeSpan(row, span));
  list.push(["median of calls", secondsText(row.median)]);
  if (figure) list.push(...describeFigure(figure));
  list.push(
    ["reads", row.operands.join(", ")],
    ["gives", row.results.join(", ")],
    ["kernel", row.kernel || "Python"],
    ["barrier", row.barrier ? "workers wait for each other behind it" : ""],
  );
  return element("div", {}, element("div", { class: "title" }, rowTitle(number)), pairs(list));
}

function describeSpan(row, { lane, index, waits }) {
  const [begin, end, wait] = [lane.begin[index], lane.end[index], lane.wait[index]];
  const slowest = lane.slowest[index];
  const rates = [row.flops ? `${digits(row.flops / slowest / 1e9)} GFLOP/s` : "", `${digits(row.traffic / slowest / 1e9)} GB/s`];
  return [
    ["worker", `${lane.label}${waits ? ", waiting behind it" : ""}`],
    ["this call", `${secondsText(end - begin)} at ${secondsText(begin)}`],
    ["slowest worker", model.tapes[row.tape].workers > 1 ? secondsText(slowest) : ""],
    ["rate of the call", slowest ? rates.filter(Boolean).join(", ") : ""],
    ["wait behind it", secondsText(wait - end)],
  ];
}

function describeFigure(figure) {
  const { texts, numbers } = figure;
  const unit = scope().unit;
  return [
    [`time ${unit}`, `${texts.time}, ${texts.share} of all`],
    ["calls", texts.calls],
    ["FLOPs", numbers.FLOPs ? `${texts.FLOPs}, ${texts["GFLOP/s"]} GFLOP/s` : "0"],
    ["bytes", `${texts.bytes}, ${texts["GB/s"]} GB/s`],
    ["of the roof", texts.roof],
    [`wait ${unit}`, texts.wait],
    ["imbalance", texts.imbalance],
  ];
}

function describeGroup(selection) {
  const { figure, rows, title, extra = [] } = selection;
  const seconds = secondsOf(rows);
  const list = [...extra, ["instructions", whole(rows.length)]];
  if (figure) list.push(...describeFigure(figure));
  else list.push([`time ${scope().unit}`, `${secondsText(seconds.sum)}, ${shareText(seconds.share)} of all`]);
  return element("div", {}, element("div", { class: "title" }, title), pairs(list));
}

function describe(selection) {
  const one = selection.rows.length === 1 && !selection.figure && !selection.extra;
  return one ? describeRow(selection.rows[0], selection.span) : describeGroup(selection);
}

// The time of some rows in this scope, and its share.
function secondsOf(rows) {
  let [sum, share] = [0, 0];
  for (const row of rows) {
    const figure = scope().ofRow.get(row);
    sum += figure?.numbers.time ?? 0;
    share += figure?.numbers.share ?? 0;
  }
  return { sum, share };
}

function startDetails() {
  const draw = () => {
    const { pinned } = state;
    byId("unpin").hidden = !pinned;
    byId("details").replaceChildren(
      pinned ? describe(pinned) : element("p", {}, "Click a box, a line of the table or a node to keep it here."),
    );
  };
  byId("unpin").addEventListener("click", () => select("pinned", null));
  let last = null;
  onChange((kinds) => {
    if (kinds.has("scope") || last !== state.pinned) draw();
    last = state.pinned;
  });
  draw();
}
