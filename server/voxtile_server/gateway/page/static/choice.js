// What is chosen: a model, and a file for each of its channels, by dialogue or by dropping. Knows nothing of the gateway.

import { ordered } from "./channels.js";

export class Choice {
  #at;
  #start;
  #models = [];
  #files = []; // one a channel; the last place is for one 4D file with all channels, where there are several
  #enabled = true;

  // at: gives the element of an id. start: called with the model and its files.
  constructor(at, start) {
    this.#at = at;
    this.#start = start;
    at("model").addEventListener("change", () => this.#turn());
    at("start").addEventListener("click", () => start(this.#model, this.#chosen));
    this.#takeDrops(at("drop"));
  }

  offer(models) {
    this.#models = models.filter((model) => model.usable);
    const broken = models.filter((model) => !model.usable);
    this.#at("model").replaceChildren(
      ...this.#models.map((model) => new Option(model.card.title ? `${model.name}: ${model.card.title}` : model.name, model.name)),
      ...broken.map((model) => Object.assign(new Option(`${model.name}: ${model.problem}`), { disabled: true })),
    );
    this.#at("reload").hidden = this.#models.length > 0;
    this.#turn();
    if (!this.#models.length) this.#at("model-hint").textContent = "There is no model to choose.";
  }

  // While a scan is under way, nothing is taken.
  enable(on) {
    this.#enabled = on;
    this.#at("drop").classList.toggle("off", !on);
    this.#at("model").disabled = !on;
    for (const input of this.#inputs) input.disabled = !on;
    this.#refresh();
  }

  get #model() {
    return this.#models.find((model) => model.name === this.#at("model").value);
  }

  get #channels() {
    return this.#model?.channels ?? [];
  }

  get #inputs() {
    return [...this.#at("slots").querySelectorAll("input")];
  }

  // The files to send, or null where they are not complete.
  get #chosen() {
    const all = this.#files[this.#channels.length];
    if (all) return [all];
    const files = this.#files.slice(0, this.#channels.length);
    return files.length && files.every(Boolean) && this.#channels.length === files.length ? files : null;
  }

  // Another model: other channels. A single file stays chosen, since it means the same.
  #turn() {
    const kept = this.#files.length === 1 && this.#channels.length === 1 ? this.#files : [];
    const several = this.#channels.length > 1;
    const names = several ? [...this.#channels, "All in one 4D file"] : this.#channels.map(() => "Scan");
    this.#files = names.map((_, index) => kept[index]);
    this.#at("slots").replaceChildren(...names.map((name, index) => this.#slot(name, index, several)));
    this.#at("model-hint").textContent = this.#model ? described(this.#model) : "";
    this.#at("drop-hint").textContent = several
      ? `Drop ${this.#channels.length} NIfTI files (.nii or .nii.gz), one a channel, on their lines; or together, if each name has its channel's name:`
      : "Drop a NIfTI file (.nii or .nii.gz) here, or choose one. The mask is made at once:";
    this.#refresh();
  }

  #slot(name, index, several) {
    const slot = Object.assign(document.createElement("div"), { className: "slot" });
    const input = Object.assign(document.createElement("input"), { type: "file", id: `file-${index}`, disabled: !this.#enabled });
    const label = Object.assign(document.createElement("label"), { htmlFor: input.id, textContent: name });
    const chosen = this.#files[index];
    if (chosen) hold(input, chosen);
    input.addEventListener("change", () => input.files.length && this.#take([...input.files], index));
    if (several && index === this.#channels.length) slot.append(Object.assign(document.createElement("span"), { className: "or", textContent: "or" }));
    slot.append(label, input);
    slot.dataset.index = index;
    return slot;
  }

  #takeDrops(zone) {
    for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault()); // or the browser leaves the page
    zone.addEventListener("dragover", () => zone.classList.toggle("over", this.#enabled));
    for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => {
      const slot = event.target.closest?.(".slot");
      this.#take([...event.dataTransfer.files], slot ? Number(slot.dataset.index) : null);
    });
  }

  // index: the line that the files were given on; null for none.
  #take(files, index) {
    if (!this.#enabled) return this.#say("A scan is under way; wait for its mask or cancel it.");
    if (!this.#model) return this.#say("There is no model to choose yet; drop the file again when there is.");
    if (!files.length) return this.#say("What was dropped is no file.");
    const several = this.#channels.length > 1;
    if (!several && files.length > 1) return this.#say(`Expected one file, found ${files.length}; give one scan after another.`);
    if (!several) this.#put([[0, files[0]]]);
    else if (files.length === 1 && index !== null) this.#put([[index, files[0]]]);
    else {
      const found = ordered(files, this.#channels);
      if (!found) return this.#say(`Which file is which channel? Expected ${this.#channels.length} files, each with one of ${this.#channels.join(", ")} in its name; or drop each on its line.`);
      this.#put([...found.entries()]);
    }
    this.#say("");
    this.#refresh();
    if (!several) this.#start(this.#model, this.#chosen);
  }

  // One 4D file takes the place of one a channel, and the other way round.
  #put(places) {
    const all = this.#channels.length;
    const whole = all > 1 && places.some(([index]) => index === all);
    this.#files = this.#files.map((file, index) => (all > 1 && (index === all) !== whole ? undefined : file));
    for (const [index, file] of places) this.#files[index] = file;
    this.#inputs.forEach((input, index) => hold(input, this.#files[index]));
  }

  #refresh() {
    this.#at("start").disabled = !this.#enabled || !this.#chosen;
  }

  #say(text) {
    this.#at("error").hidden = !text;
    this.#at("error").textContent = text;
  }
}

// Makes an input show a file that was dropped.
function hold(input, file) {
  const held = new DataTransfer();
  if (file) held.items.add(file);
  input.files = held.files;
}

function described(model) {
  const labels = model.card.labels.filter((label) => label.value !== 0).map((label) => label.name);
  const shown = labels.slice(0, 8).join(", ") + (labels.length > 8 ? `, and ${labels.length - 8} more` : "");
  return `Takes ${model.channels.join(", ")}. ${shown ? `Marks ${shown}.` : ""}`;
}
