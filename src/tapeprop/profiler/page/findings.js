// What the profile says in words, as `diagnose()` prints it; each finding leads to its instructions.

function startFindings() {
  const { title, list } = model.data.findings;
  byId("findings-note").textContent = title;
  byId("tab-findings").textContent = list.length ? `Findings (${list.length})` : "Findings";
  byId("findings").replaceChildren(...list.map(([stake, text, remedy, rows], i) => {
    const button = element(
      "button",
      { type: "button" },
      element("b", {}, stake),
      element("span", {}, text),
      element("span", { class: "remedy" }, remedy),
    );
    button.disabled = !rows.length;
    button.selection = { rows, title: `finding ${i + 1}`, span: null, extra: [["finding", text], ["remedy", remedy]] };
    button.addEventListener("click", () => select("pinned", state.pinned === button.selection ? null : button.selection));
    return element("li", {}, button);
  }));
  onChange((kinds) => {
    if (!kinds.has("focus")) return;
    for (const button of byId("findings").querySelectorAll("button")) {
      button.classList.toggle("on", state.pinned === button.selection);
    }
  });
}
