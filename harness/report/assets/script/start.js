// ------------------------------------------------------------------------------------------------------------- wiring
$("foot").textContent = `Made by prunebench ${META.version} from sealed cells; every number can be measured again with the command of its row.`;
if (META.models.length > 1) {
  $("model-choice").hidden = false;
  options($("model"), META.models.map((m, i) => [i, m.label]), 0);
  $("model").addEventListener("change", () => chooseModel(Number($("model").value)));
}
$("lb-search").addEventListener("input", () => { state.lb.search = $("lb-search").value; showLeaderboard(); });
$("lb-budget").addEventListener("change", () => { state.lb.budget = $("lb-budget").value; showLeaderboard(); });
for (const id of ["wr-budget", "wr-questions"]) $(id).addEventListener("change", showRequests);
$("fig-y").addEventListener("change", () => { state.y = $("fig-y").value; showFigure(); });
$("fig-x").addEventListener("change", () => { state.x = $("fig-x").value; showFigure(); });
for (const id of ["fig-intervals", "fig-pareto"]) $(id).addEventListener("change", () => showFigure());
$("ex-task").addEventListener("change", () => { state.ex.set = Number($("ex-task").value); setUpExplorer(); });
const filters = { "ex-category": "category", "ex-right": "right", "ex-flip": "flip", "ex-flip-budget": "flipBudget", "ex-flip-way": "flipWay" };
for (const [id, name] of Object.entries(filters)) $(id).addEventListener("change", () => {
  state.ex[name] = $(id).value;
  if ((name === "flipBudget" || name === "flipWay") && state.ex[name] && !state.ex.flip) { state.ex.flip = "any"; $("ex-flip").value = "any"; }
  showExplorer();
});
$("ex-search").addEventListener("input", () => { state.ex.search = $("ex-search").value; showExplorer(); });
$("ex-list").addEventListener("click", (event) => {
  const li = event.target.closest("li[data-i]");
  if (li) select(Number(li.dataset.i));
});
$("ex-list").addEventListener("keydown", (event) => {
  const at = view.indexOf(state.ex.sample), last = view.length - 1;
  const moves = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last, PageDown: Math.min(at + 10, last), PageUp: Math.max(at - 10, 0) };
  const to = moves[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  select(view[to], true);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (data && state.ex.sample >= 0) paint(); });
for (const kind of ["change", "input", "click"]) $("samples").addEventListener(kind, () => { state.ex.touched = true; });
$("lb-csv").addEventListener("click", saveLeaderboard);
$("fig-png").addEventListener("click", saveFigure);
grid($("lb"));
new ResizeObserver(padLeaderboard).observe($("lb-scroll"));
toolbar($("legend"));
setUpHeader();
setUpLink();
followAddress(false);
let width = Math.round($("plot").clientWidth);
new ResizeObserver(([entry]) => {
  if (Math.round(entry.contentRect.width) !== width) { width = Math.round(entry.contentRect.width); showFigure(); }
}).observe($("plot"));
addEventListener("scroll", placeTip, { passive: true });
document.documentElement.dataset.ready = String(performance.now());
