// The form with its plan, the picture in work, and the pictures that there are.

const OFTEN = 500; // milliseconds between two looks at a picture in work
const SELDOM = 2000; // and where nothing is in work, as another tab may begin one
const TYPED = 400; // after the last key before a plan is made
const now = { about: null, state: { busy: null, pictures: [] }, shown: "", preview: "", lost: "" };

/** The server's own words for what it does not do; every other error is of the way to it. */
class Refused extends Error {}

/** Ask the server; an answer that is no success is thrown in its own words. */
async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  const isJson = (answer.headers.get("content-type") ?? "").startsWith("application/json");
  const told = isJson ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Refused(told.error);
  return told;
}

/** What the form asks for. */
function wish() {
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return {
    prompt: byId("prompt").value, negative_prompt: byId("negative").value, method: byId("method").value,
    width: number("width"), height: number("height"), seed: number("seed"),
    num_inference_steps: number("steps"), guidance_scale: number("guidance"),
  };
}

// ---------------------------------------------------------------- the plan

let planning = 0;
let timer = null;

function planSoon() {
  clearTimeout(timer);
  timer = setTimeout(plan, TYPED);
}

/** Show what a picture would cost; of several plans that were asked for the last one counts. */
async function plan() {
  const asked = ++planning;
  const wanted = wish();
  if (!wanted.prompt.trim()) return showPlan("Write a sentence, and here is what it will take.");
  if (now.state.busy !== null) return showPlan("The next picture is planned when the one in work is done.");
  try {
    const told = await ask("api/plan", wanted);
    if (asked === planning) showPlan(...planLines(told));
  } catch (error) {
    if (asked === planning) byId("plan").replaceChildren(make("p", { class: "refused" }, error.message));
  }
}

const showPlan = (...lines) => byId("plan").replaceChildren(...lines.map((line) => make("p", {}, line)));

function planLines(told) {
  const stages = told.stages.map(({ size, steps, views }) =>
    `${sizeText(size)}: ${steps} steps of ${views} view${views > 1 ? "s" : ""}`);
  const time = told.seconds === null ? "how long is known after the first picture" : `about ${timeText(told.seconds)}`;
  const memory = told.need_bytes === null ? [] : [
    `memory: ${bytesText(told.need_bytes)} beside the weights, ${told.rows} row${told.rows > 1 ? "s" : ""} at a time; ` +
    `${bytesText(told.free_bytes)} free`,
  ];
  return [`${told.model_calls} evaluations of the network, ${time}`, ...memory, stages.join(" · ")];
}

