// Curves: small multiples with one cursor, over iterations, tokens or seconds. A single run's noisy curves have their
// running mean drawn thick; of several runs each arm has a colour, and its seeds a band, where all have got to.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const ARM_COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const armName = (number) => String.fromCharCode(65 + (number % 26)) + (number < 26 ? "" : Math.floor(number / 26));
const faded = (colour, share) => `color-mix(in srgb, ${colour} ${Math.round(100 * share)}%, transparent)`;

// metric(s), what a reader sees of them, and in a few words what they are.
const CHARTS = [
  { title: "Reward", about: "mean reward of the responses, and of all that trains, refinements included",
    lines: [["reward", "responses", "--c1"], ["group_reward", "all that trains", "--c3"]], range: "share" },
  { title: "Questions that teach nothing", about: "share whose texts all have the same reward: no advantage, no gradient",
    lines: [["dead", "no difference left", "--c2"]], range: "share" },
  { title: "Refinements that pass", about: "of those written, and of the failed questions that one of them saved",
    lines: [["refine/success", "refinements", "--c3"], ["refine/questions_rescued", "questions", "--c4"]], range: "share" },
  { title: "Verdicts of the critic", about: "how often its first critique is right, can't be read, or praises what is wrong",
    lines: [["critic/valid", "right", "--c1"], ["critic/false_right_rate", "wrong called right", "--c2"], ["critic/malformed_rate", "unreadable", "--c5"]], range: "share" },
  { title: "Mentions of the critique", about: "kept refinements that speak of the critique, which the trained prompt does not have",
    lines: [["refine/mentions_critique", "kept refinements", "--c4"]], range: "share" },
  { title: "Entropy", about: "nats a token: how undecided the policy is when it writes; near 0 it always says the same",
    lines: [["entropy", "responses", "--c1"], ["refined/entropy", "refinements", "--c4"]] },
  { title: "Probability of refinements", about: "what the policy gives their tokens without the critique, and the ratio that the objective makes of it, where it is shaped ρ = π/(π+γ)",
    lines: [["refined/prob", "probability π", "--c4"], ["refined/shaped_ratio", "ratio", "--c5"]], range: "share" },
  { title: "Ratio of responses", about: "π / π_old of their tokens: 1 means that the policy has not moved since it wrote them",
    lines: [["ratio", "mean ratio", "--c1"]] },
  { title: "Clipped tokens", about: "share whose ratio went too far, so that they no longer move the weights",
    lines: [["clip_ratio/low_mean", "responses, low", "--c1"], ["clip_ratio/high_mean", "responses, high", "--c3"], ["refined/clip_ratio/low_mean", "refinements, low", "--c4"]], range: "zero" },
  { title: "Share of refined tokens", about: "of the tokens that train, those that belong to refinements",
    lines: [["refined/frac_tokens", "refined", "--c4"]], range: "share" },
  { title: "Length", about: "mean tokens of a text",
    lines: [["completions/mean_length", "responses", "--c1"], ["refine/mean_length", "refinements", "--c4"]], range: "zero" },
  { title: "Cut off", about: "share of the responses that reached the greatest length",
    lines: [["completions/clipped_ratio", "responses", "--c2"]], range: "share" },
  { title: "Gap of sampler and trainer", about: "nats a token by which the two give the same weights' texts different probabilities",
    lines: [["sampling/sampling_logp_difference/mean", "mean gap", "--c5"]], range: "zero" },
  { title: "Gradient", about: "its norm before clipping: sudden peaks mean steps that are too large",
    lines: [["grad_norm", "norm", "--c6"]], range: "zero" },
  { title: "Distance from the reference", about: "estimate of the KL divergence, nats a token", lines: [["kl", "KL", "--c6"]], range: "zero" },
  { title: "Seconds by stage", about: "of an iteration: writing texts (grading waited for apart), updating the weights",
    lines: [["time/rollout", "writing", "--c1"], ["time/update", "updating", "--c4"], ["time/grade", "waiting for grades", "--c5"], ["time/reshard", "moving weights", "--c6"]], range: "zero" },
  { title: "Speed", about: "tokens a second", lines: [["tokens_per_second/rollout", "written", "--c1"], ["tokens_per_second/update", "trained", "--c4"]], range: "zero" },
  { title: "Use of the chips", about: "model FLOPs as a share of the published peak", lines: [["update/mfu", "MFU", "--c3"]], range: "zero" },
];

