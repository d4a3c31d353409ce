// All questions of all iterations: filters, search, sorting; and the one that is looked at.

const REASONS = {
  "last iterations": "groups of the last two iterations", "never solved": "questions that no response and no refinement solved, once each", "solved again": "groups in which a response was the first to solve a question after a rescue",
  rescued: "rescued groups", forgotten: "groups of questions that a response had solved before, and none in these", flagged: `groups found by one of the filters ${Object.values(FLAGS).map(([words]) => words).join(", ")}`, others: "all groups, those included",
};
const PAGE = 60; // list entries that are drawn at once

// What was learned tells more than what was never solved, and that more than what was rescued and not asked again.
const rank = (index, at) => (index.learned.has(at) ? 3 : index.flags[at] & FLAG.never_solved ? 2 : index.flags[at] & FLAG.rescued ? 1 : 0);

const SORTS = {
  telling: ["most telling first", (index) => (a, b) => rank(index, b) - rank(index, a) || (index.shard[b] >= 0) - (index.shard[a] >= 0) || index.iteration[b] - index.iteration[a] || index.question[a] - index.question[b]],
  newest: ["newest first", (index) => (a, b) => index.iteration[b] - index.iteration[a] || index.question[a] - index.question[b]],
  oldest: ["oldest first", (index) => (a, b) => index.iteration[a] - index.iteration[b] || index.question[a] - index.question[b]],
  wrong: ["fewest right", (index) => (a, b) => index.rightShare[a] - index.rightShare[b] || index.iteration[b] - index.iteration[a]],
  right: ["most right", (index) => (a, b) => index.rightShare[b] - index.rightShare[a] || index.iteration[b] - index.iteration[a]],
  problem: ["by question", (index) => (a, b) => index.problem[a] - index.problem[b] || index.iteration[a] - index.iteration[b]],
};

const FILTERS = [
  { name: "learned", label: "learned", title: "rescued here for the first time, and solved by a response, without a critique, when it was asked again", test: (index, at) => index.learned.has(at) },
  ...["rescued", "never_solved", "forgotten", "critic_wrong", "cut_off", "mentions", "ungraded", "skipped"].map((name) => ({ name, label: FLAGS[name][0], title: FLAGS[name][1], test: (index, at) => (index.flags[at] & FLAG[name]) !== 0 })),
  ...["all_right", "mixed", "all_wrong"].map((name) => ({ name, label: OUTCOMES[name][0], title: OUTCOMES[name][1], test: (index, at) => index.outcome[at] === OUTCOME[name] })),
  { name: "whole", label: "with texts", title: "those whose texts are in this page", test: (index, at) => index.shard[at] >= 0 },
];

function filtered(index, { filters, run, sort, query, texts }) {
  const tests = FILTERS.filter((one) => filters.has(one.name)).map((one) => one.test);
  const wanted = query.trim().toLowerCase();
  const asked = wanted && index.lower.map((text) => text.includes(wanted));
  const found = [];
  for (let at = 0; at < index.size; at++) {
    if (run >= 0 && index.run[at] !== run) continue;
    if (!tests.every((test) => test(index, at))) continue;
    if (wanted && !asked[index.problem[at]] && !isIn(texts?.[at], at, wanted)) continue;
    found.push(at);
  }
  return found.sort(SORTS[sort][1](index));
}

// Whether a group's texts hold what is searched for; each is looked through once, however often more of them are read.
const looked = { wanted: null, found: [] };
function isIn(text, at, wanted) {
  if (text === undefined) return false;
  if (looked.wanted !== wanted) Object.assign(looked, { wanted, found: [] });
  return (looked.found[at] ??= text.includes(wanted));
}

