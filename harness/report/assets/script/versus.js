// ----------------------------------------------------------------------------------------------- method against method
const pairedStudies = () => model.studies.map((study, i) => [study, i]).filter(([study]) => study.budgets.length);

function setUpVersus() {
  const there = pairedStudies();
  for (const id of ["vs-controls", "vs-notes"]) $(id).hidden = !there.length;
  for (const id of ["vs-study", "vs-budget", "vs-a", "vs-b"]) options($(id), [], "");  // nothing of what was shown before
  if (!there.length) {
    $("vs-body").replaceChildren(make("p", { class: "muted" }, "Two methods at one budget are needed to compare them; no budget here has two."));
    return;
  }
  $("vs-study").parentElement.hidden = there.length < 2;
  options($("vs-study"), there.map(([study, i]) => [i, study.title]), there[0][1]);
  chooseVersusStudy();
}
const versusStudy = () => model.studies[Number($("vs-study").value)];
function chooseVersusStudy() {
  const { budgets } = versusStudy();
  const usual = budgets.find(([b]) => model.budgets[b] === "64") ?? budgets.reduce((most, one) => (one[1].length > most[1].length ? one : most));
  options($("vs-budget"), budgets.map(([b]) => [b, model.budgets[b]]), usual[0]);
  chooseVersusBudget();
}
function chooseVersusBudget() {
  const [, lines] = versusStudy().budgets.find(([b]) => b === Number($("vs-budget").value));
  const sorted = [...lines].sort((a, b) => a - b), wanted = state.ex.panels.map((p) => p.line);
  const before = ["vs-a", "vs-b"].map((id, i) => ($(id).value !== "" ? Number($(id).value) : wanted[i]));
  const first = sorted.includes(before[0]) ? before[0] : sorted[0];
  const second = sorted.includes(before[1]) && before[1] !== first ? before[1] : sorted.find((line) => line !== first);
  [first, second].forEach((line, i) => options($(["vs-a", "vs-b"][i]), sorted.map((l) => [l, model.lines[l]]), line));
  showVersus();
}
function swapVersus() {
  const a = $("vs-a").value;
  $("vs-a").value = $("vs-b").value;
  $("vs-b").value = a;
  showVersus();
}

// the comparison of two lines of a block at its task number `t`, seen from the first; null where there is none
function comparisonOf(data, block, a, b, t) {
  const [i, j] = [block.lines.indexOf(a), block.lines.indexOf(b)], [low, high] = [Math.min(i, j), Math.max(i, j)];
  const pair = low * block.lines.length - (low * (low + 1)) / 2 + high - low - 1;
  const found = Object.fromEntries(data.columns.map((name) => [name, block.columns[name][pair * block.tasks.length + t]]));
  if (found.difference === null) return null;
  found.verdict = data.verdicts[found.verdict];
  if (i < j) return found;
  const minus = (v) => (v === null ? null : -v);
  const turned = { above: "below", below: "above" };
  return { ...found, difference: minus(found.difference), low: minus(found.high), high: minus(found.low), better: found.worse, worse: found.better,
    verdict: turned[found.verdict] ?? found.verdict };
}
const VERDICT_WORDS = { above: "A better", below: "A worse", indistinguishable: "not told apart" };
const pText = (p) => (p === null ? DASH : p < 1e-4 ? "<0.0001" : p.toFixed(4));
const countText = (n) => (n === null ? DASH : Number.isInteger(n) ? String(n) : n.toFixed(1));

