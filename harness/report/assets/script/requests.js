// ----------------------------------------------------------------------------------------------------- whole requests
const inAllTasks = (line, budget) => shownSets().map((i) => cellsOf(line, budget, i).filter((c) => c.request));

function setUpRequests() {
  const told = model.budgets.map((_, b) => b).filter((b) => model.lines.some((_, line) => !isNone(line) && inAllTasks(line, b).every((cells) => cells.length)));
  $("wr-controls").hidden = !told.length;
  const middle = told.find((b) => model.budgets[b] === "64") ?? told[0] ?? "";
  options($("wr-budget"), told.map((b) => [b, model.budgets[b]]), middle);
  options($("wr-questions"), model.requests.questions.map((q, i) => [i, q]), 0);
  showRequests();
}
function showRequests() {
  if ($("wr-controls").hidden) {
    $("wr-body").replaceChildren(make("p", { class: "muted" }, "No method and its unpruned cell here tell the cost of a whole request on every task."));
    return;
  }
  const budget = Number($("wr-budget").value), asked = Number($("wr-questions").value);
  const { outputs, figure } = model.requests;
  const groups = [["FLOPs", (c, n) => c.request.flops[asked][n]], ["KV cache", (c, n) => c.request.kv[n]]];
  const head = [make("tr", {}, make("th", { scope: "col", rowspan: 2 }, "Method"), ...groups.map(([name]) =>
    make("th", { scope: "colgroup", colspan: outputs.length }, `${name}, % of unpruned, by new tokens`))),
  make("tr", {}, ...groups.flatMap(() => outputs.map((n) => make("th", { scope: "col", class: "num" }, n))))];
  const rows = model.lines.map((name, line) => [name, line, inAllTasks(line, budget)]).filter(([, line, sets]) => !isNone(line) && sets.every((cells) => cells.length));
  const body = rows.map(([name, line, sets]) => make("tr", {}, make("th", { scope: "row" }, swatch(line), name), ...groups.flatMap(([, value]) =>
    outputs.map((_, n) => make("td", { class: "num" }, one(mean(sets.map((cells) => mean(cells.map((c) => value(c, n)))))))))));
  const table = make("table", { id: "wr-table" }, caption(`FLOPs and KV cache in % of the unpruned request at budget ${model.budgets[budget]}, means over seeds and tasks`), make("thead", {}, ...head), make("tbody", {}, ...body));
  $("wr-body").replaceChildren(
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of whole requests" }, table),
    figure && make("div", { class: "figures" }, pictureOf(figure, "requests")) || "");
}
