// ------------------------------------------------------------------------------------------------------------- header
const sections = () => [...document.querySelectorAll("main > section[id]")].filter((s) => !s.hidden);
let here = "";  // the section in view
let aimed = "";  // a section that was asked for stays the one in view until the reader scrolls
function inView() {
  if (aimed) return aimed;
  const line = $("top").getBoundingClientRect().bottom + innerHeight / 4, all = sections();
  const end = scrollY > 0 && scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
  return (end ? all.at(-1) : all.filter((s) => s.getBoundingClientRect().top <= line).at(-1))?.id ?? "";
}
function markSection() {
  const now = inView(), changed = now !== here;
  here = now;
  for (const link of $("nav").children) {
    const id = link.getAttribute("href").slice(1), on = id === here;
    link.hidden = !$(id) || $(id).hidden;
    if (on) link.setAttribute("aria-current", "location"); else link.removeAttribute("aria-current");
    // the row of links scrolls by itself, and not the page
    if (on && changed) $("nav").scrollTo({ left: link.offsetLeft - ($("nav").clientWidth - link.offsetWidth) / 2 });
  }
}
function goTo(id, instant) {
  const found = $(id);
  aimed = sections().includes(found) ? id : "";
  found.setAttribute("tabindex", -1);
  found.scrollIntoView(instant ? { behavior: "instant" } : undefined);
  found.focus({ preventScroll: true });
  markSection();
}
function setUpHeader() {
  // the place that the header covers differs with its width and with what it says
  new ResizeObserver(() => document.documentElement.style.setProperty("--top", `${$("top").offsetHeight}px`)).observe($("top"));
  $("nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    goTo(link.getAttribute("href").slice(1));
  });
  $("skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
  for (const kind of ["wheel", "touchmove", "pointerdown", "keydown"]) addEventListener(kind, (event) => { if (!$("top").contains(event.target)) aimed = ""; }, { passive: true });
  let waits = false, ends = 0;
  addEventListener("scroll", () => {
    if (!waits) { waits = true; requestAnimationFrame(() => { waits = false; markSection(); }); }
    clearTimeout(ends);
    ends = setTimeout(() => remember(SAME), 250);
  }, { passive: true });
}