const AXIS_AT = { iteration: "iteration", tokens: "tokens", seconds: "second" };
const AXES = { iteration: "iterations", tokens: "tokens written", seconds: "seconds of iterations" };

// Where each iteration of a run lies on an axis. Iteration k is written by the weights after k iterations, which the
// evaluation after k iterations is of.
function xsOf(run, axis) {
  const steps = run.metrics.step ?? [];
  if (axis === "tokens") return steps.map((s, i) => run.metrics.num_tokens?.[i] ?? null);
  if (axis === "seconds") {
    let total = 0;
    return steps.map((s, i) => (total += run.metrics.step_time?.[i] ?? 0));
  }
  return steps;
}

// x of so many iterations, for evaluations, which lie between them.
function xAfter(run, axis, iterations) {
  if (axis === "iteration") return iterations;
  if (iterations <= 0) return 0;
  const steps = run.metrics.step ?? [];
  const xs = xsOf(run, axis);
  const at = steps.findLastIndex((s) => s + 1 <= iterations);
  return at < 0 ? 0 : xs[at];
}

// Where nothing was refined, shares of refinements are no 0: there is none. Runs of earlier versions wrote one.
const OF_REFINEMENTS = new Set(["refine/success", "refine/questions_rescued", "refine/mean_length", "refine/mentions_critique"]);
function valuesOf(run, name) {
  if (name === "dead") return run.dead;
  if (OF_TRAINED.has(name) && run.metrics.tokens_trained) return run.metrics[name]?.map((v, at) => (run.metrics.tokens_trained[at] === 0 ? null : v));
  const attempted = OF_REFINEMENTS.has(name) && run.metrics["refine/attempted"];
  return attempted ? run.metrics[name]?.map((v, at) => (attempted[at] === 0 ? null : v)) : run.metrics[name];
}
// A mean over what was trained is no 0 where nothing was.
const OF_TRAINED = new Set(["ratio", "clip_ratio/low_mean", "clip_ratio/high_mean", "entropy", "kl"]);
const hasValues = (run, name) => (valuesOf(run, name) ?? []).some((v) => v != null);

