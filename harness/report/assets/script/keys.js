// -------------------------------------------------------------------------------------------------- keyboard movement
// One stop of the Tab key for many controls: arrow keys move between them, and the last one reached stays the stop.
const INSIDE = "button, a[href], summary, input, select";
function stopAt(whole, node) {
  for (const other of whole.querySelectorAll("[tabindex='0']")) other.setAttribute("tabindex", -1);
  node.setAttribute("tabindex", 0);
}
function moveTo(whole, node) {
  stopAt(whole, node);
  node.focus();
}
// what is drawn anew has its stops set anew: at the control that `chosen` selects, otherwise at the first
function oneStop(whole, chosen) {
  const all = [...whole.querySelectorAll(INSIDE)].filter((node) => !node.hidden);
  for (const node of all) node.setAttribute("tabindex", -1);
  const first = (chosen && all.find((node) => node.matches(chosen))) || all[0];
  if (first) first.setAttribute("tabindex", 0);
}

// ARIA's toolbar: buttons in a row
function toolbar(whole) {
  whole.setAttribute("role", "toolbar");
  whole.addEventListener("focusin", (event) => { if (event.target.matches(INSIDE)) stopAt(whole, event.target); });
  whole.addEventListener("keydown", (event) => {
    const all = [...whole.querySelectorAll(INSIDE)].filter((node) => !node.hidden && !node.disabled), at = all.indexOf(event.target), n = all.length;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: n - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    moveTo(whole, all[(to + n) % n]);
  });
}

// ARIA's grid: arrow keys move between the cells of a table; a cell with a control hands the focus to the control
function grid(table) {
  table.setAttribute("role", "grid");
  const target = (cell) => cell.querySelector(INSIDE) ?? cell;
  table.addEventListener("focusin", (event) => stopAt(table, event.target));
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td, th"), row = cell?.parentElement;
    if (!row || event.altKey || event.metaKey) return;
    const rows = [...table.rows], r = rows.indexOf(row), c = [...row.cells].indexOf(cell), last = rows.length - 1;
    const end = event.key === "End" ? Infinity : 0;
    const moves = { ArrowDown: [r + 1, c], ArrowUp: [r - 1, c], ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], PageDown: [r + 10, c], PageUp: [r - 10, c],
      Home: [event.ctrlKey ? 0 : r, end], End: [event.ctrlKey ? last : r, end] };
    if (!moves[event.key]) return;
    event.preventDefault();
    const to = rows[Math.max(0, Math.min(moves[event.key][0], last))];
    moveTo(table, target(to.cells[Math.max(0, Math.min(moves[event.key][1], to.cells.length - 1))]));
  });
}
