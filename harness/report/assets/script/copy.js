// --------------------------------------------------------------------------------------------------- copying of texts
let toastEnds = 0;
function tell(text) {
  $("toast").textContent = text;
  $("toast").classList.add("on");
  clearTimeout(toastEnds);
  toastEnds = setTimeout(() => { $("toast").classList.remove("on"); $("toast").textContent = ""; }, 4000);
}
// the clipboard where the browser grants it, otherwise a selection that the browser's own command copies
async function copy(text, what) {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    const back = document.activeElement, area = make("textarea", { class: "unseen", readonly: true, "aria-hidden": "true", tabindex: -1 });
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    back?.focus({ preventScroll: true });
  }
  tell(done ? `Copied ${what}.` : `This browser does not let the page copy ${what}: please select the text.`);
}
function copyButton(text, what) {
  return make("button", { type: "button", class: "copy", "aria-label": `Copy ${what}`, onclick: () => copy(text, what) }, "Copy");
}
// a command of a shell, wrapped to the width at hand, and the button that copies it
const command = (text, what) => make("div", { class: "command" }, make("code", {}, text), copyButton(text, what));
