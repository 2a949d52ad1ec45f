"use strict";
const charts = [...document.querySelectorAll(".chart")];
const PAPER_WIDTH = 700; // of the text between the margins of an A4 page
function specification(chart) {
  return JSON.parse(document.getElementById(chart.id + "-data").textContent);
}
function draw() {
  // The buttons are named one by one: among plotly's own choice is one that sends a chart's data
  // to a server.
  const config = {
    responsive: true, displaylogo: false, plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };
  for (const chart of charts) {
    const figure = specification(chart);
    Plotly.newPlot(chart, figure.data, figure.layout, config);
  }
}
draw();
function resize(chart, width, factor) {
  const layout = specification(chart).layout;
  const height = factor * layout.height;
  chart.style.height = height + "px";
  Plotly.relayout(chart, {
    width: width, height: height, autosize: width === null,
    "legend.y": layout.legend.y * (layout.height - 120) / (height - 120),
  });
}
addEventListener("beforeprint", () => {
  for (const chart of charts) {
    // lower than on the screen, so that two charts fit on a page
    resize(chart, PAPER_WIDTH, specification(chart).layout.height > 600 ? 1 : 0.74);
  }
});
addEventListener("afterprint", () => {
  for (const chart of charts) resize(chart, null, 1);
});
