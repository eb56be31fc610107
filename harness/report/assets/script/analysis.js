// ----------------------------------------------------------------------------------------------------------- analysis
// 1 shallow, 2 fusion, 3 not needed, 0 none of them
function stageOf(layer) {
  const found = model.analysis?.stages;
  if (!found) return 0;
  if (layer < found.shallow_end) return 1;
  return layer >= found.not_needed_from ? 3 : found.fusion.includes(layer) ? 2 : 0;
}
const SHARE = 0.005;  // rarer choices of the resamples are not listed
function certainty(shares) {
  const listed = Object.entries(shares ?? {}).map(([layer, share]) => [Number(layer), share]).filter(([, share]) => share >= SHARE).sort((a, b) => b[1] - a[1]);
  return listed.length ? ` In resamples of the images: ${listed.slice(0, 8).map(([layer, share]) => `${layer} in ${Math.round(100 * share)} %`).join(", ")}.` : "";
}

function showAnalysis() {
  const body = $("analysis-body"), found = model.analysis;
  if (!found) {
    body.replaceChildren(make("p", { class: "muted" },
      model.analysis_of ? `The analysis in these results is of other weights (${model.analysis_of}). ` : "This model has not been analysed into these results. ",
      "This command finds the layers in which it reads the image; this report then shows them."),
      command(model.make_analysis, "the command of the analysis"));
    return;
  }
  const scope = [found.n_samples ? `${found.n_samples} samples` : "", found.tasks ? `tasks ${[].concat(found.tasks).join(", ")}` : ""];
  const nodes = [make("p", {}, scope.filter(Boolean).join(", ")), found.command ? command(found.command, "the command of the analysis") : ""];
  if (found.stages) {
    const { shallow_end: end, fusion, not_needed_from: from, rule, uncertainty } = found.stages;
    const depth = found.depth ?? found.layers.length;
    nodes.push(make("div", { class: "stages", role: "img", "aria-label": "Decoder layers by stage; the list below says which" },
      ...Array.from({ length: depth }, (_, l) => make("span", { class: `s${stageOf(l)}` }, l))));
    const item = (n, name, text, key) => make("li", { class: `b${n}` }, make("strong", {}, name), ` ${text}`, make("span", { class: "muted" }, certainty(uncertainty?.[key])));
    nodes.push(make("ul", { class: "stage-list" },
      item(1, "Shallow.", end > 0 ? `Layers 0 to ${end - 1}: text does not need to attend the image here.` : "No layer: text attends the image from the first one on.", "shallow_end"),
      item(2, "Fusion.", fusion.length ? `Layer${fusion.length > 1 ? "s" : ""} ${fusion.join(", ")}: text takes from the image what the answer needs.` : "No single layer's cut is felt.", "fusion"),
      item(3, "Not needed.", from < depth ? `From layer ${from} on the visual tokens can go.` : "The image is needed to the last layer.", "not_needed_from")));
    if (rule) nodes.push(make("details", { class: "notes" }, make("summary", {}, "The rule"), make("ul", {},
      ...(typeof rule === "string" ? [make("li", {}, rule)] : Object.entries(rule).map(([name, words]) => make("li", {}, make("strong", {}, name.replaceAll("_", " ")), `: ${words}`))))));
  } else nodes.push(make("p", { class: "muted" }, "The analysis was restricted to some layers, so it names no stages."));
  nodes.push(make("div", { class: "figures" }, ...found.figures.map((f, i) => pictureOf(f, `analysis-${i + 1}`))));
  for (const [name, rows] of [["Numbers by layer", found.layers], ["Knock-outs", found.knockouts]]) {
    if (rows.length) nodes.push(make("details", { class: "notes" }, make("summary", {}, name), records(rows, name)));
  }
  body.replaceChildren(...nodes);
}
// a column for each name; `x_low` and `x_high` (of the accuracy: `low` and `high`) are the interval below `x`
function records(rows, name) {
  const names = uniq(rows.flatMap((r) => Object.keys(r))).filter((n) => !/(^|_)(low|high)$/.test(n));
  const shown = (v) => (typeof v === "number" ? String(Number(v.toPrecision(3))) : String(v));
  const cell = (row, name) => {
    const value = row[name] ?? null, low = row[`${name}_low`] ?? (name === "accuracy" ? row.low : undefined), high = row[`${name}_high`] ?? (name === "accuracy" ? row.high : undefined);
    return make("td", { class: typeof value === "number" ? "num" : null }, value === null ? DASH : shown(value),
      low !== undefined && high !== undefined ? make("span", { class: "spread" }, `[${shown(low)}, ${shown(high)}]`) : null);
  };
  const head = make("tr", {}, ...names.map((n) => make("th", { scope: "col" }, n.replaceAll("_", " "))));
  const body = rows.map((r) => make("tr", {}, ...names.map((n) => cell(r, n))));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}
