// Draws the figures of the page in the colours of its style sheet, and again when the reader turns light to dark.
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const colors = 6;

function themed(figure) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue("--" + name).trim();
  const copy = structuredClone(figure);
  for (const trace of copy.data) {
    const own = color(trace.meta.color === "text" ? "text" : "c" + (trace.meta.color % colors));
    trace.line = { ...trace.line, color: own };
    if (trace.meta.band) trace.fillcolor = own + "33";
    else trace.marker = { size: 4, color: own };
  }
  for (const shape of copy.layout.shapes || []) shape.line.color = color(shape.name === "alarm" ? "alarm" : "faint");
  const axis = { gridcolor: color("grid"), linecolor: color("line"), zeroline: false, automargin: true };
  copy.layout.xaxis = { ...copy.layout.xaxis, ...axis, showgrid: false };
  copy.layout.yaxis = { ...copy.layout.yaxis, ...axis };
  const tip = { bgcolor: color("ground"), bordercolor: color("line"), font: { color: color("text") } };
  Object.assign(copy.layout, {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("faint"), size: 12, family: "system-ui, sans-serif" },
    margin: { l: 44, r: 10, t: 8, b: 40 },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: tip,
  });
  return copy;
}

function draw(place) {
  const figure = themed(figures[place.dataset.figure]);
  Plotly.react(place, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  place.dataset.drawn = "yes";
}

const places = [...document.querySelectorAll(".plot")];
const isShown = (place) => !place.closest("details:not([open])");
places.filter(isShown).forEach(draw);
for (const folded of document.querySelectorAll("details")) {
  folded.addEventListener("toggle", () => places.filter((p) => isShown(p) && !p.dataset.drawn).forEach(draw));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  places.filter((place) => place.dataset.drawn).forEach(draw);
});
