// Decides which of several files is which channel, by their names. Where that is not certain it decides nothing: a
// scan in the wrong channel gives a wrong mask. Knows nothing of the document.

// files: objects with a name. channels: names in the model's order.
// Returns the files in the order of the channels, or null.
export function ordered(files, channels) {
  if (files.length !== channels.length) return null;
  const found = channels.map((channel) => files.filter((file) => says(file.name, channel)));
  const certain = found.every((some) => some.length === 1) && new Set(found.flat()).size === files.length;
  return certain ? found.flat() : null;
}

// Whether a name has the channel's name as a whole word: "case_t1.nii.gz" says T1, "case_t1c.nii.gz" does not.
function says(name, channel) {
  const words = wordsOf(name).join(" ");
  const wanted = wordsOf(channel).join(" ");
  return wanted !== "" && ` ${words} `.includes(` ${wanted} `);
}

function wordsOf(text) {
  return text.toLowerCase().replace(/\.nii(\.gz)?$/, "").split(/[^\p{L}\p{N}]+/u).filter(Boolean);
}
