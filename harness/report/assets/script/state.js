// -------------------------------------------------------------------------------------------------------------- state
let model = META.models[0];
const state = {};
const cellsOf = (line, budget, set) => model.cells.filter((c) => c.line === line && c.budget === budget && c.set === set);

function chooseModel(index) {
  model = META.models[index];
  model.cells.forEach((cell, i) => { cell.index = i; });
  const shown = model.sets.map((_, i) => i).filter((i) => model.sets[i].primary);
  Object.assign(state, { lb: { tasks: new Set(shown), budget: "", search: "", sort: null, down: true }, hidden: new Set(), y: "", x: "pct_flops" });
  const budgets = model.budgets.map((_, i) => i);
  const pruned = uniq(model.cells.filter((c) => !c.unpruned).map((c) => c.line));
  const prefer = (names) => names.map((n) => pruned.find((l) => model.lines[l].split(" ")[0] === n)).find((l) => l !== undefined);
  const first = prefer(["visipruner"]) ?? pruned[0] ?? 0;
  const others = pruned.filter((l) => l !== first);
  const second = prefer(["fastv", "sparsevlm", "random"].filter((n) => !model.lines[first].startsWith(n))) ?? others[0] ?? first;
  const middle = budgets.find((b) => model.budgets[b] === "64") ?? budgets[Math.floor(budgets.length / 2)];
  const withSamples = shown.find((i) => model.sets[i].shown) ?? 0;
  state.ex = { set: withSamples, sample: 0, layer: 0, whole: false, category: "", right: "", flip: "", flipBudget: "", flipWay: "", search: "",
    panels: [{ line: first, budget: middle, seed: 0 }, { line: second, budget: middle, seed: 0 }] };
  $("title").textContent = `Visual-token pruning on ${model.model}`;
  const facts = Object.entries(model.facts).map(([name, value]) => `${name} ${value}`).join(", ");
  const n = uniq(model.cells.map((c) => c.line)).length;
  $("lead").replaceChildren(
    `${model.cells.length} measured cells: ${n} ${n === 1 ? "method" : "methods"} on `,
    model.sets.filter((s) => s.primary).map((s) => `${s.label} (${s.n} questions on ${s.images} images)`).join(", "), ". ",
    make("span", { class: "muted" }, facts));
  const gaps = [];
  const bare = model.sets.filter((s) => s.make_baseline);
  if (bare.length) gaps.push(make("div", { class: "gap" }, make("p", {}, "No unpruned cell to compare with, so no percentage of unpruned and no flips:"),
    ...bare.map((s) => make("p", {}, `${s.label}: `, make("code", {}, s.make_baseline)))));
  const rows = model.missing.length;
  if (rows) gaps.push(make("details", { class: "gap" }, make("summary", {}, `${rows} ${rows === 1 ? "row is" : "rows are"} measured on some tasks only`),
    ...model.missing.map((m) => make("p", {}, `${m.what}: `, make("code", {}, m.command)))));
  $("gaps").replaceChildren(...gaps);
  setUpLeaderboard();
  setUpFigure();
  setUpVersus();
  setUpEqual();
  setUpRequests();
  showFollowUps();
  setUpExplorer();
  showAnalysis();
}
