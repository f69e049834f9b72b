// What is looked at, and what is drawn when something changes: at most once a frame, and nothing while nobody looks.

import { Stream, get, post, setToken } from './connection.js';
import { Chart, colour, smooth } from './chart.js';
import { STATES, Torus } from './torus.js';
import { count, duration, figure } from './format.js';
import * as panels from './panels.js';

const $ = (id) => document.getElementById(id);
const METRICS = { loss: 'loss', ce: 'cross-entropy', z_loss: 'z-loss', balance_loss: 'balance loss', grad_norm: 'gradient norm', lr: 'learning rate', tokens_per_s: 'tokens a second', step_s: 'step time' };
// Of some kinds of jobs: pairs have an accuracy, a policy has the others.
const KIND_METRICS = { accuracy: 'accuracy', score: 'score of answers', kl: 'KL to the reference', clip_fraction: 'clip fraction', answer_tokens: 'tokens of an answer', stopped: 'answers that stop', entropy: 'entropy', value_loss: 'value loss', approx_kl: 'KL of a step', mean_ratio: 'mean ratio', kl_coef: 'KL coefficient' };
const WORDS = { ...METRICS, ...KIND_METRICS };
// Steps that a page holds; more of the past are in curve.csv.
const MAX_STEPS = 20000;
const MAX_EVENTS = 200;

const state = { pool: null, id: '', job: null, places: [], curve: null, events: [], other: null };

// ---------------------------------------------------------------------------------------------------------------- drawing

let due = false;
function changed() {
  if (due || document.hidden) return;
  due = true;
  requestAnimationFrame(() => { due = false; draw(); });
}
document.addEventListener('visibilitychange', changed);

// Where a step is in the curve; -1: nowhere. Steps ascend.
function at(step) {
  const steps = state.curve?.step ?? [];
  let low = 0, high = steps.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (steps[mid] < step) low = mid + 1; else high = mid;
  }
  return steps[low] === step ? low : -1;
}

const curveChart = new Chart($('curve'), $('curve-read'), (step) => {
  const i = at(step);
  if (i < 0) return `step ${count(step)}: no figures`;
  const value = (name) => `${WORDS[name]} ${figure(state.curve[name]?.[i] ?? null)}`;
  const validation = state.job?.validations.find((v) => v.step === step);
  return [`step ${count(step)}`, value($('metric').value), ...['loss', 'lr', 'grad_norm'].filter((n) => n !== $('metric').value).map(value),
    validation ? `validation ${panels.validation(state.job, validation)}` : null].filter(Boolean).join(', ');
});

const timeChart = new Chart($('time'), $('time-read'), (step) => {
  const i = at(step);
  if (i < 0) return `step ${count(step)}: no figures`;
  const c = state.curve;
  return `step ${count(step)}: ${duration(c.step_s[i])}, communication exposed ${duration(c.exposed_s[i])}, hidden ${duration(c.hidden_s[i])}`;
});

const torus = new Torus($('torus'), describePlace);

function describePlace(place) {
  const { job, pool } = state;
  $('drain').hidden = $('kill').hidden = !place || !place.worker || !place.alive;
  if (!place || !job) { $('place-read').textContent = ''; return; }
  const { tp, pp, dp } = job.shape;
  const t = place.rank % tp;
  const worker = pool?.workers.get(place.worker);
  const straggler = job.stragglers.find((s) => s.rank === place.rank);
  $('place-read').textContent = [
    `place ${place.rank} at (${place.x}, ${place.y}): ${torus.states[place.rank]}`,
    place.worker ? `${place.worker} on ${place.host || 'an unknown host'}` : 'no worker',
    `tensor ${t} of ${tp}, ${pp} stages, ${dp} replicas`,
    worker ? (worker.silent_s > 0 ? `silent for ${duration(worker.silent_s)}` : 'heard of just now') : null,
    worker?.compute_s > 0 ? `computes ${duration(worker.compute_s)} a step` : null,
    straggler ? `${straggler.factor.toFixed(2)} times its peers over steps ${straggler.from_step} to ${straggler.to_step}` : null,
  ].filter(Boolean).join('; ');
}

function legend(node, entries) {
  panels.show(node, entries.map(([n]) => n).join(), () => entries.map(([name, c]) => {
    const swatch = panels.el('span', { 'aria-hidden': 'true' });
    swatch.style.background = `var(--${c})`;
    return panels.el('li', {}, swatch, name);
  }));
}
legend($('legend'), STATES.map((s) => [s, s]));
legend($('time-legend'), [['whole step', 'faint-curve'], ['exposed communication', 'other']]);
legend($('phases'), [['detect', 'dead'], ['fence', 'straggling'], ['decide', 'waiting'], ['heal', 'healing'], ['redo', 'accent']]);

