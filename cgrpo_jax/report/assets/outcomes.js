// What was learned, from which critiques, and where it failed: of one run as lists of questions, of several by their arms.

const solvedAt = (index, at) => index.outcome[at] === OUTCOME.all_right || index.outcome[at] === OUTCOME.mixed;
const failedAt = (index, at) => index.outcome[at] === OUTCOME.rescued || index.outcome[at] === OUTCOME.all_wrong;
const questionsOf = (index, number) => [...index.byProblem.values()].filter((times) => index.run[times[0]] === number);
const whole = (index, at) => index.shard[at] >= 0;

// Of groups of which no response was right: how many were asked again, were solved by a response the last time that they
// were asked, were not asked again.
function lastTime(index, number) {
  const found = { rescued: [0, 0, 0], all_wrong: [0, 0, 0] };
  for (const times of questionsOf(index, number)) {
    times.forEach((at, n) => {
      const counts = found[about.outcomes[index.outcome[at]]];
      if (!counts) return;
      if (n + 1 === times.length) counts[2]++;
      else { counts[0]++; counts[1] += solvedAt(index, times.at(-1)); }
    });
  }
  return found;
}

function stats(index, number) {
  const found = { groups: 0, rescued: 0, trained: 0, problems: new Set(), never: new Set(), lastFailed: 0, forgotten: 0, wrong: 0 };
  for (let at = 0; at < index.size; at++) {
    if (index.run[at] !== number) continue;
    found.groups++;
    found.trained += index.trained[at];
    found.problems.add(index.problem[at]);
    if (index.flags[at] & FLAG.rescued) found.rescued++;
    if (index.flags[at] & FLAG.never_solved) { found.never.add(index.problem[at]); found.lastFailed = Math.max(found.lastFailed, index.iteration[at]); }
    if (index.flags[at] & FLAG.forgotten) found.forgotten++;
    if (failedAt(index, at)) found.wrong++;
  }
  return { ...found, last: lastTime(index, number), unanswered: unanswered(index, number) };
}

// Questions that no response ever solved: how many.
const unanswered = (index, number) => questionsOf(index, number).filter((times) => times.some((at) => failedAt(index, at)) && !times.some((at) => solvedAt(index, at))).length;

// Questions whose responses all failed, which a refinement rescued then, and which a response solved when they were asked
// again: [first rescue, first solution after it]. Also those that a response had solved before they failed.
function learned(index, number) {
  const found = [];
  for (const times of questionsOf(index, number)) {
    const rescue = times.findIndex((at) => index.flags[at] & FLAG.rescued), after = times.slice(rescue + 1).find((at) => solvedAt(index, at));
    if (rescue >= 0 && after !== undefined) found.push([times[rescue], after]);
  }
  return found.sort(([a], [b]) => whole(index, b) - whole(index, a) || index.iteration[a] - index.iteration[b]);
}

// Those with texts in the page first.
const withTexts = (index) => (a, b) => b.some((at) => whole(index, at)) - a.some((at) => whole(index, at));

// The questions that nothing ever solved, those that were asked most first; the times that each was asked.
function unsolved(index, number) {
  const found = questionsOf(index, number).filter((times) => index.flags[times[0]] & FLAG.never_solved);
  return found.sort((a, b) => withTexts(index)(a, b) || b.length - a.length || b.at(-1) - a.at(-1));
}

// Questions that something has solved, but no response the last time that they were asked: `failed`, which a response had
// solved before; `alone`, which refinements alone solved, before that time too; and `once`, whose first solution was the
// refinement of the last time.
function unsure(index, number) {
  const open = questionsOf(index, number).filter((times) => !(index.flags[times[0]] & FLAG.never_solved) && failedAt(index, times.at(-1)));
  const kind = (times) => (times.some((at) => solvedAt(index, at)) ? "failed" : times.slice(0, -1).some((at) => index.flags[at] & FLAG.rescued) ? "alone" : "once");
  const latest = (a, b) => withTexts(index)(a, b) || index.iteration[b.at(-1)] - index.iteration[a.at(-1)] || b.length - a.length;
  const of = (name) => open.filter((times) => kind(times) === name).sort(latest);
  return { failed: of("failed"), alone: of("alone"), once: of("once") };
}

// --- one run --------------------------------------------------------------------------------------------------------

const MOST_LISTED = 6, MOST_FAILED = 12;

function Listed({ title, note, wide, children }) {
  return html`<div class="listed ${wide ? "wide" : ""}"><h3>${title}</h3><p class="note">${note}</p><ul>${children}</ul></div>`;
}

