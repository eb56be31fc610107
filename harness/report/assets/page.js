"use strict";
// Texts of data sets, models and methods reach the document through textContent and setAttribute only, never as markup.
(() => {
  const META = JSON.parse(document.getElementById("meta").textContent);
  const $ = (id) => document.getElementById(id);
  const DASH = "–";
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }
  function draw(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
    return node;
  }
  function options(select, items, chosen) {
    select.replaceChildren(...items.map(([value, text]) => make("option", { value, selected: String(value) === String(chosen) }, text)));
    select.value = String(chosen);
  }
  const mean = (values) => (values.length && values.every((v) => v !== null) ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const spread = (values) => {
    const m = mean(values);
    return Math.sqrt(values.reduce((a, v) => a + (v - m) ** 2, 0) / (values.length - 1));
  };
  const one = (value) => (value === null ? DASH : value.toFixed(1));
  function significant(value) {
    if (value === null) return DASH;
    const digits = value ? Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))) : 0;
    return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }
  const inUnit = (set, value) => (value === null ? null : set.max === 1 ? 100 * value : value);
  const unitOf = (set) => (set.max === 1 ? "%" : set.max === null ? "points" : `points of ${set.max}`) + (set.lower ? ", lower is better" : "");
  const uniq = (values) => [...new Set(values)];

  // ------------------------------------------------------------------------------------------------------------ markers
  // colour and marker of a line's method, as in the figures beside LEADERBOARD.md
  const look = (line) => model.looks[line];
  const isNone = (line) => model.cells.some((c) => c.line === line && c.unpruned);
  const colour = (line) => (isNone(line) ? "var(--ink)" : `color-mix(in srgb, ${look(line).colour} var(--strength), white)`);
  function glyph(line, r) {
    const path = draw("path", { d: look(line).mark, transform: `scale(${r})`, "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" });
    path.style.stroke = colour(line);
    path.style.fill = look(line).setting ? "var(--paper)" : colour(line);  // hollow: a second setting
    return path;
  }
  const swatch = (line) => draw("svg", { class: "swatch", viewBox: "-8 -8 16 16", "aria-hidden": "true" }, glyph(line, 6));

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
    setUpRequests();
    showFollowUps();
    setUpExplorer();
    showAnalysis();
  }

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
        commands: [...of.values()].flat().map((c) => c.command),
      });
    }));
    return rows;
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
        } });
    }
    const number = (id, head, unit, show, best = false) => found.push({ id, head, unit, num: true, best, value: (r) => r[id], text: (r) => show(r[id]) });
    number("average", "Average", "% of unpruned score", one, true);
    number("kept", "Kept", "tokens", one);
    number("mean_visual", "Mean visual", "tokens/layer", one);
    number("gflops", "Prefill", "GFLOPs", significant);
    number("pct_flops", "Prefill", "% of unpruned FLOPs", one);
    number("kv_mib", "KV cache", "MiB", significant);
    found.push({ id: "command", head: "Command", still: true });
    return found;
  }

  function setUpLeaderboard() {
    $("lb-search").value = "";
    options($("lb-budget"), [["", "all"], ...model.budgets.map((b, i) => [i, b])], "");
    $("lb-tasks").replaceChildren(...model.sets.map((set, i) => {
      const box = make("input", { type: "checkbox", checked: state.lb.tasks.has(i), onchange: () => {
        if (box.checked) state.lb.tasks.add(i); else state.lb.tasks.delete(i);
        state.lb.tasks = new Set([...state.lb.tasks].sort((a, b) => a - b));
        showLeaderboard();
      } });
      return make("label", {}, box, set.label);
    }));
    showLeaderboard();
  }

  function showLeaderboard(focus) {
    const wanted = state.lb.search.trim().toLowerCase();
    const all = lines();
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
          showLeaderboard(col.id);
        } }, col.head, on ? make("span", { class: "arrow", "aria-hidden": "true" }, state.lb.down ? " ↓" : " ↑") : null,
        col.unit ? make("span", { class: "unit" }, col.unit) : null));
    }));
    let before = rows.length ? rows[0].budget : 0;
    const body = rows.map((row) => {
      const changed = !sorted && row.budget !== before;
      before = row.budget;
      return make("tr", { class: changed ? "new-budget" : null }, ...cols.map((col) => {
        if (col.id === "method") return make("th", { scope: "row" }, swatch(row.line), col.text(row));
        if (col.still) return make("td", {}, make("details", {}, make("summary", {}, "show"), ...row.commands.map((c) => make("code", {}, c || "not recorded"))));
        const text = col.text(row), more = col.more ? col.more(row) : "";
        const top = !row.unpruned && best.get(`${col.id} ${row.budget}`) === text;
        return make("td", { class: col.num ? "num" : null }, top ? make("strong", {}, text) : text, more ? make("span", { class: "spread" }, more) : null);
      }));
    });
    $("lb").replaceChildren(make("caption", { class: "muted", hidden: true }, "Leaderboard"), make("thead", {}, head), make("tbody", {}, ...body));
    $("lb-count").textContent = rows.length ? `${rows.length} of ${all.length} rows` : "No row fits these filters.";
    if (focus) $("lb").querySelector(`[data-sort="${focus}"]`)?.focus();
  }

  // ------------------------------------------------------------------------------------------------------------- figure
  const COSTS = { pct_flops: ["Prefill FLOPs, % of unpruned", one, " %"], gflops: ["Prefill GFLOPs", significant, " GFLOPs"],
    mean_visual: ["Visual tokens per layer, mean", one, " tokens/layer"], kv_mib: ["KV cache, MiB", significant, " MiB"] };

  function setUpFigure() {
    const several = model.sets.filter((s) => s.primary).length > 1;
    state.y = several && model.cells.some((c) => !c.unpruned && c.pct !== null) ? "average" : String(model.sets.findIndex((s) => s.primary));
    if (!model.cells.some((c) => c.pct_flops !== null)) state.x = "gflops";
    const tasks = model.sets.map((s, i) => [i, `${s.label}: ${s.metric}`]);
    options($("fig-y"), several ? [["average", "all tasks: average % of unpruned"], ...tasks] : tasks, state.y);
    options($("fig-x"), Object.entries(COSTS).map(([id, [name]]) => [id, name]), state.x);
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
    const sets = average ? model.sets.map((_, i) => i).filter((i) => model.sets[i].primary) : [Number(state.y)];
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
      if (!average && groups[0].length > 1) {
        const sd = inUnit(set, spread(groups[0].map((c) => c.score)));
        [low, high, kind] = [y - sd, y + sd, `±1 sd of ${groups[0].length} seeds`];
      } else if (!average && groups[0][0].low !== null) [low, high, kind] = [inUnit(set, groups[0][0].low), inUnit(set, groups[0][0].high), "95 % interval"];
      found.push({ line, budget, x, y, low, high, kind, unpruned: isNone(line), cells: groups.flat() });
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
  function front(shown) {
    const out = [];
    for (const p of [...shown].sort((a, b) => a.x - b.x || b.y - a.y)) if (!out.length || p.y > out.at(-1).y) out.push(p);
    return out;
  }

  function showFigure(focus) {
    const plot = $("plot");
    hideTip();
    const shown = points().filter((p) => !state.hidden.has(p.line));
    const [axis, show] = COSTS[state.x];
    const average = state.y === "average";
    const set = average ? null : model.sets[Number(state.y)];
    const yTitle = average ? "Score, % of unpruned (mean over tasks)" : `${set.label}: ${set.metric} (${unitOf(set)})`;
    if (!shown.length) {
      plot.replaceChildren(make("p", { class: "muted" }, "No measured point to show: choose other methods, another task or another cost."));
      $("plot-caption").textContent = "";
      return;
    }
    const withBars = $("fig-intervals").checked && !average;
    $("fig-intervals").disabled = average;
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
    const best = front(shown);
    for (const line of uniq(shown.map((p) => p.line))) {
      // budgets of one unit form a curve; native and the like stand alone
      for (const unit of ["", "avg", "flops"]) {
        const curve = shown.filter((p) => p.line === line && RegExp(`^[0-9.]+${unit}$`).test(model.budgets[p.budget])).sort((a, b) => a.x - b.x);
        if (curve.length < 2) continue;
        const path = draw("path", { class: "series", "data-line": line, d: "M" + curve.map((p) => `${X(p.x).toFixed(1)},${Y(p.y).toFixed(1)}`).join("L") });
        path.style.stroke = colour(line);
        path.style.strokeDasharray = ["", "6 3", "1.5 2.5"][Math.min(look(line).setting, 2)];
        svg.append(path);
      }
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
      average ? "The average is drawn without its interval, which LEADERBOARD.md has; choose one task to see intervals." : "",
      withBars ? "Bars: 95 % intervals of one seed, or ±1 sd over several." : "",
      best.length > 1 && $("fig-pareto").checked ? "Dashed: the Pareto front, by the points alone: nothing shown is both cheaper and better." : "",
      whole ? "Dotted: the unpruned score." : "",
      `The vertical axis starts at ${yLow > 0 ? one(yLow) : "0"}. Choose a point to see its samples below.`,
    ].filter(Boolean).join(" ");
    if (focus) nodes[0].focus();
  }
  function describe(p, set, onFront) {
    const c = (name) => mean(p.cells.map((cell) => cell[name]));
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
    state.ex.panels[0] = { line: p.line, budget: p.budget, seed: 0 };
    if (state.y !== "average" && Number(state.y) !== state.ex.set) { state.ex.set = Number(state.y); setUpExplorer(); } else showExplorer();
    hideTip();
    $("samples").scrollIntoView();
  }

  // ----------------------------------------------------------------------------------------------------------- explorer
  const chunks = new Map();
  function chunk(index) {
    if (!chunks.has(index)) chunks.set(index, (async () => {
      const bytes = Uint8Array.from(atob($(`chunk-${index}`).textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      return JSON.parse(await new Response(stream).text());
    })());
    return chunks.get(index);
  }
  const pictures = new Map();
  function picture(index) {
    if (!pictures.has(index)) pictures.set(index, new Promise((done, failed) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = () => failed(new Error("the image does not decode"));
      image.src = `data:image/jpeg;base64,${$(`image-${index}`).textContent}`;
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
  const right = (cell, i) => own(cell).score[i] >= META.right;
  const baseline = () => model.cells.find((c) => c.set === state.ex.set && c.unpruned);
  function flip(cell, i) {
    const base = baseline();
    if (!base || cell === base || own(cell).score[i] === null || right(cell, i) === right(base, i)) return "";
    return right(cell, i) ? "gained" : "lost";
  }
  const FLIPS = { lost: "right → wrong", gained: "wrong → right" };
  function inPanel(which) {
    const p = state.ex.panels[which];
    const cells = cellsOf(p.line, p.budget, state.ex.set);
    return cells.find((c) => c.seed === p.seed) ?? cells[0];
  }

  async function setUpExplorer() {
    const set = model.sets[state.ex.set];
    options($("ex-task"), model.sets.map((s, i) => [i, `${s.label} (${s.shown} of ${s.n})`]), state.ex.set);
    const wanted = set;
    let found;
    try { found = await chunk(set.chunk); } catch (error) {
      $("ex-count").textContent = `The samples could not be unpacked (${error.message}): this browser lacks DecompressionStream; use one from 2023 or later.`;
      return;
    }
    if (model.sets[state.ex.set] !== wanted) return;  // another task was chosen meanwhile
    data = found;
    state.ex.sample = 0;
    Object.assign(state.ex, { category: "", right: "", flip: "", flipBudget: "", flipWay: "", search: "" });
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
    options($("ex-right"), [["", "all"], ["base-right", "unpruned right"], ["base-wrong", "unpruned wrong"], ["a-right", "A right"], ["a-wrong", "A wrong"],
      ["b-right", "B right"], ["b-wrong", "B wrong"], ["differ", "A and B differ"]], "");
    const hereLines = uniq(here.filter((c) => !c.unpruned).map((c) => c.line)).sort((a, b) => a - b);
    const hereBudgets = uniq(here.filter((c) => !c.unpruned).map((c) => c.budget)).sort((a, b) => a - b);
    options($("ex-flip"), [["", "(not filtered)"], ["any", "any method"], ...hereLines.map((l) => [l, model.lines[l]])], "");
    options($("ex-flip-budget"), [["", "any"], ...hereBudgets.map((b) => [b, model.budgets[b]])], "");
    options($("ex-flip-way"), [["", "either way"], ["lost", FLIPS.lost], ["gained", FLIPS.gained]], "");
    for (const id of ["ex-flip", "ex-flip-budget", "ex-flip-way"]) $(id).disabled = !baseline();
    showExplorer();
  }

  function passes(i) {
    const s = data.samples[i], ex = state.ex, base = baseline();
    const categories = uniq(data.samples.map((t) => t.category)).sort();
    if (ex.category !== "" && s.category !== categories[Number(ex.category)]) return false;
    if (ex.search && !s.question.toLowerCase().includes(ex.search.toLowerCase())) return false;
    if (ex.right) {
      const [who, what] = ex.right.split("-");
      const a = inPanel(0), b = inPanel(1);
      if (who === "differ") { if (right(a, i) === right(b, i)) return false; }
      else {
        const cell = who === "base" ? base : who === "a" ? a : b;
        if (!cell || right(cell, i) !== (what === "right")) return false;
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
    view = data.samples.map((_, i) => i).filter(passes);
    if (!view.includes(state.ex.sample)) state.ex.sample = view[0] ?? -1;
    const set = model.sets[state.ex.set];
    const a = inPanel(0), b = inPanel(1), base = baseline();
    const tell = (c) => `${model.lines[c.line]}${c.unpruned ? "" : ` at ${model.budgets[c.budget]}`}: ${c.lost} lost, ${c.gained} gained`;
    $("ex-count").textContent = !data.samples.length ? "This report holds no samples of this task; `prunebench report --samples 100` embeds some."
      : `${view.length} of ${data.samples.length} samples${set.shown < set.n ? ` (spread evenly over ${set.n})` : ""}. `
        + `Marks: ∅ unpruned, A and B the panels; ✓ is a score of at least ${META.right}. `
        + (!base ? "No unpruned cell, so no flips."
          : `Against the unpruned model, over all ${set.n}: ${uniq([a, b]).filter((c) => !c.unpruned).map(tell).join("; ")}.`);
    const sign = (cell, i) => make("span", { class: right(cell, i) ? "ok" : "no" }, right(cell, i) ? "✓" : "✗");
    $("ex-list").replaceChildren(...view.map((i) => {
      const s = data.samples[i];
      const said = [...(base ? [["∅", "unpruned", base]] : []), ["A", "A", a], ["B", "B", b]];
      return make("li", { role: "option", id: `option-${i}`, "data-i": i, "aria-selected": String(i === state.ex.sample),
        "aria-label": `${s.key}: ${s.question} ${said.map(([, who, c]) => `${who} ${right(c, i) ? "right" : "wrong"}`).join(", ")}` },
        make("span", { class: "row" }, make("span", { class: "mono" }, s.key),
          make("span", {}, ...said.flatMap(([letter, , c], n) => [n ? " " : "", letter, sign(c, i)]))),
        make("span", { class: "q" }, s.question));
    }));
    if (!view.length) $("ex-list").replaceChildren(make("li", { role: "option", "aria-disabled": "true" }, "No sample fits these filters."));
    showSample();
  }

  function select(i, scroll) {
    state.ex.sample = i;
    for (const li of $("ex-list").children) li.setAttribute("aria-selected", String(Number(li.dataset.i) === i));
    const chosen = $(`option-${i}`);
    if (chosen && scroll) chosen.scrollIntoView({ block: "nearest" });
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
    if (i < 0) { detail.replaceChildren(); return; }
    const s = data.samples[i], base = baseline(), depth = depthOf();
    state.ex.layer = Math.min(state.ex.layer, depth - 1);
    const range = make("input", { type: "range", id: "ex-layer", min: 0, max: depth - 1, step: 1, value: state.ex.layer,
      oninput: () => setLayer(Number(range.value)) });
    const whole = make("input", { type: "checkbox", id: "ex-whole", checked: state.ex.whole, onchange: () => { state.ex.whole = whole.checked; paint(); } });
    const jump = (direction) => {
      const changes = uniq([0, 1].flatMap((w) => stages((own(inPanel(w)).keeps[i] ?? ""), seenBy(inPanel(w), i).n_visual).map((t) => t.layer))).sort((a, b) => a - b);
      return direction > 0 ? changes.find((l) => l > state.ex.layer) : changes.filter((l) => l < state.ex.layer).at(-1);
    };
    const go = (direction) => { const to = jump(direction); if (to !== undefined) setLayer(to); };
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
        make("label", {}, whole, " whole image")),
      make("div", { class: "panels" }, panel(0), panel(1)),
      make("p", { class: "muted" }, "Bars: visual tokens entering each layer; red lines: fusion and exit where the method has them"
        + (model.analysis ? "; colours below: the stages of the analysis." : ".")),
      ...matrix(i));
    paint();
  }
  const mark = (cell, i) => own(cell).score[i] === null ? make("span", { class: "muted" }, "not scored by itself") : make("span", { class: right(cell, i) ? "ok" : "no" }, right(cell, i) ? "✓ right" : "✗ wrong");

  function panel(which) {
    const i = state.ex.sample, cell = inPanel(which), p = state.ex.panels[which], letter = "AB"[which];
    const here = model.cells.filter((c) => c.set === state.ex.set);
    const pick = (id, label, items, chosen, change) => {
      const select = make("select", { id, onchange: () => { change(Number(select.value)); showExplorer(); $(id)?.focus(); } });
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
        score > 0 && score < 1 ? make("span", { class: "muted" }, ` score ${score.toFixed(2)}`) : ""),
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
    state.ex.layer = layer;
    $("ex-layer").value = String(layer);
    paint();
  }

  function paint() {
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
    return [
      make("h3", {}, base ? "Who flipped" : "Who is right"),
      make("p", { class: "muted" }, `${base ? "A filled cell differs from the unpruned answer in being right. " : ""}Choose a cell to see it in panel B.`),
      make("div", { class: "scroll" }, make("table", { class: "matrix" },
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, make("span", { class: "muted" }, "method / budget")),
          ...budgets.map((b) => make("th", { scope: "col" }, model.budgets[b])))),
        make("tbody", {}, ...rows.map((line) => make("tr", {}, make("th", { scope: "row" }, swatch(line), model.lines[line]), ...budgets.map((budget) => {
          const cells = cellsOf(line, budget, state.ex.set);
          if (!cells.length) return make("td", {}, make("span", { class: "muted" }, DASH));
          const good = cells.filter((c) => right(c, i)).length, flips = uniq(cells.map((c) => flip(c, i)).filter(Boolean));
          const text = cells.length === 1 ? (good ? "✓" : "✗") : `${good}/${cells.length}`;
          const answer = uniq(cells.map((c) => own(c).answer[i])).join(" | ");
          return make("td", {}, make("button", { type: "button", class: flips[0] ?? null, title: answer,
            "aria-label": [`${model.lines[line]} at ${model.budgets[budget]}: ${cells.length === 1 ? (good ? "right" : "wrong") : `${good} of ${cells.length} seeds right`}`,
              ...flips.map((f) => `flipped ${FLIPS[f]}`), `answer ${answer}`, "show in panel B"].join(", "),
            onclick: () => { state.ex.panels[1] = { line, budget, seed: cells[0].seed }; showExplorer(); } },
            make("span", { class: cells.length > 1 ? null : good ? "ok" : "no" }, text)));
        }))))))];
  }

  // ----------------------------------------------------------------------------------------------------------- analysis
  // 1 shallow, 2 fusion, 3 not needed, 0 none of them
  function stageOf(layer) {
    const found = model.analysis?.stages;
    if (!found) return 0;
    if (layer < found.shallow_end) return 1;
    return layer >= found.not_needed_from ? 3 : found.fusion.includes(layer) ? 2 : 0;
  }
  const SHARE = 0.005;  // rarer choices of the resamples are not listed
  function certainty(shares) {
    const listed = Object.entries(shares ?? {}).map(([layer, share]) => [Number(layer), share]).filter(([, share]) => share >= SHARE).sort((a, b) => b[1] - a[1]);
    return listed.length ? ` In resamples of the images: ${listed.slice(0, 8).map(([layer, share]) => `${layer} in ${Math.round(100 * share)} %`).join(", ")}.` : "";
  }

  function showAnalysis() {
    const body = $("analysis-body"), found = model.analysis;
    if (!found) {
      body.replaceChildren(make("p", { class: "muted" },
        model.analysis_of ? `The analysis in these results is of other weights (${model.analysis_of}). ` : "This model has not been analysed into these results. ",
        make("code", {}, model.make_analysis), " finds the layers in which it reads the image; this report then shows them."));
      return;
    }
    const scope = [found.n_samples ? `${found.n_samples} samples` : "", found.tasks ? `tasks ${[].concat(found.tasks).join(", ")}` : ""];
    const nodes = [make("p", {}, scope.filter(Boolean).join(", "), found.command ? ". " : "", found.command ? make("code", {}, found.command) : "")];
    if (found.stages) {
      const { shallow_end: end, fusion, not_needed_from: from, rule, uncertainty } = found.stages;
      const depth = found.depth ?? found.layers.length;
      nodes.push(make("div", { class: "stages", role: "img", "aria-label": "Decoder layers by stage; the list below says which" },
        ...Array.from({ length: depth }, (_, l) => make("span", { class: `s${stageOf(l)}` }, l))));
      const item = (n, name, text, key) => make("li", { class: `b${n}` }, make("strong", {}, name), ` ${text}`, make("span", { class: "muted" }, certainty(uncertainty?.[key])));
      nodes.push(make("ul", { class: "stage-list" },
        item(1, "Shallow.", end > 0 ? `Layers 0 to ${end - 1}: text does not need to attend the image here.` : "No layer: text attends the image from the first one on.", "shallow_end"),
        item(2, "Fusion.", fusion.length ? `Layer${fusion.length > 1 ? "s" : ""} ${fusion.join(", ")}: text takes from the image what the answer needs.` : "No single layer's cut is felt.", "fusion"),
        item(3, "Not needed.", from < depth ? `From layer ${from} on the visual tokens can go.` : "The image is needed to the last layer.", "not_needed_from")));
      if (rule) nodes.push(make("details", { class: "notes" }, make("summary", {}, "The rule"), make("ul", {},
        ...(typeof rule === "string" ? [make("li", {}, rule)] : Object.entries(rule).map(([name, words]) => make("li", {}, make("strong", {}, name.replaceAll("_", " ")), `: ${words}`))))));
    } else nodes.push(make("p", { class: "muted" }, "The analysis was restricted to some layers, so it names no stages."));
    nodes.push(make("div", { class: "figures" }, ...found.figures.map((f) => make("figure", {},
      make("img", { src: f.src, alt: f.alt, loading: "lazy" }), make("figcaption", { class: "muted" }, f.title)))));
    for (const [name, rows] of [["Numbers by layer", found.layers], ["Knock-outs", found.knockouts]]) {
      if (rows.length) nodes.push(make("details", { class: "notes" }, make("summary", {}, name), records(rows)));
    }
    body.replaceChildren(...nodes);
  }
  // a column for each name; `x_low` and `x_high` (of the accuracy: `low` and `high`) are the interval below `x`
  function records(rows) {
    const names = uniq(rows.flatMap((r) => Object.keys(r))).filter((n) => !/(^|_)(low|high)$/.test(n));
    const shown = (v) => (typeof v === "number" ? String(Number(v.toPrecision(3))) : String(v));
    const cell = (row, name) => {
      const value = row[name] ?? null, low = row[`${name}_low`] ?? (name === "accuracy" ? row.low : undefined), high = row[`${name}_high`] ?? (name === "accuracy" ? row.high : undefined);
      return make("td", { class: typeof value === "number" ? "num" : null }, value === null ? DASH : shown(value),
        low !== undefined && high !== undefined ? make("span", { class: "spread" }, `[${shown(low)}, ${shown(high)}]`) : null);
    };
    const head = make("tr", {}, ...names.map((n) => make("th", { scope: "col" }, n.replaceAll("_", " "))));
    const body = rows.map((r) => make("tr", {}, ...names.map((n) => cell(r, n))));
    return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  // ----------------------------------------------------------------------------------------------------- whole requests
  const inAllTasks = (line, budget) => model.sets.map((set, i) => [set, cellsOf(line, budget, i).filter((c) => c.request)]).filter(([set]) => set.primary).map(([, cells]) => cells);

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
    const table = make("table", {}, make("thead", {}, ...head), make("tbody", {}, ...body));
    $("wr-body").replaceChildren(
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "requests-title" }, table),
      figure && make("div", { class: "figures" }, make("figure", {}, make("img", { src: figure.src, alt: figure.alt, loading: "lazy" }),
        make("figcaption", { class: "muted" }, figure.title))) || "");
  }

  // ------------------------------------------------------------------------------------------------ follow-up questions
  function showFollowUps() {
    const found = model.follow_ups, words = 3;  // columns in front of the numbers
    $("follow-ups").hidden = !found;
    if (!found) return;
    const head = make("tr", {}, ...found.head.map((name, i) => make("th", { scope: "col", class: i < words ? null : "num" }, name)));
    const body = found.rows.map((row) => make("tr", {}, ...row.map((value, i) => make("td", { class: i < words ? null : "num" }, value))));
    $("fu-body").replaceChildren(
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "follow-ups-title" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))),
      make("p", { class: "muted" }, found.note));
  }

  // ------------------------------------------------------------------------------------------------------------- wiring
  $("foot").textContent = `Made by prunebench ${META.version} from sealed cells; every number can be measured again with the command of its row.`;
  if (META.models.length > 1) {
    $("model-choice").hidden = false;
    options($("model"), META.models.map((m, i) => [i, m.label]), 0);
    $("model").addEventListener("change", () => { data = null; chooseModel(Number($("model").value)); });
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
  chooseModel(0);
  let width = Math.round($("plot").clientWidth);
  new ResizeObserver(([entry]) => {
    if (Math.round(entry.contentRect.width) !== width) { width = Math.round(entry.contentRect.width); showFigure(); }
  }).observe($("plot"));
  addEventListener("scroll", placeTip, { passive: true });
  document.documentElement.dataset.ready = String(performance.now());
})();