// The texts of the page in lower case, by group: read once something is searched for, shard after shard, so that what is
// found first is shown first and the page goes on answering. Large pages have shards with texts alone, for this, which
// are in lower case and not compressed: unpacking them took longer than all else.
const reading = { texts: {}, begun: false, all: false, tell: () => {} };
async function loadTexts(index, tell) {
  reading.tell = tell;
  if (reading.begun) return;
  reading.begun = true;
  const alone = about.search.length > 0;
  const numbers = alone ? about.search : [...new Set(index.shard)].filter((number) => number >= 0);
  const groups = new Map(numbers.map((number) => [number, []]));
  for (let at = 0; !alone && at < index.size; at++) groups.get(index.shard[at])?.push(at);
  let told = 0;
  for (const [n, number] of numbers.entries()) {
    const shard = await loadShard(number).catch(() => []);
    for (const next of numbers.slice(n + 1, n + 4)) loadShard(next).catch(() => {}); // while this one is gone through
    if (alone) for (const [at, text] of shard) reading.texts[at] = text;
    else for (const at of groups.get(number)) if (shard[index.at[at]]) reading.texts[at] = textsOf(shard[index.at[at]]);
    if (alone) shardPromises.delete(number); // its texts are kept
    if (performance.now() - told < 250) continue;
    reading.tell({ texts: { ...reading.texts } });
    await new Promise((drawn) => setTimeout(drawn));
    told = performance.now();
  }
  reading.all = true;
  reading.tell({ texts: reading.texts });
}

const textsOf = (group) => [group.question, ...group.rows.map((row) => row.text ?? row.pieces.join(""))].join("\n").toLowerCase();

function Marks({ index, at }) {
  const threshold = methodOf(index, at).pass_threshold;
  const rewards = index.rewards[at];
  const words = `${rewards.filter((r) => r != null && r >= threshold).length} of ${rewards.length} responses right${index.refined[at] ? `, ${index.refinedPassed[at]} of ${index.refined[at]} refinements` : ""}`;
  const shown = rewards.slice(0, 16);
  return html`<span class="marks" role="img" aria-label=${words} title=${words}>${shown.map((r, n) => html`<i key=${n} class=${r == null ? "none" : r >= threshold ? "yes" : "no"}></i>`)}${index.refined[at] > 0 && html`<em>→</em><i class="${index.refinedPassed[at] ? "yes refined" : "no refined"}"></i><small>${index.refinedPassed[at]}/${index.refined[at]}</small>`}</span>`;
}

function Entry({ index, at, current, open }) {
  const [, number, question] = index.problems[index.problem[at]];
  const flags = flagsOf(index.flags[at]).filter((name) => name !== "rescued");
  const outcome = about.outcomes[index.outcome[at]];
  return html`<li><button class="entry" aria-current=${current} onClick=${() => open(at)}>
    <span class="line"><span class="what" dir="auto">${oneLine(question)}</span><${Marks} index=${index} at=${at} /></span>
    <span class="line small"><span class="cell o-${outcome}" aria-hidden="true"></span><span>${OUTCOMES[outcome][0]}${flags.map((name) => `, ${FLAGS[name][0]}`)}</span><span class="where">${about.runs.length > 1 && `${oneLine(about.runs[index.run[at]].name)}, `}iteration ${index.iteration[at]}, #${number}</span></span></button></li>`;
}