// Whether a critique is right, and gives the answer away, as far as that is known.
const verdictWords = (agrees) => (agrees == null ? "no verdict to compare" : agrees ? "verdict right" : "verdict wrong");
const answerWords = (states) => (states ? "states the gold answer" : "does not state the gold answer");
const Worth = ({ agrees, states }) => html`<span class="worth"><${Mark} right=${agrees} /> ${verdictWords(agrees)}<span class="dot">·</span>${answerWords(states)}</span>`;

// A critique without the formula of its verdict, which is said beside it.
const quoted = (text) => oneLine(text.replaceAll(/\s*Conclusion:\s*\w+[.\s]*\[END\]/gi, "") || text);

// What became of refinements that are all wrong: whether they have the step that their critique names.
function Tried({ failed: [number, named, took, response, , refinement] }) {
  const all = (n) => (n === number ? `all ${number}` : `${n} of ${number}`);
  const without = named - took;
  const why = !named ? `${plural(number, "refinement")}, none right.`
    : took === 0 ? `${plural(number, "refinement")}, none of which has the step that its critique names.`
      : `${plural(number, "refinement")}: ${all(took)} ${took === 1 ? "has" : "have"} the step that the critique names, and another one wrong${without ? `; ${without} ${without === 1 ? "has" : "have"} not even that` : ""}.`;
  return html`<p class="tried">${why} One of them, as it changed the response:</p><${Difference} before=${response} after=${refinement} />`;
}

function Met({ index, at, words, open }) {
  const said = index.said[at], failed = index.failed[at];
  return html`<li><button class="link" onClick=${() => open(at)}>${oneLine(index.problems[index.problem[at]][2]).slice(0, 110)}</button> <span class="muted">${words}</span>
    ${said && html`<q class="said" dir="auto">${quoted(failed ? failed[4] : said[0])}</q><${Worth} agrees=${said[1]} states=${said[2]} />`}${failed && html`<${Tried} failed=${failed} />`}</li>`;
}

// What kinds of critiques are worth by what they are.
const truth = (m) => (m.critique === "execution" ? `${TRUE.execution} ${m.reveals ? "Each names what the first wrong step, or the failing test, should have given: a part of the answer, where that is made of such steps" : "None names what should have come out"}.` : TRUE[m.critique]);
const TRUE = {
  indicative: "A rule writes them: their verdicts are the grader's own, and they say nothing else.",
  indicative_gt: "A rule writes them: their verdicts are the grader's own, and each names the gold answer.",
  execution: "A rule writes them: their verdicts are the grader's own, and what they say is computed, not guessed.",
  checklist: "A rule writes them, of what the grader found of each item.",
  cot: "A model writes them: verdicts are compared with the grader's; what else they say is not checked.",
  hint: "A model that sees the answer writes them, and is asked not to give it away; what they say is not checked.",
};

// What all critiques of a run were worth.
function CriticsWorth({ run }) {
  const c = run.critics;
  if (!c.written) return null;
  const rows = [
    [percent(c.judged ? c.agreed / c.judged : null), `have the right verdict on their response${c.judged < c.written ? ` (of ${c.judged.toLocaleString("en")} with a verdict)` : ""}`],
    [percent(c.stated / c.written), "state the gold answer word for word (a short one may stand there by chance)"],
    [percent(c.rescued ? c.rescued_stated / c.rescued : null), `of the ${plural(c.rescued, "refinement")} that rescued a group were written after one that does`],
  ];
  const [[wrong, wrongTook], [right, rightTook]] = about.took[about.runs.indexOf(run)];
  if (right) rows.push([percent(rightTook / right), `of ${plural(right, "right refinement")} in this page after a critique that names a step have that step`]);
  if (wrong) rows.push([percent(wrongTook / wrong), `of ${plural(wrong, "wrong refinement")} after one have it, and another step wrong`]);
  return html`<p class="note">Of ${plural(c.written, "critique")} that refinements saw:</p><table class="critics-worth"><tbody>${rows.map(([share, words]) => html`<tr key=${words}><th scope="row">${share}</th><td>${words}</td></tr>`)}</tbody></table><p class="note">${truth(run.method)}</p>`;
}

