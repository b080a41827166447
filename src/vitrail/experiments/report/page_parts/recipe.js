// How a picture was made, and the command that makes it again.

function openRecipe(picture) {
  byId("recipe-title").textContent = `${picture.row}, ${sizeText(picture.size)}`;
  byId("recipe-prompt").textContent = `${picture.prompt} (${seedText(picture)})`;
  const parts = [];
  if (picture.error !== null) parts.push(block("Error", picture.error, "recipe-error", true));
  if (picture.command) {
    parts.push(block("Make it again, in the folder of this page", picture.command, "recipe-command", true));
  }
  const numbers = numbersOf(picture);
  if (numbers.textContent) parts.push(make("section", {}, make("h3", {}, "Numbers"), numbers));
  if (Object.keys(picture.recipe).length > 0) {
    parts.push(block("Recipe", readable(picture.recipe), "recipe-text", true));
    parts.push(block("As JSON", JSON.stringify(picture.recipe, null, 2), "recipe-json", false));
  }
  byId("recipe-body").replaceChildren(...parts);
  byId("recipe").showModal();
}

const recipeButton = (picture) =>
  button("Recipe", () => openRecipe(picture), { class: "quiet", "aria-label": `Recipe of ${altText(picture)}` });

/** A text with its title and a button that copies it; closed ones open by a click on the title. */
function block(title, text, id, isOpen) {
  const code = make("pre", { id, tabindex: "0", "aria-label": title }, text);
  const parts = [copyButton(title, text), code];
  if (isOpen) return make("section", {}, make("h3", {}, title), ...parts);
  return make("details", {}, make("summary", {}, title), ...parts);
}

byId("recipe-close").addEventListener("click", () => byId("recipe").close());
