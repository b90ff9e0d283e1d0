// The page: what a reader does on one side, the gateway and the viewer on the other.

import { Cancelled, forget, mask as fetchMask, models as listModels, segment, useToken } from "./gateway.js";
import { Choice } from "./choice.js";
import { colormap } from "./labels.js";
import { showResult } from "./result.js";
import { step } from "./steps.js";
import { Viewer } from "./viewer.js";

const at = (id) => document.getElementById(id);
const viewer = new Viewer(at("canvas"), (text) => (at("where").textContent = text));
const choice = new Choice(at, start);
let running = null;

async function askForModels() {
  tell("Asking for the models");
  try {
    choice.offer(await listModels());
    at("token-form").hidden = true;
    tell("");
  } catch (error) {
    choice.offer([]);
    refused(error);
  }
}

// Sends what is chosen, follows it, and shows the mask.
async function start(model, files) {
  if (running) return;
  clear();
  choice.enable(false);
  let first = 0; // when the first tile came back
  const follow = (state) => {
    if (state.progress) first ||= performance.now();
    progress(step(state, first ? performance.now() - first : 0));
  };
  at("work").hidden = false;
  running = segment(model.name, files, follow);
  at("cancel").focus();
  try {
    const job = await running.ended;
    const mask = await fetchMask(job.id);
    forget(job.id);
    showResult(at, model.card, job.report, mask, files[0].name);
    tell(`The mask is made, in ${job.report.seconds.total.toFixed(1)} seconds.`);
    await show(files[0], mask, colormap(model.card));
  } catch (error) {
    if (error instanceof Cancelled) tell("Cancelled. Nothing of the scan is kept.");
    else refused(error);
  } finally {
    running = null;
    speak("");
    at("work").hidden = true;
    choice.enable(true);
    at(at("result").hidden ? "start" : "download").focus();
  }
}

// Not before the end: loading a large scan stops the page for a while, and then nobody could cancel. That the viewer
// fails is told, but takes nobody's mask away.
async function show(scan, mask, colours) {
  at("view").hidden = false;
  try {
    await viewer.show(scan, mask, colours);
  } catch (error) {
    at("view-error").hidden = false;
    at("view-error").textContent = `The picture cannot be shown: ${error.message || error}. The mask can be downloaded all the same.`;
  }
}

function clear() {
  for (const id of ["result", "view", "error", "view-error"]) at(id).hidden = true;
  viewer.clear();
  tell("");
}

function progress({ name, detail, share }) {
  if (share === null) at("bar").removeAttribute("value");
  else at("bar").value = share;
  at("step").textContent = name + detail;
  speak(share === null ? name : `${name}: ${Math.floor(share * 10) * 10} %`); // ten times a step at most
}

// For screen readers alone; others see the bar.
function speak(text) {
  if (at("spoken").textContent !== text) at("spoken").textContent = text;
}

function tell(text) {
  at("said").textContent = text;
}

function refused(error) {
  tell("");
  at("error").hidden = false;
  at("error").textContent = error.message;
  if (error.status === 401) {
    at("token-form").hidden = false;
    at("token").focus();
  }
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  at("error").hidden = true;
  try {
    useToken(at("token").value);
    askForModels();
  } catch (error) {
    refused(error);
  }
});
at("cancel").addEventListener("click", () => running?.cancel());
at("reload").addEventListener("click", () => {
  at("error").hidden = true;
  askForModels();
});
at("opacity").addEventListener("change", () => viewer.opacity(Number(at("opacity").value)));
at("planes").addEventListener("change", () => viewer.planes(at("planes").value));
at("radiological").addEventListener("change", () => viewer.radiological(at("radiological").checked));

askForModels();
