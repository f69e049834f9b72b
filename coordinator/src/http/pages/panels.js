// The panels that are lists and tables. All text comes in by textContent: a job's name is never HTML.

import { ago, bytes, count, duration, figure, percent, time } from './format.js';
import { colour, prepare } from './chart.js';

export const PHASES = ['detect', 'fence', 'decide', 'heal', 'redo'];

// An element with properties and children; `class`, `aria-*` and `colspan` as attributes.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'class' || name.startsWith('aria-') || name === 'colspan') node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

// Swaps a list in only where it has changed, so that nothing loses its focus or place.
export function show(node, key, make) {
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...make());
}

export function table(node, head, rows, caption = '') {
  show(node, JSON.stringify([rows, caption]), () => [
    caption ? el('caption', { textContent: caption }) : '',
    el('thead', {}, el('tr', {}, ...head.map((h) => el('th', { scope: 'col', textContent: h })))),
    el('tbody', {}, ...rows.map((row) => el('tr', {}, ...row.map((cell) => el('td', { textContent: cell }))))),
  ]);
}

export function jobs(node, list, current, choose) {
  const key = JSON.stringify([list, current]);
  show(node, key, () => list.map((job) => {
    const line = ['queued', 'failed'].includes(job.state) && job.reason ? job.reason
      : `step ${count(job.committed_step)} of ${count(job.total_steps)}${job.loss === null ? '' : `, loss ${figure(job.loss)}`}`;
    const button = el('button', { type: 'button', onclick: () => choose(job.id) },
      el('span', {}, el('strong', { textContent: job.id }), ` ${job.is_held ? 'held' : job.state}`),
      el('small', { textContent: line }));
    if (job.id === current) button.setAttribute('aria-current', 'true');
    return el('li', {}, button);
  }));
}

export function pool(node, workers) {
  const tally = {};
  for (const w of workers.values()) tally[w.state] = (tally[w.state] ?? 0) + 1;
  const text = workers.size
    ? `${count(workers.size)} workers: ${Object.entries(tally).map(([s, n]) => `${count(n)} ${s}`).join(', ')}`
    : 'no worker is connected';
  if (node.textContent !== text) node.textContent = text;
}

const MAX_WORKERS = 200;

export function workers(node, list) {
  const rows = list.slice(0, MAX_WORKERS).map((w) => [
    w.id, w.host, w.device, w.job ? `${w.job} place ${w.rank}` : w.state, w.silent_s > 0 ? duration(w.silent_s) : '-',
    w.compute_s > 0 ? duration(w.compute_s) : '-', w.memory_bytes ? bytes(w.memory_bytes) : '-', w.reason,
  ]);
  if (list.length > MAX_WORKERS) rows.push([`${list.length - MAX_WORKERS} more: toroid workers`, '', '', '', '', '', '', '']);
  table(node, ['Worker', 'Host', 'Device', 'Place', 'Silent for', 'Computes a step', 'Memory', 'Why not placed'], rows);
}

const policy = (p) => [
  ['Score of answers', figure(p.score)],
  ['KL to the reference', `${figure(p.kl)} nats an answer`],
  ['KL coefficient', figure(p.kl_coef)],
  ['Clipped', p.clip_fraction === null ? '-' : percent(p.clip_fraction)],
  ['Tokens of an answer', figure(p.answer_tokens)],
  ['Answers that stop', p.stopped === null ? '-' : percent(p.stopped)],
];

// The loss of what is held out; of pairs also how many of them are ranked right.
export const validation = (job, v) => (job.last_step?.pairs ? `${figure(v.ce)}, ${percent(v.correct / v.tokens)} right` : figure(v.ce));

export function figures(node, job) {
  const last = job.last_step;
  const exposed = last && last.step_s > 0 ? percent(last.exposed_s / last.step_s) : '-';
  const shape = `${job.shape.tp} x ${job.shape.pp} x ${job.shape.dp}`;
  const pairs = [
    ['Step', `${count(job.committed_step)} of ${count(job.total_steps)}`],
    ['Loss', last ? figure(last.loss) : '-'],
    ['Validation', job.validations.length ? validation(job, job.validations[job.validations.length - 1]) : '-'],
    ['Tokens a second', job.tokens_per_s > 0 ? count(job.tokens_per_s) : '-'],
    ['Goodput', job.started_unix_ms ? percent(job.goodput) : '-'],
    ['Time left', job.eta_s > 0 ? duration(job.eta_s) : '-'],
    ...(last?.trained_tokens != null ? [['Trained tokens', `${count(last.trained_tokens)} of ${count(last.tokens)}`]] : []),
    ...(last?.pairs ? [['Accuracy', `${percent(last.correct / last.pairs)}, ${count(last.ties)} ties of ${count(last.pairs)}`]] : []),
    ...(last?.policy ? policy(last.policy) : []),
    ['Gradient norm', last ? figure(last.grad_norm) : '-'],
    ['Exposed communication', exposed],
    ['Places alive', `${job.places_alive}, ${job.spares} spare`],
    ['TP x PP x DP', shape],
    ['Epoch', String(job.epoch)],
    ['Lost to incidents', `${duration(job.lost_s)}, ${count(job.lost_steps)} steps`],
  ];
  show(node, JSON.stringify(pairs), () => pairs.map(([k, v]) => el('div', {}, el('dt', { textContent: k }), el('dd', { textContent: v }))));
}

