// What the reader has chosen, shared by all views. A view changes it through these functions, and draws again when told.

const state = {
  scope: 0,
  colour: "op",
  hits: null, // Uint8Array over all rows, null where nothing is searched for
  hover: null, // a selection: { rows, title, span }
  pinned: null,
};
let model = null;
let focus = new Uint8Array(0); // over all rows: 1 where hovered, or else pinned
let waiting = null;
const listeners = [];

// Kinds of changes: "scope", "colour", "search", "focus".
function onChange(listener) {
  listeners.push(listener);
}

// Several changes before the next frame are drawn once.
function changed(kind) {
  if (waiting) {
    waiting.add(kind);
    return;
  }
  waiting = new Set([kind]);
  requestAnimationFrame(() => {
    const kinds = waiting;
    waiting = null;
    for (const listener of listeners) listener(kinds);
  });
}

function scope() {
  return model.scopes[state.scope];
}

// The tape that views of one tape show: with all tapes chosen, the one that took longest.
function shownTape() {
  return scope().tape ?? model.scopes[0].tape ?? -1;
}

function inScope(row) {
  const tape = scope().tape;
  return tape === null || model.rows[row].tape === tape;
}

function setScope(number) {
  state.scope = number;
  changed("scope");
}

function setColour(by) {
  state.colour = by;
  changed("colour");
}

function select(field, selection) {
  if (state[field] === selection) return;
  state[field] = selection;
  focus.fill(0);
  for (const row of (state.hover ?? state.pinned)?.rows ?? []) focus[row] = 1;
  changed("focus");
}

function rowSelection(row, span = null) {
  return { rows: [row], title: rowTitle(row), span };
}

function groupSelection(by, figure) {
  return by === "instruction" ? rowSelection(figure.rows[0]) : { rows: figure.rows, title: `${by} ${figure.key}`, span: null, figure };
}

// Marks the rows whose op, node, layer or kernel holds `query`; the message where it is no regular expression, else "".
function search(query, regex) {
  state.hits = null;
  let message = "";
  if (query) {
    try {
      const matches = matcher(query, regex);
      state.hits = Uint8Array.from(model.rows, (row) => Number([row.op, row.node, row.layer, row.kernel].some(matches)));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      message = "not a regular expression";
    }
  }
  changed("search");
  return message;
}

function matcher(query, regex) {
  if (regex) {
    const expression = new RegExp(query, "iu");
    return (text) => expression.test(text);
  }
  const plain = query.toLowerCase();
  return (text) => text.toLowerCase().includes(plain);
}

// 1 where a row is found or nothing is searched for.
function isHit(row) {
  return state.hits === null || state.hits[row] === 1;
}
