// ---------------------------------------------------------------------------------------------------------- equal cost
const prunedStudies = () => model.studies.map((study, i) => [study, i]).filter(([study]) => study.rows.some(([line]) => !isNone(line)));

// budgets of kept tokens, as harness/core/budget.py spells them: 64, 64clamped and 0.25kept, and no 64avg or 0.35flops
const KEPT = /^[0-9.]+(kept|clamped)?$/;

function setUpEqual() {
  const there = prunedStudies();
  $("eq-controls").hidden = !there.length;
  $("eq-study").parentElement.hidden = there.length < 2;
  $("eq-at").value = "tokens";
  options($("eq-study"), there.map(([study, i]) => [i, study.title]), there.length ? there[0][1] : "");
  showEqual();
}
function showEqual() {
  const body = $("eq-body");
  if ($("eq-controls").hidden) {
    body.replaceChildren(make("p", { class: "muted" }, "No pruned line here."));
    return;
  }
  const index = Number($("eq-study").value), study = model.studies[index], tokens = $("eq-at").value === "tokens";
  const lines = uniq(study.rows.map(([line]) => line)).filter((line) => !isNone(line)).sort((a, b) => a - b);
  const budgets = uniq(study.rows.map(([, budget]) => budget)).filter((b) => KEPT.test(model.budgets[b])).sort((a, b) => a - b);
  const atShare = new Map(study.equal.rows.map(([line, found, range]) => [line, { found, range }]));
  // per column its head, and per line [number, marks, explanation]
  const columns = tokens ? budgets.map((budget) => [model.budgets[budget], lines.map((line) => {
    const row = rowOf(index, line, budget);
    return [row?.average ?? null, row?.marks[AVERAGE] ?? "", row ? span(row.low, row.high) : ""];
  })]) : study.equal.shares.map((share, i) => [`${share} % of FLOPs`, lines.map((line) => {
    const found = atShare.get(line)?.found[i];
    if (!found) return [null, "", ""];
    const [value, ...ends] = found;
    return [value, ends.length === 2 ? "~" : "", ends.map(([flops, average, budget]) => `${budget}: ${one(average)} at ${one(flops)} %`).join("; ")];
  })]);
  const shown = columns.map(([head, cells]) => [head, cells, ranksOf(cells.map(([value]) => one(value)))]);
  const title = tokens ? "Avg % at equal kept tokens: the same budget" : "Avg % at equal prefill FLOPs, in shares of the unpruned";
  const body_ = lines.map((line, i) => make("tr", {}, make("th", { scope: "row" }, swatch(line), model.lines[line]), ...shown.map(([, cells, ranks]) => {
    const [value, marks, said] = cells[i], text = one(value);
    if (value === null) return make("td", { class: "num" }, DASH);
    return make("td", { class: "num", title: said || null }, marks === "~" ? "~" : "", ranks[i] === 1 ? make("strong", {}, text) : text, marks === "~" ? null : markSpan(marks),
      make("span", { class: "spread" }, `rank ${ranks[i]}`));
  }), tokens ? null : make("td", { class: "num" }, atShare.has(line) ? atShare.get(line).range.map(one).join(" to ") : DASH)));
  body.replaceChildren(scrolling(title, make("table", { id: "eq-table" }, caption(title), make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "method"),
    ...shown.map(([head]) => make("th", { scope: "col", class: "num" }, head)), tokens ? null : make("th", { scope: "col", class: "num" }, "measured, % of FLOPs"))),
  make("tbody", {}, ...body_))), noAverage(study), make("p", { class: "muted" }, tokens
    ? "Equal tokens flatter a method that prunes late, for its early layers see all tokens. Other budgets leave each line another number of tokens, and are not here."
    : "~ is interpolated between two neighbouring measured points of the same line; its title names them. – lies outside the line's measured range."));
}
for (const id of ["eq-study", "eq-at"]) $(id).addEventListener("change", showEqual);
