// ------------------------------------------------------------------------------------------------ what the tables say
// A study is a section of LEADERBOARD.md. Its rows: line, budget, average, ends of its interval, marks by set (-1: average).
const AVERAGE = -1;
const MARKS = { "≈R": "no significant difference from random", "≈U": "no significant difference from the unpruned model" };
const readStudies = new WeakMap();
function studyRows() {
  if (!readStudies.has(model)) readStudies.set(model, model.studies.map((study) => new Map(study.rows.map((row) => [`${row[0]} ${row[1]}`, row]))));
  return readStudies.get(model);
}
function rowOf(study, line, budget) {
  const row = studyRows()[study].get(`${line} ${budget}`);
  return row && { average: row[2], low: row[3], high: row[4], marks: row[5] };
}
// a row at the average of these sets: known only where a study averages just them
function averaged(line, budget, sets) {
  const wanted = sets.filter((s) => !model.sets[s].lower).sort((a, b) => a - b).join();
  const study = model.studies.findIndex((one) => [...one.averaged].sort((a, b) => a - b).join() === wanted);
  return study < 0 ? undefined : rowOf(study, line, budget);
}
function marksAt(line, budget, set) {
  const study = model.studies.findIndex((one) => one.sets.includes(set));
  return (study >= 0 && rowOf(study, line, budget)?.marks[set]) || "";
}
function markSpan(marks) {
  return marks ? make("span", { class: "marks", title: marks.split(" ").map((m) => MARKS[m] ?? m).join("; ") }, ` ${marks}`) : null;
}
// LEADERBOARD.md averages all tasks of a section, and so none where a task has no pruned line
function noAverage(study) {
  const bare = study.averaged.filter((s) => !offered().includes(s)).map((s) => model.sets[s].label);
  return bare.length ? make("p", { class: "muted" }, `No line has an Avg % here: the average is of all tasks, and only the unpruned model answered ${bare.join(", ")}.`) : "";
}
const signed = (value, digits = 1) => (value === null ? DASH : `${value < 0 ? "" : "+"}${value.toFixed(digits)}`.replace(/^-(0\.?0*)$/, "+$1"));
const span = (low, high, show = one) => (low === null ? "" : `[${show(low)}, ${show(high)}]`);
const caption = (text) => make("caption", { class: "muted" }, text);
const scrolling = (title, ...children) => make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, ...children);
// 1 for the highest printed number; equal numbers share a rank
function ranksOf(texts) {
  const numbers = texts.map((t) => (t === DASH ? null : Number(t)));
  return numbers.map((n) => (n === null ? null : 1 + numbers.filter((other) => other !== null && other > n).length));
}
