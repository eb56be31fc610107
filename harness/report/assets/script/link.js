// ------------------------------------------------------------------------------------- the page's state in its address
// "#section&name=value&…": methods, tasks, budgets and samples stand by their names, so that a link outlives a new cell.
// What differs from the page's own choice is written; the model is always, where there are several.
let address = null;  // the fragment last written or read
let settled = false;  // nothing is written before all that the address asks for is shown
let source = "";  // the control of the last entry: what one control changes in a row is one entry of the history

function readAddress() {
  address = location.hash;
  const [first, ...rest] = address.slice(1).split("&"), bare = !first.includes("=");
  const params = new URLSearchParams((bare ? rest : [first, ...rest]).join("&")), read = new Set(), lacking = [];
  const from = {
    section: "",
    get: (name) => { read.add(name); return params.get(name); },
    all: (name) => { read.add(name); return params.getAll(name); },
    lacks: (what, name) => { lacking.push([what, name]); },
    // place of the name in the list: undefined where the address does not say, and where the page lacks the name
    place: (name, names, what) => {
      const wanted = from.get(name);
      if (wanted === null) return undefined;
      const at = names.lastIndexOf(wanted);  // the page's own choice comes first, and a category may have its name
      if (at >= 0) return at;
      from.lacks(what, wanted);
      return undefined;
    },
    // the same for a choice of the page, by its text
    option: (name, select, what) => {
      const all = [...select.options], at = from.place(name, all.map((o) => o.text), what);
      return at === undefined ? undefined : all[at].value;
    },
    end: () => {
      for (const name of new Set(params.keys())) if (!read.has(name)) from.lacks("setting", name);
      showLacking(lacking);
    },
  };
  if (bare && first && first !== "main") {
    if (sections().some((s) => s.id === first)) from.section = first; else from.lacks("section", first);
  }
  return from;
}
function showLacking(lacking) {
  const cut = (text) => (text.length > 60 ? `${text.slice(0, 60)}…` : text), most = 6;
  $("link-note").hidden = !lacking.length;
  $("link-text").textContent = lacking.length ? `The link names what this page lacks: ${lacking.slice(0, most).map(([what, name]) => `${what} “${cut(name)}”`).join(", ")}`
    + `${lacking.length > most ? ` and ${lacking.length - most} more` : ""}. The page shows its own choice instead.` : "";
  measureTop();
}

const sortName = (id) => (id?.startsWith("set-") ? `task ${model.sets[Number(id.slice(4))].label}` : id);
const taskNames = () => model.sets.map((s) => s.label);
// selects whose choice is in the address: id -> name there and what the choice is called
const SELECTS = { "wr-budget": ["requests-budget", "budget"], "wr-questions": ["requests-questions", "number of questions"],
  "vs-study": ["versus-questions", "set of questions"], "vs-budget": ["versus-budget", "budget"], "vs-a": ["versus-a", "method"], "vs-b": ["versus-b", "method"],
  "eq-study": ["equal-questions", "set of questions"], "eq-at": ["equal", "cost"],
  "ag-pair": ["agreements", "pair of models"], "ag-budget": ["agreements-budget", "budget"], "ag-task": ["agreements-task", "task"] };
const linkedSelects = () => Object.entries(SELECTS).filter(([id]) => $(id));  // a page has no section of what was not measured
const choiceOf = (id) => $(id).selectedOptions[0]?.text ?? "";
const FILTERS = { category: ["ex-category", "category", "category"], right: ["ex-right", "answers", "filter of answers"], flip: ["ex-flip", "flipped", "method"],
  flipBudget: ["ex-flip-budget", "flip-budget", "budget"], flipWay: ["ex-flip-way", "flip-way", "way of a flip"] };

