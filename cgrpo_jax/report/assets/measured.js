// What `cgrpo evaluate` and `cgrpo diagnose` have found of the runs: accuracy, pass@k, test-time refinement, behaviours of
// right answers, and which critiques help where every response fails.

const NUMBERS = [
  ["pass@1", "greedy answers that are right"], ["refined@1", "right after test-time refinement: the critic sees no answer, and what it calls wrong is refined"],
  ["oracle", "the same where the verifier, not the critic, says what is wrong"],
];
const interval = (n) => (n == null ? "–" : html`<b>${percent(n.value)}</b> <span class="muted">${percent(n.low)} to ${percent(n.high)}</span>`);

// pass@k over k: of one run a curve for each benchmark, of several one for each arm, the mean over its runs and benchmarks.
function passSeries(found) {
  if (about.runs.length === 1) {
    return Object.entries(found[0].evaluation?.curves ?? {}).map(([name, c], n) => ({ label: oneLine(name), colour: ARM_COLOURS[n % 7], xs: c.ks, values: c.value, low: c.low, high: c.high, points: true }));
  }
  return about.arms.flatMap((_, number) => {
    const own = found.filter((_, run) => about.runs[run].arm === number).flatMap((one) => Object.values(one.evaluation?.curves ?? {}));
    const one = own.length ? seeds(own.map((c) => [c.ks, c.ks, c.value])) : null;
    return one ? [{ ...one, label: armName(number), colour: ARM_COLOURS[number % 7], points: true }] : [];
  });
}

// What critiques of some length gained: the share of refinements after them that pass.
function gainSeries() {
  const several = about.runs.length > 1;
  return about.arms.flatMap((_, number) => about.sums.flatMap(({ gains }, run) => (about.runs[run].arm !== number || gains.length < 2 ? [] : [{
    label: several ? `${armName(number)} ${oneLine(about.runs[run].name)}` : "refinements that pass", colour: ARM_COLOURS[(several ? number : 2) % 7], points: true,
    xs: gains.map((g) => g.tokens), values: gains.map((g) => g.share), low: several ? null : gains.map((g) => g.low), high: several ? null : gains.map((g) => g.high),
  }])));
}

function Case({ one }) {
  const became = { fixed: ["right", "fixed"], broken: ["wrong", "broken: it was right before"], "still wrong": ["wrong", "still wrong"] }[one.became];
  return html`<details class="case"><summary><span class="mark ${became[0] === "right" ? "yes" : "no"}" aria-hidden="true">${became[0] === "right" ? "✓" : "✗"}</span> ${one.kind && `${one.kind}: `}${became[1]}<span class="dot">·</span>${oneLine(one.question).slice(0, 90)}</summary>
    <div class="asked"><${Text} text=${one.question} /><p class="gold"><span class="label">gold answer</span> <code>${visible(one.answer)}</code></p></div>
    <ol class="chain"><li class="${one.became === "broken" ? "" : "wrong"}"><h4><span class="number">1</span> Response</h4><${Text} text=${one.response} /></li>
      <li class="critique"><h4><span class="number">2</span> Critique <span class="muted">${one.verdict === undefined ? "" : one.verdict === false ? "says wrong" : one.verdict ? "says right, which is mistaken" : "no verdict that can be read"}</span></h4><${Text} text=${one.critique} /></li>
      <li class="${became[0]}"><h4><span class="number">3</span> Refinement</h4>${one.refinement == null ? html`<p class="empty">none: the critique was not valid</p>` : html`<${Difference} before=${one.response} after=${one.refinement} />`}</li></ol></details>`;
}

function Evaluation({ found, run }) {
  const one = found.evaluation;
  if (!one) return null;
  const columns = Object.entries(one.benchmarks);
  const rows = NUMBERS.filter(([name]) => columns.some(([, numbers]) => numbers[name]));
  const refined = columns.filter(([, numbers]) => numbers["refined@1"]);
  return html`<h3 class="part">${about.runs.length > 1 ? visible(about.runs[run].name) : "Evaluation"} <span class="muted">${visible(oneLine(one.weights))}</span></h3>
    <div class="scroll" tabindex="0" role="region" aria-label="evaluation of ${about.runs[run].name}"><table><thead><tr><th scope="col"></th>${columns.map(([name, numbers]) => html`<th key=${name} scope="col">${visible(name)}, ${plural(numbers.questions, "question")}</th>`)}<th scope="col"></th></tr></thead>
      <tbody>${rows.map(([name, words]) => html`<tr key=${name}><th scope="row">${name}</th>${columns.map(([benchmark, numbers]) => html`<td key=${benchmark}>${interval(numbers[name])}</td>`)}<td class="muted">${words}</td></tr>`)}
      ${refined.length > 0 && html`<tr><th scope="row">fixed, broken</th>${columns.map(([benchmark, numbers]) => html`<td key=${benchmark}>${numbers.fixed ?? "–"}, ${numbers.broken ?? "–"}</td>`)}<td class="muted">answers that refinement made right, and made wrong</td></tr>`}</tbody></table></div>
    ${one.cases.length > 0 && html`<p class="note">Test-time refinements, some of each kind:</p>${one.cases.map((item, n) => html`<${Case} key=${n} one=${item} />`)}`}
    <${Behaviours} found=${one.behaviours} />`;
}