// From which critiques: those that were said again and again, by the right refinements that came of them.
function Critiques({ run, most }) {
  const words = (written, right, trained) => `${right === written ? `all ${written}` : `${right} of ${written} (${percent(right / written)})`} refinements after it pass; ${trained} of them trained`;
  const times = (some, written) => (some === written ? "" : ` in ${some} of ${written}`);
  return html`<div class="listed"><h3>From which critiques</h3><${CriticsWorth} run=${run} />
    ${most.length > 0 && html`<p class="note">Those after which most refinements were right, by their number, so that what was said often comes first; of the groups whose texts are in this page:</p>
    <ul>${most.map(([text, written, right, trained, agreeing, stating]) => html`<li key=${text}><q class="said" dir="auto">${quoted(text)}</q><span class="muted">${words(written, right, trained)}</span><span class="worth"><${Mark} right=${agreeing > 0} /> ${verdictWords(agreeing > 0)}${agreeing > 0 && times(agreeing, written)}<span class="dot">·</span>${answerWords(stating > 0)}${stating > 0 && times(stating, written)}</span></li>`)}</ul>`}</div>`;
}

// Steps, or words, and how responses to the questions that need them fared, early and late in the run.
function Steps({ title, note, head, rows, kind }) {
  const share = ([passed, all]) => (all ? html`<b>${percent(passed / all)}</b> <span class="muted">${passed.toLocaleString("en")} of ${all.toLocaleString("en")}</span>` : "–");
  const named = rows.some(([, written]) => written);
  return html`<h3 class="steps-title">${title}</h3><p class="note">${note}</p>
    <div class="scroll" tabindex="0" role="region" aria-label=${title}><table class="steps-named ${kind}"><thead><tr><th scope="col">${head}</th>${named && html`<th scope="col">refinements right after a critique named it</th>`}<th scope="col">questions with it</th><th scope="col">responses right, first third of the run</th><th scope="col">last third</th></tr></thead>
      <tbody>${rows.map(([step, written, right, questions, first, last]) => html`<tr key=${step}><th scope="row"><code>${oneLine(step)}</code></th>${named && html`<td>${share([right, written])}</td>`}<td>${questions.toLocaleString("en")}</td><td>${share(first)}</td><td>${share(last)}</td></tr>`)}</tbody></table></div>`;
}

