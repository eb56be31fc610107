// -------------------------------------------------------------------------------------------------- keyboard movement
// One stop of the Tab key for many controls: arrow keys move between them, and the last one reached stays the stop.
const INSIDE = "button, a[href], summary, input, select";
function stopAt(whole, node) {
  for (const other of whole.querySelectorAll("[tabindex='0']")) other.setAttribute("tabindex", -1);
  node.setAttribute("tabindex", 0);
}
function moveTo(whole, node) {
  stopAt(whole, node);
  node.focus({ preventScroll: true });
  // by the edges that stay free: a scroll by the focus alone may end below a sticky row or column
  node.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
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
  let column = 0;  // stays on the way through a row of one wide cell
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td, th");
    stopAt(table, event.target);
    if (cell && cell.colSpan === 1) column = cell.cellIndex;
  });
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td, th");
    if (!cell || event.altKey || event.metaKey) return;
    const rows = [...table.rows], r = rows.indexOf(cell.parentElement), last = rows.length - 1;
    const moves = { ArrowDown: [r + 1, column], ArrowUp: [r - 1, column], ArrowRight: [r, cell.cellIndex + 1], ArrowLeft: [r, cell.cellIndex - 1],
      PageDown: [r + 10, column], PageUp: [r - 10, column], Home: [event.ctrlKey ? 0 : r, 0], End: [event.ctrlKey ? last : r, Infinity] };
    if (!moves[event.key]) return;
    event.preventDefault();
    const to = rows[Math.max(0, Math.min(moves[event.key][0], last))];
    moveTo(table, target(to.cells[Math.max(0, Math.min(moves[event.key][1], to.cells.length - 1))]));
  });
}
