// ------------------------------------------------------------------------------------------------------------- header
const sections = () => [...document.querySelectorAll("main > section[id]")].filter((s) => !s.hidden);
let here = "";  // the section in view
let aimed = "", aimedAt = null;  // a section that was asked for stays the one in view until the page leaves the place where it came to rest
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
// the place that the header covers differs with its width and with what it says
const measureTop = () => document.documentElement.style.setProperty("--top", `${$("top").offsetHeight}px`);
function goTo(id, instant) {
  const found = $(id);
  [aimed, aimedAt] = [sections().includes(found) ? id : "", null];
  found.setAttribute("tabindex", -1);
  found.scrollIntoView(instant ? { behavior: "instant" } : undefined);
  found.focus({ preventScroll: true });
  markSection();
  rest();
}
let ends = 0;
function rest() {
  clearTimeout(ends);
  ends = setTimeout(() => {
    const at = aimed && $(aimed).getBoundingClientRect();
    if (at && (at.top > innerHeight || at.bottom < 0)) aimed = "";
    aimedAt = scrollY;
    markSection();
    remember(SAME);
  }, 250);
}
function setUpHeader() {
  new ResizeObserver(measureTop).observe($("top"));
  $("nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    goTo(link.getAttribute("href").slice(1));
  });
  $("skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
  for (const kind of ["wheel", "touchmove"]) addEventListener(kind, () => { aimed = ""; }, { passive: true });
  let waits = false;
  addEventListener("scroll", () => {
    if (aimedAt !== null && Math.abs(scrollY - aimedAt) > 2) aimed = "";
    if (!waits) { waits = true; requestAnimationFrame(() => { waits = false; markSection(); }); }
    rest();
  }, { passive: true });
}
