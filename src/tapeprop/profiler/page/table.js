// The table: the figures that Python computed, sorted by any column.

const SHOWN_AT_FIRST = 400; // lines; more on demand, as a browser takes long to lay out thousands
const table = { by: "instruction", column: "time", rising: false, all: false };

function startTable() {
  byId("by").addEventListener("change", (event) => {
    Object.assign(table, { by: event.target.value, all: false });
    drawTable();
  });
  byId("only-hits").addEventListener("change", drawTable);
  onChange((kinds) => {
    if (kinds.has("scope")) table.all = false;
    if (kinds.has("scope") || kinds.has("colour") || (kinds.has("search") && byId("only-hits").checked)) drawTable();
    else if (kinds.has("search") || kinds.has("focus")) markLines();
    if (kinds.has("focus") && state.pinned && !state.hover) showPinnedLine();
  });
  drawTable();
}

// The columns to the left, each with its text; the figures follow.
function leftColumns() {
  if (table.by !== "instruction") return [[table.by, (figure) => figure.key]];
  const number = (figure) => {
    const { tape, row } = model.rows[figure.rows[0]];
    return scope().tape === null ? `${model.tapes[tape].name} ${row}` : String(row);
  };
  return [["row", number], ["phase", (f) => f.names.phase], ["op", (f) => f.names.op], ["layer", (f) => f.names.layer]];
}

function sortedFigures() {
  const { column, rising } = table;
  const left = leftColumns().find(([name]) => name === column)?.[1];
  const value = column === "row" ? (f) => f.rows[0] : left ?? ((f) => f.numbers[column]);
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    // What has no figure stands last, whichever way the column is sorted.
    if (x === null || y === null) return (x === null) - (y === null) || a.rows[0] - b.rows[0];
    const least = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (rising ? least : -least) || a.rows[0] - b.rows[0];
  };
  const only = byId("only-hits").checked;
  return scope().figures[table.by].filter((f) => !only || f.rows.some(isHit)).sort(order);
}

function drawTable() {
  const left = leftColumns();
  const figures = scope().figures[table.by];
  const columns = COLUMNS.filter((name) => figures.some((figure) => figure.texts[name]));
  const names = [...left.map(([name]) => name), ...columns];
  if (!names.includes(table.column)) Object.assign(table, { column: "time", rising: false });
  const head = element("tr");
  for (const name of names) head.append(heading(name, left.some(([own]) => own === name)));
  const sorted = sortedFigures();
  const shown = table.all ? sorted : sorted.slice(0, SHOWN_AT_FIRST);
  const most = Math.max(...figures.map((figure) => figure.numbers.share ?? 0), 1e-9);
  const lines = shown.map((figure) => line(figure, left, columns, most));
  if (shown.length < sorted.length) lines.push(moreLine(sorted.length - shown.length, names.length));
  byId("table").tHead.replaceChildren(head);
  byId("table").tBodies[0].replaceChildren(...lines);
  byId("table-note").textContent = `${many(sorted.length, table.by)}, time ${scope().unit}`;
  markLines();
}

function heading(name, isLeft) {
  const button = element("button", { type: "button" }, name);
  button.addEventListener("click", () => {
    const again = table.column === name;
    Object.assign(table, { column: name, rising: again ? !table.rising : isLeft });
    drawTable();
    byId("table").tHead.querySelector(`[data-column="${name}"] button`).focus();
  });
  const cell = element("th", { scope: "col", "data-column": name, class: isLeft ? "left" : "" }, button);
  if (table.column === name) cell.setAttribute("aria-sort", table.rising ? "ascending" : "descending");
  return cell;
}

// most: the largest share, whose bar fills its cell.
function line(figure, left, columns, most) {
  const made = element("tr", { tabindex: "0" });
  for (const [i, [, text]] of left.entries()) {
    const shown = text(figure);
    const cell = element("td", { class: "left", title: shown }, shown);
    if (i === 0) {
      const swatch = element("i");
      swatch.style.background = sameColour(figure);
      cell.prepend(swatch);
    }
    made.append(cell);
  }
  for (const name of columns) {
    const cell = element("td", { class: name === "share" ? "share" : "" }, figure.texts[name]);
    if (name === "share") cell.style.setProperty("--part", `${(100 * (figure.numbers.share ?? 0)) / most}%`);
    made.append(cell);
  }
  made.figure = figure;
  const selection = groupSelection(table.by, figure);
  made.addEventListener("pointerenter", () => select("hover", selection));
  made.addEventListener("pointerleave", () => select("hover", null));
  made.addEventListener("click", () => select("pinned", state.pinned === selection ? null : selection));
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter") made.click();
    const next = { ArrowDown: made.nextElementSibling, ArrowUp: made.previousElementSibling }[event.key];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  return made;
}

// The colour that all rows of a group share, none where they do not.
function sameColour(figure) {
  const first = colours.of[figure.rows[0]];
  return figure.rows.every((row) => colours.of[row] === first) ? colours.list[first] : "transparent";
}

function moreLine(count, columns) {
  const button = element("button", { type: "button" }, `Show ${whole(count)} more`);
  button.addEventListener("click", () => {
    table.all = true;
    drawTable();
  });
  return element("tr", { id: "table-more" }, element("td", { colspan: columns }, button));
}

function markLines() {
  for (const made of byId("table").tBodies[0].rows) {
    if (!made.figure) continue;
    const found = state.hits !== null && made.figure.rows.some(isHit);
    made.classList.toggle("hit", found);
    made.classList.toggle("miss", state.hits !== null && !found);
    made.classList.toggle("on", made.figure.rows.some((row) => focus[row]));
  }
}

// Only the table itself is scrolled, not the page.
function showPinnedLine() {
  const box = byId("table-scroll");
  const lines = [...byId("table").tBodies[0].rows].filter((made) => made.classList.contains("on"));
  const top = (made) => made.offsetTop - box.scrollTop;
  const seen = (made) => top(made) > 24 && top(made) < box.clientHeight - 24;
  if (lines.length && !lines.some(seen)) box.scrollTop = lines[0].offsetTop - box.clientHeight / 2;
}
