// ---------------------------------------------------------------------------------------------------------- downloads
function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  tell(`Saved as ${name}.`);
}
const fileName = (...words) => ["prunebench", ...words].join("-").replace(/[^\w.]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 120);

// As harness/core/shown.py writes cells: a text that a spreadsheet would compute stands behind an apostrophe.
const FORMULA = /^('|\s*[=+\-@\t\r\n＝＋－＠])/;
function csvField(value) {
  const text = typeof value === "number" ? String(value) : FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
const csv = (rows) => rows.map((row) => row.map(csvField).join(",") + "\n").join("");

// the colour that a browser paints, as #rrggbb: other programs read no color-mix()
const paint1 = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function hex(value) {
  if (!value || value === "none") return "none";
  paint1.clearRect(0, 0, 1, 1);
  paint1.fillStyle = value;
  paint1.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = paint1.getImageData(0, 0, 1, 1).data;
  return a ? `#${[r, g, b].map((v) => v.toString(16).padStart(2, "0")).join("")}` : "none";
}
// A copy of a drawing that needs no style sheet: what the page's styles say stands in its attributes.
const STYLED = ["stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];
function plain(node) {
  const twin = document.createElementNS(SVG, node.localName);
  for (const { name, value } of node.attributes) if (!/^(style|class|id|tabindex|role|aria-|data-|on)/.test(name)) twin.setAttribute(name, value);
  const seen = getComputedStyle(node);
  for (const name of ["fill", "stroke"]) twin.setAttribute(name, hex(seen.getPropertyValue(name)));
  for (const name of STYLED) twin.setAttribute(name, seen.getPropertyValue(name));
  // a stroke that does not scale is given in pixels, of which the saved picture has twice as many
  if (node.getAttribute("vector-effect") === "non-scaling-stroke") twin.setAttribute("stroke-width", 2 * parseFloat(seen.strokeWidth));
  for (const child of node.childNodes) {
    if (child instanceof Text) twin.append(child.data);
    else if (child instanceof SVGElement && getComputedStyle(child).display !== "none") twin.append(plain(child));
  }
  return twin;
}

async function decoded(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  return image;
}
// pixels on the given ground; a drawing gets two for each of its units
async function png(src, width, height, ground) {
  const image = await decoded(src), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width ?? image.naturalWidth, height ?? image.naturalHeight];
  const context = canvas.getContext("2d");
  context.fillStyle = ground;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done, failed) => canvas.toBlob((blob) => (blob ? done(blob) : failed(new Error("the browser drew no PNG"))), "image/png"));
}
async function saved(blob, name) {
  try { save(await blob, name); } catch (error) { tell(`${name} could not be made: ${error.message}`); }
}

// the figure of the page with its title above and the methods shown below, as the page's colours are now
async function figurePng() {
  const svg = $("plot").querySelector("svg");
  const { width, height } = svg.viewBox.baseVal;
  const style = getComputedStyle(document.documentElement), ink = hex(style.getPropertyValue("--ink")), family = getComputedStyle(document.body).fontFamily;
  const text = (words, x, y, size) => draw("text", { x, y, fill: ink, "font-family": family, "font-size": size }, words);
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = `12.5px ${family}`;
  const key = [];
  let x = 14, y = height + 68;
  for (const button of $("legend").querySelectorAll("button[aria-pressed='true']")) {
    if (button.hidden) continue;
    const wide = 34 + ruler.measureText(button.textContent).width;
    if (x > 14 && x + wide > width) { x = 14; y += 22; }
    const mark = plain(button.querySelector(".swatch path"));
    mark.setAttribute("transform", `translate(${x + 6},${y - 4}) ${mark.getAttribute("transform")}`);
    key.push(mark, text(button.textContent, x + 18, y, 12.5));
    x += wide;
  }
  const tall = y + 16, drawing = plain(svg);
  for (const [name, value] of Object.entries({ x: 0, y: 36, width, height })) drawing.setAttribute(name, value);
  const whole = draw("svg", { xmlns: SVG, width: 2 * width, height: 2 * tall, viewBox: `0 0 ${width} ${tall}` },
    draw("rect", { width, height: tall, fill: hex(style.getPropertyValue("--paper")) }),
    text($("title").textContent, 4, 22, 15), drawing, ...key);
  const src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(whole))}`;
  return png(src, 2 * width, 2 * tall, hex(style.getPropertyValue("--paper")));
}
const saveFigure = () => saved(figurePng(), `${fileName(model.label, state.y === "average" ? "average" : model.sets[Number(state.y)].label, state.x)}.png`);

// a picture that the results hold, on white as it was drawn, and the button that saves it
async function picturePng(src) {
  if (src.startsWith("data:image/png;base64,")) return new Blob([Uint8Array.from(atob(src.split(",")[1]), (c) => c.charCodeAt(0))], { type: "image/png" });
  const image = await decoded(src);
  return png(src, 2 * image.naturalWidth, 2 * image.naturalHeight, "#ffffff");
}
// on a narrow screen the picture keeps a legible size, and its card scrolls: then the Tab key reaches the card
const scrolls = new ResizeObserver((all) => {
  for (const { target } of all) if (target.scrollWidth > target.clientWidth) target.setAttribute("tabindex", 0); else target.removeAttribute("tabindex");
});
function pictureOf(found, name) {
  const card = make("div", { class: "card", role: "group", "aria-label": `Figure: ${found.title}` }, make("img", { src: found.src, alt: found.alt, loading: "lazy" }));
  scrolls.observe(card);
  return make("figure", {}, card, make("div", { class: "beside" }, make("figcaption", { class: "muted" }, found.title),
    make("button", { type: "button", class: "small", "aria-label": `Download PNG of the figure: ${found.title}`,
      onclick: () => saved(picturePng(found.src), `${fileName(model.label, name)}.png`) }, "Download PNG")));
}

// beside the number of a column what the page shows with it: marks of a test, and an interval or a spread
const BESIDE = [["marks", "marks"], ["more", "interval or spread"]];
function saveLeaderboard() {
  const { rows, cols } = leaderboardShown;
  const beside = (col) => BESIDE.filter(([part]) => col[part]);
  const head = cols.flatMap((col) => [col.unit ? `${col.head} (${col.unit})` : col.head, ...beside(col).map(([, name]) => `${col.head}: ${name}`)]);
  const field = (col, row) => {
    if (col.still) return row.commands.filter(Boolean).join("\n");
    const text = String(col.text(row));
    return text === DASH ? "" : col.num ? text.replace(/(?<=\d),(?=\d{3})/g, "") : text;
  };
  const body = rows.map((row) => cols.flatMap((col) => [field(col, row), ...beside(col).map(([part]) => col[part](row))]));
  // spreadsheets take a file without the mark at its beginning for no UTF-8, and break ≈ and ±
  save(new Blob(["\ufeff", csv([head, ...body])], { type: "text/csv;charset=utf-8" }), `${fileName(model.label, "leaderboard")}.csv`);
}