async function showVersus() {
  const study = versusStudy(), studyIndex = Number($("vs-study").value), budget = Number($("vs-budget").value);
  const a = Number($("vs-a").value), b = Number($("vs-b").value), body = $("vs-body"), shown = model;
  const key = [model.label, studyIndex, budget, a, b].join();
  body.dataset.wanted = key;
  if (a === b) {
    body.replaceChildren(make("p", { class: "muted" }, "A and B are the same line: choose two."));
    return;
  }
  let data;
  try { data = await chunk(study.chunk); } catch (error) {
    body.replaceChildren(make("p", { class: "muted" }, `The comparisons could not be unpacked (${error.message}): use a browser from 2023 or later.`));
    return;
  }
  if (body.dataset.wanted !== key || model !== shown) return;  // another pair was chosen meanwhile
  const block = data.blocks.find((one) => one.budget === budget);
  const names = [a, b].map((line) => model.lines[line]);
  if (!block.tasks.length) {
    body.replaceChildren(make("p", { class: "muted" }, `${block.lines.length} lines have this budget, and pairs are made of at most ${study.most}: `
      + "`prunebench compare` compares any two."), versusCosts(study, budget, a, b));
    return;
  }
  const rows = block.tasks.flatMap((set, t) => {
    if (set !== AVERAGE && !offered().includes(set)) return [];  // only the unpruned model answered it
    const c = comparisonOf(data, block, a, b, t), average = set === AVERAGE;
    const scores = [a, b].map((line) => (average ? one(rowOf(studyIndex, line, budget)?.average ?? null)
      : one(inUnit(model.sets[set], mean(cellsOf(line, budget, set).map((cell) => cell.score))))));
    const name = average ? "Avg %" : model.sets[set].label;
    const task = make("th", { scope: "row" }, name, make("span", { class: "spread" }, average ? "% of unpruned score" : unitOf(model.sets[set])));
    const cell = (text, more) => make("td", { class: "num" }, text, more ? make("span", { class: "spread" }, more) : null);
    if (!c) return make("tr", {}, task, cell(DASH), cell(scores[0]), cell(scores[1]), cell(DASH), cell(DASH), cell(DASH), cell(DASH), make("td", {}, "not compared"), make("td", {}));
    return make("tr", { "data-set": set }, task, cell(c.n.toLocaleString("en"), `${c.images.toLocaleString("en")} images`), cell(scores[0]), cell(scores[1]),
      cell(signed(c.difference), span(c.low, c.high, signed)), cell(average ? DASH : `${countText(c.better)} : ${countText(c.worse)}`), cell(pText(c.p)), cell(pText(c.p_holm)),
      make("td", { class: c.verdict === "above" ? "ok" : c.verdict === "below" ? "no" : null }, VERDICT_WORDS[c.verdict] ?? c.verdict),
      make("td", {}, average || !model.sets[set].shown ? "" : make("button", { type: "button", "aria-label": `Show the samples of ${name} on which A and B differ`,
        onclick: () => { openFlips(set, budget, a, b); } }, "show")));
  });
  const heads = ["task", "questions", "A", "B", "A ahead by", "better A : B", "p", "p (Holm)", "verdict", "flips"];
  const title = `A, ${names[0]}, against B, ${names[1]}, at budget ${model.budgets[budget]}`;
  body.replaceChildren(scrolling(title, make("table", { id: "vs-table" }, caption(title),
    make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", { scope: "col", class: i && i < 8 ? "num" : null }, head)))),
    make("tbody", {}, ...rows))), noAverage(study), versusCosts(study, budget, a, b));
}
function versusCosts(study, budget, a, b) {
  const over = (line, name) => mean(study.sets.map((set) => cellsOf(line, budget, set)).filter((cells) => cells.length).map((cells) => mean(cells.map((c) => c[name]))));
  const columns = [["kept tokens", "kept", one], ["visual tokens per layer", "mean_visual", one], ["prefill GFLOPs", "gflops", significant],
    ["% of unpruned prefill FLOPs", "pct_flops", one], ["KV cache, MiB", "kv_mib", significant]];
  return scrolling("Costs of A and B", make("table", { id: "vs-costs" }, caption("Costs, means over the tasks"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "line"), ...columns.map(([head]) => make("th", { scope: "col", class: "num" }, head)))),
    make("tbody", {}, ...[a, b].map((line, i) => make("tr", {}, make("th", { scope: "row" }, `${"AB"[i]} `, swatch(line), model.lines[line]),
      ...columns.map(([, name, show]) => make("td", { class: "num" }, show(over(line, name)))))))));
}
// the explorer with the two lines in its panels, and only the samples that one of them answers right
async function openFlips(set, budget, a, b) {
  state.ex.set = set;
  state.ex.panels = [a, b].map((line) => ({ line, budget, seed: cellsOf(line, budget, set)[0].seed }));
  state.ex.touched = true;
  await setUpExplorer();
  $("ex-right").value = "differ";
  $("ex-right").dispatchEvent(new Event("change", { bubbles: true }));
  goTo("samples");
  $("ex-list").focus({ preventScroll: true });
}
$("vs-study").addEventListener("change", chooseVersusStudy);
$("vs-budget").addEventListener("change", chooseVersusBudget);
for (const id of ["vs-a", "vs-b"]) $(id).addEventListener("change", showVersus);
$("vs-swap").addEventListener("click", swapVersus);
