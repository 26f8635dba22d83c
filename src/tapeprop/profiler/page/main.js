// Puts the page together once its data are read.

const TABS = ["table", "memory", "roofline", "findings"];

function startTabs() {
  const choose = (name) => {
    for (const tab of TABS) {
      const chosen = tab === name;
      const button = byId(`tab-${tab}`);
      button.setAttribute("aria-selected", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
      byId(`${tab}-view`).hidden = !chosen;
    }
  };
  TABS.forEach((name, i) => {
    const button = byId(`tab-${name}`);
    button.addEventListener("click", () => choose(name));
    button.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      const next = TABS[(i + by + TABS.length) % TABS.length];
      choose(next);
      byId(`tab-${next}`).focus();
    });
  });
  choose(TABS[0]);
}

model = readModel(JSON.parse(byId("data").textContent));
focus = new Uint8Array(model.rows.length);
readTheme();
chooseColours();
// First of all listeners, so that every view draws with the new colours.
onChange((kinds) => {
  if (kinds.has("theme")) readTheme();
  if (["theme", "scope", "colour"].some((kind) => kinds.has(kind))) chooseColours();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  changed("theme");
  changed("colour");
});
startHeader();
startDetails();
startTabs();
startTable();
startFindings();
startGraph();
// For looking into the page from the console; places: where in the window each view shows a row.
const places = { timeline: startTimeline(), memory: startMemory(), roofline: startRoofline() };
window.tapeprop = { model, state, view, select, search, places };
