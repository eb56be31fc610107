// ------------------------------------------------------------------------------------------------ follow-up questions
function showFollowUps() {
  const found = model.follow_ups, words = 3;  // columns in front of the numbers
  $("follow-ups").hidden = !found;
  if (!found) return;
  const head = make("tr", {}, ...found.head.map((name, i) => make("th", { scope: "col", class: i < words ? null : "num" }, name)));
  const body = found.rows.map((row) => make("tr", {}, ...row.map((value, i) => make("td", { class: i < words ? null : "num" }, value))));
  $("fu-body").replaceChildren(
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of follow-up questions" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))),
    make("p", { class: "muted" }, found.note));
}
