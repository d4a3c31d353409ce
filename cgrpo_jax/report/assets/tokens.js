// Tokens coloured by a number, and the numbers themselves; and what a refinement changed in its response.

const SCALE = 10000; // of log-probabilities in the page
const nats = (scaled) => (scaled == null ? null : scaled / SCALE);

const COLOURINGS = {
  none: ["plain", ""],
  probability: ["probability", "The darker, the less likely the policy found a token."],
  ratio: ["ratio", "The trainer's probability over the sampler's, before any update: of a response their rounding alone, of a refinement what the critique had added. Blue: above 1; orange: below."],
  rho: ["ρ", "ρ = π/(π+γ), the shaped ratio of a refinement's tokens. The darker, the nearer to 1. Responses have none.", true],
  weight: ["weight", "γπ/(π+γ)², how much a refinement's token moves the weights: most, a quarter, where π = γ. The darker, the more. Responses have none.", true],
  push: ["advantage", "The advantage times what the objective's ratio lets through of it: blue tokens become likelier, orange ones less likely."],
};
const FROM_TRAINER = new Set(["ratio", "rho", "weight"]); // numbers that take the trainer's probabilities
// Of all objectives, or of the shaped ratio alone; what a run has not recorded is no choice.
const colouringsOf = (method) => Object.entries(COLOURINGS).filter(([name, [, , shaped]]) => (!shaped || method.refined_ratio === "shaped") && (method.trainer_logp || !FROM_TRAINER.has(name)));

// The numbers of a row's token; what was not computed is null, and never guessed.
//   p: π of the policy given the question alone, which of a refinement the sampler did not see
function numbers(row, at, method) {
  const sampler = nats(row.logp?.[at]), trainer = nats(row.trainer_logp?.[at]);
  const refinement = row.stage === "refinement";
  const own = trainer ?? (refinement ? null : sampler);
  const p = own == null ? null : Math.exp(own);
  const ratio = trainer == null || sampler == null ? null : Math.exp(Math.min(trainer - sampler, 20));
  const shaped = refinement && p != null && method.refined_ratio === "shaped";
  const rho = shaped ? p / (p + method.gamma) : null;
  const weight = shaped ? (method.gamma * p) / (p + method.gamma) ** 2 : null;
  const A = row.advantage ?? null;
  // pi_old is the sampler's where the trainer has none of its own; else r is 1 at the first update, and nothing is clipped.
  // One ratio of a whole response (sequence) is no token's, and cispo takes no token's gradient.
  const r = method.trainer_logp || method.initial_ratio !== "token" ? 1 : ratio ?? 1;
  const clipped = isClipped({ refinement, ratio: refinement ? rho : r, A }, method);
  // d/d log π of the ratio at the first update, where r is 1; of refinements by its name.
  const moves = refinement ? { shaped: weight, importance: 1, plain: p, logp: 1 }[method.refined_ratio] : samplerWeight(row, ratio, method);
  return { sampler: sampler == null ? null : Math.exp(sampler), p, ratio, rho, weight, A, clipped, push: A == null || moves == null ? null : clipped ? 0 : A * moves };
}

// What a response's token is weighed by for what its sampler did otherwise: w of a token, or of a whole response.
function samplerWeight(row, ratio, { tis_cap, tis_level }) {
  if (!tis_cap) return 1;
  if (tis_level === "token") return ratio == null ? null : Math.min(ratio, tis_cap);
  if (!row.logp || !row.trainer_logp) return null;
  row.w ??= Math.exp(Math.min(row.trainer_logp.reduce((sum, one, at) => sum + one - row.logp[at], 0) / SCALE, 20));
  return row.w <= tis_cap ? row.w : 0;
}

// Whether the objective's clip takes the gradient of a token, at its ratio before the updates.
function isClipped({ refinement, ratio, A }, method) {
  if (A == null || !(refinement ? method.clip_refined : method.clip_initial) || ratio == null) return false;
  return A > 0 ? ratio > 1 + method.clip_high : A < 0 && ratio < 1 - method.clip_low;
}

