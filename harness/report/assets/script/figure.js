// ------------------------------------------------------------------------------------------------------------- figure
const COSTS = { pct_flops: ["Prefill FLOPs, % of unpruned", one, " %"], gflops: ["Prefill GFLOPs", significant, " GFLOPs"],
  mean_visual: ["Visual tokens per layer, mean", one, " tokens/layer"], kv_mib: ["KV cache, MiB", significant, " MiB"] };

function setUpFigure() {
  const several = shownSets().length > 1;
  state.y = several && model.cells.some((c) => !c.unpruned && c.pct !== null) ? "average" : String(shownSets()[0] ?? offered()[0]);
  if (!model.cells.some((c) => c.pct_flops !== null)) state.x = "gflops";
  const tasks = offered().map((i) => [i, `${model.sets[i].label}: ${model.sets[i].metric}`]);
  options($("fig-y"), several ? [["average", "all tasks: average % of unpruned"], ...tasks] : tasks, state.y);
  options($("fig-x"), Object.entries(COSTS).filter(([id]) => model.cells.some((c) => c[id] !== null)).map(([id, [name]]) => [id, name]), state.x);
  $("legend").replaceChildren(...model.lines.map((name, line) => {
    const button = make("button", { type: "button", "aria-pressed": "true", onclick: () => {
      if (state.hidden.has(line)) state.hidden.delete(line); else state.hidden.add(line);
      button.setAttribute("aria-pressed", String(!state.hidden.has(line)));
      showFigure();
    }, onmouseenter: () => fade(line), onmouseleave: () => fade(null) }, swatch(line), name);
    return button;
  }));
  showFigure();
}
function fade(line) {
  for (const node of $("plot").querySelectorAll("[data-line]")) {
    node.classList.toggle("faded", line !== null && !state.hidden.has(line) && Number(node.dataset.line) !== line);
  }
}

function points() {
  const average = state.y === "average";
  const sets = average ? shownSets() : [Number(state.y)];
  const set = average ? null : model.sets[sets[0]];
  const found = [];
  model.lines.forEach((_, line) => model.budgets.forEach((_, budget) => {
    const groups = sets.map((s) => cellsOf(line, budget, s));
    if (groups.some((g) => !g.length)) return;
    const x = mean(groups.map((g) => mean(g.map((c) => c[state.x]))));
    const higher = groups.filter((_, i) => !model.sets[sets[i]].lower);
    const y = average ? (higher.length ? mean(higher.map((g) => mean(g.map((c) => c.pct)))) : null) : inUnit(set, mean(groups[0].map((c) => c.score)));
    if (x === null || y === null) return;
    let low = null, high = null, kind = "";
    const known = average ? averaged(line, budget, sets) : undefined;
    if (known && known.low !== null) [low, high, kind] = [known.low, known.high, "95 % interval"];
    else if (!average && groups[0].length > 1) {
      const sd = inUnit(set, spread(groups[0].map((c) => c.score)));
      [low, high, kind] = [y - sd, y + sd, `±1 sd of ${groups[0].length} seeds`];
    } else if (!average && groups[0][0].low !== null) [low, high, kind] = [inUnit(set, groups[0][0].low), inUnit(set, groups[0][0].high), "95 % interval"];
    found.push({ line, budget, x, y, low, high, kind, unpruned: isNone(line), groups });
  }));
  return found;
}
function ticks(low, high, n) {
  const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) out.push(Number(v.toPrecision(12)));
  return out;
}
// `lower`: a lower score is better
function front(shown, lower) {
  const out = [], sign = lower ? -1 : 1;
  for (const p of [...shown].sort((a, b) => a.x - b.x || sign * (b.y - a.y))) if (!out.length || sign * p.y > sign * out.at(-1).y) out.push(p);
  return out;
}