function Behaviours({ found }) {
  if (!found.words) return null;
  return html`<h4 class="part">What right answers do</h4><p class="note">Of ${plural(found.answers, "right answer")} the share that shows each behaviour, by its key words${found.judged ? html`, and of ${found.judged.toLocaleString("en")} by a judge; agreement of the two: Cohen's κ, 1 where they always agree, 0 where no more than by chance` : html`; key words are crude: a judge says it better (<code>cgrpo evaluate --behaviours=100</code>)`}.</p>
    <div class="scroll" tabindex="0" role="region" aria-label="behaviours"><table><thead><tr><th scope="col">behaviour</th><th scope="col">key words</th>${found.judge && html`<th scope="col">judge</th><th scope="col">agreement</th>`}</tr></thead>
    <tbody>${Object.entries(found.words).map(([name, share]) => html`<tr key=${name}><th scope="row">${name}</th><td>${percent(share)}</td>${found.judge && html`<td>${percent(found.judge[name])}</td><td>${found.agreement[name] == null ? "–" : found.agreement[name].toFixed(2)}</td>`}</tr>`)}</tbody></table></div>`;
}

function Diagnosis({ found, run }) {
  const one = found.diagnosis;
  if (!one) return null;
  const share = (n) => (n == null ? "–" : typeof n === "number" ? percent(n) : interval(n));
  return html`<h3 class="part">Diagnosis${about.runs.length > 1 && html` of ${visible(about.runs[run].name)}`} <span class="muted">${visible(oneLine(one.weights))}</span></h3>
    <p class="note">Of ${plural(one.questions, "training question")} ${interval(one.persistent_failures)} fail persistently: none of the responses is right, and reward alone has nothing to teach. What critiques do there, by their kind:</p>
    <div class="scroll" tabindex="0" role="region" aria-label="diagnosis of ${about.runs[run].name}"><table><thead><tr><th scope="col">critique</th><th scope="col">valid critiques</th><th scope="col">refinements that pass</th><th scope="col">questions with a valid critique</th><th scope="col">questions solved by a refinement</th></tr></thead>
      <tbody>${Object.entries(one.kinds).map(([kind, n]) => html`<tr key=${kind}><th scope="row">${kind}</th><td>${share(n.valid_critiques)}</td><td>${share(n.successful_refinements)}</td><td>${share(n.critiqued_questions)}</td><td>${share(n.questions_refined)}</td></tr>`)}</tbody></table></div>
    ${one.cases.map((item, n) => html`<${Case} key=${n} one=${item} />`)}`;
}

function Measured({ theme }) {
  const [found, setFound] = useState(null);
  useEffect(() => { loadShard(about.measured).then(([one]) => setFound(one), () => setFound([])); }, []);
  const curves = useMemo(() => (found?.length ? passSeries(found) : []), [found]);
  const gains = useMemo(gainSeries, []);
  const any = found?.some((one) => one.evaluation || one.diagnosis);
  if (!found || (!any && !gains.length)) return null;
  return html`<section id="measured" aria-labelledby="measured-title"><h2 id="measured-title">${any ? "Measured afterwards" : "Critiques by their length"}</h2>
    ${any && html`<p class="note">By <code>cgrpo evaluate</code> and <code>cgrpo diagnose</code>, of the weights that are named.</p>`}
    <div class="charts">
      <${Chart} title="pass@k" about="one of k sampled answers is right, the unbiased estimate; what lies beyond pass@1 is what more tries would find${about.runs.length === 1 ? ". Band: 95 % interval over questions" : ""}" series=${curves} range="share" theme=${theme} xName="k, samples a question" log tall />
      <${Chart} title="Length of critiques against what they gain" about="share of the refinements after critiques of a length, of responses that fail, that pass${about.runs.length === 1 ? ". Band: 95 % interval" : ""}" series=${gains} range="share" theme=${theme} xName="tokens of the critique" apart tall /></div>
    ${found.map((one, run) => html`<div key=${run}><${Evaluation} found=${one} run=${run} /><${Diagnosis} found=${one} run=${run} /></div>`)}</section>`;
}