// What can be chosen is what the curve has.
function drawMetrics() {
  const words = Object.entries(WORDS).filter(([name]) => name in METRICS || state.curve?.[name]);
  panels.show($('metric'), words.map(([name]) => name).join(), () => {
    const chosen = $('metric').value;
    return words.map(([name, text]) => new Option(text, name, false, name === chosen));
  });
}

function drawCurve() {
  drawMetrics();
  const { curve, job, other } = state;
  const metric = $('metric').value, weight = Number($('smoothing').value);
  const lines = [], points = [], marks = [];
  const add = (of, name, faint) => {
    if (!of?.step.length || !of[metric]) return;
    if (weight > 0) lines.push({ steps: of.step, values: of[metric], colour: colour('faint-curve'), width: 1 });
    lines.push({ steps: of.step, values: smooth(of[metric], weight), colour: colour(name), width: faint ? 1.2 : 1.8 });
  };
  add(other, 'other', true);
  add(curve, 'curve', false);
  const held = { loss: (v) => v.ce, ce: (v) => v.ce, accuracy: (v) => v.correct / v.tokens }[metric];
  if (held) for (const v of job.validations) points.push({ step: v.step, value: held(v), colour: colour('saved') });
  if ($('marks').checked) {
    for (const c of job.checkpoints) marks.push({ step: c.step, colour: colour('saved'), short: true });
    for (const i of job.incidents) marks.push({ step: i.step, colour: colour('mark') });
  }
  curveChart.set({ lines, points, marks, log: $('log').checked });
  const last = curve?.step.length ? curve.step.length - 1 : -1;
  $('curve').setAttribute('aria-label', last < 0 ? 'no step yet'
    : [`${WORDS[metric]} over ${count(curve.step.length)} steps, ${count(curve.step[0])} to ${count(curve.step[last])}: from ${figure(curve[metric][0])} to ${figure(curve[metric][last])}`,
      weight > 0 ? 'smoothed' : null, other?.step.length ? `beside ${$('compare').value}` : null].filter(Boolean).join(', '));
  timeChart.set({ area: true, lines: curve ? [
    { steps: curve.step, values: curve.step_s, colour: colour('faint-curve') },
    { steps: curve.step, values: curve.exposed_s, colour: colour('other') },
  ] : [] });
  $('time').setAttribute('aria-label', last < 0 ? 'no step yet' : `time of a step, newest ${duration(curve.step_s[last])}`);
}

function draw() {
  const { pool, job } = state;
  if (pool) {
    $('leader').textContent = pool.leader.reason || `${pool.leader.address} leads, term ${pool.leader.term}`;
    panels.jobs($('jobs'), pool.jobs, state.id, choose);
    panels.pool($('pool'), pool.workers);
    if ($('workers-details').open) panels.workers($('workers'), [...pool.workers.values()]);
    const others = pool.jobs.map((j) => j.id).filter((id) => id !== state.id);
    panels.show($('compare'), others.join(), () => [new Option('no other run', ''), ...others.map((id) => new Option(id, id))]);
  }
  $('no-job').hidden = Boolean(job);
  $('head').hidden = $('panels').hidden = !job;
  if (!job) return;
  document.title = `${job.id}: ${job.state} - Toroid`;
  $('job-title').textContent = `${job.id}: ${job.is_held ? 'held' : job.state}`;
  $('reason').textContent = job.reason;
  $('progress').max = Math.max(1, job.total_steps);
  $('progress').value = job.committed_step;
  const ended = ['done', 'failed', 'cancelled'].includes(job.state);
  $('cancel').hidden = $('checkpoint').hidden = ended;
  panels.figures($('figures'), job);
  panels.warnings($('warnings'), job);
  torus.set(job, state.places, colour('panel'));
  describePlace(torus.chosen);
  drawCurve();
  panels.load($('load'), $('load-read'), job.last_step);
  panels.incidents($('incidents'), job.incidents);
  panels.checkpoints($('checkpoints'), job);
  panels.events($('events'), state.events);
}

drawMetrics();
for (const id of ['metric', 'smoothing', 'log', 'marks']) $(id).addEventListener('input', changed);
$('workers-details').addEventListener('toggle', changed);
$('compare').addEventListener('change', async () => {
  const id = $('compare').value;
  state.other = null;
  if (id) await attempt(async () => { state.other = await get(`/api/jobs/${encodeURIComponent(id)}/curve`); });
  changed();
});

// ------------------------------------------------------------------------------------------------------------ what comes in

