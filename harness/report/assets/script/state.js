// -------------------------------------------------------------------------------------------------------------- state
let model = META.models[0];
const state = {};
const cellsOf = (line, budget, set) => model.cells.filter((c) => c.line === line && c.budget === budget && c.set === set);

// The sets of questions that the page offers: a set that only the unpruned model answered, as an analysis asks it, compares
// nothing. Where no other was measured, each task's main set.
function offered() {
  if (!model.offered) {
    const all = model.sets.map((_, i) => i), pruned = new Set(model.cells.filter((c) => !c.unpruned).map((c) => c.set));
    model.offered = pruned.size ? all.filter((i) => pruned.has(i)) : all.filter((i) => model.sets[i].primary);
  }
  return model.offered;
}
// those that the leaderboard shows, and averages, unless the reader chooses others
const shownSets = () => offered().filter((i) => model.sets[i].primary);

// `from`: what the page's address asks for (link.js), or null for the page's own choice. Resolves when the samples are
// there, to whether they are still the wanted ones.
async function chooseModel(index, from = null) {
  model = META.models[index];
  model.cells.forEach((cell, i) => { cell.index = i; });
  const shown = shownSets();
  Object.assign(state, { lb: { tasks: new Set(shown), budget: "", search: "", sort: null, down: true }, hidden: new Set(), y: "", x: "pct_flops" });
  const budgets = model.budgets.map((_, i) => i);
  const pruned = uniq(model.cells.filter((c) => !c.unpruned).map((c) => c.line));
  const prefer = (names) => names.map((n) => pruned.find((l) => model.lines[l].split(" ")[0] === n)).find((l) => l !== undefined);
  const first = prefer(["visipruner"]) ?? pruned[0] ?? 0;
  const others = pruned.filter((l) => l !== first);
  const second = prefer(["fastv", "sparsevlm", "random"].filter((n) => !model.lines[first].startsWith(n))) ?? others[0] ?? first;
  const middle = budgets.find((b) => model.budgets[b] === "64") ?? budgets[Math.floor(budgets.length / 2)];
  const withSamples = shown.find((i) => model.sets[i].shown) ?? offered().find((i) => model.sets[i].shown) ?? offered()[0] ?? 0;
  // pinned: the reader chose the sample; held: the reader chose the layer; touched: the reader chose anything here
  state.ex = { set: withSamples, sample: 0, layer: 0, pinned: false, held: false, touched: false, whole: false,
    category: "", right: "", flip: "", flipBudget: "", flipWay: "", search: "",
    panels: [{ line: first, budget: middle, seed: 0 }, { line: second, budget: middle, seed: 0 }] };
  $("title").textContent = `Visual-token pruning on ${model.model}`;
  const facts = Object.entries(model.facts).map(([name, value]) => `${name} ${value}`).join(", ");
  const n = uniq(pruned.map((line) => look(line).method)).length, many = model.cells.length;
  $("lead").replaceChildren(
    `${many} measured ${many === 1 ? "cell" : "cells"}: ${n ? `${n} ${n === 1 ? "method" : "methods"}` : "the unpruned model"} on `,
    (shown.length ? shown : offered()).map((i) => model.sets[i]).map((s) => `${s.label} (${s.n} questions on ${s.images} images)`).join(", "), ". ",
    make("span", { class: "muted" }, facts));
  const gaps = [];
  const bare = model.sets.filter((s) => s.make_baseline);
  if (bare.length) gaps.push(make("div", { class: "gap" }, make("p", {}, "No unpruned cell to compare with, so no percentage of unpruned and no flips:"),
    ...bare.map((s) => make("div", {}, make("p", {}, `${s.label}:`), command(s.make_baseline, `the command of the unpruned cell of ${s.label}`)))));
  const rows = model.missing.length;
  if (rows) gaps.push(make("details", { class: "gap" }, make("summary", {}, `${rows} ${rows === 1 ? "row is" : "rows are"} measured on some tasks only`),
    ...model.missing.map((m) => make("div", {}, make("p", {}, `${m.what}:`), command(m.command, `the command of ${m.what}`)))));
  $("gaps").replaceChildren(...gaps);
  if (from) readTables(from);
  setUpLeaderboard();
  setUpFigure();
  setUpVersus();
  setUpEqual();
  if (from) setUpAgreements();
  state.own = { y: state.y, x: state.x };
  setUpRequests();
  // the choice of several models is no model's own: it stays with another model
  for (const [id] of linkedSelects()) if (from || !id.startsWith("ag-")) $(id).dataset.own = choiceOf(id);
  if (from) readFigure(from);
  oneStop($("legend"));
  showFollowUps();
  showAnalysis();
  markSection();
  if (from) readPanels(from);
  return setUpExplorer(from);
}
