// A figure as a file: its numbers as CSV, itself as SVG or PNG, drawn anew from the same series, in the page's colours.

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const fileName = (title) => title.toLowerCase().replace(/[^a-z0-9@]+/g, "_").replace(/^_|_$/g, "");

// A column for x, and for each series its values, with a band also its lower and upper ends; empty where there is none.
function csvOf(series, xName) {
  const { xs, spread } = columns(series);
  const named = series.flatMap((s) => [[s.label, spread(s, s.values)], ...(s.low && !s.stacked ? [[`${s.label} low`, spread(s, s.low)], [`${s.label} high`, spread(s, s.high)]] : [])]);
  const cell = (x) => (x == null ? "" : typeof x === "string" && /[",\n]|^[=+@-]/.test(x) ? `"${x.replace(/"/g, '""')}"` : String(x));
  const lines = [[xName, ...named.map(([name]) => name)], ...xs.map((x, at) => [x, ...named.map(([, values]) => values[at])])];
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

// Round numbers from low to high, about five of them; of a logarithmic axis the powers of two.
function ticksOf(low, high, log) {
  if (log) {
    const found = [];
    for (let x = 2 ** Math.ceil(Math.log2(low)); x <= high; x *= 2) found.push(x);
    return found.length > 9 ? found.filter((_, n) => n % 2 === 0) : found;
  }
  const raw = (high - low || 1) / 5, unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((n) => n * unit >= raw);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

function svgOf(title, series, { range, xName, log }) {
  const [width, height, left, top, right] = [720, 400, 58, 44, 16];
  const bottom = height - 64;
  const all = series.flatMap((s) => [...s.values, ...(s.low ?? []), ...(s.high ?? [])]).filter((v) => v != null);
  const xs = columns(series).xs;
  const [x0, x1] = [xs[0], xs.at(-1) === xs[0] ? xs[0] + 1 : xs.at(-1)];
  const [y0, y1] = range === "share" ? [0, 1] : [range === "zero" ? 0 : Math.min(...all), Math.max(...all) || 1];
  const scale = log ? Math.log2 : (x) => x;
  const X = (x) => left + ((scale(x) - scale(x0)) / (scale(x1) - scale(x0) || 1)) * (width - left - right);
  const Y = (y) => bottom - ((y - y0) / (y1 - y0 || 1)) * (bottom - top);
  const safe = (text) => String(text).replace(HIDDEN_ALL, spelled).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const point = (x, y) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`;
  const known = (s, values) => s.xs.map((x, at) => [x, values[at]]).filter(([x, y]) => x != null && y != null);
  const parts = [];
  const text = (x, y, words, more = "") => parts.push(`<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${safe(words)}</text>`);
  for (const y of ticksOf(y0, y1)) {
    parts.push(`<path d="M${left} ${Y(y).toFixed(1)}H${width - right}" stroke="${css("--grid")}"/>`);
    text(left - 8, Y(y) + 4, range === "share" ? `${Math.round(100 * y)} %` : short(y), 'text-anchor="end"');
  }
  for (const x of ticksOf(x0, x1, log)) text(X(x), bottom + 18, short(x), 'text-anchor="middle"');
  text((left + width - right) / 2, bottom + 36, xName, 'text-anchor="middle"');
  for (const s of series) {
    const colour = css(s.colour);
    if (s.low) {
      const edge = [...known(s, s.high), ...known(s, s.low).reverse()];
      parts.push(`<polygon points="${edge.map((p) => point(...p)).join(" ")}" fill="${colour}" fill-opacity="${s.stacked ? 0.85 : 0.18}"/>`);
      if (s.stacked) continue;
    }
    const line = (values, wide) => parts.push(`<polyline points="${known(s, values).map((p) => point(...p)).join(" ")}" fill="none" stroke="${colour}" stroke-width="${wide}"${s.dash ? ' stroke-dasharray="6 4"' : ""}/>`);
    if (s.smooth) line(s.smooth, 2);
    line(s.values, s.smooth ? 0.6 : 2);
    if (s.points) known(s, s.values).forEach(([x, y]) => parts.push(`<circle cx="${X(x).toFixed(1)}" cy="${Y(y).toFixed(1)}" r="3.5" fill="${colour}"/>`));
  }
  let at = left;
  for (const s of series) {
    parts.push(`<rect x="${at}" y="${height - 16}" width="11" height="11" fill="${css(s.colour)}"/>`);
    text(at + 16, height - 6, s.label);
    at += 34 + 6.4 * s.label.length;
  }
  text(left, 24, title, 'font-size="16" font-weight="600"');
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12" fill="${css("--ink")}"><rect width="${width}" height="${height}" fill="${css("--card")}"/>${parts.join("")}</svg>\n`;
}

async function pngOf(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function Saving({ title, series, range, xName, log }) {
  const name = fileName(title);
  const svg = () => svgOf(title, series, { range, xName, log });
  const ways = {
    CSV: () => save(`${name}.csv`, csvOf(series, xName), "text/csv"),
    SVG: () => save(`${name}.svg`, svg(), "image/svg+xml"),
    PNG: () => pngOf(svg()).then((blob) => save(`${name}.png`, blob)),
  };
  return html`<span class="saving">${Object.entries(ways).map(([kind, does]) => html`<button key=${kind} onClick=${does} aria-label="save ${title} as ${kind}">${kind}</button>`)}</span>`;
}
