// Draws the figures of the page as SVG. Colours are classes of the style sheet, so light and dark need no redrawing.
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const colors = 6, left = 46, right = 10, top_ = 8, bottom = 32;
const dashes = { dash: "9 5", dot: "3 3", dashdot: "9 3 3 3", longdash: "14 5" };

function add(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(n * step);
  return found.length > 2 || count > 12 ? found : ticks(low, high, count + 2);
}

const label = (value) => String(Number(value.toPrecision(4)));
const colorOf = (trace) => (trace.meta.color === "text" ? "text" : "c" + (trace.meta.color % colors));

function draw(place) {
  const { data, layout } = figures[place.dataset.figure];
  const width = place.clientWidth, height = place.clientHeight;
  place.replaceChildren();
  const svg = add(place, "svg", { width, height, role: "img", "aria-label": place.dataset.figure });
  const [x0, x1] = layout.xaxis.range, [y0, y1] = layout.yaxis.range;
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top_ - bottom);
  for (const value of ticks(y0, y1, 4)) {
    add(svg, "line", { class: "gridline", x1: left, x2: width - right, y1: y(value), y2: y(value) });
    add(svg, "text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, label(value));
  }
  for (const value of ticks(x0, x1, Math.min(6, width / 60))) {
    add(svg, "text", { class: "tick", x: x(value), y: height - bottom + 15, "text-anchor": "middle" }, label(value));
  }
  add(svg, "text", { class: "tick", x: width - right, y: height - 3, "text-anchor": "end" }, layout.xaxis.title.text);
  const name = "clip-" + place.dataset.figure.replace(/\W/g, "_");
  const box = { x: left, y: top_, width: Math.max(0, width - left - right), height: height - top_ - bottom };
  add(add(svg, "clipPath", { id: name }), "rect", box);
  const plot = add(svg, "g", { "clip-path": `url(#${name})` });
  for (const shape of layout.shapes) {
    if (shape.type === "rect") {
      const from = x(shape.x0);
      const span = { class: "alarmspan", x: from, y: top_, width: Math.max(2, x(shape.x1) - from), height: box.height };
      add(plot, "rect", span);
    } else if (shape.name === "alarm") {
      add(plot, "line", { class: "alarmline", x1: x(shape.x0), x2: x(shape.x0), y1: top_, y2: height - bottom });
    } else {
      add(plot, "line", { class: "zeroline", x1: left, x2: width - right, y1: y(shape.y0), y2: y(shape.y0) });
    }
  }
  for (const trace of data) {
    let path = "", pen = "M";
    trace.x.forEach((at, n) => {
      if (at === null || trace.y[n] === null) pen = trace.meta.band ? "ZM" : "M";
      else {
        path += `${path ? pen : "M"}${x(at).toFixed(1)},${y(trace.y[n]).toFixed(1)}`;
        pen = "L";
      }
    });
    if (trace.meta.band) {
      add(plot, "path", { class: "band " + colorOf(trace), d: path + "Z" });
      continue;
    }
    const dash = dashes[trace.line.dash] || "none";
    add(plot, "path", { class: "curve " + colorOf(trace), d: path, "stroke-dasharray": dash });
    trace.x.forEach((at, n) => {
      if (at === null || trace.y[n] === null) return;
      const value = trace.y[n], beyond = value > y1 ? 1 : value < y0 ? -1 : 0;
      if (beyond) {
        const tip = beyond > 0 ? top_ : height - bottom, base = tip + beyond * 8, center = x(at);
        add(svg, "path", { class: "beyond " + colorOf(trace), d: `M${center - 4},${base}L${center + 4},${base}L${center},${tip}Z` });
      } else if (trace.x.length <= 120) add(plot, "circle", { class: "point " + colorOf(trace), cx: x(at), cy: y(value), r: 2.2 });
    });
  }
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  place.append(tip);
  const curves = data.filter((trace) => !trace.meta.band);
  place.onpointermove = (event) => {
    const at = x0 + ((event.clientX - place.getBoundingClientRect().left - left) / (width - left - right)) * (x1 - x0);
    const known = curves.flatMap((trace) => trace.x).filter((value) => value !== null);
    if (!known.length) return;
    const near = known.reduce((best, value) => (Math.abs(value - at) < Math.abs(best - at) ? value : best));
    const rows = curves.map((trace) => [trace.name, trace.y[trace.x.indexOf(near)]]).filter((row) => row[1] != null);
    tip.textContent = [`${layout.xaxis.title.text} ${label(near)}`, ...rows.map((r) => `${r[0]}: ${label(r[1])}`)].join("\n");
    tip.hidden = false;
    tip.style.left = `${Math.min(x(near) + 8, Math.max(left, width - tip.offsetWidth - 4))}px`;
  };
  place.onpointerleave = () => (tip.hidden = true);
  place.dataset.drawn = "yes";
}

const places = [...document.querySelectorAll(".plot")];
const drawShown = () => places.filter((place) => place.clientWidth).forEach(draw);
drawShown();
addEventListener("resize", drawShown);
document.querySelectorAll("details").forEach((folded) => folded.addEventListener("toggle", drawShown));
document.querySelectorAll(".only").forEach((box) => box.addEventListener("change", drawShown));