// How strong a token's colour is, from 0 to 1, and which of two it has.
function shade(colouring, n) {
  const between = (x) => Math.max(0, Math.min(1, x));
  switch (colouring) {
    case "probability": { const p = n.p ?? n.sampler; return p == null ? null : ["low", between(Math.sqrt(-Math.log10(Math.max(p, 1e-9)) / 4))]; }
    case "ratio": return n.ratio == null ? null : [n.ratio >= 1 ? "high" : "low", between(Math.abs(Math.log2(Math.max(n.ratio, 1e-9))) / 3)];
    case "rho": return n.rho == null ? null : ["high", between(n.rho)];
    case "weight": return n.weight == null ? null : ["high", between(4 * n.weight)];
    case "push": return n.push == null ? null : [n.push >= 0 ? "high" : "low", between(Math.abs(n.push) * (n.rho == null ? 1 : 4))];
    default: return null;
  }
}

function Tokens({ row, method, colouring }) {
  const [at, setAt] = useState(null);
  const box = useRef(null);
  if (colouring === "none" || !row.pieces) return html`<${Text} text=${row.text} />`;
  const shown = row.pieces.slice(0, 6000);
  const point = (event) => {
    const token = event.target.closest?.("[data-at]");
    setAt(token ? Number(token.dataset.at) : null);
  };
  const step = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    setAt(Math.max(0, Math.min(shown.length - 1, (at ?? -1) + by)));
  };
  return html`<div class="tokens text" tabindex="0" ref=${box} role="group" aria-label="tokens of a ${row.stage}; arrow keys go through them" onMouseOver=${point} onMouseLeave=${() => setAt(null)} onKeyDown=${step} onBlur=${() => setAt(null)}>${shown.map((piece, i) => {
    const n = numbers(row, i, method), found = shade(colouring, n);
    const style = found ? { background: `color-mix(in srgb, var(--token-${found[0]}) ${Math.round(100 * found[1])}%, transparent)` } : {};
    return html`<span key=${i} data-at=${i} class="${i === at ? "at" : ""} ${n.clipped ? "clipped" : ""}" style=${style}>${visible(piece)}</span>`;
  })}${row.pieces.length > shown.length && html`<span class="empty"> … ${plural(row.pieces.length - shown.length, "token")} more</span>`}
  ${at != null && html`<${Tip} box=${box} at=${at} piece=${row.pieces[at]} n=${numbers(row, at, method)} row=${row} />`}</div>`;
}

// The numbers of a token, over it; nothing moves to make room.
function Tip({ box, at, piece, n, row }) {
  const tip = useRef(null);
  useEffect(() => {
    const token = box.current?.querySelector(`[data-at="${at}"]`);
    if (!token || !tip.current) return;
    const where = token.getClientRects()[0] ?? token.getBoundingClientRect(), own = tip.current.getBoundingClientRect();
    const above = where.top - own.height - 6;
    tip.current.style.left = `${Math.max(8, Math.min(innerWidth - own.width - 8, where.left))}px`;
    tip.current.style.top = `${above < 60 ? where.bottom + 6 : above}px`;
    tip.current.style.visibility = "visible";
  });
  const refinement = row.stage === "refinement";
  const lines = [
    [refinement ? "probability when written, critique in view" : "probability when written", n.sampler],
    [refinement ? "π, given the question alone" : "π, in the trainer", row.trainer_logp ? n.p : null],
    ["ratio of the two", n.ratio], ["ρ = π/(π+γ)", n.rho], ["weight γπ/(π+γ)²", n.weight], ["advantage A", n.A], ["A × weight", n.weight == null ? null : n.push],
  ].filter(([, value]) => value != null);
  const unknown = refinement && !row.trainer_logp;
  return html`<div class="tip" ref=${tip} role="status" style=${{ visibility: "hidden" }}><code>${visible(JSON.stringify(piece))}</code> <span class="muted">token ${at + 1}</span>
    <table><tbody>${lines.map(([name, value]) => html`<tr key=${name}><th scope="row">${name}</th><td>${name === "advantage A" || name.startsWith("A ×") ? signed(value) : short(value)}</td></tr>`)}</tbody></table>
    ${n.clipped && html`<p>clipped: it does not move the weights</p>`}${unknown && html`<p>π without the critique is not known${row.kept ? "" : ": it is computed of kept refinements alone"}</p>`}</div>`;
}

