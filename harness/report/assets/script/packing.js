// ------------------------------------------------------------------------------------------------------------- packing
// The samples of a set as harness/report/masks.py packs their kept tokens: back to texts of harness/core/keeps.py.
function unpacked(found) {
  if (!found.masks) return found;
  const { back, sizes, bits } = found.masks, bytes = atob(bits), masks = [];
  let at = 0, roots = 0;
  const texts = back.map((steps, number) => {
    const parent = steps ? masks[number - steps] : null;
    const length = parent ? parent.length : sizes[roots++], open = parent ? parent.tokens.length : 8 * length;
    const tokens = [], out = new Uint8Array(length);
    for (let i = 0; i < open; i += 1) {
      if (!((bytes.charCodeAt(at + (i >> 3)) >> (7 - (i & 7))) & 1)) continue;
      const token = parent ? parent.tokens[i] : i;
      tokens.push(token);
      out[token >> 3] |= 128 >> (token & 7);
    }
    at += (open + 7) >> 3;
    masks.push({ length, tokens });
    return btoa(String.fromCharCode(...out));
  });
  for (const cell of found.cells) {
    let last = 0;
    cell.keeps = cell.keeps.map((text) => text.split(";").map((part) => {
      const end = part.lastIndexOf(":") + 1, mask = part.slice(end);
      if (!end || mask === "*") return part;
      if (mask === "-") return part.slice(0, end);  // no token is left
      last += Number(mask);
      return part.slice(0, end) + texts[last];
    }).join(";"));
  }
  delete found.masks;
  return found;
}