function showFigure() {
  const plot = $("plot");
  hideTip();
  const all = points(), shown = all.filter((p) => !state.hidden.has(p.line));
  // a method without a point on these axes is not offered
  for (const [line, button] of [...$("legend").children].entries()) button.hidden = !all.some((p) => p.line === line);
  const [axis, show] = COSTS[state.x];
  const average = state.y === "average";
  const set = average ? null : model.sets[Number(state.y)];
  const yTitle = average ? "Score, % of unpruned (mean over tasks)" : `${set.label}: ${set.metric} (${unitOf(set)})`;
  $("fig-png").disabled = !shown.length;
  if (!shown.length) {
    plot.replaceChildren(make("p", { class: "muted" }, "No measured point to show: choose other methods, another task or another cost."));
    $("plot-caption").textContent = "";
    return;
  }
  const bars = shown.some((p) => p.low !== null);
  const withBars = $("fig-intervals").checked && bars;
  $("fig-intervals").disabled = !bars;
  const width = Math.max(320, plot.clientWidth), height = Math.round(Math.min(500, Math.max(340, width * 0.42)));
  const box = { left: 58, right: width - 16, top: 30, bottom: height - 46 };
  const ys = shown.flatMap((p) => (withBars && p.low !== null ? [p.low, p.high] : [p.y]));
  const xs = shown.map((p) => p.x);
  const ceiling = average || set.max === null ? Infinity : inUnit(set, set.max);
  const pad = Math.max(1e-9, (Math.max(...ys) - Math.min(...ys)) * 0.06) || 1;
  const yLow = Math.max(0, Math.min(...ys) - pad), yHigh = Math.max(Math.min(ceiling * 1.015, Math.max(...ys) + pad), yLow + 1e-6);
  const xHigh = Math.max(...xs) * 1.04 || 1;
  const X = (v) => box.left + (v / xHigh) * (box.right - box.left);
  const Y = (v) => box.bottom - ((v - yLow) / (yHigh - yLow)) * (box.bottom - box.top);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${yTitle} against ${axis}. Arrow keys move between points.` });
  for (const v of ticks(yLow, yHigh, 6)) {
    svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(v), y2: Y(v) }),
      draw("text", { class: "tick", x: box.left - 8, y: Y(v) + 4, "text-anchor": "end" }, v.toLocaleString("en")));
  }
  for (const v of ticks(0, xHigh, width > 600 ? 8 : 4)) {
    svg.append(draw("line", { class: "axis", x1: X(v), x2: X(v), y1: box.bottom, y2: box.bottom + 5 }),
      draw("text", { class: "tick", x: X(v), y: box.bottom + 19, "text-anchor": "middle" }, v.toLocaleString("en")));
  }
  svg.append(draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    draw("text", { x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle" }, axis),
    draw("text", { x: 4, y: 14 }, yTitle));
  const whole = shown.find((p) => p.unpruned);
  if (whole) svg.append(draw("line", { class: "unpruned", x1: box.left, x2: box.right, y1: Y(whole.y), y2: Y(whole.y) }));
  const best = front(shown, set?.lower);
  for (const line of uniq(shown.map((p) => p.line))) {
    // numbered budgets form a curve, as in the PNGs; native and the like stand alone
    const curve = shown.filter((p) => p.line === line && /^[0-9]/.test(model.budgets[p.budget])).sort((a, b) => a.x - b.x || a.y - b.y);
    if (curve.length < 2) continue;
    const path = draw("path", { class: "series", "data-line": line, d: "M" + curve.map((p) => `${X(p.x).toFixed(1)},${Y(p.y).toFixed(1)}`).join("L") });
    path.style.stroke = colour(line);
    path.style.strokeDasharray = ["", "6 3", "1.5 2.5"][Math.min(look(line).setting, 2)];
    svg.append(path);
  }
  if ($("fig-pareto").checked && best.length > 1) {
    let d = `M${X(best[0].x)},${Y(best[0].y)}`;
    for (const p of best.slice(1)) d += `H${X(p.x)}V${Y(p.y)}`;
    svg.append(draw("path", { class: "front", d }));
  }
  if (withBars) for (const p of shown.filter((q) => q.low !== null)) {
    const bar = draw("line", { class: "whisker", "data-line": p.line, x1: X(p.x), x2: X(p.x), y1: Y(p.low), y2: Y(p.high) });
    bar.style.stroke = colour(p.line);
    svg.append(bar);
  }
  const order = [...shown].sort((a, b) => a.x - b.x || a.y - b.y);
  const nodes = order.map((p, i) => {
    const on = best.includes(p);
    const said = describe(p, set, on);
    const node = draw("g", { class: "point", "data-line": p.line, "data-point": `${model.lines[p.line]}@${model.budgets[p.budget]}`,
      role: "img", tabindex: i ? -1 : 0, "aria-label": said.join("; "),
      transform: `translate(${X(p.x).toFixed(1)},${Y(p.y).toFixed(1)})` },
      draw("circle", { class: "halo", r: 7.5 }), glyph(p.line, p.unpruned ? 8 : 5.8), draw("circle", { class: "ring", r: 10 }));
    const tell = () => showTip(said, node);
    node.addEventListener("focus", tell);
    node.addEventListener("blur", hideTip);
    node.addEventListener("click", () => { toPanel(p); });
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Enter") toPanel(p);
      if (event.key === "Escape") hideTip();
      if (!step && event.key !== "Home" && event.key !== "End") return;
      event.preventDefault();
      const next = event.key === "Home" ? 0 : event.key === "End" ? nodes.length - 1 : (i + step + nodes.length) % nodes.length;
      nodes[i].setAttribute("tabindex", -1);
      nodes[next].setAttribute("tabindex", 0);
      nodes[next].focus();
    });
    return node;
  });
  svg.append(...nodes);
  svg.addEventListener("pointermove", (event) => {
    // the nearest point within reach, so that small markers need no aiming
    const frame = svg.getBoundingClientRect(), k = width / frame.width;
    const px = (event.clientX - frame.left) * k, py = (event.clientY - frame.top) * k;
    const near = order.map((p, i) => [Math.hypot(X(p.x) - px, Y(p.y) - py), i]).sort((a, b) => a[0] - b[0])[0];
    nodes.forEach((n, i) => n.classList.toggle("on", near[0] < 26 && i === near[1]));
    if (near[0] < 26) showTip(describe(order[near[1]], set, best.includes(order[near[1]])), nodes[near[1]]);
    else hideTip();
  });
  svg.addEventListener("pointerleave", () => { nodes.forEach((n) => n.classList.remove("on")); hideTip(); });
  plot.replaceChildren(svg);
  $("plot-caption").textContent = [
    average && !bars ? "These cells give the average no interval." : "",
    withBars ? (average ? "Bars: 95 % intervals of the average over whole images." : "Bars: 95 % intervals of one seed, or ±1 sd over several.") : "",
    best.length > 1 && $("fig-pareto").checked ? "Dashed: the Pareto front, by the points alone: nothing shown is both cheaper and better." : "",
    whole ? "Dotted: the unpruned score." : "",
    `The vertical axis starts at ${yLow > 0 ? one(yLow) : "0"}. Choose a point to see its samples below.`,
  ].filter(Boolean).join(" ");
}
function describe(p, set, onFront) {
  const c = (name) => mean(p.groups.map((cells) => mean(cells.map((cell) => cell[name]))));
  const unit = set ? (set.max === 1 ? " %" : set.max === null ? "" : ` of ${set.max}`) : " % of unpruned";
  return [
    `${model.lines[p.line]}${p.unpruned ? "" : ` at ${model.budgets[p.budget]}`}`,
    `score ${one(p.y)}${unit}` + (p.low !== null ? ` [${one(p.low)}, ${one(p.high)}] (${p.kind})` : ""),
    `${one(c("pct_flops"))} % of unpruned prefill FLOPs, ${significant(c("gflops"))} GFLOPs`,
    `${one(c("kept"))} tokens kept, ${one(c("mean_visual"))} per layer, ${significant(c("kv_mib"))} MiB KV`,
    ...(onFront ? ["on the Pareto front"] : []),
  ];
}
let told = null;  // the point that the tooltip belongs to
function showTip(said, node) {
  told = node;
  $("tip").replaceChildren(...said.map((text) => make("p", {}, text)));
  $("tip").hidden = false;
  placeTip();
}
function placeTip() {
  if (!told) return;
  const tip = $("tip"), at = told.getBoundingClientRect();
  if (at.bottom < 0 || at.top > innerHeight) { hideTip(); return; }
  const size = tip.getBoundingClientRect();
  const left = at.right + 10 + size.width > innerWidth ? at.left - size.width - 10 : at.right + 10;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.min(Math.max(4, at.top - size.height / 2), innerHeight - size.height - 4)}px`;
}
function hideTip() { told = null; $("tip").hidden = true; }
function toPanel(p) {
  const sets = p.groups.map(([cell]) => cell.set);
  Object.assign(state.ex.panels[0], { line: p.line, budget: p.budget, seed: p.groups[0][0].seed });
  state.ex.touched = true;
  // an average is of several sets: the one in view stays if it is one of them
  if (sets.includes(state.ex.set)) showExplorer();
  else {
    state.ex.set = sets.find((i) => model.sets[i].shown) ?? sets[0];
    setUpExplorer();
  }
  hideTip();
  $("samples").scrollIntoView();
}