function fragment() {
  const params = new URLSearchParams(), lb = state.lb, ex = state.ex;
  const put = (name, value, own) => { if (value !== own && value !== null && value !== undefined) params.append(name, value); };
  if (META.models.length > 1) put("model", model.label);
  put("method", lb.search, "");
  if (lb.budget !== "") put("budget", model.budgets[Number(lb.budget)]);
  if (String([...lb.tasks]) !== String(shownSets())) for (const i of lb.tasks.size ? lb.tasks : [-1]) put("task", model.sets[i]?.label ?? "");
  if (columns().some((c) => c.id === lb.sort)) { put("sort", sortName(lb.sort)); put("order", lb.down ? "down" : "up"); }
  if (state.y !== state.own.y) put("y", state.y === "average" ? "average" : model.sets[Number(state.y)].label);
  put("x", state.x, state.own.x);
  for (const line of [...state.hidden].sort((a, b) => a - b)) put("hide", model.lines[line]);
  for (const name of ["intervals", "pareto"]) if (!$(`fig-${name}`).checked) put(name, "off");
  // a select offers what the ones before it in its section allow: with another choice of those, its own default is another
  let moved = "";
  for (const [id, [name]] of linkedSelects()) {
    const section = id.slice(0, 2), same = choiceOf(id) === $(id).dataset.own;
    if (same && section !== moved) continue;
    put(name, choiceOf(id));
    moved = section;
  }
  if (data && (ex.touched || here === "samples")) {
    put("set", model.sets[ex.set].label);
    for (const [key, [id, name]] of Object.entries(FILTERS)) if (ex[key] !== "") put(name, $(id).selectedOptions[0]?.text);
    put("question", ex.search, "");
    [0, 1].forEach((which) => {
      const cell = inPanel(which), letter = "ab"[which];
      put(letter, model.lines[cell.line]);
      if (!cell.unpruned) put(`${letter}-budget`, model.budgets[cell.budget]);
      if (cellsOf(cell.line, cell.budget, ex.set).length > 1) put(`${letter}-seed`, cell.seed);
    });
    if (ex.sample >= 0) { put("sample", data.samples[ex.sample].key); put("layer", ex.layer); }
    if (ex.whole) put("whole", "on");
  }
  const said = [here, params.toString()].filter(Boolean).join("&");
  return said ? `#${said}` : "";
}

const SAME = "same";  // no control: the entry is brought up to date
// `by`: the control that changed something; what the same control changes again replaces the entry
function remember(by) {
  if (!settled) return;
  const now = fragment();
  if (now === address || (!now && !address)) return;
  const again = by === SAME || (by !== "" && by === source);
  if (by !== SAME) source = by;
  address = now;
  try {
    history[again ? "replaceState" : "pushState"]({ prunebench: true }, "", now || location.pathname + location.search);
  } catch { /* a browser may forbid both in a frame; "Copy link" works all the same */ }
}