function timeText(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))}${SPACE}s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes}${SPACE}min` : `${Math.floor(minutes / 60)}${SPACE}h ${minutes % 60}${SPACE}min`;
}

// ---------------------------------------------------------------- what the page does

/** Do something, and say in its own words why it could not be done. */
async function attempt(action) {
  byId("said").textContent = "";
  try {
    await action();
  } catch (error) {
    byId("said").textContent = error.message;
  }
  await look();
}

byId("wish").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => ask("api/pictures", wish())).then(() => byId("now").scrollIntoView({ block: "nearest" }));
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  byId("wish").requestSubmit();
});
byId("wish").addEventListener("input", planSoon);
byId("method").addEventListener("change", showSummary);
byId("stop").addEventListener("click", () => attempt(() => ask(`api/pictures/${now.state.busy}/stop`, {})));
byId("recipe-close").addEventListener("click", () => byId("recipe").close());

function showSummary() {
  const method = now.about.methods.find((each) => each.name === byId("method").value);
  byId("method-summary").textContent = method?.summary ?? "";
}

/** What makes a picture again: command line, Python, and the recipe that the file carries. */
function openRecipe(picture) {
  const { command, python, recipe } = picture.again;
  const part = (title, id, text) =>
    make("section", {}, make("h3", {}, title), copyButton(title.toLowerCase(), text), make("pre", { id }, text));
  byId("recipe-body").replaceChildren(
    part("Command", "recipe-command", command),
    part("Python", "recipe-python", python),
    part("Recipe", "recipe-json", JSON.stringify(recipe, null, 2)),
  );
  byId("recipe").showModal();
}

/** Put a picture's settings into the form, the seed too, so that another method or size begins alike. */
function takeSettings(picture) {
  const { settings } = picture;
  const fields = {
    prompt: settings.prompt, negative: settings.negative_prompt ?? "", method: settings.method, width: settings.width,
    height: settings.height, seed: settings.seed, steps: settings.num_inference_steps, guidance: settings.guidance_scale,
  };
  for (const [id, value] of Object.entries(fields)) byId(id).value = value;
  byId("said").textContent = "";
  showSummary();
  plan();
  byId("method").focus();
}

// ---------------------------------------------------------------- what there is

async function look() {
  try {
    if (now.about === null) await meet();
    const state = await ask("api/state");
    const wasBusy = now.state.busy;
    now.state = state;
    if (now.lost && byId("said").textContent === now.lost) byId("said").textContent = "";
    now.lost = "";
    show();
    if (wasBusy !== state.busy) plan();
  } catch (error) {
    now.lost = error instanceof Refused ? error.message : "The page cannot reach its server; was it ended?";
    byId("said").textContent = now.lost;
  }
}

function show() {
  const { busy, pictures } = now.state;
  const work = pictures.find((each) => each.number === busy);
  byId("now").hidden = !work;
  byId("begin").disabled = busy !== null;
  byId("begin").textContent = busy === null ? "Make it" : "Busy: one picture at a time";
  document.title = work ? `${work.step}/${work.steps} · Vitrail` : "Vitrail";
  if (work) showWork(work);
  const rest = pictures.filter((each) => each !== work);
  const key = JSON.stringify(rest.map((each) => [each.version, each.status, each.step, each.can_go_on, each.reason]).concat([busy !== null]));
  if (key !== now.shown) {
    now.shown = key;
    byId("none").hidden = rest.length > 0;
    byId("pictures").replaceChildren(...rest.map(card));
  }
}

function showWork(work) {
  byId("now-title").textContent = work.prompt;
  byId("progress").value = work.step / work.steps;
  byId("progress").textContent = `${work.step} of ${work.steps}`;
  const left = work.left_s === null || work.step === work.steps ? [] : [`about ${timeText(work.left_s)} left`];
  const step = work.step === work.steps ? "decoding" : `step ${work.step} of ${work.steps}`;
  const stopping = work.status === "stopping" ? ["stopping after this step"] : [];
  byId("now-words").textContent = [`${work.row}, ${sizeText(work.size)}`, step, ...left, ...stopping].join(" · ");
  byId("stop").disabled = work.status === "stopping";
  const preview = work.has_preview ? `api/pictures/${work.number}/preview.png?step=${work.step}` : "";
  byId("preview").hidden = !preview;
  if (preview && preview !== now.preview) byId("preview").src = preview;
  now.preview = preview;
}

/** A picture that is done, stopped or failed. */
function card(picture) {
  const done = picture.status === "done";
  const image = picture.shown
    ? button("", () => openZoom(picture, now.state.pictures), { class: "look", "aria-label": `Look at ${altText(picture)}` })
    : make("div", { class: "blank soft" }, picture.status === "failed" ? "no picture" : "nothing yet");
  if (picture.shown) image.append(make("img", { src: picture.shown.thumb, alt: altText(picture) }));
  const words = [`${picture.row}, ${sizeText(picture.size)}, ${seedText(picture)}`];
  if (picture.status === "stopped") words.push(`stopped after step ${picture.step} of ${picture.steps}`);
  if (done) words.push(timeText(picture.seconds));
  const goOn = button("Go on", () => attempt(() => ask(`api/pictures/${picture.number}/go-on`, {})), {
    class: "go-on", disabled: now.state.busy !== null,
  });
  const actions = [
    picture.can_go_on ? goOn : null,
    picture.again ? button("Recipe", () => openRecipe(picture)) : null,
    button("Take its settings", () => takeSettings(picture)),
    done ? make("a", { href: `pictures/${picture.number}/picture.png`, download: true }, "Save") : null,
  ];
  return make("figure", { class: "picture", "data-number": picture.number, "data-status": picture.status }, image,
    make("figcaption", {}, make("p", {}, make("strong", {}, picture.prompt)), make("p", { class: "soft" }, words.join(" · ")),
      picture.reason ? make("p", { class: "failed-words" }, picture.reason) : null,
      make("div", { class: "actions" }, ...actions.filter(Boolean))));
}

/** Ask for the model and its methods, and fill the form for them. */
async function meet() {
  const about = await ask("api/about");
  now.about = about;
  byId("about").textContent = `Model ${about.model} on ${about.device}, trained at ${about.native} pixels. It stays loaded.`;
  byId("method").replaceChildren(...about.methods.map(({ name, refused }) =>
    make("option", { value: name, disabled: refused !== "", selected: name === about.method, title: refused }, name)));
  for (const id of ["width", "height"]) byId(id).value = 2 * about.native;
  byId("steps").value = about.steps;
  byId("guidance").value = about.guidance_scale;
  showSummary();
  plan();
}

async function begin() {
  for (;;) {
    await look();
    await new Promise((done) => setTimeout(done, now.state.busy === null ? SELDOM : OFTEN));
  }
}

begin();
