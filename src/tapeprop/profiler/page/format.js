// Figures as text, with the same units and digits as tapeprop/profiler/text.py, and elements with text in them.
// Text only ever goes in as text: names come from the user and may hold anything.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

// A definition list of [name, value] pairs; those without a value are left out.
function pairs(list) {
  const shown = list.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return element("dl", { class: "pairs" }, ...shown.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

// Three digits, without zeros at the end, as "%.3g" in C.
function digits(value) {
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(2).split("e").map(Number);
  if (exponent < -4 || exponent >= 3) {
    return `${mantissa}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return String(Number(value.toFixed(2 - exponent)));
}

function whole(value) {
  return Math.round(value).toLocaleString("en-US");
}

function secondsText(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "-";
  for (const [factor, unit] of [[1, "s"], [1e3, "ms"], [1e6, "us"]]) {
    const value = seconds * factor;
    if (Math.abs(value) >= 1) return `${Math.abs(value) < 1000 ? digits(value) : whole(value)} ${unit}`;
  }
  return `${digits(seconds * 1e9)} ns`;
}

function sizeText(bytes) {
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(value) < 1024 || unit === "GiB") return `${value.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
  return "";
}

function countText(count) {
  let value = count;
  for (const unit of ["", " k", " M", " G"]) {
    if (Math.abs(value) < 1000) return `${digits(value)}${unit}`;
    if (unit === " G") return `${whole(value)}${unit}`;
    value /= 1000;
  }
  return "";
}

function shareText(share) {
  return share === null || !Number.isFinite(share) ? "-" : `${(share * 100).toFixed(1)}%`;
}

function many(count, noun) {
  return `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// A text with its end cut off where it is wider than `width` on a canvas.
function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}…` : "";
}
