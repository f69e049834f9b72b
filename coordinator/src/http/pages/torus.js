// The places of a job as the torus has them, coloured by state; chosen by pointer and by keys.

import { colour, prepare } from './chart.js';

export const STATES = ['computing', 'waiting', 'healing', 'dead', 'straggling'];

// Of all places, by rank.
export function statesOf(job, places) {
  const open = new Set(job.incidents.filter((i) => !i.resolved).flatMap((i) => i.ranks));
  const slow = new Set(job.stragglers.map((s) => s.rank));
  const [begins, trains] = [['recovering', 'starting'].includes(job.state), ['running', 'degraded', 'draining'].includes(job.state)];
  // Whoever computed for a job that is over may go.
  const isOver = ['done', 'cancelled'].includes(job.state);
  return places.map(({ rank, alive }) => {
    if (!alive) return isOver ? 'waiting' : 'dead';
    if (begins) return open.has(rank) ? 'healing' : 'waiting';
    if (slow.has(rank)) return 'straggling';
    return trains ? 'computing' : 'waiting';
  });
}

export class Torus {
  // `onChoose(place)`: the place under the pointer, or chosen by click or key; null: none.
  constructor(canvas, onChoose) {
    Object.assign(this, { canvas, onChoose, places: [], states: [], chosen: null, columns: 1, rows: 1 });
    const at = (e) => this.#find(e.offsetX, e.offsetY);
    canvas.addEventListener('pointermove', (e) => { if (!this.fixed) this.#choose(at(e)); });
    canvas.addEventListener('pointerleave', () => { if (!this.fixed) this.#choose(null); });
    canvas.addEventListener('click', (e) => { const place = at(e); this.fixed = place !== null && !(this.fixed && place === this.chosen); this.#choose(place); });
    canvas.addEventListener('keydown', (e) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (!by || !this.places.length) return;
      e.preventDefault();
      const { x, y } = this.chosen ?? { x: -by[0], y: -by[1] };
      // A torus has no edge.
      const wrap = (v, n) => (v + n) % n;
      this.fixed = true;
      this.#choose(this.at.get(`${wrap(x + by[0], this.columns)},${wrap(y + by[1], this.rows)}`) ?? this.places[0]);
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // Draws where something differs: of thousands of places seldom one does. `hue`: of the page, light or dark.
  set(job, places, hue) {
    const states = statesOf(job, places);
    const isMoved = places.length !== this.places.length || places.some((p, i) => p !== this.places[i]);
    if (!isMoved && hue === this.hue && states.every((s, i) => s === this.states[i])) return;
    Object.assign(this, { places: [...places], states, hue });
    if (isMoved) {
      this.columns = 1 + places.reduce((n, p) => Math.max(n, p.x), 0);
      this.rows = 1 + places.reduce((n, p) => Math.max(n, p.y), 0);
      this.at = new Map(places.map((p) => [`${p.x},${p.y}`, p]));
      if (this.chosen) this.chosen = places[this.chosen.rank] ?? null;
    }
    this.draw();
  }

  #choose(place) { this.chosen = place; this.draw(); this.onChoose(place); }

  #size() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const size = Math.max(2, Math.min(w / this.columns, h / this.rows, 64));
    return { size, left: (w - size * this.columns) / 2, top: (h - size * this.rows) / 2 };
  }

  #find(px, py) {
    const { size, left, top } = this.#size();
    return this.at?.get(`${Math.floor((px - left) / size)},${Math.floor((py - top) / size)}`) ?? null;
  }

  draw() {
    const { context: c, width } = prepare(this.canvas);
    if (width === 0 || !this.places.length) return;
    const { size, left, top } = this.#size();
    const gap = size > 8 ? 2 : size > 4 ? 1 : 0;
    const colours = Object.fromEntries(STATES.map((s) => [s, colour(s)]));
    c.font = `${Math.min(13, size / 2.6)}px system-ui, sans-serif`;
    c.textAlign = 'center';
    const text = colour('panel');
    const tally = {};
    for (const p of this.places) {
      const state = this.states[p.rank];
      tally[state] = (tally[state] ?? 0) + 1;
      const [x, y] = [left + p.x * size, top + p.y * size];
      c.fillStyle = colours[state];
      c.fillRect(x, y, size - gap, size - gap);
      // Colour is not all that tells them apart.
      if (size >= 22) { c.fillStyle = text; c.fillText(state === 'computing' ? String(p.rank) : state[0].toUpperCase(), x + (size - gap) / 2, y + size * 0.6); }
    }
    if (this.chosen) {
      c.strokeStyle = colour('text');
      c.lineWidth = 2;
      c.strokeRect(left + this.chosen.x * size - 1, top + this.chosen.y * size - 1, size - gap + 2, size - gap + 2);
    }
    const words = STATES.filter((s) => tally[s]).map((s) => `${tally[s]} ${s}`).join(', ');
    this.canvas.setAttribute('aria-label', `${this.places.length} places, ${this.columns} by ${this.rows}: ${words}`);
  }
}
