// ----------------------------------------------------------------------------------------------------------- explorer
const chunks = new Map();
function chunk(index) {
  if (!chunks.has(index)) chunks.set(index, (async () => {
    const bytes = Uint8Array.from(atob($(`chunk-${index}`).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return unpacked(JSON.parse(await new Response(stream).text()));
  })());
  return chunks.get(index);
}
const pictures = new Map();
function picture(index) {
  if (!pictures.has(index)) pictures.set(index, new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("the image does not decode"));
    image.src = `data:${META.images};base64,${$(`image-${index}`).textContent}`;
  }));
  return pictures.get(index);
}
// "0:0:*;5:0:AAAB": from a layer on, the merged tokens added and the bits of the prompt's visual tokens (harness/core/keeps.py)
function stages(text, n) {
  return text ? text.split(";").map((part) => {
    const [layer, added, mask] = part.split(":");
    let bits;
    if (mask === "*") bits = new Uint8Array(n).fill(1);
    else {
      const packed = atob(mask);
      bits = Uint8Array.from({ length: n }, (_, i) => (packed.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
    }
    return { layer: Number(layer), added: Number(added), mask, bits, count: bits.reduce((a, b) => a + b, 0) };
  }).filter((s, i, all) => !i || s.added !== all[i - 1].added || s.mask !== all[i - 1].mask) : [];
}
const stageAt = (found, layer) => found.filter((s) => s.layer <= layer).at(-1);

let data = null;  // the samples of the set in view
let view = [];  // indices of the samples that pass the filters
const own = (cell) => data.cells[cell.index - data.first_cell];
// tokens and grid of sample i as the cell's model saw it: a method may have shrunk the picture
const seenBy = (cell, i) => own(cell).seen?.[i] ?? data.samples[i];
// a metric of all answers together gives no sample a score of its own: then none is right, and none wrong
const scored = (cell, i) => own(cell).score[i] !== null;
const right = (cell, i) => scored(cell, i) && own(cell).score[i] >= META.right;
const wrong = (cell, i) => scored(cell, i) && !right(cell, i);
const scoredAtAll = () => !data.samples.length || data.cells.some((c) => c.score.some((s) => s !== null));
const apart = (a, b, i) => scored(a, i) && scored(b, i) && right(a, i) !== right(b, i);
const baseline = () => model.cells.find((c) => c.set === state.ex.set && c.unpruned);
function flip(cell, i) {
  const base = baseline();
  if (!base || cell === base || !apart(cell, base, i)) return "";
  return right(cell, i) ? "gained" : "lost";
}
const FLIPS = { lost: "right → wrong", gained: "wrong → right" };
function inPanel(which) {
  const p = state.ex.panels[which];
  const cells = cellsOf(p.line, p.budget, state.ex.set);
  return cells.find((c) => c.seed === p.seed) ?? cells[0];
}

// `from`: what the page's address asks for (link.js), or null
async function setUpExplorer(from = null) {
  const set = model.sets[state.ex.set], wanted = set;
  data = null;  // of another set: nothing is drawn before the wanted samples are there
  options($("ex-task"), offered().map((i) => [i, `${model.sets[i].label} (${model.sets[i].shown ? `${model.sets[i].shown} of ${model.sets[i].n}` : "none in this report"})`]), state.ex.set);
  let found;
  try { found = await chunk(set.chunk); } catch (error) {
    $("ex-count").textContent = `The samples could not be unpacked (${error.message}): this browser lacks DecompressionStream; use one from 2023 or later.`;
    if (from) passSample(from);
    return model.sets[state.ex.set] === wanted;
  }
  if (model.sets[state.ex.set] !== wanted) return false;  // another task was chosen meanwhile
  data = found;
  Object.assign(state.ex, { sample: 0, pinned: false, held: false, category: "", right: "", flip: "", flipBudget: "", flipWay: "", search: "" });
  $("ex-search").value = "";
  // a panel whose method was not measured on this task shows the first that was
  const here = model.cells.filter((c) => c.set === state.ex.set);
  state.ex.panels.forEach((p, i) => {
    if (here.some((c) => c.line === p.line && c.budget === p.budget)) return;
    const other = here.find((c) => c.line === p.line) ?? here.filter((c) => !c.unpruned)[i] ?? here[0];
    Object.assign(p, { line: other.line, budget: other.budget, seed: other.seed });
  });
  const categories = uniq(data.samples.map((s) => s.category)).sort();
  options($("ex-category"), [["", "all"], ...categories.map((c, i) => [i, c || "(none)"])], "");
  $("ex-category").disabled = categories.length < 2;
  const judged = scoredAtAll();
  options($("ex-right"), [["", "all"], ...(judged ? [["base-right", "unpruned right"], ["base-wrong", "unpruned wrong"], ["a-right", "A right"], ["a-wrong", "A wrong"],
    ["b-right", "B right"], ["b-wrong", "B wrong"], ["differ", "A and B differ"]] : [])], "");
  const hereLines = uniq(here.filter((c) => !c.unpruned).map((c) => c.line)).sort((a, b) => a - b);
  const hereBudgets = uniq(here.filter((c) => !c.unpruned).map((c) => c.budget)).sort((a, b) => a - b);
  options($("ex-flip"), [["", "(not filtered)"], ...(judged ? [["any", "any method"], ...hereLines.map((l) => [l, model.lines[l]])] : [])], "");
  options($("ex-flip-budget"), [["", "any"], ...hereBudgets.map((b) => [b, model.budgets[b]])], "");
  options($("ex-flip-way"), [["", "either way"], ["lost", FLIPS.lost], ["gained", FLIPS.gained]], "");
  for (const id of ["ex-flip", "ex-flip-budget", "ex-flip-way"]) $(id).disabled = !baseline();
  if (from) readSample(from);
  showExplorer();
  remember(SAME);
  return true;
}
// budgets that the chosen method was not measured at are not offered
function offerFlipBudgets() {
  const flips = model.cells.filter((c) => c.set === state.ex.set && !c.unpruned && (["", "any"].includes(state.ex.flip) || c.line === Number(state.ex.flip)));
  const budgets = uniq(flips.map((c) => c.budget)).sort((a, b) => a - b);
  if (!budgets.includes(Number(state.ex.flipBudget))) state.ex.flipBudget = "";
  options($("ex-flip-budget"), [["", "any"], ...budgets.map((b) => [b, model.budgets[b]])], state.ex.flipBudget);
}

function passes(i) {
  const s = data.samples[i], ex = state.ex, base = baseline();
  const categories = uniq(data.samples.map((t) => t.category)).sort();
  if (ex.category !== "" && s.category !== categories[Number(ex.category)]) return false;
  if (ex.search && !s.question.toLowerCase().includes(ex.search.toLowerCase())) return false;
  if (ex.right) {
    const [who, what] = ex.right.split("-");
    const a = inPanel(0), b = inPanel(1);
    if (who === "differ") { if (!apart(a, b, i)) return false; }
    else {
      const cell = who === "base" ? base : who === "a" ? a : b;
      if (!cell || !(what === "right" ? right : wrong)(cell, i)) return false;
    }
  }
  if (ex.flip !== "") {
    const fit = model.cells.some((c) => c.set === ex.set && (ex.flip === "any" || c.line === Number(ex.flip))
      && (ex.flipBudget === "" || c.budget === Number(ex.flipBudget)) && flip(c, i) && (!ex.flipWay || flip(c, i) === ex.flipWay));
    if (!fit) return false;
  }
  return true;
}

function showExplorer() {
  if (!data) return;
  offerFlipBudgets();
  view = data.samples.map((_, i) => i).filter(passes);
  const bare = !data.samples.length;
  $("explorer").classList.toggle("bare", bare);
  const judged = scoredAtAll(), judging = ["ex-right", "ex-flip", "ex-flip-budget", "ex-flip-way"];
  for (const id of ["ex-category", "ex-search", ...judging]) $(id).closest(".control").hidden = bare || (!judged && judging.includes(id));
  // a sample that the reader chose stays while the filters let it pass; otherwise the first one at which the panels differ
  if (!state.ex.pinned || !view.includes(state.ex.sample)) Object.assign(state.ex, { pinned: false, sample: telling() });
  const set = model.sets[state.ex.set];
  const a = inPanel(0), b = inPanel(1), base = baseline();
  const tell = (c) => `${model.lines[c.line]}${c.unpruned ? "" : ` at ${model.budgets[c.budget]}`}: ${c.lost} lost, ${c.gained} gained`;
  $("ex-count").textContent = bare ? `This report holds no samples of ${set.label}: its ${set.n} questions are in the results, and not in this file.`
    : `${view.length} of ${data.samples.length} samples${set.shown < set.n ? ` (spread evenly over ${set.n})` : ""}. `
      + (!judged ? "The metric scores all answers together: no sample is right or wrong by itself."
        : `Marks: ∅ unpruned, A and B the panels; ✓ is a score of at least ${META.right}. `)
      + (!judged ? "" : !base ? "No unpruned cell, so no flips."
        : `Against the unpruned model, over all ${set.n}: ${uniq([a, b]).filter((c) => c.lost !== undefined && !c.unpruned).map(tell).join("; ")}.`);
  const sign = (cell, i) => (scored(cell, i) ? make("span", { class: right(cell, i) ? "ok" : "no" }, right(cell, i) ? "✓" : "✗") : DASH);
  const word = (cell, i) => (right(cell, i) ? "right" : wrong(cell, i) ? "wrong" : "not scored");
  $("ex-list").replaceChildren(...view.map((i) => {
    const s = data.samples[i];
    const said = [...(base ? [["∅", "unpruned", base]] : []), ["A", "A", a], ["B", "B", b]];
    return make("li", { role: "option", id: `option-${i}`, "data-i": i, "aria-selected": String(i === state.ex.sample) },
      make("span", { class: "row" }, make("span", { class: "mono" }, s.key),
        make("span", { "aria-hidden": "true" }, ...said.flatMap(([letter, , c], n) => [n ? " " : "", letter, sign(c, i)]))), " ",
      make("span", { class: "heard" }, said.map(([, who, c]) => `${who} ${word(c, i)}`).join(", "), ": "),
      make("span", { class: "q" }, s.question));
  }));
  if (!view.length && !bare) $("ex-list").replaceChildren(make("li", { role: "option", "aria-disabled": "true" }, "No sample fits these filters."));
  reveal();
  showSample();
}
// the chosen sample in its list, which scrolls by itself, and not the page
function reveal() {
  const list = $("ex-list"), chosen = $(`option-${state.ex.sample}`);
  if (!chosen) return;
  if (chosen.offsetTop < list.scrollTop || chosen.offsetTop + chosen.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = chosen.offsetTop - list.clientHeight / 3;
}

// the tokens of a sample that a cell keeps from its last change on, as text; changes that leave no token aside
const lastKept = (cell, i) => stages(own(cell).keeps[i] ?? "", seenBy(cell, i).n_visual).filter((s) => s.count + s.added).at(-1);
// the first sample in view at which the panels differ: in being right, otherwise in the tokens that they keep
function telling() {
  const a = inPanel(0), b = inPanel(1);
  const kept = (cell, i) => { const last = lastKept(cell, i); return last && `${last.added} ${last.mask}`; };
  return view.find((i) => apart(a, b, i)) ?? view.find((i) => kept(a, i) !== kept(b, i)) ?? view[0] ?? -1;
}
// the layer of the last change of either panel's tokens that leaves some: all is there to compare
const lastChange = (i) => Math.max(0, ...[0, 1].map((which) => lastKept(inPanel(which), i)?.layer ?? 0));

function select(i, scroll) {
  if (!data) return;
  Object.assign(state.ex, { sample: i, pinned: true, touched: true });
  for (const li of $("ex-list").children) li.setAttribute("aria-selected", String(Number(li.dataset.i) === i));
  if (scroll) reveal();
  showSample();
}

function depthOf() {
  if (model.depth) return model.depth;
  // unknown where nothing was removed inside the model: then no later layer differs from the last one listed
  return 1 + Math.max(0, ...data.cells.flatMap((c) => c.keeps.slice(0, 1).flatMap((k) => stages(k, 0).map((s) => s.layer))));
}

function showSample() {
  const i = state.ex.sample, detail = $("ex-detail");
  $("ex-list").setAttribute("aria-activedescendant", i >= 0 ? `option-${i}` : "");
  if (i < 0) {
    detail.replaceChildren(...(data.samples.length ? [] : [make("p", {}, "This command embeds up to 100 samples of each task:"), command(META.make_samples, "the command that embeds samples")]));
    return;
  }
  const s = data.samples[i], base = baseline(), depth = depthOf();
  // a layer that the reader chose stays; otherwise each sample shows what was kept in the end
  state.ex.layer = Math.min(state.ex.held ? state.ex.layer : lastChange(i), depth - 1);
  const range = make("input", { type: "range", id: "ex-layer", min: 0, max: depth - 1, step: 1, value: state.ex.layer,
    oninput: () => setLayer(Number(range.value)) });
  const whole = make("input", { type: "checkbox", id: "ex-whole", checked: state.ex.whole, onchange: () => { state.ex.whole = whole.checked; paint(); } });
  const jump = (direction) => {
    const changes = uniq([0, 1].flatMap((w) => stages((own(inPanel(w)).keeps[i] ?? ""), seenBy(inPanel(w), i).n_visual).map((t) => t.layer))).sort((a, b) => a - b);
    return direction > 0 ? changes.find((l) => l > state.ex.layer) : changes.filter((l) => l < state.ex.layer).at(-1);
  };
  const go = (direction) => { const to = data ? jump(direction) : undefined; if (to !== undefined) setLayer(to); };
  const last = () => { if (!data) return; state.ex.held = false; state.ex.layer = lastChange(i); range.value = String(state.ex.layer); paint(); };
  detail.replaceChildren(
    make("p", { class: "question", id: "ex-question" }, s.question),
    make("dl", { class: "facts" },
      make("div", {}, make("dt", {}, "expected"), make("dd", {}, s.target)),
      make("div", {}, make("dt", {}, "unpruned"), make("dd", {}, base ? own(base).answer[i] : "not measured", base ? " " : "", base ? mark(base, i) : "")),
      make("div", {}, make("dt", {}, "sample"), make("dd", { class: "mono" }, s.key)),
      s.category ? make("div", {}, make("dt", {}, "category"), make("dd", {}, s.category)) : ""),
    make("div", { class: "layer" }, make("label", { for: "ex-layer" }, "Decoder layer"), range, make("output", { for: "ex-layer", id: "ex-layer-text" }),
      make("button", { type: "button", id: "ex-prev", onclick: () => go(-1) }, "← previous change"),
      make("button", { type: "button", id: "ex-next", onclick: () => go(1) }, "next change →"),
      make("button", { type: "button", id: "ex-last", onclick: last }, "last change"),
      make("label", {}, whole, " whole image")),
    make("div", { class: "panels" }, panel(0), panel(1)),
    make("p", { class: "muted" }, "Bars: visual tokens entering each layer; red lines: fusion and exit where the method has them"
      + (model.analysis ? "; colours below: the stages of the analysis." : ".")),
    ...matrix(i));
  paint();
}
const mark = (cell, i) => !scored(cell, i) ? make("span", { class: "muted" }, "not scored by itself") : make("span", { class: right(cell, i) ? "ok" : "no" }, right(cell, i) ? "✓ right" : "✗ wrong");

function panel(which) {
  const i = state.ex.sample, cell = inPanel(which), p = state.ex.panels[which], letter = "AB"[which];
  const here = model.cells.filter((c) => c.set === state.ex.set);
  const pick = (id, label, items, chosen, change) => {
    const select = make("select", { id, onchange: () => { change(Number(select.value)); state.ex.touched = true; showExplorer(); $(id)?.focus(); } });
    options(select, items, chosen);
    return make("span", { class: "control" }, make("label", { for: id }, label), select);
  };
  const budgets = uniq(here.filter((c) => c.line === cell.line).map((c) => c.budget)).sort((a, b) => a - b);
  const seeds = here.filter((c) => c.line === cell.line && c.budget === cell.budget).map((c) => c.seed).sort((a, b) => a - b);
  const controls = [
    pick(`ex-line-${letter}`, "method", uniq(here.map((c) => c.line)).sort((a, b) => a - b).map((l) => [l, model.lines[l]]), cell.line, (line) => {
      const of = here.filter((c) => c.line === line);
      const same = of.find((c) => c.budget === p.budget) ?? of[0];
      Object.assign(p, { line, budget: same.budget, seed: same.seed });
    }),
    pick(`ex-budget-${letter}`, "budget", budgets.map((b) => [b, model.budgets[b]]), cell.budget, (budget) => { Object.assign(p, { budget }); }),
  ];
  if (seeds.length > 1) controls.push(pick(`ex-seed-${letter}`, "seed", seeds.map((v) => [v, v]), cell.seed, (seed) => { p.seed = seed; }));
  const mine = own(cell), flipped = flip(cell, i), score = mine.score[i];
  const notes = layerNotes(mine).filter((name) => mine[name][i] !== null)
    .map((name, n) => [name.replaceAll("_", " "), mine[name][i], n === 0 && mine.forced?.[i] ? " (forced by the budget)" : ""])
    .map(([name, layer, forced]) => (layer < 0 ? `no ${name}` : `${name} ${layer}`) + forced);
  const set = model.sets[state.ex.set];
  const seen = data.samples[i].image >= 0;
  return make("section", { class: "panel", "aria-label": `Panel ${letter}: ${model.lines[cell.line]} at ${model.budgets[cell.budget]}` },
    make("div", { class: "controls" }, make("h3", { "aria-hidden": "true" }, letter), ...controls),
    make("p", { class: "answer" }, `“${mine.answer[i]}” `, mark(cell, i),
      flipped ? make("span", { class: `badge ${flipped}` }, `flipped: ${FLIPS[flipped]}`) : "",
      !set.lower && score > 0 && score < 1 ? make("span", { class: "muted" }, ` score ${score.toFixed(2)}`) : ""),
    seen ? make("canvas", { id: `ex-canvas-${letter}`, role: "img", width: 672, height: 672 })
      : make("div", { class: "none" }, `The image is not in this report: ${set.no_image}`),
    make("p", { class: "kept-line muted" }, make("span", { id: `ex-kept-${letter}`, "aria-live": "polite" }), notes.length ? `. ${notes.join(", ")}.` : ""),
    track(which, cell));
}

// layers that a method noted for each sample
const layerNotes = (of) => Object.keys(of).filter((name) => name.endsWith("_layer"));

function track(which, cell) {
  const i = state.ex.sample, n = seenBy(cell, i).n_visual, whole = Math.max(n, data.samples[i].n_visual), depth = depthOf();
  const found = stages(own(cell).keeps[i] ?? "", n);
  if (!found.length) return "";
  const w = 300 / depth;
  const svg = draw("svg", { class: "track", id: `ex-track-${"AB"[which]}`, viewBox: "0 0 300 66", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (let layer = 0; layer < depth; layer += 1) {
    const at = stageAt(found, layer), count = at ? at.count + at.added : n;
    const h = Math.max(count ? 1.5 : 0, (count / whole) * 50);
    svg.append(draw("rect", { x: layer * w + w * 0.12, y: 56 - h, width: w * 0.76, height: h, "data-layer": layer, class: "bar" }));
    if (!count) svg.append(draw("rect", { x: layer * w + w * 0.12, y: 55.2, width: w * 0.76, height: 0.8, "data-layer": layer, class: "bar" }));
    svg.append(draw("rect", { class: "hit", x: layer * w, y: 0, width: w, height: 66, onclick: () => setLayer(layer) },
      draw("title", {}, `layer ${layer}: ${count} visual tokens`)));
  }
  for (const name of layerNotes(own(cell))) {
    const layer = own(cell)[name][i];
    if (layer === null || layer < 0) continue;
    svg.append(draw("line", { class: "mark", x1: layer * w, x2: layer * w, y1: 2, y2: 57 }));
  }
  for (let layer = 0; model.analysis && layer < depth; layer += 1) {
    svg.append(draw("rect", { class: `s${stageOf(layer)}`, x: layer * w, y: 60, width: w, height: 6 }));
  }
  return svg;
}

function setLayer(layer) {
  if (!data) return;
  Object.assign(state.ex, { layer, held: true, touched: true });
  $("ex-layer").value = String(layer);
  paint();
}

function paint() {
  if (!data) return;
  const i = state.ex.sample, s = data.samples[i], layer = state.ex.layer;
  $("ex-layer-text").textContent = `${layer} of 0–${depthOf() - 1}${model.depth ? "" : " (depth not recorded)"}`;
  for (const which of [0, 1]) {
    const letter = "AB"[which], cell = inPanel(which), seen = seenBy(cell, i);
    const found = stages(own(cell).keeps[i] ?? "", seen.n_visual), at = stageAt(found, layer);
    const said = !own(cell).keeps.length || !found.length ? "Kept tokens were not recorded for this cell; measure it again with FRESH=1"
      : `${at.count + at.added} of ${seen.n_visual} visual tokens enter layer ${layer}${at.added ? ` (${at.added} of them merged, with no place in the image)` : ""}`;
    $(`ex-kept-${letter}`).textContent = said;
    for (const bar of $(`ex-track-${letter}`)?.querySelectorAll(".bar") ?? []) bar.classList.toggle("here", Number(bar.dataset.layer) === layer);
    const canvas = $(`ex-canvas-${letter}`);
    if (!canvas) continue;
    canvas.setAttribute("aria-label", `${model.lines[cell.line]} at ${model.budgets[cell.budget]}: ${said}`);
    picture(s.image).then((image) => {
      if (state.ex.sample === i && state.ex.layer === layer) shade(canvas, image, state.ex.whole ? null : at, seen);
    }, (error) => { $(`ex-kept-${letter}`).textContent = `${said}; ${error.message}`; });
  }
}
function shade(canvas, image, at, sample) {
  const context = canvas.getContext("2d"), size = canvas.width;
  context.drawImage(image, 0, 0, size, size);
  canvas.dataset.dimmed = "0";
  if (!at || !sample.grid || at.count === sample.n_visual) return;
  const [rows, cols, newline, start] = sample.grid, step = cols + newline;
  const dim = getComputedStyle(document.documentElement).getPropertyValue("--dim").trim();
  const edge = (k, of) => Math.round((k * size) / of);
  let dimmed = 0;
  for (let k = 0; k < rows * cols; k += 1) {
    if (at.bits[start + Math.floor(k / cols) * step + (k % cols)]) continue;
    const x = edge(k % cols, cols), y = edge(Math.floor(k / cols), rows);
    context.fillStyle = `rgba(${dim}, 0.86)`;
    context.fillRect(x, y, edge((k % cols) + 1, cols) - x, edge(Math.floor(k / cols) + 1, rows) - y);
    dimmed += 1;
  }
  canvas.dataset.dimmed = String(dimmed);
}

function matrix(i) {
  const here = model.cells.filter((c) => c.set === state.ex.set && !c.unpruned);
  const budgets = uniq(here.map((c) => c.budget)).sort((a, b) => a - b);
  const rows = uniq(here.map((c) => c.line)).sort((a, b) => a - b);
  if (!rows.length) return [];
  const base = baseline();
  const shown = inPanel(1);
  const button = (line, budget, cells) => {
    const good = cells.filter((c) => right(c, i)).length, flips = uniq(cells.map((c) => flip(c, i)).filter(Boolean));
    const judged = cells.filter((c) => scored(c, i)).length;
    const text = !judged ? DASH : cells.length === 1 ? (good ? "✓" : "✗") : `${good}/${judged}`;
    const said = !judged ? "not scored by itself" : cells.length === 1 ? (good ? "right" : "wrong") : `${text} seeds right`;
    const answer = uniq(cells.map((c) => own(c).answer[i])).join(" | ");
    return make("button", { type: "button", class: flips[0] ?? null, title: answer, "data-cell": `${line}@${budget}`, "aria-pressed": String(cells.includes(shown)),
      "aria-label": [`${model.lines[line]} at ${model.budgets[budget]}: ${said}`,
        ...flips.map((f) => `flipped ${FLIPS[f]}`), `answer ${answer}`, "show in panel B"].join(", "),
      onclick: () => {
        state.ex.panels[1] = { line, budget, seed: cells[0].seed };
        state.ex.pinned = true;  // the reader asks for another method on this very sample
        showExplorer();
        $("ex-detail").querySelector(`[data-cell="${line}@${budget}"]`)?.focus({ preventScroll: true });
      } }, make("span", { class: cells.length > 1 || !judged ? null : good ? "ok" : "no" }, text));
  };
  const cell = (line, budget) => {
    const cells = cellsOf(line, budget, state.ex.set);
    return make("td", {}, cells.length ? button(line, budget, cells) : make("span", { class: "muted" }, DASH));
  };
  const table = make("table", { class: "matrix", "aria-labelledby": "matrix-title" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, make("span", { class: "muted" }, "method / budget")),
      ...budgets.map((b) => make("th", { scope: "col" }, model.budgets[b])))),
    make("tbody", {}, ...rows.map((line) => make("tr", {}, make("th", { scope: "row" }, swatch(line), model.lines[line]), ...budgets.map((b) => cell(line, b))))));
  grid(table);
  oneStop(table, "[aria-pressed='true']");
  return [
    make("h3", { id: "matrix-title" }, !scoredAtAll() ? "All answers" : base ? "Who flipped" : "Who is right"),
    make("p", { class: "muted" }, `${base && scoredAtAll() ? "A filled cell differs from the unpruned answer in being right. " : ""}Choose a cell to see it in panel B. Arrow keys move between the cells.`),
    make("div", { class: "scroll" }, table)];
}