function ColouringBar({ colouring, setColouring, method, group }) {
  const refined = group.rows.some((row) => row.stage === "refinement");
  const unknown = refined && !method.trainer_logp && colouring === "push" && method.refined_ratio !== "importance" && method.refined_ratio !== "logp";
  const note = COLOURINGS[colouring][1];
  return html`<div class="colouring"><div class="segments" role="group" aria-label="colour tokens by">${colouringsOf(method).map(([key, [words]]) => html`<button key=${key} aria-pressed=${colouring === key} onClick=${() => setColouring(key)}>${words}</button>`)}</div>
    <p class="note">${note || "Colour the tokens by a number; point at one to read all of its numbers. A crossed-out token is clipped."}${unknown && ` Refinements have no colour: their advantage is weighed by ${method.refined_ratio === "plain" ? "π" : "γπ/(π+γ)²"}, and π was not recorded.`}</p></div>`;
}

// --- differences ------------------------------------------------------------------------------------------------------

// Words as they stand between white space, so that 4*7=28 is one, with the marks after them apart; a character of a
// script without spaces is one by itself.
const words = (text) => text.match(/\s+|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[^\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]+?(?=[,.;:!?]*(?:\s|$|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]))|[,.;:!?]+/gu) ?? [];

// The longest common subsequence of words; of long texts only what lies between their equal ends is compared.
function difference(before, after) {
  const a = words(before), b = words(after);
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const x = a.slice(start, a.length - end), y = b.slice(start, b.length - end);
  const parts = [["same", a.slice(0, start).join("")]];
  if (x.length * y.length > 4e6) parts.push(["gone", x.join("")], ["new", y.join("")]);
  else parts.push(...common(x, y));
  parts.push(["same", a.slice(a.length - end).join("")]);
  return joined(parts.filter(([, text]) => text));
}

// Changes between which nothing but marks and spaces stayed are one change: what is gone, then what is new.
function joined(parts) {
  const found = [];
  let gone = "", fresh = "", kept = ""; // of the change that is being put together, and equal text after it
  const close = () => {
    if (gone) found.push(["gone", gone]);
    if (fresh) found.push(["new", fresh]);
    if (kept) found.push(["same", kept]);
    gone = fresh = kept = "";
  };
  for (const [kind, text] of parts) {
    if (kind === "same") {
      kept += text;
      if ((!gone && !fresh) || /[\p{L}\p{N}]/u.test(kept)) close();
      continue;
    }
    gone += kept + (kind === "gone" ? text : "");
    fresh += kept + (kind === "new" ? text : "");
    kept = "";
  }
  close();
  return found;
}

function common(x, y) {
  const width = y.length + 1;
  const length = new Uint32Array((x.length + 1) * width);
  for (let i = x.length - 1; i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) {
      length[i * width + j] = x[i] === y[j] ? length[(i + 1) * width + j + 1] + 1 : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
  }
  const parts = [];
  const add = (kind, text) => (parts.at(-1)?.[0] === kind ? (parts.at(-1)[1] += text) : parts.push([kind, text]));
  let i = 0, j = 0;
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i] === y[j]) { add("same", x[i]); i++; j++; }
    else if (j >= y.length || (i < x.length && length[(i + 1) * width + j] >= length[i * width + j + 1])) add("gone", x[i++]);
    else add("new", y[j++]);
  }
  return parts;
}

// Texts beyond this are not compared, but shown as they are.
const COMPARED = 2 * LONG;

function Difference({ before, after }) {
  if (before.length + after.length > COMPARED) return html`<${Text} text=${after} />`;
  return html`<${Changes} before=${before} after=${after} />`;
}

function Changes({ before, after }) {
  const parts = useMemo(() => difference(before, after), [before, after]);
  return html`<div class="text" dir="auto">${parts.map(([kind, text], at) => (kind === "same" ? html`<span key=${at}>${visible(text)}</span>` : kind === "new" ? html`<span key=${at}>${parts[at - 1]?.[0] === "gone" && " "}<ins>${visible(text)}</ins></span>` : html`<del key=${at}>${visible(text)}</del>`))}</div>`;
}
