// The head of the page: what ran, on what machine, which tape is looked at, the search, and what the colours mean.

function startHeader() {
  const { data } = model;
  byId("what").textContent = `tapeprop profile: ${data.what}`;
  byId("what").parentElement.title = `tapeprop profile: ${data.what}`;
  byId("when").textContent = data.created.replace("T", " ");
  const choice = byId("scope");
  model.scopes.forEach((one, i) => choice.append(element("option", { value: i }, one.name)));
  byId("scope-label").hidden = model.scopes.length < 2;
  choice.addEventListener("change", () => setScope(Number(choice.value)));
  byId("colour").addEventListener("change", (event) => setColour(event.target.value));
  byId("machine").append(pairs(data.machine), pairs(data.counters));
  startSearch();
  drawFacts();
  drawLegend();
  onChange((kinds) => {
    if (kinds.has("scope")) drawFacts();
    if (["scope", "colour", "focus"].some((kind) => kinds.has(kind))) drawLegend();
    if (kinds.has("scope") && state.hits) drawHits("");
  });
}

function drawFacts() {
  const facts = scope().facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  const { dropped } = model.data;
  if (dropped) {
    const text = `${many(dropped, "span")} of earlier runs; the totals hold them`;
    facts.push(element("div", { class: "warn" }, element("dt", {}, "dropped"), element("dd", {}, text)));
  }
  byId("scope").title = scope().name;
  byId("facts").replaceChildren(...facts);
  byId("shown").textContent = shownText();
}

// How many steps of how many the timeline has.
function shownText() {
  const { tape } = scope();
  const counts = tape === null ? model.data.shown : [model.data.shown[tape]];
  const [some, all] = [0, 1].map((i) => counts.reduce((sum, count) => sum + count[i], 0));
  if (!all) return "no steps ran";
  return some === all ? `all ${many(all, "step")}` : `the last ${whole(some)} of ${many(all, "step")}${tape === null ? " (of each tape the last)" : ""}`;
}

const LEGEND = 12; // entries; what does not fit into a line is not seen

function drawLegend() {
  const total = colours.time.reduce((sum, time) => sum + time, 0) || 1;
  const entries = colours.names
    .map((name, i) => ({ name, time: colours.time[i], colour: colours.list[i] }))
    .filter((entry) => entry.time > 0);
  const by = state.colour;
  const buttons = entries.slice(0, LEGEND).map(({ name, time, colour }) => {
    const rows = rowsOf((row) => row[by] === name).filter(inScope);
    const swatch = element("i");
    swatch.style.background = colour;
    const label = `${name || "(none)"} ${shareText(time / total)}`;
    const button = element(
      "button",
      { type: "button", title: label },
      swatch,
      element("span", { class: "text" }, name || "(none)"),
      element("small", {}, shareText(time / total)),
    );
    const figure = scope().figures[by].find((one) => one.rows[0] === rows[0]);
    button.addEventListener("click", () => {
      const again = state.pinned?.title === `${by} ${name || "(none)"}`;
      select("pinned", again ? null : { rows, title: `${by} ${name || "(none)"}`, span: null, figure });
    });
    return button;
  });
  byId("legend").replaceChildren(...buttons);
}

function startSearch() {
  const run = () => drawHits(search(byId("query").value.trim(), byId("regex").checked));
  byId("query").addEventListener("input", run);
  byId("regex").addEventListener("change", run);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("query").focus();
    }
    if (event.key === "Escape") select("pinned", null);
  });
}

function drawHits(message) {
  const output = byId("hits");
  output.classList.toggle("wrong", Boolean(message));
  byId("query").setAttribute("aria-invalid", String(Boolean(message)));
  if (message || !state.hits) {
    output.textContent = message;
    return;
  }
  const rows = model.rows.flatMap((_, i) => (state.hits[i] && inScope(i) ? [i] : []));
  const { sum, share } = secondsOf(rows);
  output.textContent = `${many(rows.length, "instruction")}, ${secondsText(sum)} (${shareText(share)})`;
}