function readModel(from) {
  const at = from.place("model", META.models.map((m) => m.label), "model");
  return at ?? 0;
}
function readTables(from) {
  const lb = state.lb, sets = taskNames(), tasks = from.all("task");
  lb.search = from.get("method") ?? "";
  const budget = from.place("budget", model.budgets, "budget");
  if (budget !== undefined) lb.budget = String(budget);
  if (tasks.length) {
    const known = tasks.filter((t) => t === "" || offered().includes(sets.indexOf(t)));
    for (const t of tasks.filter((t) => !known.includes(t))) from.lacks("task", t);
    if (known.length) lb.tasks = new Set(known.filter(Boolean).map((t) => sets.indexOf(t)).sort((a, b) => a - b));
  }
  const ids = columns().filter((c) => !c.still).map((c) => c.id), sort = from.place("sort", ids.map(sortName), "column");
  const order = from.place("order", ["up", "down"], "order");
  if (sort !== undefined) Object.assign(lb, { sort: ids[sort], down: order !== 0 });
}
function readFigure(from) {
  const ys = [...$("fig-y").options].map((o) => o.value), xs = [...$("fig-x").options].map((o) => o.value);
  const y = from.place("y", ys.map((v) => (v === "average" ? v : model.sets[Number(v)].label)), "task");
  const x = from.place("x", xs, "cost");
  for (const name of from.all("hide")) {
    if (model.lines.includes(name)) state.hidden.add(model.lines.indexOf(name)); else from.lacks("method", name);
  }
  if (y !== undefined) state.y = ys[y];
  if (x !== undefined) state.x = xs[x];
  [$("fig-y").value, $("fig-x").value] = [state.y, state.x];
  for (const name of ["intervals", "pareto"]) $(`fig-${name}`).checked = from.place(name, ["off"], "choice") === undefined;
  for (const [line, button] of [...$("legend").children].entries()) button.setAttribute("aria-pressed", String(!state.hidden.has(line)));
  showFigure();
  for (const [id, [name, what]] of linkedSelects()) {
    const value = from.option(name, $(id), what);
    if (value === undefined) continue;
    $(id).value = value;
    $(id).dispatchEvent(new Event("change"));
  }
}
function readPanels(from) {
  const ex = state.ex, offers = offered(), set = from.place("set", offers.map((i) => model.sets[i].label), "task");
  if (set !== undefined) Object.assign(ex, { set: offers[set], touched: true });
  [0, 1].forEach((which) => {
    const letter = "ab"[which], p = ex.panels[which], own = model.cells.filter((c) => c.set === ex.set);
    const line = from.place(letter, model.lines, `method of panel ${"AB"[which]}`), budget = from.place(`${letter}-budget`, model.budgets, "budget"), seed = from.get(`${letter}-seed`);
    if (line === undefined && budget === undefined && seed === null) return;
    const wanted = { line: line ?? p.line, budget: budget ?? own.find((c) => c.line === (line ?? p.line))?.budget ?? p.budget };
    const of = own.filter((c) => c.line === wanted.line && c.budget === wanted.budget);
    if (!of.length) { from.lacks("setting", `${model.lines[wanted.line]} at ${model.budgets[wanted.budget]}`); return; }
    if (seed !== null && !of.some((c) => String(c.seed) === seed)) from.lacks("seed", seed);
    Object.assign(p, wanted, { seed: (of.find((c) => String(c.seed) === seed) ?? of[0]).seed });
    ex.touched = true;
  });
}
// the names that readSample reads, where the samples cannot be unpacked: the page says that for itself
function passSample(from) {
  for (const name of [...Object.values(FILTERS).map(([, name]) => name), "question", "sample", "layer", "whole"]) from.get(name);
}
// what only the samples themselves can tell
function readSample(from) {
  const ex = state.ex;
  for (const [key, [id, name, what]] of Object.entries(FILTERS)) {
    const value = from.option(name, $(id), what);
    if (value !== undefined) { ex[key] = value; $(id).value = value; ex.touched = true; }
  }
  ex.search = $("ex-search").value = from.get("question") ?? "";
  const sample = from.place("sample", data.samples.map((s) => s.key), "sample"), layer = from.get("layer"), depth = depthOf();
  ex.whole = from.place("whole", ["on"], "choice") !== undefined;
  if (sample !== undefined) {
    Object.assign(ex, { sample, pinned: true, touched: true });
    // a sample that the filters of the same link leave out is asked for by its name
    if (!passes(sample)) from.lacks("sample within these filters", data.samples[sample].key);
  }
  if (layer !== null) {
    if (/^\d{1,4}$/.test(layer) && Number(layer) < depth) Object.assign(ex, { layer: Number(layer), held: true, touched: true }); else from.lacks("layer", layer);
  }
}

async function followAddress(traversed) {
  settled = false;
  const from = readAddress();
  const shown = address;
  const whole = await chooseModel(readModel(from), from);
  if (shown !== address) return;  // another address was followed meanwhile
  if (META.models.length > 1) $("model").value = String(META.models.indexOf(model));
  if (whole) from.end();  // otherwise the reader has gone elsewhere before the samples were read
  // a browser that goes back or reloads has its own place on the page
  if (from.section && !(traversed && inView() === from.section)) goTo(from.section, true);
  settled = true;
  markSection();
  if (!whole) remember(SAME);
}
function setUpLink() {
  $("copy-link").addEventListener("click", () => copy(location.href.split("#")[0] + fragment(), "the link to this view"));
  $("link-close").addEventListener("click", () => { showLacking([]); $("copy-link").focus(); });
  const follow = (event) => { if (location.hash !== address) { source = ""; followAddress(Boolean(event.state)); } };
  addEventListener("popstate", follow);
  addEventListener("hashchange", follow);
  // whatever control was used: the page has drawn itself by then
  const later = (by) => setTimeout(() => remember(by), 0);
  addEventListener("change", (event) => later(event.target.type === "range" ? event.target.id : ""));
  addEventListener("click", () => later(""));
  addEventListener("input", (event) => { if (event.target.type === "search" || event.target.type === "range") later(event.target.id); });
  addEventListener("keyup", (event) => { if (event.target.id === "ex-list") later("ex-list"); });
}
