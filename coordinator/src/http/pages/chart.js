// Lines over steps on a canvas: linear or logarithmic, with marks, a cursor for pointer and keys, and words for those who do not see it.

import { figure } from './format.js';

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// A canvas in pixels of the screen; its context in those of CSS.
export function prepare(canvas) {
  const ratio = devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

// Exponential moving average without the bias of its start; what is no number is passed over.
export function smooth(values, weight) {
  if (!(weight > 0)) return values;
  let mean = 0, share = 0;
  return values.map((v) => {
    if (v === null || !Number.isFinite(v)) return null;
    mean = weight * mean + (1 - weight) * v;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

function ticks(low, high, num) {
  const raw = (high - low) / num;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw) ?? raw;
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(t);
  return found;
}

const MARGIN = { left: 62, right: 12, top: 8, bottom: 24 };

export class Chart {
  // `describe(step)`: words for the cursor.
  constructor(canvas, read, describe) {
    Object.assign(this, { canvas, read, describe, lines: [], marks: [], points: [], log: false, area: false, cursor: null });
    canvas.addEventListener('pointermove', (e) => this.#point(e.offsetX));
    canvas.addEventListener('pointerleave', () => this.#at(null));
    canvas.addEventListener('keydown', (e) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: 50, PageDown: -50 }[e.key];
      if (!by || !this.range) return;
      e.preventDefault();
      const [low, high] = this.range;
      this.#at(Math.min(high, Math.max(low, (this.cursor ?? high) + by)));
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // Lines are {steps, values, colour, width}; marks {step, colour, short}; points {step, value, colour}. With `area` lines lie on each other.
  set(what) { Object.assign(this, what); this.draw(); }

  #at(step) { this.cursor = step; this.draw(); this.read.textContent = step === null ? '' : this.describe(step); }

  #point(x) {
    if (!this.range) return;
    const [low, high] = this.range;
    const share = (x - MARGIN.left) / Math.max(1, this.canvas.clientWidth - MARGIN.left - MARGIN.right);
    this.#at(Math.round(low + Math.min(1, Math.max(0, share)) * (high - low)));
  }

  draw() {
    const { context: c, width, height } = prepare(this.canvas);
    if (width === 0) return;
    const lines = this.lines.filter((l) => l.steps.length);
    c.font = '12px system-ui, sans-serif';
    if (!lines.length) {
      this.range = null;
      c.fillStyle = colour('faint');
      c.fillText('no step yet', MARGIN.left, height / 2);
      return;
    }
    let left = Infinity, right = -Infinity, low = this.area ? 0 : Infinity, high = -Infinity;
    const usable = (v) => v !== null && Number.isFinite(v) && (!this.log || v > 0);
    for (const l of lines) {
      left = Math.min(left, l.steps[0]);
      right = Math.max(right, l.steps[l.steps.length - 1]);
      for (const v of l.values) if (usable(v)) { low = Math.min(low, v); high = Math.max(high, v); }
    }
    for (const p of this.points) if (usable(p.value)) { low = Math.min(low, p.value); high = Math.max(high, p.value); }
    if (!(high > -Infinity)) { low = 0; high = 1; }
    const scale = this.log ? Math.log10 : (v) => v;
    let [a, b] = [scale(low), scale(high)];
    if (b - a < 1e-12) { a -= 0.5; b += 0.5; }
    if (!this.area) { const pad = (b - a) * 0.05; a -= pad; b += pad; } else b *= 1.05;
    this.range = [left, right];
    const w = width - MARGIN.left - MARGIN.right, h = height - MARGIN.top - MARGIN.bottom;
    const x = (step) => MARGIN.left + (right === left ? w / 2 : ((step - left) / (right - left)) * w);
    const y = (v) => MARGIN.top + h - ((scale(v) - a) / (b - a)) * h;

    c.strokeStyle = colour('line');
    c.fillStyle = colour('faint');
    c.lineWidth = 1;
    c.textAlign = 'right';
    for (const t of ticks(a, b, 5)) {
      const value = this.log ? 10 ** t : t;
      const at = MARGIN.top + h - ((t - a) / (b - a)) * h;
      c.beginPath(); c.moveTo(MARGIN.left, at); c.lineTo(width - MARGIN.right, at); c.stroke();
      c.fillText(figure(value), MARGIN.left - 6, at + 4);
    }
    c.textAlign = 'center';
    for (const t of ticks(left, Math.max(right, left + 1), Math.max(2, Math.floor(w / 110)))) {
      if (Number.isInteger(t) && t <= right) c.fillText(t.toLocaleString('en-US'), x(t), height - 8);
    }
    for (const m of this.marks) {
      if (m.step < left || m.step > right) continue;
      c.strokeStyle = m.colour;
      c.setLineDash(m.short ? [] : [4, 3]);
      c.beginPath(); c.moveTo(x(m.step), m.short ? MARGIN.top + h - 9 : MARGIN.top); c.lineTo(x(m.step), MARGIN.top + h); c.stroke();
      c.setLineDash([]);
    }
    // Of more steps than pixels the least and the greatest of each pixel.
    for (const l of lines) {
      c.strokeStyle = c.fillStyle = l.colour;
      c.lineWidth = l.width ?? 1.6;
      c.beginPath();
      let open = false, pixel = null, lowest = 0, highest = 0;
      const flush = () => {
        if (pixel === null) return;
        if (open) c.lineTo(pixel, highest); else c.moveTo(pixel, highest);
        if (lowest !== highest) c.lineTo(pixel, lowest);
        open = true;
      };
      for (let i = 0; i < l.steps.length; i += 1) {
        const v = l.values[i];
        if (!usable(v)) { flush(); pixel = null; open = false; continue; }
        const px = Math.round(x(l.steps[i])), py = y(v);
        if (px === pixel) { lowest = Math.max(lowest, py); highest = Math.min(highest, py); continue; }
        flush();
        pixel = px; lowest = highest = py;
      }
      flush();
      if (this.area && open) {
        c.lineTo(x(l.steps[l.steps.length - 1]), y(0)); c.lineTo(x(l.steps[0]), y(0)); c.closePath(); c.fill();
      } else c.stroke();
    }
    for (const p of this.points) {
      if (!usable(p.value) || p.step < left || p.step > right) continue;
      c.fillStyle = p.colour;
      c.beginPath(); c.arc(x(p.step), y(p.value), 3.5, 0, 2 * Math.PI); c.fill();
    }
    if (this.cursor !== null && this.cursor >= left && this.cursor <= right) {
      c.strokeStyle = colour('text');
      c.lineWidth = 1;
      c.beginPath(); c.moveTo(x(this.cursor), MARGIN.top); c.lineTo(x(this.cursor), MARGIN.top + h); c.stroke();
    }
  }
}