function Questions({ index, state, set, at, list }) {
  const [shown, setShown] = useState(PAGE);
  const needed = PAGE * Math.max(1, Math.ceil((list.indexOf(at) + 1) / PAGE)); // up to what is open
  useEffect(() => setShown(needed), [list]);
  useEffect(() => setShown((before) => Math.max(before, needed)), [at]);
  const detail = useMemo(() => at >= 0 && html`<${Detail} index=${index} at=${at} open=${(place) => set({ at: place })} colouring=${state.colouring} setColouring=${(colouring) => set({ colouring })} diff=${state.diff} setDiff=${(diff) => set({ diff })} />`, [index, at, state.colouring, state.diff]);
  const pane = useRef(null);
  useEffect(() => {  // the entry of what is open stays in sight; the page itself does not move
    const entry = pane.current?.querySelector("[aria-current=true]");
    if (!entry) return;
    const [box, own] = [pane.current.getBoundingClientRect(), entry.getBoundingClientRect()];
    if (own.top < box.top || own.bottom > box.bottom) pane.current.scrollTop += own.top - box.top - box.height / 3;
  }, [at, shown]);
  // Where list and question lie below each other, the question that is chosen comes into sight.
  const chosen = (place) => { set({ at: place }); if (matchMedia("(max-width: 1000px)").matches) scrollToSection("detail"); };
  const counts = useMemo(() => FILTERS.map((one) => { let n = 0; for (let i = 0; i < index.size; i++) if (one.test(index, i)) n++; return n; }), [index]);
  const toggle = (name) => { const filters = new Set(state.filters); filters.has(name) ? filters.delete(name) : filters.add(name); set({ filters }); };
  const search = (event) => { set({ query: event.currentTarget.value }); if (event.currentTarget.value) loadTexts(index, set); };
  const whole = about.shown < index.size ? `, ${about.shown.toLocaleString("en")} of them with their texts` : "";
  return html`<section id="questions" aria-labelledby="questions-title">
    <div class="head"><h2 id="questions-title">Questions</h2><span class="note">${plural(index.size, "group")} of ${plural(index.problems.length, "question")}${whole}</span></div>
    ${whole && html`<details class="left-out"><summary>Which have their texts here</summary><p class="note">${Object.entries(about.reasons).map(([kind, [number, got]]) => `${REASONS[kind] ?? kind}: ${got.toLocaleString("en")} of ${number.toLocaleString("en")}`).join("; ")}. The texts of the others: <code>cgrpo show RUN --question=ID</code>, or a report with more --max_groups.</p></details>`}
    ${about.runs.some((run) => !run.method.trainer_logp && run.method.refine !== "none") && html`<p class="note unrecorded">A token's ratio, ρ and weight take its probability without the critique, which was not computed: <code>--config.objective.old_logp=trainer</code> records it, by one more forward pass over every response and every kept refinement.</p>`}
    <div class="filters" role="group" aria-label="filters, of which all that are on must hold">${FILTERS.map((one, n) => (counts[n] || state.filters.has(one.name)) && (one.name !== "whole" || whole) ? html`<button key=${one.name} class="chip" title="${one.title}; filters that are on must all hold" aria-pressed=${state.filters.has(one.name)} onClick=${() => toggle(one.name)}>${one.label} <span>${counts[n].toLocaleString("en")}</span></button>` : null)}</div>
    <div class="finding"><input id="search" type="search" placeholder="Search questions and texts  ( / )" aria-label="search" value=${state.query} onInput=${search} />
      ${about.runs.length > 1 && html`<select aria-label="run" value=${state.run} onChange=${(event) => set({ run: Number(event.currentTarget.value) })}><option value="-1">all runs</option>${about.runs.map((run, n) => html`<option key=${n} value=${n}>${oneLine(run.name)}</option>`)}</select>`}
      <select aria-label="sort" value=${state.sort} onChange=${(event) => set({ sort: event.currentTarget.value })}>${Object.entries(SORTS).map(([key, [words]]) => html`<option key=${key} value=${key}>${words}</option>`)}</select>
      <span class="count" role="status" aria-busy=${state.query !== "" && !reading.all}>${list.length.toLocaleString("en")} found${state.query !== "" && !reading.all ? " so far" : ""}</span></div>
    <div class="explorer">
      <nav class="list" ref=${pane} aria-label="questions found"><ul>${list.slice(0, shown).map((one) => html`<${Entry} key=${one} index=${index} at=${one} current=${one === at} open=${chosen} />`)}</ul>
        ${list.length > shown && html`<button class="more" onClick=${() => setShown(shown + 5 * PAGE)}>${(list.length - shown).toLocaleString("en")} more</button>`}${!list.length && html`<p class="note none">Nothing matches${state.filters.size > 1 && " all of the filters that are on"}. <button class="link" onClick=${() => set({ filters: new Set(), query: "", run: -1 })}>Show all</button></p>`}</nav>
      ${(list.length > 0 && detail) || html`<div class="detail"><p class="note">Choose a question.</p></div>`}
    </div></section>`;
}

// --- through the run ------------------------------------------------------------------------------------------------

const MATRIX_ROWS = 200;

// Questions that were asked more than once, one a row, and the iterations from left to right.
function Matrix({ index, theme, open }) {
  const canvas = useRef(null);
  const [hover, setHover] = useState(null);
  const all = useMemo(() => {
    const solves = (at) => index.outcome[at] === OUTCOME.all_right || index.outcome[at] === OUTCOME.mixed;
    const met = [...index.byProblem.values()].filter((times) => times.length > 1);
    const kind = (times) => (solves(times[0]) ? (solves(times.at(-1)) ? 0 : 3) : solves(times.at(-1)) ? 1 : times.some(solves) ? 3 : 2);
    return met.map((times) => ({ times, kind: kind(times) })).sort((a, b) => a.kind - b.kind || a.times.findIndex(solves) - b.times.findIndex(solves) || a.times[0] - b.times[0]);
  }, [index]);
  // All whose state changed, and as many of the others as fit, evenly from each kind.
  const rows = useMemo(() => {
    const changed = all.filter((row) => row.kind === 1 || row.kind === 3).length;
    const room = Math.max(0, MATRIX_ROWS - changed), others = Math.max(1, all.length - changed);
    let seen = 0;
    return all.filter((row) => row.kind === 1 || row.kind === 3 || Math.floor((++seen * room) / others) > Math.floor(((seen - 1) * room) / others)).slice(0, 2 * MATRIX_ROWS);
  }, [all]);
  const last = useMemo(() => index.iteration.reduce((a, b) => Math.max(a, b), 0), [index]);
  const height = Math.max(2, Math.min(14, Math.floor(520 / Math.max(1, rows.length))));
  useEffect(() => {
    if (!canvas.current) return undefined;
    const draw = () => {
      const width = canvas.current.clientWidth, scale = devicePixelRatio || 1, tall = rows.length * height;
      canvas.current.width = width * scale; canvas.current.height = tall * scale;
      const pen = canvas.current.getContext("2d");
      pen.scale(scale, scale);
      const cell = width / (last + 1);
      pen.fillStyle = css("--grid");
      rows.forEach((row, y) => pen.fillRect(0, y * height + height / 2, width, 0.5));
      rows.forEach(({ times }, y) => times.forEach((at) => {
        pen.fillStyle = css(`--o-${about.outcomes[index.outcome[at]]}`);
        pen.fillRect(index.iteration[at] * cell, y * height, Math.max(3, cell - 1), Math.max(1.5, height - 1));
      }));
    };
    draw();
    const watch = new ResizeObserver(draw);
    watch.observe(canvas.current);
    return () => watch.disconnect();
  }, [rows, theme]);
  if (!rows.length) return null;
  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const row = rows[Math.floor((event.clientY - box.top) / height)];
    if (!row) return null;
    const x = ((event.clientX - box.left) / box.width) * (last + 1);
    return row.times.reduce((best, one) => (Math.abs(index.iteration[one] + 0.5 - x) < Math.abs(index.iteration[best] + 0.5 - x) ? one : best));
  };
  const count = (kind) => all.filter((row) => row.kind === kind).length;
  return html`<section id="matrix" aria-labelledby="matrix-title"><h2 id="matrix-title">Through the run</h2>
    <p class="note">Each row is a question that was asked more than once, from the first iteration on the left to the last on the right: of these a response solved <b>${count(0)}</b> the first time and the last, <b>${count(1)}</b> not the first time, but the last, <b>${count(2)}</b> never, and <b>${count(3)}</b> once or more, but not the last time: no more solved at the end${count(3) > 0 && html` (<button class="link" onClick=${() => scrollToSection("learned")}>listed above</button>; each time that they failed after having been solved has the flag <i>${FLAGS.forgotten[0]}</i>)`}. ${rows.length < all.length && html`Shown are ${rows.length} of them, and of these all that changed. `}Click to open.</p>
    <ul class="legend">${["all_right", "mixed", "rescued", "all_wrong"].map((name) => html`<li key=${name}><span class="key block" style=${{ color: `var(--o-${name})` }}></span>${OUTCOMES[name][0]}</li>`)}</ul>
    <canvas ref=${canvas} style=${{ height: `${rows.length * height}px` }} role="img" aria-label="${plural(rows.length, "question")} through ${plural(last + 1, "iteration")}; ${count(1)} not solved by a response the first time, but the last" onMouseMove=${(event) => setHover(at(event))} onMouseLeave=${() => setHover(null)} onClick=${(event) => { const one = at(event); if (one != null) open(one); }}></canvas>
    <p class="note matrix-tip">${hover == null ? " " : `iteration ${index.iteration[hover]}, ${OUTCOMES[about.outcomes[index.outcome[hover]]][0]}: ${oneLine(index.problems[index.problem[hover]][2]).slice(0, 120)}`}</p></section>`;
}
