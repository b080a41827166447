// Elements of the page. Text is only ever put in as text, never as HTML.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

/** An element with attributes ("onclick" and the like listen) and children, which are elements or text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A button that says what it is for. */
const button = (text, onclick, attributes = {}) => make("button", { type: "button", onclick, ...attributes }, text);

/** A button that copies a text, and says so. */
function copyButton(what, text) {
  const copier = button("Copy", async () => {
    copier.textContent = (await copied(text, copier)) ? "Copied" : "Select and copy by hand";
    setTimeout(() => (copier.textContent = "Copy"), 2000);
  });
  copier.setAttribute("aria-label", `Copy ${what}`);
  copier.setAttribute("aria-live", "polite");
  copier.className = "copy";
  return copier;
}

/** Whether a text is in the clipboard now; browsers that keep it from pages on a disk are asked the old way. */
async function copied(text, beside) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = make("textarea", { class: "unseen", "aria-hidden": "true" });
    field.value = text;
    beside.after(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    beside.focus();
    return done;
  }
}