function runningMean(values, width) {
  return values.map((v, at) => {
    if (v == null) return null;
    const near = values.slice(Math.max(0, at - width), at + width + 1).filter((x) => x != null);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

// Series of a chart: {label, colour, xs, values} and, where there is a band, {low, high}.
function seriesOf(lines, runs, axis) {
  if (runs.length === 1) {
    const xs = xsOf(runs[0], axis);
    return lines.filter(([name]) => hasValues(runs[0], name)).map(([name, label, colour]) => {
      const values = valuesOf(runs[0], name);
      const width = Math.floor(xs.length / 30);
      return { label, colour, xs, values, smooth: width ? runningMean(values, width) : null };
    });
  }
  const found = [];
  lines.forEach(([name, label], kind) => about.arms.forEach((_, number) => {
    const own = runs.filter((run) => run.arm === number && hasValues(run, name));
    if (!own.length) return;
    const one = seeds(own.map((run) => [run.metrics.step, xsOf(run, axis), valuesOf(run, name)]));
    if (one) found.push({ ...one, label: lines.length > 1 ? `${armName(number)} ${label}` : armName(number), colour: ARM_COLOURS[number % 7], dash: kind });
  }));
  return found;
}

// The mean of curves [steps, xs, ys] and their least and greatest values, step by step; only where all of them have one,
// as a mean of other seeds than before would move though nothing has changed. None where they share no step.
function seeds(curves) {
  const known = curves.map(([steps, xs, ys]) => new Map(steps.map((step, at) => [step, [xs[at], ys[at]]]).filter(([, [x, y]]) => x != null && y != null)));
  const shared = [...known[0].keys()].filter((step) => known.every((one) => one.has(step))).sort((a, b) => a - b);
  if (!shared.length) return null;
  const over = (place) => shared.map((step) => known.map((one) => one.get(step)[place]));
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  const several = curves.length > 1;
  return {
    xs: over(0).map(mean), values: over(1).map(mean),
    low: several ? over(1).map((ys) => Math.min(...ys)) : null, high: several ? over(1).map((ys) => Math.max(...ys)) : null,
  };
}

function heldOutSeries(runs, axis) {
  const names = [...new Set(runs.flatMap((run) => run.heldOut.flatMap(Object.keys)))].filter((n) => n.startsWith("pass@"));
  if (runs.length > 1) {
    return about.arms.flatMap((_, number) => {
      const own = runs.filter((run) => run.arm === number && run.heldOut.length);
      if (!own.length) return [];
      const one = seeds(own.map((run) => [run.heldOut.map((p) => p.iteration), run.heldOut.map((p) => xAfter(run, axis, p.iteration)), run.heldOut.map((p) => p["pass@1"])]));
      return !one ? [] : [{ ...one, label: armName(number), colour: ARM_COLOURS[number % 7], points: true }];
    });
  }
  const [run] = runs;
  return names.map((name, number) => {
    const points = run.heldOut.filter((p) => p[name] != null);
    const interval = name === "pass@1" && points.every((p) => p.interval);
    return {
      label: name, colour: ARM_COLOURS[(2 * number) % 7], points: true, values: points.map((p) => p[name]),
      xs: points.map((p) => xAfter(run, axis, p.iteration)),
      low: interval ? points.map((p) => p.interval[0]) : null, high: interval ? points.map((p) => p.interval[1]) : null,
    };
  });
}

// What became of the questions, as shares that lie on each other.
function outcomeSeries(index, run, number, axis) {
  const counts = new Map();
  for (let at = 0; at < index.size; at++) {
    if (index.run[at] !== number) continue;
    if (!counts.has(index.iteration[at])) counts.set(index.iteration[at], new Array(about.outcomes.length).fill(0));
    counts.get(index.iteration[at])[index.outcome[at]]++;
  }
  const iterations = [...counts.keys()].sort((a, b) => a - b);
  const xs = iterations.map((i) => (axis === "iteration" ? i : xAfter(run, axis, i + 1)));
  const order = ["all_right", "mixed", "rescued", "all_wrong", "unknown"];
  const below = iterations.map(() => 0);
  return order.map((name) => {
    const low = [...below];
    const shares = iterations.map((i) => counts.get(i)[OUTCOME[name]] / counts.get(i).reduce((a, b) => a + b, 0));
    shares.forEach((share, at) => (below[at] += share));
    return { label: OUTCOMES[name][0], colour: `--o-${name}`, xs, values: shares, low, high: [...below], stacked: true };
  }).filter((one) => one.values.some((v) => v > 0));
}

// --- drawing ----------------------------------------------------------------------------------------------------------

// Series with x of their own become columns over the union of all x.
function columns(series) {
  const xs = [...new Set(series.flatMap((s) => s.xs.filter((x) => x != null)))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, at) => [x, at]));
  const spread = (s, values) => {
    const column = new Array(xs.length).fill(null);
    s.xs.forEach((x, at) => x != null && (column[place.get(x)] = values[at]));
    return column;
  };
  return { xs, spread };
}

// The heights that are drawn: at least a fiftieth of the values, or their rounding would fill the chart, and uPlot finds
// no marks between numbers that differ by less than it can add.
function around(u, low, high) {
  if (low == null) return [null, null];
  const least = Math.max(Math.abs(low), Math.abs(high)) / 50;
  if (high - low >= least) return uPlot.rangeNum(low, high, 0.1, true);
  const middle = (low + high) / 2;
  return least ? [middle - least / 2, middle + least / 2] : [-1, 1];
}

function options(series, { width, height, range, onCursor, log, apart }) {
  const { xs, spread } = columns(series);
  const data = [xs];
  const drawn = [{}];
  const bands = [];
  const dashes = [undefined, [6, 4], [2, 3]];
  // Gaps are bridged where they are of other curves' places, not where a run has no number.
  const spanGaps = series.some((s) => s.xs.length !== xs.length) || series.every((s) => s.points);
  for (const s of series) {
    const colour = css(s.colour);
    const sparse = s.values.filter((v) => v != null).length < 0.7 * s.values.length;
    if (s.low) {
      data.push(spread(s, s.high), spread(s, s.low));
      const edge = { stroke: s.stacked ? colour : "transparent", width: s.stacked ? 1 : 0, points: { show: false }, spanGaps };
      drawn.push(edge, { ...edge, stroke: "transparent", width: 0 });
      bands.push({ series: [drawn.length - 2, drawn.length - 1], fill: faded(colour, s.stacked ? 0.85 : 0.18) });
      if (s.stacked) continue;
    }
    if (s.smooth) {
      data.push(spread(s, s.smooth));
      drawn.push({ stroke: colour, width: 2, points: { show: false }, spanGaps });
    }
    data.push(spread(s, s.values));
    drawn.push({
      stroke: s.smooth ? faded(colour, 0.35) : colour, width: s.smooth ? 1 : 2, dash: s.points && !s.dash && s.values.length < 4 ? [2, 5] : dashes[s.dash ?? 0], spanGaps, // of few points the way between is not known
      points: { show: Boolean(s.points) || sparse || xs.length === 1, size: s.points ? 6 : 4, fill: colour },
    });
  }
  const ink = css("--muted"), line = css("--grid");
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const fixed = { share: [0, 1], zero: (u, low, high) => [0, high > 0 ? high * 1.05 : 1] }[range] ?? around;
  return [{
    width, height, legend: { show: false }, padding: [8, 10, 0, 0],
    cursor: { ...(apart || log ? {} : { sync: { key: "cgrpo" } }), drag: { x: true, y: false }, points: { size: 6 } },
    scales: { x: { time: false, ...(log ? { distr: 3, log: 2 } : {}) }, y: { range: fixed } },
    axes: [
      { ...axis, size: 30, values: (u, ticks) => ticks.map((t) => (t == null ? "" : short(t))) },
      { ...axis, size: 46, values: (u, ticks) => ticks.map((t) => (range === "share" ? `${Math.round(100 * t)} %` : short(t))) },
    ],
    series: drawn, bands,
    hooks: { setCursor: [(u) => onCursor(u.cursor.idx == null ? null : xs[u.cursor.idx])] },
  }, data];
}

function Chart({ title, about: words, series, range, axis, theme, tall, xName, log, apart }) {
  const holder = useRef(null);
  const [at, setAt] = useState(null);
  useEffect(() => {
    if (!series.length) return undefined;
    const size = () => ({ width: holder.current.clientWidth, height: tall ? 230 : 150 });
    const [settings, data] = options(series, { ...size(), range, onCursor: setAt, log, apart });
    const plot = new uPlot(settings, data, holder.current);
    const watch = new ResizeObserver(() => plot.setSize(size()));
    watch.observe(holder.current);
    return () => { watch.disconnect(); plot.destroy(); };
  }, [series, range, theme, tall]);
  if (!series.length) return null;
  // At the cursor, else the last. Of an evaluation that of the place before it; where there is no number, none.
  const placeOf = (s) => {
    const known = s.values.map((v, i) => i).filter((i) => s.values[i] != null);
    if (at == null) return known.at(-1);
    return s.points ? known.findLast((i) => s.xs[i] <= at) ?? known[0] : s.xs.indexOf(at);
  };
  const value = (s) => s.values[placeOf(s)];
  const last = series.flatMap((s) => s.xs).reduce((a, b) => Math.max(a, b ?? a), 0);
  const elsewhere = (s) => { const x = s.xs[placeOf(s)]; return x != null && x !== (at ?? last) && value(s) != null ? ` at ${short(x)}` : ""; }; // a number of another place
  const place = at == null ? "last" : `${xName ?? AXIS_AT[axis]} ${short(at)}`;
  const said = (v) => (range === "share" ? percent(v) : short(v));
  const summary = series.map((s) => `${s.label} ${said(value(s))}`).join(", ");
  return html`<figure class="chart ${tall ? "tall" : ""}">
    <figcaption><h3>${title}<${Saving} title=${title} series=${series} range=${range} xName=${xName ?? AXES[axis]} log=${log} /></h3><p>${words}</p></figcaption>
    <ul class="legend"><li class="place">${place}:</li>${series.map((s) => html`<li key=${s.label}><span class="key ${s.stacked ? "block" : s.dash ? "dashed" : ""}" style=${{ color: `var(${s.colour})` }}></span>${s.label} <b>${said(value(s))}</b>${elsewhere(s)}</li>`)}</ul>
    <div class="plot" ref=${holder} style=${{ height: `${tall ? 230 : 150}px` }} role="img" aria-label="${title} over ${xName ?? AXES[axis]}; last values: ${summary}"></div>
  </figure>`;
}

function Arms() {
  const seedsOf = (number) => about.runs.filter((run) => run.arm === number).length;
  return html`<ul class="arms" aria-label="arms">${about.arms.map((words, number) => html`<li key=${number}><span class="key block" style=${{ color: `var(${ARM_COLOURS[number % 7]})` }}></span><b>${armName(number)}</b> ${visible(oneLine(words))} <span class="muted">${plural(seedsOf(number), "run")}</span></li>`)}</ul>`;
}

function Curves({ index, theme }) {
  const [axis, setAxis] = useState("iteration");
  const runs = about.runs;
  const top = useMemo(() => ({
    heldOut: heldOutSeries(runs, axis),
    outcomes: runs.length > 1 ? seriesOf([["frac_all_wrong", "all wrong"]], runs, axis) : index ? outcomeSeries(index, runs[0], 0, axis) : [],
  }), [index, axis]);
  const charts = useMemo(() => CHARTS.map((chart) => ({ ...chart, series: seriesOf(chart.lines, runs, axis) })), [axis]);
  const smoothed = charts.some((chart) => chart.series.some((s) => s.smooth));
  return html`<section id="curves" aria-labelledby="curves-title">
    <div class="head"><h2 id="curves-title">Curves</h2>
      <div class="segments" role="group" aria-label="horizontal axis">${Object.entries(AXES).map(([key, words]) => html`<button key=${key} aria-pressed=${axis === key} onClick=${() => setAxis(key)}>${words}</button>`)}</div></div>
    <p class="note">Numbers over a curve are its last ones; point at one to read all curves at that place. Drag to enlarge, click twice to go back. A gap is an iteration in which nothing of the kind was written or trained.${smoothed && " Thin: each iteration; thick: a running mean."}${runs.length > 1 && " A band reaches from the least to the greatest of an arm's seeds."}</p>
    ${runs.length > 1 && html`<${Arms} />`}
    <div class="charts">
      <${Chart} title="Held-out accuracy" about=${runs.length > 1 ? "greedy answers to questions that are never trained on" : "of questions that are never trained on: pass@1, the most likely answer is right; pass@k, one of k drawn ones is. Band: 95 % interval of pass@1"} series=${top.heldOut} range="share" axis=${axis} theme=${theme} tall />
      <${Chart} title=${runs.length > 1 ? "Questions that no response solves" : "What became of the questions"} about=${runs.length > 1 ? "share of an iteration's questions: where plain GRPO learns nothing" : "of each iteration: all responses right, some, none but a refinement (rescued), nothing"} series=${top.outcomes} range="share" axis=${axis} theme=${theme} tall />
      ${charts.map((chart) => html`<${Chart} key=${chart.title} ...${chart} axis=${axis} theme=${theme} />`)}
    </div></section>`;
}
