// ------------------------------------------------------------------------------------------------------ several models
const pairOfModels = () => META.agreements[Number($("ag-pair").value)];
const two = (value) => (value === null ? DASH : value.toFixed(2).replace("-0.00", "0.00"));
const taskText = (pair, task) => (task === pair.average ? "Avg %" : task === pair.all ? "mean over tasks" : task);

for (const node of document.querySelectorAll("#agreements, [href='#agreements']")) node.hidden = !META.agreements.length;
function setUpAgreements() {
  if (!META.agreements.length) return;
  $("ag-pair").parentElement.hidden = META.agreements.length < 2;
  options($("ag-pair"), META.agreements.map((pair, i) => [i, pair.models.join(" and ")]), 0);
  chooseAgreement();
}
const MOVES = "Draws with the same move: so many draws of the images move the rank the same way from the first model to the second. A – stands for equal ranks.";
function chooseAgreement() {
  const pair = pairOfModels(), tasks = uniq(pair.ranked.map((r) => r.task));
  options($("ag-budget"), pair.budgets.map((b, i) => [i, b.label]), Math.floor(pair.budgets.length / 2));
  options($("ag-task"), tasks.map((task) => [task, taskText(pair, task)]), tasks.at(-1));
  showAgreement();
}
function showAgreement() {
  const pair = pairOfModels(), budget = Number($("ag-budget").value), task = $("ag-task").value;
  const ranked = pair.ranked.find((r) => r.budget === budget && r.task === task), [first, second] = pair.models;
  const share = (b) => pair.budgets[b].shares.map((v) => `${one(v)} %`).join(" and ");
  const methods = [...ranked.methods].sort((a, b) => a.ranks[0] - b.ranks[0]);
  const scores = `Scores in % of each model's own unpruned score: ${taskText(pair, task)} at ${pair.budgets[budget].label}, which keep ${share(budget)} of the visual tokens`;
  const num = (text) => make("td", { class: "num" }, text);
  const head = (...texts) => make("thead", {}, make("tr", {}, ...texts.map((text, i) => make("th", { scope: "col", class: i ? "num" : null }, text))));
  const [tau, low, high] = ranked.tau, [opposite, steady] = ranked.opposite, n = methods.length;
  const moved = (m) => (m.stays === null ? DASH : `${Math.round(100 * m.stays)}%${m.beyond ? "*" : ""}`);
  const taus = "Do the rankings agree? Every task and pair of budgets";
  const rows = pair.ranked.map((r) => make("tr", {}, make("th", { scope: "row" }, `${pair.budgets[r.budget].label}, ${taskText(pair, r.task)}`), num(share(r.budget)), num(r.methods.length),
    num(`${two(r.tau[0])} ${span(r.tau[1], r.tau[2], two)}`), ...r.itself.map((v) => num(two(v))), num(`${r.opposite[0]} (${r.opposite[1]})`)));
  const means = pair.means.map(([name, t, l, h]) => make("tr", {}, make("th", { scope: "row" }, `all, ${taskText(pair, name)}`), num(""), num(""), num(`${two(t)} ${span(l, h, two)}`), num(""), num(""), num("")));
  $("ag-body").replaceChildren(
    scrolling(scores, make("table", { id: "ag-scores" }, caption(scores), head("method", first, "rank", second, "rank", "draws with the same move"),
      make("tbody", {}, ...methods.map((m) => make("tr", {}, make("th", { scope: "row" }, m.name), num(one(m.percents[0])), num(m.ranks[0]), num(one(m.percents[1])), num(m.ranks[1]), num(moved(m))))))),
    make("p", { id: "ag-said" }, `Kendall's tau-b of the two rankings is ${two(tau)} ${span(low, high, two)}; `
      + `${first} agrees with itself at ${two(ranked.itself[0])}, and ${second} at ${two(ranked.itself[1])}. `
      + `${opposite} of ${(n * (n - 1)) / 2} pairs of methods are in opposite order, ${steady} of them steadily.`),
    scrolling(taus, make("table", { id: "ag-taus" }, caption(taus), head("budgets, task", "kept", "methods", "tau [95 % interval]", `${first} with itself`, `${second} with itself`, "opposite pairs (steady)"),
      make("tbody", {}, ...rows, ...means))),
    make("details", { class: "notes" }, make("summary", {}, "How to read these tables, and what is left out"),
      make("ul", {}, ...[pair.rules.tau, MOVES, pair.rules.places, pair.rules.opposite, ...pair.notes, ...pair.left].map((text) => make("li", {}, text)))));
}
$("ag-pair").addEventListener("change", chooseAgreement);
for (const id of ["ag-budget", "ag-task"]) $(id).addEventListener("change", showAgreement);
