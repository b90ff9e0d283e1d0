// What a state of a job means for a reader: the step in words, the share of the bar, and the time left. Knows nothing of
// the document.

// state: {sent: 0..1} while bytes go out, else the job. ms: milliseconds since the first tile came back.
// Returns {name, detail, share}; share is null where nothing is known of it.
export function step(state, ms) {
  if (state.sent !== undefined) {
    return state.sent < 1 ? counted("Sending the scan", state.sent) : unknown("The scan is sent");
  }
  if (state.state === "waiting") return unknown("Waiting for a free place, since other scans came before");
  if (state.state === "done") return { name: "Fetching the mask", detail: "", share: 1 };
  if (!state.progress) return unknown("Reading and preparing the scan");
  if (state.progress >= 1) return { name: "Bringing the mask to the scan's voxels", detail: "", share: 1 };
  return counted("Segmenting", state.progress, left(state.progress, ms));
}

function unknown(name) {
  return { name, detail: "", share: null };
}

function counted(name, share, more = "") {
  return { name, detail: `: ${Math.floor(share * 100)} %${more}`, share };
}

// Nothing in the first two seconds, when a guess would be a poor one.
function left(share, ms) {
  if (ms < 2000) return "";
  const seconds = ((ms / 1000) * (1 - share)) / share;
  if (seconds < 1.5) return ", about a second left";
  if (seconds < 90) return `, about ${Math.round(seconds)} seconds left`;
  return `, about ${Math.round(seconds / 60)} minutes left`;
}