function Outcomes({ index, open }) {
  const [gained, failed, still] = useMemo(() => [learned(index, 0), unsolved(index, 0), unsure(index, 0)], [index]);
  const [run] = about.runs;
  const unseen = about.unseen[0], known = new Set(unseen.map(([name]) => name)), steps = about.steps[0].filter(([step]) => !known.has(step));
  const most = about.critiques[0].slice(0, MOST_LISTED);
  const shown = (n) => (n > MOST_LISTED ? `; ${MOST_LISTED} of them` : "");
  const seen = (times) => times.findLast((one) => whole(index, one)) ?? times.at(-1);
  const asked = (times) => `asked ${times.length === 1 ? "once" : `${times.length} times`}, last in iteration ${index.iteration[times.at(-1)]}`;
  const refines = run.method.refine !== "none";
  const before = gained.filter(([at]) => timesMet(index, at).slice(0, timesMet(index, at).indexOf(at)).some((one) => solvedAt(index, one))).length;
  const open_ones = failed.length + still.alone.length + still.once.length;
  if (!refines && !failed.length && !still.failed.length) return null;
  return html`<h2 id="learned">${refines ? "What was learned, from which critiques, and where it failed" : "Where it failed"}</h2>
    <p class="note">Of the questions that were trained on. Held-out questions are counted, not kept: <code>cgrpo evaluate</code> keeps their texts.${open_ones > 0 && ` No response ever solved ${open_ones.toLocaleString("en")} of the ${plural(questionsOf(index, 0).length, "question")} that were asked: ${[failed.length && `${failed.length.toLocaleString("en")} nothing solved`, failed.length < open_ones && `${(open_ones - failed.length).toLocaleString("en")} a refinement did`].filter(Boolean).join(", ")}.`}</p>
    ${unseen.length > 0 && html`<${Steps} title="What the warm start did not teach, and what became of it" kind="unseen" head="what a question needs" rows=${unseen} note="By what was gained. The responses are to all questions that need it, with no critique in view: where more are right in the last third of the run than in the first, it, or what goes with it, was learned." />`}
    ${steps.length > 0 && html`<${Steps} title=${`The${unseen.length ? " other" : ""} steps that critiques named, and what became of them`} kind="said" head="step" rows=${steps} note="Those that most right refinements came of. The responses are to all questions whose worked solution has the step, with no critique in view: where more are right in the last third of the run than in the first, the step, or what goes with it, was learned." />`}
    <div class="outcomes">
    ${refines && html`<${Listed} title="What was learned" note=${gained.length ? `${plural(gained.length, "question")} whose responses all failed, which a refinement rescued, and which a response solved without a critique when they were asked again${before ? `; of these ${before} had been solved by a response before they failed` : ""}${shown(gained.length)}, with what the critique said:` : "No question that a refinement rescued was asked again and solved by a response."}>
      ${gained.slice(0, MOST_LISTED).map(([at, after]) => html`<${Met} key=${at} index=${index} at=${at} open=${open} words=${`rescued in iteration ${index.iteration[at]}, solved in ${index.iteration[after]}`} />`)}</${Listed}>`}
    ${(most.length > 0 || run.critics.written > 0) && html`<${Critiques} run=${run} most=${most} />`}
    <div class="stack"><${Listed} title="Never solved" note=${failed.length ? `${plural(failed.length, "question")} that no response and no refinement of the run solved${failed.length > MOST_FAILED ? `; ${MOST_FAILED} of them` : ""}. With each a critique of it, and what the refinements made of theirs; open one for all of them:` : "No question: each that was asked was solved at least once, by a response or a refinement."}>
      ${failed.slice(0, MOST_FAILED).map((times) => html`<${Met} key=${times[0]} index=${index} at=${seen(times)} open=${open} words=${asked(times)} />`)}</${Listed}>
    <${Listed} title="No more solved at the end" note=${still.failed.length ? `${plural(still.failed.length, "question")} that a response had solved, but none the last time that ${still.failed.length === 1 ? "it was" : "they were"} asked (forgotten then), the latest${shown(still.failed.length)}:` : "No question: each that a response had solved was solved by one the last time, too."}>
      ${still.failed.slice(0, MOST_LISTED).map((times) => html`<${Met} key=${times[0]} index=${index} at=${times.at(-1)} open=${open} words=${`${asked(times)}: ${OUTCOMES[about.outcomes[index.outcome[times.at(-1)]]][0]}`} />`)}</${Listed}>
    ${still.alone.length > 0 && html`<${Listed} title="Solved by refinements alone" note=${`${plural(still.alone.length, "question")} that a refinement solved, and that no response ever did when ${still.alone.length === 1 ? "it was" : "they were"} asked again, the latest${shown(still.alone.length)}:`}>
      ${still.alone.slice(0, MOST_LISTED).map((times) => html`<${Met} key=${times[0]} index=${index} at=${times.at(-1)} open=${open} words=${`${asked(times)}: ${OUTCOMES[about.outcomes[index.outcome[times.at(-1)]]][0]}`} />`)}</${Listed}>`}</div>
    ${still.once.length > 0 && html`<${Listed} wide title="Rescued, not asked again" note=${`${plural(still.once.length, "question")} that a refinement solved the last time that ${still.once.length === 1 ? "it was" : "they were"} asked, and nothing before: whether ${still.once.length === 1 ? "it was" : "they were"} learned was not seen, as the run did not ask again; how such questions fare, held-out accuracy says. The latest${shown(still.once.length)}:`}>
      ${still.once.slice(0, MOST_LISTED).map((times) => html`<${Met} key=${times[0]} index=${index} at=${times.at(-1)} open=${open} words=${asked(times)} />`)}</${Listed}>`}</div>`;
}

// --- several runs -----------------------------------------------------------------------------------------------------

const runsOf = (arm) => about.runs.map((run, number) => [run, number]).filter(([run]) => run.arm === arm);

// Questions that every run of an arm which asked them failed at first and solved by a response at last, and no run of
// another arm ever solved by a response, though one asked them: [rescue or first time, how the others did].
function learnedAlone(index, arm) {
  const byProblem = new Map();
  for (const times of index.byProblem.values()) {
    const problem = index.problem[times[0]];
    if (!byProblem.has(problem)) byProblem.set(problem, [[], []]);
    byProblem.get(problem)[about.runs[index.run[times[0]]].arm === arm ? 0 : 1].push(times);
  }
  const found = [];
  for (const [own, others] of byProblem.values()) {
    const gained = own.length && own.every((times) => failedAt(index, times[0]) && solvedAt(index, times.at(-1)));
    if (!gained || !others.length || others.some((times) => times.some((at) => solvedAt(index, at)))) continue;
    const [times] = own;
    const at = times.find((one) => index.flags[one] & FLAG.rescued && whole(index, one)) ?? times.find((one) => whole(index, one)) ?? times[0];
    found.push({ at, times, others: others.flat() });
  }
  return found.sort((a, b) => whole(index, b.at) - whole(index, a.at) || b.others.length - a.others.length);
}

