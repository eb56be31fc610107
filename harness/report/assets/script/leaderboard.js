// -------------------------------------------------------------------------------------------------------- leaderboard
function lines() {
  const rows = [];
  const sets = [...state.lb.tasks];
  model.budgets.forEach((_, budget) => model.lines.forEach((_, line) => {
    const of = new Map(sets.map((s) => [s, cellsOf(line, budget, s)]).filter(([, cells]) => cells.length));
    if (!of.size) return;
    const over = (name) => mean([...of.values()].map((cells) => mean(cells.map((c) => c[name]))));
    // a share of errors is no share of what is kept: tasks where lower is better are in no average
    const averaged = [...of].filter(([s]) => !model.sets[s].lower).map(([, cells]) => mean(cells.map((c) => c.pct)));
    const seeds = uniq([...of.values()].map((c) => c.length)).sort((a, b) => a - b);
    rows.push({
      line, budget, of, seeds, unpruned: isNone(line), average: of.size === sets.length && averaged.length ? mean(averaged) : null,
      kept: over("kept"), mean_visual: over("mean_visual"), gflops: over("gflops"), pct_flops: over("pct_flops"), kv_mib: over("kv_mib"),
      measured: namesOf(of, "measured"), reproduced: namesOf(of, "reproduced"),
      commands: [...of.values()].flat().map((c) => c.command),
    });
  }));
  return rows;
}
// who measured a line's cells, or measured them again with equal answers: only of collected submissions
function namesOf(of, what) {
  return uniq([...of.values()].flat().flatMap((c) => c[what] ?? [])).sort().join(", ");
}
function nameOf(row) {
  const least = row.seeds[0], most = row.seeds.at(-1);
  return model.lines[row.line] + (most === 1 ? "" : ` (${least === most ? "" : `${least} to `}${most} seeds)`);
}

function columns() {
  const found = [
    { id: "method", head: "Method", value: (r) => nameOf(r).toLowerCase(), text: nameOf },
    { id: "budget", head: "Budget", value: (r) => r.budget, text: (r) => model.budgets[r.budget] },
  ];
  for (const i of state.lb.tasks) {
    const set = model.sets[i];
    found.push({ id: `set-${i}`, head: set.label, unit: `${set.metric.replaceAll("_", " ")}, ${unitOf(set)}, n=${set.scored}`, best: true, num: true, set: i, lower: set.lower,
      value: (r) => (r.of.has(i) ? mean(r.of.get(i).map((c) => c.score)) : null),
      text: (r) => one(r.of.has(i) ? inUnit(set, mean(r.of.get(i).map((c) => c.score))) : null),
      more: (r) => {
        const cells = r.of.get(i) ?? [];
        if (cells.length > 1) return `±${one(inUnit(set, spread(cells.map((c) => c.score))))} sd`;
        return cells.length && cells[0].low !== null ? `[${one(inUnit(set, cells[0].low))}, ${one(inUnit(set, cells[0].high))}]` : "";
      },
      marks: (r) => marksAt(r.line, r.budget, i) });
  }
  const number = (id, head, unit, show, best = false) => found.push({ id, head, unit, num: true, best, value: (r) => r[id], text: (r) => show(r[id]) });
  number("average", "Average", "% of unpruned score", one, true);
  const known = (r) => averaged(r.line, r.budget, [...state.lb.tasks]);
  Object.assign(found.at(-1), {
    more: (r) => { const at = known(r); return at ? span(at.low, at.high) : ""; },
    marks: (r) => known(r)?.marks[AVERAGE] ?? "",
  });
  number("kept", "Kept", "tokens", one);
  number("mean_visual", "Mean visual", "tokens/layer", one);
  number("gflops", "Prefill", "GFLOPs", significant);
  number("pct_flops", "Prefill", "% of unpruned FLOPs", one);
  number("kv_mib", "KV cache", "MiB", significant);
  for (const [id, head] of model.cells.some((c) => c.measured) ? [["measured", "Measured by"], ["reproduced", "Reproduced by"]] : []) {
    found.push({ id, head, value: (r) => r[id].toLowerCase(), text: (r) => r[id] || DASH });
  }
  found.push({ id: "command", head: "Command", still: true });
  return found;
}

let leaderboardShown = { rows: [], cols: [] };  // as they are on the page now
const opened = new Set();  // rows whose commands are shown
function setUpLeaderboard() {
  opened.clear();
  $("lb-search").value = state.lb.search;
  $("lb-marks").hidden = !model.studies.some((study) => study.rows.some((row) => Object.keys(row[5]).length));
  $("lb-tasks").replaceChildren(...offered().map((i) => {
    const box = make("input", { type: "checkbox", checked: state.lb.tasks.has(i), onchange: () => {
      if (box.checked) state.lb.tasks.add(i); else state.lb.tasks.delete(i);
      state.lb.tasks = new Set([...state.lb.tasks].sort((a, b) => a - b));
      showLeaderboard();
    } });
    return make("label", {}, box, model.sets[i].label);
  }));
  showLeaderboard();
}