function append(curve, more) {
  if (!curve?.step.length) return more;
  if (!more.step.length) return curve;
  // Steps that were taken back come again.
  let kept = curve.step.length;
  while (kept > 0 && curve.step[kept - 1] >= more.step[0]) kept -= 1;
  // Steps without figures of a policy have no such columns.
  for (const name of new Set([...Object.keys(curve), ...Object.keys(more)])) {
    curve[name] ??= Array(kept).fill(null);
    curve[name].length = kept;
    curve[name].push(...(more[name] ?? Array(more.step.length).fill(null)));
    if (curve[name].length > MAX_STEPS) curve[name].splice(0, curve[name].length - MAX_STEPS);
  }
  return curve;
}

const stream = new Stream({
  state(text) { $('connection').textContent = text; },
  pool({ first, leader, jobs, workers, gone }) {
    if (first || !state.pool) state.pool = { workers: new Map() };
    Object.assign(state.pool, { leader, jobs });
    for (const row of workers) state.pool.workers.set(row.id, row);
    for (const id of gone) state.pool.workers.delete(id);
    const { pool } = state;
    if (!state.id && pool.jobs.length) choose(pool.jobs[0].id);
    changed();
  },
  job({ first, job, num_places, places, steps, events }) {
    if (first) Object.assign(state, { places: [], events: [], job: {} });
    state.job = { ...state.job, ...job };
    if (state.places.length !== num_places) state.places.length = num_places;
    for (const row of places) state.places[row.rank] = row;
    state.curve = append(state.curve, steps);
    state.events = [...state.events, ...events].slice(-MAX_EVENTS);
    changed();
  },
  refused(error) {
    $('connection').textContent = 'not let in';
    $('login-reason').textContent = error.message;
    if (!$('login').open) $('login').showModal();
  },
  gone(error) {
    $('connection').textContent = error.message;
    state.id = '';
    stream.open('', 0);
  },
});

async function choose(id) {
  if (state.id === id) return;
  Object.assign(state, { id, job: null, places: [], curve: null, events: [] });
  history.replaceState(null, '', `?job=${encodeURIComponent(id)}`);
  stream.stop();
  await attempt(async () => {
    const curve = await get(`/api/jobs/${encodeURIComponent(id)}/curve`);
    if (state.id !== id) return;
    state.curve = curve;
    stream.open(id, curve.step.length ? curve.step[curve.step.length - 1] + 1 : 1);
  });
  changed();
}

async function attempt(what) {
  try { await what(); } catch (error) {
    if (error.status === 401 || error.status === 403) stream.on.refused(error);
    else if (error.status === 404) stream.on.gone(error);
    else { $('connection').textContent = error.message; if (state.id) stream.open(state.id, 1); }
  }
}

$('login').addEventListener('close', () => {
  if ($('token').value) setToken($('token').value);
  $('token').value = '';
  stream.open(state.id, state.curve?.step.length ? state.curve.step[state.curve.step.length - 1] + 1 : 1);
});

// --------------------------------------------------------------------------------------------------------------- what users do

function ask(title, text) {
  $('ask-title').textContent = title;
  $('ask-text').textContent = text;
  $('ask').returnValue = 'no';
  $('ask').showModal();
  return new Promise((done) => $('ask').addEventListener('close', () => done($('ask').returnValue === 'yes'), { once: true }));
}

async function act(path, words) {
  try { $('connection').textContent = words(await post(path)); } catch (error) {
    if (error.status === 401) stream.on.refused(error);
    else $('connection').textContent = error.message;
  }
}

const jobPath = () => `/api/jobs/${encodeURIComponent(state.id)}`;
$('checkpoint').addEventListener('click', () => act(`${jobPath()}/checkpoint`, (answer) => `step ${answer.step} will be saved`));
$('cancel').addEventListener('click', async () => {
  if (await ask(`Cancel ${state.id}?`, 'It ends, and its newest checkpoint stays.')) act(`${jobPath()}/cancel`, () => `${state.id} is cancelled`);
});
$('drain').addEventListener('click', async () => {
  const worker = torus.chosen?.worker;
  if (!worker) return;
  if (await ask(`Drain ${worker}?`, 'Its place moves to a spare; no committed step is lost. The process gets no place any more.')) {
    act(`/api/workers/${encodeURIComponent(worker)}/drain`, (answer) => answer.replacement ? `${answer.replacement} takes its place` : `${worker} is drained`);
  }
});
$('kill').addEventListener('click', async () => {
  const worker = torus.chosen?.worker;
  if (!worker) return;
  if (await ask(`Kill ${worker}?`, 'Its process ends at once, as if its machine had died: nothing is saved or handed over. A spare takes its place, if there is one; the incident shows what it cost.')) {
    act(`/api/workers/${encodeURIComponent(worker)}/kill`, () => `${worker} was told to end at once`);
  }
});
$('theme').addEventListener('click', () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'light' : 'dark';
  changed();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', changed);

const asked = new URLSearchParams(location.search).get('job');
if (asked) choose(asked); else stream.open('', 0);
