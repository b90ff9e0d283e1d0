// Talks to the gateway. Its addresses are relative, so a prefix changes nothing. Knows nothing of the document.

const ENDED = "the gateway ended the work: it is going down, or somebody removed the job; send the scan again later";
export const GONE = "the gateway does not answer: it has ended, or the network is down; try again when it is back";

// A request that gave no result: the gateway's one line, and its status (0 where there was no answer).
export class Refused extends Error {
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

// Somebody asked for the end of the work.
export class Cancelled extends Error {}

let token = "";

export function useToken(given) {
  if (!/^[\x21-\x7e]+$/.test(given)) throw new Refused(401, "expected a token without spaces or accents, as the operator gave it out");
  token = given;
}

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export async function models() {
  return (await asked("v1/models")).json();
}

export async function mask(job) {
  return (await asked(`v1/jobs/${encodeURIComponent(job)}/mask`)).blob();
}

// Removes what the gateway keeps of a job. Where that fails, the gateway removes it after a while.
export async function forget(job) {
  await asked(`v1/jobs/${encodeURIComponent(job)}`, { method: "DELETE" }).catch(() => {});
}

async function asked(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, { ...options, headers: headers(), cache: "no-store" });
  } catch {
    throw new Refused(0, GONE);
  }
  if (!answer.ok) throw refusal(answer.status, await answer.text().catch(() => ""));
  return answer;
}

export function refusal(status, text) {
  try {
    return new Refused(status, JSON.parse(text).error ?? `the gateway answered with status ${status}`);
  } catch {
    return new Refused(status, `something in front of the gateway answered with status ${status}`);
  }
}

// Sends a scan and follows its job. `tell` gets {sent: 0..1} while bytes go out, then each state of the job.
// One request does all of it: when it ends early, also because the page is closed, the gateway ends the work.
// Returns {ended, cancel}: a promise of the finished job, and a function.
export function segment(model, files, tell) {
  const request = new XMLHttpRequest();
  const ended = new Promise((resolve, reject) => {
    let read = 0;
    let last = null;
    const take = () => {
      const events = eventsIn(request.responseText.slice(read));
      read += events.length;
      for (const job of events.jobs) tell((last = job));
    };
    request.upload.onprogress = (event) => event.lengthComputable && tell({ sent: event.loaded / event.total });
    request.onprogress = () => request.status === 200 && take();
    request.onerror = () => reject(new Refused(0, GONE));
    request.onabort = () => reject(new Cancelled());
    request.onload = () => {
      if (request.status !== 200) return reject(refusal(request.status, request.responseText));
      take();
      if (last?.state === "done") resolve(last);
      else if (last?.state === "cancelled") reject(new Refused(0, ENDED));
      else if (last?.error) reject(new Refused(422, last.error));
      else reject(new Refused(0, GONE));
    };
  });
  request.open("POST", `v1/models/${encodeURIComponent(model)}/mask`);
  for (const [name, value] of Object.entries({ ...headers(), Accept: "text/event-stream" })) request.setRequestHeader(name, value);
  request.send(bodyOf(files));
  return { ended, cancel: () => request.abort() };
}

// Names of files stay here: they may name a patient.
function bodyOf(files) {
  if (files.length === 1) return new Blob([files[0]], { type: "application/octet-stream" });
  const form = new FormData();
  files.forEach((file, index) => form.append(`channel-${index + 1}`, file, `channel-${index + 1}`));
  return form;
}

// The jobs in the complete server-sent events at the beginning of `text`, and how many characters these take.
export function eventsIn(text) {
  const length = text.lastIndexOf("\n\n") + 2;
  if (length < 2) return { jobs: [], length: 0 };
  const lines = text.slice(0, length).split("\n");
  return { jobs: lines.filter((line) => line.startsWith("data: ")).map((line) => JSON.parse(line.slice(6))), length };
}