// the button of a row's last column; the commands stand in rows of their own below it
function commandsButton(row) {
  const key = `${row.line}@${row.budget}`, on = opened.has(key), many = row.commands.length > 1 ? "commands" : "command";
  return make("button", { type: "button", class: "small", "data-commands": key, "aria-expanded": String(on),
    "aria-label": `${on ? "hide" : "show"} the ${many} of ${nameOf(row)} at ${model.budgets[row.budget]}`, onclick: () => {
      if (on) opened.delete(key); else opened.add(key);
      showLeaderboard(`[data-commands="${key}"]`);
    } }, on ? "hide" : "show");
}
function commandRows(row, width) {
  if (!opened.has(`${row.line}@${row.budget}`)) return [];
  return [...row.of].flatMap(([set, cells]) => cells.map((cell) => {
    const what = `${model.lines[row.line]} at ${model.budgets[row.budget]} on ${model.sets[set].label}${cells.length > 1 ? `, seed ${cell.seed}` : ""}`;
    return make("tr", { class: "commands" }, make("td", { colspan: width }, cell.command ? command(cell.command, `the command of ${what}`) : `The command of ${what} was not recorded.`));
  }));
}

function showLeaderboard(focus) {
  const wanted = state.lb.search.trim().toLowerCase();
  const all = lines();
  // budgets without a row are not offered
  const budgets = uniq(all.map((r) => r.budget)).sort((a, b) => a - b);
  if (!budgets.includes(Number(state.lb.budget))) state.lb.budget = "";
  options($("lb-budget"), [["", "all"], ...budgets.map((b) => [b, model.budgets[b]])], state.lb.budget);
  let rows = all.filter((r) => (state.lb.budget === "" || r.budget === Number(state.lb.budget)) && nameOf(r).toLowerCase().includes(wanted));
  const cols = columns();
  const sorted = cols.find((c) => c.id === state.lb.sort);
  if (sorted) {
    const sign = state.lb.down ? -1 : 1;
    rows = rows.map((r) => [sorted.value(r), r]).sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);  // what is missing comes last either way
      return a < b ? -sign : a > b ? sign : 0;
    }).map(([, r]) => r);
  } else rows.sort((a, b) => a.budget - b.budget);
  const best = new Map();
  for (const col of cols.filter((c) => c.best)) for (const budget of uniq(rows.map((r) => r.budget))) {
    const printed = rows.filter((r) => r.budget === budget && !r.unpruned).map((r) => col.text(r)).filter((t) => t !== DASH);
    if (printed.length > 1) best.set(`${col.id} ${budget}`, (col.lower ? Math.min : Math.max)(...printed.map(Number)).toFixed(1));
  }
  const head = make("tr", {}, ...cols.map((col) => {
    if (col.still) return make("th", { scope: "col" }, make("span", { class: "muted" }, col.head));
    const on = state.lb.sort === col.id;
    return make("th", { scope: "col", class: col.num ? "num" : null, "aria-sort": on ? (state.lb.down ? "descending" : "ascending") : "none" },
      make("button", { type: "button", "data-sort": col.id, onclick: () => {
        state.lb.down = on ? !state.lb.down : Boolean(col.num);
        state.lb.sort = col.id;
        showLeaderboard(`[data-sort="${col.id}"]`);
      } }, col.head, on ? make("span", { class: "arrow", "aria-hidden": "true" }, state.lb.down ? " ↓" : " ↑") : null,
      col.unit ? make("span", { class: "unit" }, col.unit) : null));
  }));
  let before = rows.length ? rows[0].budget : 0;
  const body = rows.flatMap((row) => {
    const changed = !sorted && row.budget !== before;
    before = row.budget;
    const cells = cols.map((col) => {
      if (col.id === "method") return make("th", { scope: "row" }, swatch(row.line), col.text(row));
      if (col.still) return make("td", {}, commandsButton(row));
      const text = col.text(row), more = col.more ? col.more(row) : "";
      const top = !row.unpruned && best.get(`${col.id} ${row.budget}`) === text;
      return make("td", { class: col.num ? "num" : null }, top ? make("strong", {}, text) : text, markSpan(col.marks ? col.marks(row) : ""), more ? make("span", { class: "spread" }, more) : null);
    });
    return [make("tr", { class: changed ? "new-budget" : null }, ...cells), ...commandRows(row, cols.length)];
  });
  $("lb").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  $("lb-count").textContent = rows.length ? `${rows.length} of ${all.length} rows` : "No row fits these filters.";
  leaderboardShown = { rows, cols };
  oneStop($("lb"), focus);
  padLeaderboard();
  if (focus) $("lb").querySelector(focus)?.focus({ preventScroll: true });
}
// what has the focus comes out from below the row and the column that stay in sight
function padLeaderboard() {
  const corner = $("lb").tHead?.rows[0].cells[0];
  if (corner) $("lb-scroll").style.scrollPadding = `${corner.offsetHeight + 4}px 4px 4px ${corner.offsetWidth + 4}px`;
}