function ArmsCompared({ index, open }) {
  const arms = useMemo(() => about.arms.map((_, arm) => {
    const own = runsOf(arm), found = own.map(([, number]) => stats(index, number));
    const sum = (of) => found.reduce((total, one) => total + of(one), 0);
    const critics = (name) => own.reduce((total, [run]) => total + run.critics[name], 0);
    const share = (some, all) => (all ? `${percent(some / all)}, ${some.toLocaleString("en")} of ${all.toLocaleString("en")}` : "–");
    return {
      arm, alone: learnedAlone(index, arm),
      cells: [
        share(sum((one) => one.wrong), sum((one) => one.groups)), share(sum((one) => one.rescued), sum((one) => one.wrong)),
        share(sum((one) => one.last.rescued[1] + one.last.all_wrong[1]), sum((one) => one.last.rescued[0] + one.last.all_wrong[0])),
        share(sum((one) => one.never.size), sum((one) => one.problems.size)),
        share(critics("agreed"), critics("judged")), share(critics("stated"), critics("written")),
      ],
    };
  }), [index]);
  const heads = ["groups without a right response", "of these rescued by a refinement", "groups without a right response that were asked again: question solved by a response the last time", "questions never solved, by a response or a refinement", "critiques with the right verdict", "critiques that state the gold answer"];
  const name = (arm) => html`<span class="key block" style=${{ color: `var(${ARM_COLOURS[arm % 7]})` }}></span>${armName(arm)}`;
  return html`<h2 id="learned">What each arm learned</h2><p class="note">Of the questions that were trained on, over the runs of an arm. Arms that wrote other responses met other failures: held-out accuracy, above, is what is measured alike.</p>
    <div class="scroll" tabindex="0" role="region" aria-label="arms compared"><table class="arms-compared"><thead><tr><th scope="col"></th>${arms.map(({ arm }) => html`<th key=${arm} scope="col">${name(arm)}</th>`)}</tr></thead>
      <tbody>${heads.map((head, n) => html`<tr key=${head}><th scope="row">${head}</th>${arms.map(({ arm, cells }) => html`<td key=${arm}>${cells[n]}</td>`)}</tr>`)}</tbody></table></div>
    <div class="outcomes">${arms.map(({ arm, alone }) => html`<${Listed} key=${arm} title=${html`Learned by ${name(arm)} alone`} note=${alone.length ? `${plural(alone.length, "question")} that it failed at first and solved at last, and that no run of another arm which asked ${alone.length === 1 ? "it" : "them"} solved by a response${alone.length > MOST_LISTED ? `; ${MOST_LISTED} of them` : ""}:` : "No question that another arm asked, too, and never solved by a response."}>
      ${alone.slice(0, MOST_LISTED).map(({ at, times, others }) => html`<${Met} key=${at} index=${index} at=${at} open=${open} words=${`failed in iteration ${index.iteration[times[0]]}, solved in ${index.iteration[times.at(-1)]}; the others asked it ${plural(others.length, "time")}, last in iteration ${Math.max(...others.map((one) => index.iteration[one]))}`} />`)}</${Listed}>`)}</div>`;
}

// Where each arm began and ended on held-out questions.
function ArmsStory() {
  const lines = about.arms.map((words, arm) => {
    const own = runsOf(arm).map(([run]) => [run.heldOut.find((p) => p.iteration === 0)?.["pass@1"], run.heldOut.findLast((p) => p.iteration > 0)?.["pass@1"]]);
    const known = (place) => own.map((pair) => pair[place]).filter((x) => x != null);
    const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : null);
    const done = [...new Set(runsOf(arm).map(([run]) => run.done))].sort((a, b) => a - b);
    return { arm, words, runs: own.length, before: mean(known(0)), after: mean(known(1)), range: known(1), done };
  }).filter((one) => one.after != null);
  if (lines.length < 2) return null;
  const said = (before, runs, range) => {
    const parts = [before != null && `${percent(before)} before`, runs > 1 && `${plural(runs, "run")}, ${percent(Math.min(...range))} to ${percent(Math.max(...range))}`].filter(Boolean);
    return parts.length ? ` (${parts.join("; ")})` : "";
  };
  return html`<p class="story">Of the held-out questions, which are never trained on, ${lines.map(({ arm, words, runs, before, after, range, done }, n) => html`${n > 0 && (n + 1 === lines.length ? ", and " : ", ")}${armName(arm)} (${visible(oneLine(words).slice(0, 60))}) solves <b>${percent(after)}</b> after ${done.length > 1 ? `${done[0]} to ${done.at(-1)} iterations` : plural(done[0], "iteration")}${said(before, runs, range)}`)}.</p>`;
}