export function warnings(node, job) {
  const said = [];
  if (job.damaged) said.push(`Files: ${job.damaged}`);
  if (job.store_trouble) said.push(`Decisions wait, steps go on: ${job.store_trouble}`);
  if (job.unsaved) said.push(`No good checkpoint since step ${job.unsaved.step}: ${job.unsaved.error}`);
  for (const s of job.stragglers) {
    said.push(`Place ${s.rank} (${s.worker_id}) takes ${s.factor.toFixed(2)} times as long as its ${s.num_peers} peers, over steps ${s.from_step} to ${s.to_step}`);
  }
  if (job.missing_steps) said.push(`${job.missing_steps} steps have no figures`);
  const text = said.join('\n');
  if (node.textContent !== text) node.textContent = text;
}

const MAX_INCIDENTS = 100;

export function incidents(node, list) {
  if (!list.length) return show(node, 'none', () => [el('li', { class: 'none', textContent: 'Nothing has failed.' })]);
  return show(node, JSON.stringify(list), () => list.slice(-MAX_INCIDENTS).reverse().map((i) => {
    const phases = PHASES.map((p) => [p, i[`${p}_s`]]);
    const total = phases.reduce((sum, [, s]) => sum + s, 0);
    const bar = el('div', { class: 'timeline', 'aria-hidden': 'true' });
    for (const [phase, s] of phases) {
      const part = el('div', { class: phase, title: `${phase} ${duration(s)}` });
      part.style.flexGrow = String(total > 0 ? s / total : 0);
      bar.append(part);
    }
    const whom = i.workers.length ? `${i.workers.join(', ')}${i.ranks.length ? ` (place ${i.ranks.join(', ')})` : ''}` : 'the job';
    const cost = i.resolved
      ? `cost ${duration(i.total_s)} and ${i.steps_lost} steps: ${phases.filter(([, s]) => s > 0).map(([p, s]) => `${p} ${duration(s)}`).join(', ')}`
      : 'goes on';
    return el('li', { value: i.number },
      el('p', {}, el('strong', { textContent: i.cause }), ` ${time(i.unix_ms)}`),
      el('p', { textContent: `${whom}, seen by ${i.seen_by} at step ${i.step}` }),
      bar,
      el('p', { class: i.resolved ? '' : 'open', textContent: cost }),
      el('p', { textContent: `${i.rung}: ${i.reason}` }));
  }));
}

// Why it is not removed when newer ones come, in the words of `toroid checkpoint list`.
const kept = (c) => c.is_pinned ? 'pinned' : c.is_for_good ? 'for good' : 'newest';

export function checkpoints(node, job) {
  const rows = [...job.checkpoints].reverse().map((c) => [count(c.step), ago(c.unix_ms), bytes(c.bytes), duration(c.write_s), kept(c)]);
  // All of a job are in its folder.
  const newest = job.checkpoints[job.checkpoints.length - 1];
  table(node, ['Step', 'Age', 'Size', 'Written in', 'Kept'], rows, newest ? `in ${newest.path.replace(/\/[^/]*$/, '')}` : '');
}

export function events(node, list) {
  show(node, `${list.length} ${list[list.length - 1]?.unix_ms}`, () => [...list].reverse().map((e) =>
    el('li', {}, `${time(e.unix_ms)} `, el('strong', { textContent: e.kind }), ` ${e.text}`)));
}

// Assignments of each expert over the mean of its layer: darker is more.
export function load(canvas, read, step) {
  const layers = step?.expert_load ?? [];
  const { context: c, width, height } = prepare(canvas);
  if (!layers.length || width === 0) { read.textContent = 'no step yet'; return; }
  const means = layers.map((l) => l.reduce((a, b) => a + b, 0) / l.length || 1);
  const [w, h] = [width / layers[0].length, height / layers.length];
  let worst = { ratio: 0 };
  const ink = colour('accent');
  layers.forEach((experts, layer) => experts.forEach((n, expert) => {
    const ratio = n / means[layer];
    if (ratio > worst.ratio) worst = { ratio, layer, expert };
    c.globalAlpha = Math.min(1, ratio / 2);
    c.fillStyle = ink;
    c.fillRect(expert * w, layer * h, Math.max(1, w - 1), Math.max(1, h - 1));
  }));
  c.globalAlpha = 1;
  const words = `${layers.length} layers of ${layers[0].length} experts at step ${step.step}; the fullest is expert ${worst.expert} of layer ${worst.layer} with ${worst.ratio.toFixed(2)} times the mean`;
  read.textContent = words;
  canvas.setAttribute('aria-label', words);
}
